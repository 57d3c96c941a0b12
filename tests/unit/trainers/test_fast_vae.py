"""The VAE's fast forwards against diffusers' own."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import AutoencoderKL

from adapters.inject import base_hash
from tests.tolerances import FP64, relative_error
from trainers.fast.vae import hasten
from trainers.sdxl import tile_vae
from trainers.sources import find_source, load_pipeline


@pytest.fixture(scope="module")
def vaes() -> tuple[AutoencoderKL, AutoencoderKL]:
    """As loaded, and hastened."""
    own = load_pipeline(find_source("embedded"), torch.float64).vae.requires_grad_(False).eval()
    fast = copy.deepcopy(own)
    hasten(fast)
    return own, fast


@pytest.mark.parametrize("tiled", [False, True], ids=["whole", "in tiles"])
@torch.no_grad()
def test_it_encodes_and_decodes_as_diffusers_does(vaes: tuple[AutoencoderKL, AutoencoderKL], tiled: bool):
    own, fast = vaes
    for vae in vaes:
        tile_vae(vae)
        vae.use_tiling = tiled
    draws = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, 160, 96, generator=draws, dtype=torch.float64) * 2 - 1
    found, expected = (vae.encode(pixels).latent_dist for vae in (fast, own))  # pyright: ignore
    assert relative_error(found.mean, expected.mean) < FP64
    assert relative_error(found.std, expected.std) < FP64
    back, wanted = (vae.decode(expected.mean, return_dict=False)[0] for vae in (fast, own))
    assert relative_error(back, wanted) < FP64


def test_its_weights_and_their_hash_stay(vaes: tuple[AutoencoderKL, AutoencoderKL]):
    own, fast = vaes
    assert base_hash({"vae": own}) == base_hash({"vae": fast})
    assert own.state_dict().keys() == fast.state_dict().keys()


def test_every_block_of_it_is_replaced(vaes: tuple[AutoencoderKL, AutoencoderKL]):
    replaced = [name for name, module in vaes[1].named_modules() if "forward" in vars(module)]
    blocks = [name for name, module in vaes[0].named_modules() if type(module).__name__ == "ResnetBlock2D"]
    assert set(replaced) == {*blocks, "encoder.conv_norm_out", "decoder.conv_norm_out"}
