"""Subjects an hour of a batch on Ray: several GPUs against one of them, through `studio batch`'s own cluster code.

Each GPU's first subject is not counted: it brings imports, the base and the first recording, once for each worker.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_sdxl import random_pipeline
from benchmarks.speed.run import versions
from benchmarks.speed.whole_run import make_pictures
from studio.batch import cluster
from studio.batch.plan import Plan, PlannedRun
from studio.config import compose, flags_layer, set_layer
from trainers.sources import EMBEDDED, SDXL_LAYOUT

RESULTS = Path(__file__).parents[1] / "results" / "subjects.json"
BAR = 0.95
"""Of what so many GPUs could do at most: 3.8 times the subjects on four."""
_SETTINGS = ("steps={steps}", "save_every=0", "sample.count=1", "sample.inference_steps=30")
_STORE_BYTES = 80_000_000
"""Of Ray's own store, through which only configurations and statuses go."""


@dataclass
class _Heard:
    """What the batch says of its runs, and when."""

    ended: list[float] = field(default_factory=list[float])
    told: list[str] = field(default_factory=list[str])

    def __call__(self, text: str) -> None:
        self.told.append(text)
        if text.startswith("["):
            self.ended.append(time.perf_counter())


def compare(gpus: int, each: int, steps: int, *, tiny: bool = False) -> dict[str, Any]:
    """One GPU, then `gpus`: each does 1 + `each` subjects.

    Returns:
        By number of GPUs "subjects_an_hour", seconds after the first subjects, and "whole_s" with them.
    """
    device = "CPU" if tiny else torch.cuda.get_device_name()
    found: dict[str, Any] = {
        "device": device,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "tiny": tiny,
        "steps": steps,
        "subjects_each": each,
        "versions": versions(),
        "gpus": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ["SPECTRAL_STUDIO_CACHE"] = str(work / "cache")  # the workers' too
        random_pipeline(EMBEDDED if tiny else SDXL_LAYOUT).save_pretrained(work / "base")
        for count in (1, gpus):
            found["gpus"][count] = _measure(work, count, each, steps, tiny)
            print(json.dumps({"gpus": count, **found["gpus"][count]}), flush=True)
    rates = {count: one["subjects_an_hour"] for count, one in found["gpus"].items()}
    return {**found, "ratio": rates[gpus] / rates[1]}


def keep(found: dict[str, Any], path: Path = RESULTS) -> None:
    """Prints the ratio beside its bar, and writes all into the file under the number and kind of GPUs."""
    gpus = max(found["gpus"])
    met = "met" if found["ratio"] >= BAR * gpus else "NOT met"
    print(f"{gpus} GPUs: {found['ratio']:.2f} times the subjects an hour of one (the bar is {BAR * gpus:.2f}: {met})")
    if not found["tiny"]:
        whole = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**whole, f"{gpus} × {found['device']}": found}, indent=1, ensure_ascii=False))


def _measure(work: Path, count: int, each: int, steps: int, tiny: bool) -> dict[str, Any]:
    import ray

    runs = tuple(_planned(work, count, n, steps, tiny) for n in range(count * (1 + each)))
    devices: Any = {"num_cpus": count} if tiny else {"num_gpus": count}
    ray.init(**devices, include_dashboard=False, object_store_memory=_STORE_BYTES, log_to_driver=False)
    heard = _Heard()
    try:
        begun = time.perf_counter()
        storage, record = cluster.prepare(Plan(work / "x.yaml", "subjects", runs), str(work / f"out-{count}"))
        states = cluster.do(record, storage, "local", heard)
        whole = time.perf_counter() - begun
    finally:
        ray.shutdown()
    if failed := [text for text in heard.told if text.startswith("[") and not text.endswith(": done")]:
        raise RuntimeError(f"{len(failed)} of {len(states)} runs did not end well; the first: {failed[0]}")
    counted, seconds = len(runs) - count, heard.ended[-1] - heard.ended[count - 1]
    return {"subjects_an_hour": 3600 * counted / seconds, "seconds": round(seconds, 2), "whole_s": round(whole, 2)}


def _planned(work: Path, count: int, number: int, steps: int, tiny: bool) -> PlannedRun:
    """A subject whose pictures and words no other run of either count has: the cache would know them."""
    name, start = f"{count}-{number}", 5 * (1000 * count + number)
    pictures = make_pictures(work / "subjects" / name, 5, 128 if tiny else 1024, start=start)
    flags = {"base": str(work / "base"), "data.folder": str(pictures)}
    flags |= {"data.captions.trigger": f"sks{count}x{number}", "data.captions.class_word": "dog"}
    return PlannedRun(name, {}, compose([flags_layer(flags), set_layer([s.format(steps=steps) for s in _SETTINGS])]))
