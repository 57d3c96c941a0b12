"""The hastened VAE on a CUDA card, at SDXL's size.

Run with `pytest -m gpu`. Last run: see docs/speed.md.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from benchmarks.random_sdxl import random_pipeline
from tests.tolerances import FP32, relative_error
from trainers.fast.vae import hasten
from trainers.sdxl import load_base

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card here"),
]
ROUNDING = 1.1
"""Times diffusers' own distance from fp32: where both round as often, chance decides which is nearer."""


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return random_pipeline(device="cuda").vae.float().eval()


@torch.no_grad()
def there_and_back(vae: AutoencoderKL, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean = vae.encode(pixels).latent_dist.mean  # pyright: ignore
    latents = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1)).to(pixels)
    return mean.float(), vae.decode(latents, return_dict=False)[0].float()


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("size", [(512, 512), (1024, 640), (2048, 1536)])
def test_it_is_as_near_to_fp32_as_diffusers_is(vae: AutoencoderKL, size: tuple[int, int]):
    pixels = torch.rand(2, 3, *size, device="cuda") * 2 - 1
    fast = copy.deepcopy(vae)
    hasten(fast)
    with torch.backends.cudnn.flags(allow_tf32=False):
        exact = there_and_back(vae, pixels)
        for found, expected in zip(there_and_back(fast, pixels), exact, strict=True):
            assert relative_error(found, expected) < 10 * FP32
    low = pixels.bfloat16()
    stock, ours = copy.deepcopy(vae).bfloat16(), copy.deepcopy(vae).bfloat16()
    hasten(ours)
    for found, theirs, expected in zip(there_and_back(ours, low), there_and_back(stock, low), exact, strict=True):
        assert distance(found, expected) < ROUNDING * distance(theirs, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two CUDA cards here")
def test_a_base_on_another_card_encodes_as_on_the_first(folder: Path):
    pixels, found = torch.rand(1, 3, 128, 128) * 2 - 1, list[torch.Tensor]()
    for device in ("cuda:1", "cuda:0"):
        found.append(load_base(str(folder), device=device, dtype=torch.bfloat16).encode_pictures(pixels)[0].cpu())
    assert torch.equal(*found)
