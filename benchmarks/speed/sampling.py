"""Pictures of 1024 px, 30 steps, guidance: diffusers' own pipeline against ours, turn by turn in one process."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline

from adapters.inject import attach
from adapters.registry import make_spec
from benchmarks.random_sdxl import random_pipeline
from trainers.fast.sampling import fast_sampling
from trainers.fast.vae import hasten
from trainers.sdxl import Base, generate
from trainers.sources import EMBEDDED, SDXL_LAYOUT

_PROMPT = "a photo of a sks dog"


def compare(device: torch.device, *, tiny: bool = False, rounds: int = 3, steps: int = 30) -> dict[str, float]:
    """Median seconds a picture: the stock pipeline and ours, bare and with an unmerged LoRA, one or each of four.

    Random weights; what each call prepares (the recording, the factors' stacks) is counted. At the end the VAE alone.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    pipe = random_pipeline(EMBEDDED if tiny else SDXL_LAYOUT, device=str(device)).to(device, dtype)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        part.requires_grad_(False).eval()
    vae = copy.deepcopy(pipe.vae)
    hasten(vae)
    base = Base("random", StableDiffusionXLPipeline(**{**pipe.components, "vae": vae}), device, dtype, "", "")
    base.pipe.set_progress_bar_config(disable=True)
    side = base.native_resolution

    def stock() -> None:
        pipe(_PROMPT, height=side, width=side, num_inference_steps=steps, guidance_scale=5.0)

    def ours(count: int = 1) -> None:
        list(generate(base, [_PROMPT] * count, seeds=list(range(count)), inference_steps=steps, batch_size=1))

    adapter = attach({"unet": pipe.unet}, make_spec(method="lora", rank=16), {"unet": "attention"}).to(device)
    adapter.detach()

    def with_lora(count: int) -> Callable[[], None]:
        def draw() -> None:
            adapter.attach()
            with ExitStack() as stack:
                stack.callback(adapter.detach)
                stack.enter_context(fast_sampling(pipe.unet, [adapter]))
                ours(count)

        return draw

    def fast(count: int) -> Callable[[], None]:
        def draw() -> None:
            with fast_sampling(pipe.unet):
                ours(count)

        return draw

    ways = {
        "stock": stock,
        "ours": fast(1),
        "ours with an unmerged LoRA": with_lora(1),
        "ours, of four": fast(4),
        "ours with an unmerged LoRA, of four": with_lora(4),
    }
    return _medians(ways, rounds, device) | _of_vaes({"stock": pipe.vae, "ours": vae}, side, device)


@torch.no_grad()
def _of_vaes(vaes: dict[str, AutoencoderKL], side: int, device: torch.device) -> dict[str, float]:
    """Seconds that each takes to encode and to decode one picture."""
    dtype = next(vaes["ours"].parameters()).dtype
    pixels = torch.rand(1, 3, side, side, device=device, dtype=dtype) * 2 - 1
    latents = vaes["ours"].encode(pixels).latent_dist.mean
    ways: dict[str, Callable[[], None]] = {}
    for name, vae in vaes.items():
        ways[f"VAE encodes, {name}"] = lambda vae=vae: vae.encode(pixels)
        ways[f"VAE decodes, {name}"] = lambda vae=vae: vae.decode(latents)
    return _medians(ways, 10, device)


def _medians(ways: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, float]:
    """Seconds a picture of each way; the order turns from round to round."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            seconds = _timed(ways[name], device) / (4 if name.endswith("of four") else 1)
            if number:  # the first is to warm up
                taken[name].append(seconds)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def _timed(work: Callable[[], None], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
