"""From pictures to a file for other programs, through every page on the way, without a mouse."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ui.conftest import OCTOPUS, ROOT
from tests.ui.keys import Keys

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no page was opened")
expect = sync_api.expect

LONG = 150_000
"""Milliseconds that a short run, or a small export, may take on a busy machine."""
SETTINGS = {"steps": "6", "adapter.rank": "2", "sample.inference_steps": "2", "sample.count": "1"}


def test_pictures_become_a_file_that_the_command_line_draws_with(page: Any, tmp_path: Path) -> None:
    keys = Keys(page)
    _teach(page, keys)
    _draw(page, keys)
    file = _export(page, keys, tmp_path)
    out = tmp_path / "drawn"
    words = ["sample", str(file), "--base", "embedded", "--prompt", "an octopus", "-n", "1", "--steps", "2"]
    subprocess.run(
        [sys.executable, "-m", "studio", *words, "--out", str(out)], check=True, cwd=ROOT, capture_output=True
    )
    assert (out / "an-octopus-0.png").is_file()


def _teach(page: Any, keys: Keys) -> None:
    page.goto("/")
    keys.press(page.get_by_role("link", name="Teach a new subject"))
    page.locator("#drop input[type=file]").set_input_files(OCTOPUS[:2])  # the system's own dialog
    expect(page.locator(".s-picture")).to_have_count(2)
    keys.write(page.get_by_label("What you call it"), "Ottilie")
    keys.write(page.get_by_label("What it is, in a word"), "octopus")
    quick = page.get_by_role("radio", name=re.compile("Quick"))
    expect(quick).to_be_visible(timeout=LONG)  # what can be chosen from is told when torch is there
    keys.choose(quick)
    keys.press(page.get_by_role("button", name="More control"))
    for key, value in SETTINGS.items():
        keys.write(page.get_by_label("Search the settings"), key)
        keys.write(page.locator(f'[id="knob-{key}"]'), value)
        expect(page.locator(f'.s-knob:has([id="knob-{key}"]) .s-mark-changed')).to_be_visible()
    expect(page.locator("#review")).to_contain_text("in 6 steps")
    keys.press(page.get_by_role("button", name="Start learning"))
    page.wait_for_url("**/run?job=*")
    expect(page.locator("#phase")).to_have_text("is ready", timeout=LONG)
    expect(page.locator("#run-samples")).to_contain_text("step 6")
    expect(page.locator("#loss")).to_be_visible()


def _draw(page: Any, keys: Keys) -> None:
    keys.press(page.get_by_role("link", name="Create with it"))
    page.wait_for_url("**/create?scene=*")
    expect(page.get_by_label("What to draw", exact=True)).to_have_value(re.compile("octopus"))
    keys.write(page.get_by_label("Strength of Ottilie, as a number"), "0.8")
    keys.write(page.get_by_label("Pictures", exact=True), "1")
    keys.press(page.get_by_role("button", name="More control"))
    keys.write(page.get_by_label("Steps"), "2")
    keys.press(page.get_by_role("button", name="Draw", exact=True), by="Shift+Tab")
    expect(page.locator(".s-drawn img")).to_have_count(1, timeout=LONG)


def _export(page: Any, keys: Keys, tmp_path: Path) -> Path:
    keys.press(page.get_by_role("link", name="Library", exact=True))
    keys.press(page.get_by_role("link", name="More on Ottilie"))
    keys.press(page.get_by_role("button", name="Make: LoRA"))
    ready = page.get_by_role("link", name="Download: LoRA")
    expect(ready).to_be_visible(timeout=LONG)
    keys.press(page.get_by_text("Who loads it"), by="Shift+Tab")
    expect(page.locator(".s-table")).to_contain_text("ComfyUI")
    with page.expect_download() as download:
        keys.press(ready)
    file = tmp_path / "ottilie.safetensors"
    download.value.save_as(file)
    return file
