"""The library in a real browser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from adapters.files import AdapterCard, save_adapter
from studio.library import Library
from tests.library import made
from tests.support import random_lora
from tests.ui.conftest import Server
from trainers.sdxl import load_base

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no page was opened")
expect = sync_api.expect


def entered(server: Server, tmp_path: Path, number: float, name: str, **more: Any) -> str:
    return Library(server.home).add(made(tmp_path / f"{number}.safetensors", number, **more), name=name)


def test_an_adapter_is_found_picked_thrown_away_and_taken_back(page: Any, server: Server, tmp_path: Path) -> None:
    first, second = (entered(server, tmp_path, number, f"Rex {number}") for number in (11, 12))
    entered(server, tmp_path, 13, "Otto", trigger="zwx")
    page.goto("/library?text=rex")
    expect(page.locator(".s-adapter")).to_have_count(2)
    page.get_by_label("Pick Rex 11").press(" ")
    page.get_by_label("Pick Rex 12").press(" ")
    bar = page.get_by_role("region", name="What is picked")
    expect(bar.get_by_role("link", name="Combine")).to_have_attribute(
        "href", re.compile(f"{second},{first}|{first},{second}")
    )
    bar.get_by_role("button", name="Move to the trash").press("Enter")
    expect(page.locator(".s-adapter")).to_have_count(0)
    page.get_by_role("button", name="Undo").press("Enter")
    expect(page.locator(".s-adapter")).to_have_count(2)
    expect(page.get_by_label("Pick Rex 11")).not_to_be_checked()


def test_what_is_picked_outlives_cards_that_were_drawn_before_the_server_knew(
    page: Any, server: Server, tmp_path: Path
) -> None:
    held = list[Any]()

    def hold(route: Any) -> None:
        if '"picked"' in route.request.post_data:
            held.append(route)
        else:
            route.continue_()

    entered(server, tmp_path, 31, "Fido 31")
    page.goto("/library?text=fido")
    box = page.get_by_label("Pick Fido 31")
    page.route("**/queue/join*", hold)
    box.press(" ")
    entered(server, tmp_path, 32, "Fido 32")
    expect(page.locator(".s-adapter")).to_have_count(2)
    expect(box).to_be_checked()
    page.get_by_label("Pick Fido 32").press(" ")
    while len(held) < 2:  # a press returns before its request is on the way
        page.wait_for_timeout(20)
    for route in held:
        with page.expect_response("**/queue/join*"):  # two at once may come in either order
            route.continue_()
    bar = page.get_by_role("region", name="What is picked")
    expect(bar).to_contain_text("2 picked")
    bar.get_by_role("button", name="Pick none").press("Enter")
    expect(bar).to_have_count(0)
    expect(box).not_to_be_checked()


def test_a_name_that_is_none_is_said_beside_it_and_stays(page: Any, server: Server, tmp_path: Path) -> None:
    page.goto(f"/adapter?id={entered(server, tmp_path, 21, 'Bello')}")
    name = page.get_by_label("Name", exact=True)
    name.fill("   ")
    name.press("Tab")
    expect(page.locator("#name-problem")).to_contain_text("Give 1 to 200 characters")
    expect(name).to_have_value("   ")
    name.fill("Bello <i>II</i>")
    name.press("Tab")
    expect(page.get_by_role("heading", level=1)).to_have_text("Bello <i>II</i>")


def test_files_are_imported_each_judged_alone(page: Any, tmp_path: Path) -> None:
    source, bad = tmp_path / "theirs.safetensors", tmp_path / "bad.safetensors"
    bad.write_bytes(b"no adapter")
    base = load_base("embedded")
    save_adapter(
        source, random_lora(base), AdapterCard(trigger="sks", class_word="dog", base=base.name, base_hash=base.hash)
    )
    page.goto("/library")
    page.locator("input[type=file]").set_input_files([bad, source])
    expect(page.locator("#library-told")).to_contain_text("bad.safetensors: It is not a safetensors file")
    expect(page.locator("#library-told")).to_contain_text("In the library")
    expect(page.get_by_role("link", name="More on sks dog").first).to_be_visible()
