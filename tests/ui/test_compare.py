"""Compare in a real browser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from adapters.digest import file_sha256
from adapters.files import AdapterCard, save_adapter
from studio.library import Library
from studio.queue import Queue
from studio.store import TrainRequest, jobs
from tests.support import make_pictures, quick_config, random_lora
from tests.ui.conftest import Server
from trainers.captions import CaptionConfig
from trainers.concept import concept_id
from trainers.images import picture_paths
from trainers.sdxl import load_base

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no page was opened")
expect = sync_api.expect
DRAWING = 120_000
"""Milliseconds that two small pictures may take on a busy machine."""


@pytest.fixture
def adapters(server: Server, tmp_path: Path) -> str:
    """Two of the library, as an address names them; the first one's training pictures are here."""
    base, ids = load_base("embedded"), []
    concept = trained(server, make_pictures(tmp_path / "pictures"))
    for seed, trigger in enumerate(("sks", "zwx")):
        adapter = random_lora(base, seed=100 + seed)
        known = concept if trigger == "sks" else ""
        card = AdapterCard(trigger=trigger, class_word="dog", base=base.name, base_hash=base.hash, concept=known)
        save_adapter(tmp_path / f"{trigger}.safetensors", adapter, card)
        adapter.detach()
        ids.append(Library(server.home).add(tmp_path / f"{trigger}.safetensors", name=f"Dog {trigger}"))
    return ",".join(ids)


def trained(server: Server, pictures: Path) -> str:
    """The concept of a training that its worker will not do."""
    captions = CaptionConfig(trigger="sks", class_word="dog")
    config = quick_config(pictures, data={"folder": pictures, "captions": captions}).model_dump(mode="json")
    queue, id = Queue(server.home), jobs.new_id()
    with queue.store.writing() as session:
        jobs.insert(session, TrainRequest(config=config), server.home / id, id=id, title="Dog", batch=None, key=None)
        jobs.transition(session, id, "cancelled")
    return concept_id(captions, map(file_sha256, picture_paths(pictures)))


def test_two_adapters_are_drawn_side_by_side_and_slid_over_each_other(page: Any, adapters: str) -> None:
    page.goto(f"/compare?adapters={adapters}")
    strengths = page.get_by_label("Strengths")
    page.get_by_label("Steps").fill("1")
    strengths.fill("much")
    page.get_by_role("button", name="Draw").press("Enter")
    expect(page.locator("#compare-strengths-problem")).to_contain_text("Numbers from -10 to 10")
    expect(strengths).to_have_value("much")
    strengths.fill("1")
    page.get_by_role("button", name="Draw").press("Enter")
    pictures = page.locator(".s-matrix img")
    expect(pictures).to_have_count(2, timeout=DRAWING)
    for box in page.get_by_label(re.compile("For the slider")).all():
        box.press(" ")
    slider = page.get_by_label("How much of the left picture")
    under = page.locator(".s-wipe img")
    expect(under.first).to_have_attribute("src", re.compile("/picture/1$"))
    expect(under.last).to_have_attribute("alt", re.compile("^Dog sks: "))
    slider.press("Home")
    expect(page.locator(".s-wipe")).to_have_attribute("style", "--s-at: 0%;")
    meters = page.locator("tbody td meter")
    expect(meters).to_have_accessible_name(re.compile(r"^subject \d+ of 100$"), timeout=DRAWING)
    expect(page.get_by_text("The pictures that it was trained on are not here.")).to_be_visible(timeout=DRAWING)
    expect(slider).to_have_value("0")  # whatever has come meanwhile
    expect(slider).to_be_focused()
    page.reload()
    expect(pictures).to_have_count(2)
    expect(page.get_by_role("button", name="Use Dog zwx")).to_be_visible()
    for box in page.get_by_label(re.compile("For the slider")).all():
        box.press(" ")
    expect(slider).to_be_visible()
    strengths.fill("0.5")
    page.get_by_role("button", name="Draw").press("Enter")
    expect(slider).to_be_hidden()  # what is drawn now are others
