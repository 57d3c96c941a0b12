"""Combining subjects in a real browser: who fits, a fusion and its report, regions, and an error that loses nothing."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from adapters.files import AdapterCard, save_adapter
from studio.library import Library
from studio.store import LibraryAdapter
from tests.support import random_lora
from tests.ui.conftest import Server
from trainers.sdxl import load_base

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no page was opened")
expect = sync_api.expect
LONG = 150_000
"""Milliseconds that a fusion may take on a busy machine."""
SUBJECTS = (("combsks", "octopus"), ("combzwx", "rocket"), ("combsks", "cat"))


@pytest.fixture(scope="module")
def subjects(server: Server, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Ids of three small adapters, of which the first and the last have one trigger."""
    base, library = load_base("embedded"), Library(server.home)
    found: list[str] = []
    for number, (trigger, class_word) in enumerate(SUBJECTS):
        path = tmp_path_factory.mktemp("subject") / "a.safetensors"
        adapters = random_lora(base, number)
        adapters.detach()
        card = AdapterCard(trigger=trigger, class_word=class_word, base="embedded", base_hash=base.hash)
        save_adapter(path, adapters, card)
        found.append(library.add(path))
    return found


def _card(page: Any, subject: str) -> Any:
    """By its id: the server's library has other tests' subjects, and this module's own of an earlier turn."""
    return page.locator(f'#combine-subjects input[data-adapter="{subject}"]')


def _fused(server: Server) -> dict[str, LibraryAdapter]:
    return {entry.id: entry for entry in Library(server.home).list_adapters("combsks") if entry.parents}


def test_two_subjects_become_one_file_with_a_verdict(page: Any, server: Server, subjects: list[str]) -> None:
    before = _fused(server)
    page.goto("/combine")
    _card(page, subjects[0]).check()
    expect(_card(page, subjects[2])).to_be_disabled()
    expect(page.locator("#combine-subjects")).to_contain_text("Has the same trigger as combsks octopus")
    _card(page, subjects[1]).focus()
    page.keyboard.press("Space")
    page.get_by_role("slider", name="Strength of combzwx rocket").press("ArrowLeft")
    page.get_by_text("How?").click()
    expect(page.get_by_role("radio", name=re.compile("OrthoFuse"))).to_be_disabled()
    page.get_by_role("radio", name=re.compile("^Sum")).check()
    expect(page.locator("#combine-mix summary").first).to_contain_text("Sum")
    page.get_by_role("button", name="Make one file").dblclick()
    expect(page.locator("#verdict")).to_be_visible(timeout=LONG)
    page.reload()
    expect(page.locator("#verdict")).to_contain_text("On its own prompts")
    expect(_card(page, subjects[0])).to_be_checked()
    expect(page.locator(".s-hot").first).to_be_visible()
    made = [entry for id_, entry in _fused(server).items() if id_ not in before]
    assert [entry.parents for entry in made] == [subjects[:2]]
    expect(page.get_by_role("link", name="Create with it")).to_have_attribute("href", f"/create?adapters={made[0].id}")
    assert made[0].job is not None
    other = page.context.new_page()
    other.goto(f"/combine?job={made[0].job}")
    expect(other.locator("#verdict")).to_be_visible()
    expect(other.get_by_role("slider", name="Strength of combzwx rocket")).to_have_value("0.95")


def test_an_error_is_said_beside_its_field_and_loses_nothing(page: Any, subjects: list[str]) -> None:
    page.goto(f"/combine?adapters={','.join(subjects[:2])}")
    page.get_by_text("More: settings").click()
    knob = page.locator("#knob-ridge")
    knob.fill("much")
    page.get_by_role("button", name="Make one file").click()
    expect(page.locator('.s-knob:has(#knob-ridge) [role="alert"]')).to_contain_text("must be a number")
    expect(knob).to_have_value("much")
    page.get_by_label("Seed").fill("-1")
    page.get_by_role("textbox", name="Prompt").fill("a combsks octopus on a table")
    page.get_by_role("button", name="Draw them").click()
    expect(page.locator("#seed-problem")).to_contain_text("whole number")
    page.reload()
    expect(page.get_by_role("textbox", name="Prompt")).to_have_value("a combsks octopus on a table")
    expect(page.locator("#knob-ridge")).to_have_value("much")


def test_regions_are_drawn_beside_the_sum_and_each_alone(page: Any, subjects: list[str]) -> None:
    page.goto(f"/combine?adapters={','.join(subjects[:2])}")
    page.get_by_role("radio", name=re.compile("own region")).check()
    box = page.locator(".s-box").first
    box.press("Shift+ArrowLeft")
    region = page.get_by_label("What is in region 2")
    region.fill("a rocket")
    page.get_by_role("button", name="Draw them").click()
    expect(page.locator("#regions-problem")).to_contain_text("No region says combzwx")
    expect(region).to_have_value("a rocket")
    region.fill("a combzwx rocket on the right")
    page.get_by_role("button", name="Draw them").click()
    expect(page.locator(".s-compare figure")).to_have_count(4)
    expect(page.locator(".s-compare img")).to_have_count(4, timeout=LONG)


def test_a_program_combines_and_reads_the_verdict(server: Server, subjects: list[str]) -> None:
    gradio_client = pytest.importorskip("gradio_client")
    client = gradio_client.Client(server.url, verbose=False)
    with pytest.raises(Exception, match="same trigger"):
        client.predict([subjects[0], subjects[2]], None, "", None, api_name="/fuse")
    with pytest.raises(Exception, match="no adapter"):
        client.predict(["../../etc/passwd", subjects[0]], None, "", None, api_name="/fuse")
    job = client.predict(subjects[:2], [1, 0.5], "mean", None, api_name="/fuse")
    deadline = time.monotonic() + LONG / 1000
    while (told := client.predict(job, api_name="/status"))["state"] not in ("done", "failed"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert told["state"] == "done", told["failure"]
    assert "On its own prompts" in told["verdict"]
    entry = Library(server.home).get_adapter(told["library"])
    assert entry.parents == subjects[:2]
    assert told["adapter"] == f"/media/job/{job}/adapter"
