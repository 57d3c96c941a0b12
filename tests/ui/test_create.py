"""Create in a real browser."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from studio.library import Library
from tests.library import made
from tests.ui.conftest import Server

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no page was opened")

expect = sync_api.expect
expect.set_options(timeout=30_000)
LONG = 150_000
"""Milliseconds that a few small pictures may take on a busy machine."""
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"


@pytest.fixture(scope="module")
def subjects(server: Server, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two of one base and one of another: their ids."""
    library, folder = Library(server.home), tmp_path_factory.mktemp("subjects")
    files = [
        made(folder / "dog.safetensors", 1, trigger="qwe", class_word="dog", base_hash="a"),
        made(folder / "cat.safetensors", 2, trigger="zwx", class_word="cat", base_hash="a"),
        made(folder / "far.safetensors", 3, trigger="ohwx", class_word="person", base=SDXL, base_hash="b"),
    ]
    return [library.add(file) for file in files]


def _prompt(page: Any) -> Any:
    return page.get_by_label("What to draw", exact=True)


def _draw(page: Any) -> None:
    page.get_by_role("button", name="Draw", exact=True).click()


def test_pictures_come_persist_and_fill_the_form_again_from_a_dropped_file(page: Any, tmp_path: Path) -> None:
    page.goto("/create?scene=new")
    page.wait_for_url(re.compile("scene=[a-z0-9]{10}"))
    _draw(page)
    expect(page.locator("#prompt-problem")).to_contain_text("Say what to draw")
    _prompt(page).fill("a red house <b>")
    page.get_by_label("Pictures", exact=True).fill("2")
    page.get_by_role("button", name="More control").click()
    page.get_by_label("Steps").fill("0")
    _draw(page)
    expect(page.locator("#steps-problem")).to_contain_text("from 1 to 1000")
    expect(_prompt(page)).to_have_value("a red house <b>")
    seed = page.get_by_label("Seed", exact=True).input_value()
    page.get_by_label("Steps").fill("2")
    _draw(page)
    pictures = page.locator(".s-drawn img")
    expect(pictures).to_have_count(2, timeout=LONG)
    expect(page.locator(".s-history li").first).to_contain_text("a red house <b>")
    expect(page.get_by_label("Seed", exact=True)).not_to_have_value(seed)
    page.reload()
    expect(pictures).to_have_count(2)
    expect(_prompt(page)).to_have_value("a red house <b>")
    file = tmp_path / "picture.png"
    file.write_bytes(page.request.get(page.locator(".s-drawn a").first.get_attribute("href")).body())
    page.goto("/create?scene=new")
    expect(page.locator("#no-pictures")).to_be_visible()
    page.get_by_role("button", name="Settings of a picture").click()
    page.locator("#recipe input[type=file]").set_input_files(file)
    expect(_prompt(page)).to_have_value("a red house <b>")
    expect(page.get_by_label("Seed", exact=True)).to_have_value(seed)
    bare = io.BytesIO()
    Image.new("RGB", (8, 8)).save(bare, format="PNG")
    page.locator("#recipe input[type=file]").set_input_files(
        {"name": "bare.png", "mimeType": "image/png", "buffer": bare.getvalue()}
    )
    expect(page.locator("#recipe-problem")).to_contain_text("bare.png carries no recipe")
    expect(_prompt(page)).to_have_value("a red house <b>")


def test_subjects_and_regions_are_chosen_by_mouse_and_by_keyboard(page: Any, subjects: list[str]) -> None:
    page.goto(f"/create?adapters={subjects[0]}")
    expect(_prompt(page)).to_have_value("qwe dog")
    chips = page.get_by_role("group", name="Subjects")
    expect(chips.get_by_role("button", name=re.compile("ohwx person"))).to_contain_text("another base")
    cat = chips.get_by_role("button", name="zwx cat")
    cat.focus()
    page.keyboard.press("Enter")
    expect(cat).to_have_attribute("aria-pressed", "true")
    expect(_prompt(page)).to_have_value("qwe dog and zwx cat")
    page.get_by_label("Strength of zwx cat, as a number").fill("0.5")
    page.get_by_role("button", name="Places of subjects").click()
    page.get_by_role("radio", name="Where I draw it").check()
    canvas = page.locator(".s-canvas")
    canvas.scroll_into_view_if_needed()
    frame = canvas.bounding_box()
    page.mouse.move(frame["x"] + 10, frame["y"] + 10)
    page.mouse.down()
    page.mouse.move(frame["x"] + 120, frame["y"] + 200, steps=3)
    page.mouse.up()
    expect(page.get_by_label("What is in region 1")).to_have_value("qwe dog")
    page.get_by_role("button", name="Add a region").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Shift+ArrowUp")
    expect(page.get_by_label("What is in region 2")).to_have_value("zwx cat")
    page.get_by_label("Pictures", exact=True).fill("0")
    _draw(page)
    expect(page.locator("#count-problem")).to_contain_text("from 1 to 32")
    page.reload()
    page.get_by_role("button", name="Places of subjects").click()
    expect(page.locator(".s-box")).to_have_count(2)
    assert page.locator(".s-box").nth(1).evaluate("box => box.style.height") == "98%"
    expect(page.get_by_label("Strength of zwx cat, as a number")).to_have_value("0.5")
