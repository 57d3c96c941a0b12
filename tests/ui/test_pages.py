"""The pages in a real browser."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.ui.conftest import OCTOPUS

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no page was opened")
expect = sync_api.expect

LONG = 150_000
"""Milliseconds that a short run may take on a busy machine."""


def _png(size: tuple[int, int] = (160, 120), colour: str = "teal") -> bytes:
    buffer = io.BytesIO()
    picture = Image.effect_noise(size, 80).convert("RGB")
    Image.blend(picture, Image.new("RGB", size, colour), 0.4).save(buffer, format="PNG")
    return buffer.getvalue()


def _turned() -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.effect_noise((200, 100), 80).convert("RGB").save(buffer, format="JPEG", exif=exif)
    return buffer.getvalue()


def _drop(page: Any, files: list[Any]) -> None:
    page.locator("#drop input[type=file]").set_input_files(files)


def _new(page: Any) -> None:
    page.goto("/new")
    expect(page.get_by_role("radio", name=re.compile("Quick"))).to_be_visible()


def _short_run(page: Any, steps: int) -> None:
    """Fills the whole form in as a person would, and starts."""
    _new(page)
    _drop(page, OCTOPUS[:2])
    expect(page.locator(".s-picture")).to_have_count(2)
    page.get_by_label("What it is, in a word").fill("octopus")
    page.get_by_role("radio", name=re.compile("Quick")).check()
    page.get_by_role("button", name="More control").click()
    for key, value in (("steps", str(steps)), ("sample.inference_steps", "2"), ("sample.count", "1")):
        knob = page.locator(f'[id="knob-{key}"]')
        page.get_by_label("Search the settings").fill(key)
        knob.fill(value)
        knob.press("Tab")
        expect(page.locator(f'.s-knob:has([id="knob-{key}"]) .s-mark-changed')).to_be_visible()
    expect(page.locator("#review")).to_contain_text(f"in {steps} steps")
    page.get_by_role("button", name="Start learning").click()
    page.wait_for_url("**/run?job=*")


def test_a_start_without_anything_says_so_beside_each_field_and_keeps_what_was_written(page: Any) -> None:
    _new(page)
    page.get_by_label("What you call it").fill("Otto")
    page.get_by_role("button", name="Start learning").click()
    expect(page.locator("#pictures-problem")).to_contain_text("Drop at least one picture")
    expect(page.locator("#class-problem")).to_contain_text("Say what it is")
    expect(page.get_by_label("What you call it")).to_have_value("Otto")
    page.get_by_label("Word that will stand for it").fill("")
    page.get_by_label("Word that will stand for it").press("Tab")
    expect(page.locator("#trigger-problem")).to_contain_text("Give a word")
    expect(page.locator("#class-problem")).to_contain_text("Say what it is")
    page.reload()
    expect(page.get_by_label("What you call it")).to_have_value("Otto")


def test_a_setting_that_will_not_do_is_said_at_the_setting(page: Any) -> None:
    _new(page)
    page.get_by_role("button", name="More control").click()
    knob = page.locator('[id="knob-steps"]')
    knob.fill("many")
    knob.press("Tab")
    expect(page.locator('.s-knob:has([id="knob-steps"]) [role=alert]')).to_contain_text("whole number")
    expect(knob).to_have_value("many")
    page.get_by_role("button", name="Set steps back").click()
    expect(page.locator('.s-knob:has([id="knob-steps"]) [role=alert]')).to_have_count(0)


def test_changes_that_follow_each_other_quickly_all_arrive(page: Any) -> None:
    page.goto("/new?sample=1")
    expect(page.locator(".s-picture")).to_have_count(5)
    page.get_by_role("button", name="More control").click()
    expect(page.locator('[id="knob-steps"]')).to_be_visible()
    captions = page.locator(".s-picture textarea")
    page.evaluate(
        """() => {
          const write = (field, text) => {
            field.value = text;
            field.dispatchEvent(new Event('change', {bubbles: true}));
          };
          const captions = document.querySelectorAll('.s-picture textarea');
          captions.forEach((field, number) => write(field, `caption ${number}`));
          write(document.getElementById('knob-steps'), '77');
          write(document.getElementById('knob-adapter.rank'), '3');
        }"""
    )
    for key in ("steps", "adapter.rank"):
        expect(page.locator(f'.s-knob:has([id="knob-{key}"]) .s-mark-changed')).to_be_attached()
    page.reload()
    page.get_by_role("button", name="More control").click()
    for number in range(5):
        expect(captions.nth(number)).to_have_value(f"caption {number}")
    expect(page.locator('[id="knob-steps"]')).to_have_value("77")
    expect(page.locator('[id="knob-adapter.rank"]')).to_have_value("3")


def test_a_mixed_drop_is_judged_file_by_file(page: Any, tmp_path: Path) -> None:
    first = _png()
    files = [
        ("gut.png", first), ("noch einmal.png", first), ("gedreht.jpg", _turned()),
        ("日本語 ü.png", _png(colour="red")),
        ("kaputt.png", b"\x89PNG\r\n\x1a\nno"), ("notes.txt", b"hello"), ("gut.txt", b"a zwx on a table"),
        ("zu-gross.png", first + b"\0" * (51 * 2**20)), ("klein.png", _png((64, 64))),
    ]  # fmt: skip
    _new(page)
    for name, data in files:
        (tmp_path / name).write_bytes(data)
    _drop(page, [tmp_path / name for name, _ in files])
    cards = page.locator(".s-picture")
    expect(cards).to_have_count(5)
    refused = page.locator("#refused")
    for text in ("kaputt.png: is not a picture", "notes.txt: is a text", "larger than 50 MiB"):
        expect(refused).to_contain_text(text)
    expect(cards.nth(1)).to_contain_text("the same file as no. 1")
    expect(cards.nth(2)).to_contain_text("100 × 200")
    expect(cards.nth(3)).to_contain_text("日本語")
    expect(cards.nth(4)).to_contain_text("only 64 px")
    expect(cards.nth(0).get_by_role("textbox")).to_have_value("a zwx on a table")
    cards.nth(1).get_by_role("button", name=re.compile("Remove")).click()
    expect(cards).to_have_count(4)
    expect(cards.nth(0).get_by_role("textbox")).to_have_value("a zwx on a table")


def test_the_sample_pictures_come_with_their_captions(page: Any) -> None:
    page.goto("/new?sample=1")
    expect(page.locator(".s-picture")).to_have_count(5)
    expect(page.locator(".s-picture").first.get_by_role("textbox")).to_have_value("a sks octopus on a white background")
    expect(page.locator("#review")).to_contain_text("5 pictures")


def test_yaml_and_command_follow_the_settings(page: Any) -> None:
    _new(page)
    page.get_by_role("radio", name=re.compile("Quick")).check()
    page.get_by_role("button", name="More control").click()
    page.locator('[id="knob-adapter.method"]').select_option("dora")
    page.get_by_role("tab", name="As a command").click()
    expect(page.locator("#command")).to_contain_text("adapter.method=dora")
    page.get_by_role("tab", name="As YAML").click()
    expect(page.locator("#yaml")).to_contain_text("method: dora")


@pytest.mark.parametrize("path", ["/", "/new?sample=1", "/run?job=nothing"])
def test_a_page_fits_a_telephone(page: Any, path: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(path)
    expect(page.locator("#strip .s-strip")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_run_that_is_stopped_can_go_on_and_says_so_in_a_second_tab(page: Any) -> None:
    _short_run(page, steps=400)
    second = page.context.new_page()
    second.goto(page.url)
    expect(second.locator("#phase")).to_contain_text(re.compile(r"step [1-9]\d* of 400"), timeout=LONG)
    page.get_by_role("button", name="Stop").click()
    expect(second.locator("#phase")).to_contain_text("was stopped")
    expect(second.get_by_role("button", name="Go on after all")).to_be_visible()
