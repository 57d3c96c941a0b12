"""`studio doctor`: what this machine can and cannot do, in words."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil
import torch

from studio import __version__
from studio.paths import existing_parent
from trainers.cache import default_root
from trainers.fast.attention import BACKENDS, why_not
from trainers.sources import EMBEDDED

Level = Literal["good", "note", "bad"]
GIB = 2**30
_EXTRAS = {
    "bitsandbytes": ("quantized", "bases of 4 and 8 bits, 8-bit optimizers"),
    "prodigyopt": ("optimizers", "the optimizer Prodigy"),
    "pytorch_optimizer": ("optimizers", "a hundred further optimizers"),
    "pillow_heif": ("heic", "HEIC pictures from phones"),
    "xformers": ("gpu", "xformers' attention"),
    "gradio": ("ui", "the web pages"),
    "tensorboard": ("tracking", "TensorBoard's curves"),
    "wandb": ("tracking", "tracking with wandb"),
}
SDXL_GIB = {"best": 23.0, "balanced": 11.5, "small-gpu": 7.5, "low-memory": 3.9}
"""GPU memory in GiB from which a preset is advised for SDXL at 1024 px: docs/measurements.md and some room."""
_SDXL_DISK_GIB = 8.0


@dataclass(frozen=True)
class Finding:
    level: Level
    text: str


@dataclass(frozen=True)
class Gpu:
    """A CUDA device; memory in GiB."""

    name: str
    total: float
    free: float
    bf16: bool


def gpus() -> list[Gpu]:
    """The GPUs that torch sees."""
    found: list[Gpu] = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        bf16 = torch.cuda.get_device_capability(index) >= (8, 0)
        found.append(Gpu(name, total / GIB, free / GIB, bf16))
    return found


def recommended_preset(found: list[Gpu]) -> str | None:
    """The preset for SDXL on the best GPU; None where SDXL cannot be trained."""
    largest = max((gpu.total for gpu in found), default=0.0)
    return next((name for name, needed in SDXL_GIB.items() if largest >= needed), None)


def examine() -> Iterator[Finding]:
    """Everything worth saying about this machine, the verdict last."""
    found = gpus()
    yield Finding(
        "good",
        f"Spectral Studio {__version__}, Python {platform.python_version()}, torch {torch.__version__} "
        f"on {platform.system()} {platform.machine()}.",
    )
    yield from _gpu_findings(found)
    yield from _attention_findings(found)
    yield from _memory_findings()
    yield from _disk_findings()
    yield from _extra_findings()
    yield from _verdict(found)


def _gpu_findings(found: list[Gpu]) -> Iterator[Finding]:
    for gpu in found:
        kinds = "bf16 and fp16" if gpu.bf16 else "fp16 (no bf16)"
        yield Finding(
            "good", f"GPU {gpu.name}: {gpu.total:.1f} GiB, of which {gpu.free:.1f} are free; computes in {kinds}."
        )
    if len(found) > 1:
        yield Finding("good", f"{len(found)} GPUs can share a run: studio train … --gpus {len(found)}.")
    if not found and torch.version.cuda is None:
        yield Finding("note", "No GPU is used: this torch is a CPU build.")
    elif not found:
        yield Finding("note", "No NVIDIA GPU is seen (is its driver installed?).")


def _attention_findings(found: list[Gpu]) -> Iterator[Finding]:
    """Which attention backends work (each is tried), and why the others do not."""
    device = torch.device("cuda" if found else "cpu")
    problems = {name: why_not(name, device) for name in BACKENDS}
    working = ", ".join(name for name, problem in problems.items() if problem is None)
    yield Finding("good", f"Attention that works here (--set attention=…): {working}.")
    for name, problem in problems.items():
        if problem is not None:
            yield Finding("note", f"Attention by {name} does not work here: {problem}")


def _memory_findings() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    level: Level = "good" if memory.available > 4 * GIB else "note"
    yield Finding(
        level,
        f"{cores} CPU cores; {memory.total / GIB:.1f} GiB of memory, of which {memory.available / GIB:.1f} are free.",
    )


def _disk_findings() -> Iterator[Finding]:
    for what, folder in (("the cache", default_root()), ("the current folder", Path.cwd())):
        free = shutil.disk_usage(existing_parent(folder)).free / GIB
        level: Level = "good" if free > _SDXL_DISK_GIB else ("note" if free > 1 else "bad")
        hint = "" if level == "good" else "; a hub SDXL takes 7 GiB" if level == "note" else "; that is too little"
        yield Finding(level, f"Disk of {what} ({folder}): {free:.1f} GiB free{hint}.")
    if not (EMBEDDED / "model_index.json").exists():
        yield Finding("bad", f"The embedded base is missing ({EMBEDDED}): install the package again.")


def _extra_findings() -> Iterator[Finding]:
    for package, (extra, gives) in _EXTRAS.items():
        if importlib.util.find_spec(package) is None:
            yield Finding("note", f'Not installed: {gives} (pip install "spectral-studio[{extra}]").')
        else:
            yield Finding("good", f"Installed: {gives} ({package} {_version(package)}).")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"


def _verdict(found: list[Gpu]) -> Iterator[Finding]:
    yield Finding("good", "Can train and draw with the embedded base (128 px): studio train FOLDER --preset balanced.")
    preset = recommended_preset(found)
    if preset is not None:
        yield Finding("good", f"Can train SDXL at 1024 px: studio train FOLDER --base ID --preset {preset}.")
    elif found:
        yield Finding(
            "bad",
            f"Cannot train SDXL at 1024 px: that needs a GPU of {SDXL_GIB['low-memory']:.0f} GiB or more. "
            "Try --preset low-memory --set data.resolution=512.",
        )
    else:
        yield Finding("bad", "Cannot train SDXL in a reasonable time: that needs an NVIDIA GPU.")
