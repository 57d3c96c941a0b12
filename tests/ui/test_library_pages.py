"""The library in a real browser."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapters.files import AdapterCard, save_adapter
from studio.library import Library
from tests.library import made
from tests.support import random_lora
from tests.ui.conftest import ROOT, Server
from trainers.sdxl import load_base

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no page was opened")
expect = sync_api.expect
MAKING = 120_000
"""Milliseconds that a small export may take on a busy machine: its process has torch to load."""


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


def test_a_file_is_imported_and_goes_out_again_for_other_programs(page: Any, tmp_path: Path) -> None:
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
    page.get_by_role("link", name="More on").first.click()
    page.get_by_role("button", name="Make: LoRA").click()
    ready = page.get_by_role("link", name="Download: LoRA")
    expect(ready).to_be_visible(timeout=MAKING)
    page.get_by_text("Who loads it").click()
    expect(page.locator(".s-table")).to_contain_text("ComfyUI")
    with page.expect_download() as download:
        ready.click()
    file = tmp_path / "out.safetensors"
    download.value.save_as(file)
    subprocess.run([sys.executable, "-m", "studio", "info", str(file)], check=True, cwd=ROOT, capture_output=True)
