"""Runs on a base of fewer bits: they learn, resume bit for bit, and their files fit the base as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapters.errors import UserInputError
from adapters.files import attach_file
from adapters.quantized import QUANTIZATIONS, Quantized
from tests.support import BASE, adapter_tensors, quick_config, run
from trainers.bases import load_for
from trainers.config import TrainConfig
from trainers.events import Finished, Validated
from trainers.sdxl import generate, load_base, tile_vae


def configured(pictures: Path, kind: str, **changes: object) -> TrainConfig:
    return quick_config(pictures, quantization=kind, **changes)


METHODS = pytest.mark.parametrize(
    ("kind", "adapter"),
    [
        ("nf4", {"method": "lora", "rank": 4}),
        pytest.param("nf4", {"method": "lora", "rank": 4, "init": "loftq"}, marks=pytest.mark.slow),
        ("int8", {"method": "dora", "rank": 4}),
        ("fp8", {"method": "lokr"}),
    ],
    ids=["qlora", "loftq", "int8-dora", "fp8-lokr"],
)


@METHODS
def test_an_interrupted_run_on_fewer_bits_ends_like_an_uninterrupted_one(
    pictures: Path, cache: Path, tmp_path: Path, kind: str, adapter: dict[str, object]
):
    config = configured(pictures, kind, adapter=adapter, steps=3, validation_levels=0)
    run(config, tmp_path / "whole", cache)
    asked = iter([None, "pause"])
    run(config, tmp_path / "halves", cache, commands=lambda: next(asked))
    run(config, tmp_path / "halves", cache, resume=True)
    whole, halves = (adapter_tensors(tmp_path / name / "adapter.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(whole[name], halves[name]) for name in whole | halves)


def test_a_run_on_four_bits_learns_and_draws(pictures: Path, cache: Path, tmp_path: Path):
    sample = {"count": 1, "inference_steps": 2}
    events = run(configured(pictures, "nf4", steps=30, batch_size=2, sample=sample), tmp_path, cache)
    validated = [event for event in events if isinstance(event, Validated)]
    assert validated[-1].loss < 0.97 * validated[0].base_loss
    assert isinstance(events[-1], Finished)
    assert len(list((tmp_path / "samples").glob("*.png"))) == 1


def test_what_was_learnt_on_four_bits_fits_and_merges_into_the_base_as_it_was(
    pictures: Path, cache: Path, tmp_path: Path
):
    run(configured(pictures, "nf4"), tmp_path, cache)
    base = load_base(BASE)

    def drawn() -> bytes:
        (made,) = generate(base, ["a photo of a sks octopus"], seeds=[0], inference_steps=2)
        return made.tobytes()

    bare = drawn()
    adapter = attach_file(base.components, tmp_path / "adapter.safetensors", base.hash)
    attached = drawn()
    adapter.merge()
    merged = drawn()
    assert attached != bare
    assert max(abs(a - b) for a, b in zip(attached, merged, strict=True)) <= 2


@pytest.mark.parametrize("kind", sorted(QUANTIZATIONS))
def test_the_unet_takes_the_fewer_bytes_that_it_promises(pictures: Path, kind: str):
    def size(config: TrainConfig) -> int:
        unet = load_for(config, torch.device("cpu")).unet
        return sum(t.nbytes for t in (*unet.parameters(), *unet.buffers()))

    bits = {"nf4": 6.0, "int8": 10.0, "fp8": 10.0}[kind]  # a weight, with scales and what stays as it was
    assert size(configured(pictures, kind)) < bits / 32 * size(configured(pictures, "none"))


def test_what_stays_as_it_was_is_what_follows_single_layers(pictures: Path):
    unet = load_for(configured(pictures, "fp8"), torch.device("cpu")).unet
    assert not isinstance(unet.conv_in, Quantized) and not isinstance(unet.conv_out, Quantized)
    assert isinstance(unet.mid_block.attentions[0].proj_in, Quantized)


def test_loftq_on_a_base_as_it_is_is_refused_before_anything_is_loaded(pictures: Path):
    with pytest.raises(UserInputError, match="quantization=nf4"):
        configured(pictures, "none", adapter={"method": "lora", "init": "loftq"})


def test_a_folder_that_is_not_there_is_refused_before_the_base_is_loaded(cache: Path, tmp_path: Path):
    config = quick_config(tmp_path / "nowhere", base=str(tmp_path / "no base either"))
    with pytest.raises(UserInputError, match="nowhere"):
        run(config, tmp_path, cache)


def test_pictures_in_tiles_are_nearly_those_in_one_piece():
    base = load_base(BASE)
    pixels = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole, _ = base.encode_pictures(pixels)
    tile_vae(base.vae)
    tiled, _ = base.encode_pictures(pixels)
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)
    assert (tiled - whole).norm() < 0.25 * whole.norm()
