"""Times, memory, arithmetic: what is measured of a contestant, and against what ceiling."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.model import Setting
from benchmarks.speed.ours import FIRST_LAYER


class Contestant(Protocol):
    note: str
    trainable: int

    def step(self) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Measurement:
    """One contestant built, warmed up, timed and taken down; alone on the device."""

    ms: list[float]
    """Each step."""
    setup_s: float
    """From nothing to the first timed step: building, compiling, recording, warming up."""
    allocated_gib: float
    """torch's peak from nothing on: what a graph keeps for itself counts, as it was taken from the same pool."""
    reserved_gib: float
    trainable: int
    note: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(build: Callable[[], Contestant], device: torch.device, *, warm: int = 4, steps: int = 20) -> Measurement:
    """Builds a contestant, steps it and lets it go. Steps follow each other without waiting for the device."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    contestant = build()
    try:
        for _ in range(warm):
            contestant.step()
        _wait(device)
        setup = time.perf_counter() - started
        ms = _time_on_gpu(contestant, steps) if on_gpu else time_on_cpu(contestant, steps)
        peaks = (torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)) if on_gpu else (0, 0)
        return Measurement(ms, setup, peaks[0] / 2**30, peaks[1] / 2**30, contestant.trainable, contestant.note)
    finally:
        contestant.close()
        del contestant
        release(device)


def release(device: torch.device) -> None:
    """Gives all unused memory back, so that the next contestant starts from nothing."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _time_on_gpu(contestant: Contestant, steps: int) -> list[float]:
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    marks[0].record()
    for mark in marks[1:]:
        contestant.step()
        mark.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in pairwise(marks)]


def time_on_cpu(contestant: Contestant, steps: int) -> list[float]:
    found: list[float] = []
    for _ in range(steps):
        started = time.perf_counter()
        contestant.step()
        found.append(1000 * (time.perf_counter() - started))
    return found


def ceiling(device: torch.device, dtype: torch.dtype, size: int = 8192) -> float:
    """TFLOP/s of size³ products of random matrices: the median of 30, after 10 to warm up."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)

    class Product:
        note, trainable = "", 0

        def step(self) -> None:
            torch.mm(a, b, out=out)

        def close(self) -> None: ...

    taken = measure(Product, device, warm=10, steps=30).ms
    return 2 * size**3 / (statistics.median(taken) / 1000) / 1e12


def step_flops(setting: Setting) -> int:
    """Of one frozen step: forward, and back to the first attention layer's output; counted on the meta device.

    An adapter's own products (1 to 2 % more) do not count: MFU tells what share of the ceiling the model itself gets.
    """
    meta = Setting(setting.batch_size, torch.device("meta"), torch.float32, setting.tiny)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(meta.config("unet")).requires_grad_(False)
        unet.get_submodule(FIRST_LAYER).register_forward_hook(lambda _module, _args, y: y.requires_grad_())
        context, pooled = meta.text_shapes(setting.batch_size)
        conditions = {"text_embeds": torch.empty(pooled), "time_ids": torch.empty(setting.batch_size, 6)}
        latents, times = torch.empty(meta.latent_shape(setting.batch_size)), torch.zeros(setting.batch_size)
        with FlopCounterMode(display=False) as counted:
            out = unet(latents, times, torch.empty(context), added_cond_kwargs=conditions, return_dict=False)[0]
            out.sum().backward()
    return counted.get_total_flops()
