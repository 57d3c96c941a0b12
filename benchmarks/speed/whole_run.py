"""A whole run in a process of its own: when its first step and its last picture came, and what it held of the GPU.

It does what `studio train` does; the clock starts before Python does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.random_sdxl import random_pipeline
from trainers.sources import EMBEDDED, SDXL_LAYOUT

_MARK = "whole run: "
_SHORT = ("steps=12", "save_every=0", "sample.count=2", "sample.inference_steps=4")
_LONG = ("steps=500", "prior.weight=1", "prior.folder={classes}", "sample.count=4", "sample.inference_steps=30")
RUNS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "balanced": ("balanced", _SHORT),
    "small-gpu": ("small-gpu", _SHORT),
    "low-memory": ("low-memory", _SHORT),
    "fp8": ("balanced", (*_SHORT, "quantization=fp8")),
    "int8": ("balanced", (*_SHORT, "quantization=int8")),
    "nf4": ("balanced", (*_SHORT, "quantization=nf4")),
    "500 steps, class pictures, four samples": (None, _LONG),
}
"""By name: preset and settings."""


def measure_runs(work: Path, *, tiny: bool = False) -> dict[str, dict[str, Any]]:
    """Every run of RUNS on five pictures and twelve class pictures; the base, 7 GB, is written into `work` first."""
    base = work / "base"
    if not (base / "model_index.json").exists():
        random_pipeline(EMBEDDED if tiny else SDXL_LAYOUT).save_pretrained(base)
    side = 128 if tiny else 1024
    pictures, classes = make_pictures(work / "pictures", 5, side), make_pictures(work / "classes", 12, side)
    found: dict[str, dict[str, Any]] = {}
    for name, (preset, settings) in RUNS.items():
        out = work / "runs" / f"{name.partition(',')[0]}-{time.time():.0f}"
        found[name] = measure_run(base, pictures, out, preset, [s.format(classes=classes) for s in settings])
        print(json.dumps({"run": name, **found[name]}), flush=True)
    return found


def measure_run(base: Path, folder: Path, out: Path, preset: str | None, settings: Sequence[str]) -> dict[str, Any]:
    """Trains on `folder`'s pictures in a new process.

    Args:
        base: a diffusers folder or checkpoint file.
        settings: key=value, as `studio train --set` takes them.

    Returns:
        "started", "first_step" (its numbers are there; steps are reported every tenth, so that is the tenth),
        "steps", "finished": seconds since the process was asked for; "ms": median milliseconds a step;
        "allocated_gib", "reserved_gib": the run's peaks.
    """
    asked = time.time()
    command = [sys.executable, "-m", "benchmarks.speed.whole_run", str(asked), str(base), str(folder), str(out)]
    done = subprocess.run([*command, preset or "-", *settings], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode != 0 or not lines:
        raise RuntimeError(f"the run failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return json.loads(lines[-1].removeprefix(_MARK))


def make_pictures(folder: Path, count: int = 5, side: int = 1024, start: int = 0) -> Path:
    """Pictures of coloured cells, the same for the same number: what they show is nothing to a speed."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        cells = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def _run(asked: float, base: str, folder: str, out: str, preset: str, settings: list[str]) -> dict[str, Any]:
    from studio.start import import_diffusers

    import_diffusers()
    import torch

    from studio.config import compose, family_of, flags_layer, preset_layers, set_layer
    from trainers.loop import train

    flags = {"base": base, "data.folder": folder, "data.captions.trigger": "sks", "data.captions.class_word": "dog"}
    presets = [] if preset == "-" else preset_layers(preset, family_of(base))
    config = compose([*presets, flags_layer(flags), set_layer(settings)])
    times: dict[str, float] = {"imported": time.time() - asked}
    steps: list[float] = []
    allocated = reserved = 0
    for event in train(config, Path(out)):
        times.setdefault(_name(event), time.time() - asked)
        if event.kind == "stepped":
            times["steps"] = time.time() - asked
            steps.append(1000 * event.seconds_per_step)
        if event.kind in ("started", "finished") and torch.cuda.is_available():
            allocated = max(allocated, torch.cuda.max_memory_allocated())
            reserved = max(reserved, torch.cuda.max_memory_reserved())
    ms = sorted(steps)[len(steps) // 2] if steps else 0.0
    memory = {"allocated_gib": allocated / 2**30, "reserved_gib": reserved / 2**30}
    return {**{name: round(at, 2) for name, at in times.items()}, "ms": round(ms, 2), **memory}


def _name(event: Any) -> str:
    if event.kind == "progress":
        return str(event.stage)
    return "first_step" if event.kind == "stepped" else str(event.kind)


if __name__ == "__main__":
    asked, *words = sys.argv[1:6]
    print(_MARK + json.dumps(_run(float(asked), *words, sys.argv[6:])), flush=True)
