"""What a worker's next job costs before its first step, split by phase: jobs of SDXL's size through a real worker.

The base has random weights; subjects are five pictures of 1024 px. Phases follow the run's events; `within` says how
long some pieces of work took, whatever phase they lie in.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console

from benchmarks.random_sdxl import random_pipeline
from benchmarks.speed.run import versions
from benchmarks.speed.whole_run import make_pictures
from studio import train_run
from studio.config import compose, flags_layer, set_layer
from studio.queue import Queue
from studio.stopping import Stop
from studio.submitting import checked
from studio.worker import Worker
from studio.workers import Terms
from trainers import images
from trainers.cache import TensorCache
from trainers.config import TrainConfig
from trainers.engine import Engine
from trainers.events import Event
from trainers.fast.capture import Recorder
from trainers.loop import train
from trainers.sdxl import Base
from trainers.sources import EMBEDDED, SDXL_LAYOUT

NAME = "second-job"
RESULTS = Path(__file__).parents[1] / "results" / "second_job.json"
BAR = 2.0
"""Seconds from the second job's start to its first step."""
_COMMON = ("steps=12", "save_every=0", "sample.count=2", "sample.inference_steps=4")
JOBS: dict[str, tuple[str, tuple[str, ...]]] = {
    "first": ("dog", ()),
    "second: another subject": ("cat", ()),
    "third: the same pictures and seed again": ("cat", ("optim.learning_rate=2e-4",)),
    "fourth: another method": ("cat", ("adapter.method=dora",)),
}
"""By name: the subject, and settings."""
_RECORDING = "recording, in the whole job"
_STAGES = {
    "layers": "attach",
    "started": "text and engine",
    "validated": "validation",
    "stepped": "first step",
}
_WATCHED: tuple[tuple[Any, str, str], ...] = (
    (images, "find_pictures", "looking at pictures"),
    (Base, "encode_pictures", "VAE"),
    (Base, "encode_texts", "text encoders"),
    (TensorCache, "put", "writing the cache"),
    (Engine, "__init__", "building the engine"),
    (Recorder, "_record", _RECORDING),
)


def measure_jobs(device: torch.device, *, tiny: bool = False, results: Path = RESULTS) -> dict[str, Any]:
    """All of JOBS through one worker, one after the other; prints each and writes them down."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    found: dict[str, Any] = {"device": name, "tiny": tiny, "versions": versions(), "jobs": {}}
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, SPECTRAL_STUDIO_CACHE=f"{folder}/cache"):
        work = Path(folder)
        random_pipeline(EMBEDDED if tiny else SDXL_LAYOUT, device.type).save_pretrained(work / "base")
        if device.type == "cuda":
            torch.cuda.empty_cache()
        queue = Queue(work / "home")
        where = "cuda:0" if device.type == "cuda" else "cpu"
        worker = Worker(queue, "device-0", where, Stop(patient=True), Console(file=StringIO()), Terms(idle=0))
        for title, (subject, settings) in JOBS.items():
            config = _config(work, subject, settings, 128 if tiny else 1024)
            found["jobs"][title] = _measure(queue, worker, config)
            print(title, json.dumps(found["jobs"][title]), flush=True)
    _judge(found)
    if not tiny:
        results.write_text(json.dumps(found, indent=1))
    return found


def _config(work: Path, subject: str, settings: tuple[str, ...], side: int) -> TrainConfig:
    pictures = make_pictures(work / subject, 5, side, start=5 * sorted(("dog", "cat")).index(subject))
    flags = {"base": str(work / "base"), "data.folder": str(pictures)}
    flags |= {"data.captions.trigger": "sks", "data.captions.class_word": subject}
    return compose([flags_layer(flags), set_layer([*_COMMON, *settings])])


def _measure(queue: Queue, worker: Worker, config: TrainConfig) -> dict[str, Any]:
    """Seconds from the job's start to its first step, in all and by phase."""
    id = queue.submit(checked(config, None))
    marks: dict[str, float] = {}

    def watched(*args: Any, **options: Any) -> Generator[Event]:
        marks["claimed"] = time.perf_counter()
        for event in train(*args, **options):
            if "first step" not in marks and (name := _phase(event, marks)):
                marks[name] = time.perf_counter()
            yield event

    with _watching(lambda: "first step" not in marks) as within, patch.object(train_run, "train", watched):
        begun = time.perf_counter()
        worker.serve()
        whole = time.perf_counter() - begun
    job = queue.get_job(id)
    if job.state != "done":
        raise RuntimeError(f"the job {job.state}: {job.failure}")
    phases: dict[str, float] = {}
    before = begun
    for name, at in marks.items():  # in the order of their first events, each at its last
        phases[name], before = round(at - before, 3), at
    total = round(marks["first step"] - begun, 3)
    kept = torch.cuda.memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return {
        "first_step_s": total,
        "whole_s": round(whole, 2),
        "phases": phases,
        "within": within,
        "gib_kept_afterwards": round(kept, 2),
    }


def _phase(event: Event, marks: dict[str, float]) -> str | None:
    """What has ended with this event; pictures are looked at, encoded and written in one phase."""
    match event.kind:
        case "progress":
            return "base" if event.stage == "layers" and "base" not in marks else _STAGES.get(event.stage, event.stage)
        case "started" | "validated" | "stepped":
            return _STAGES[event.kind]
        case _:
            return None


@contextmanager
def _watching(wanted: Callable[[], bool]) -> Generator[dict[str, list[float]]]:
    """Seconds spent and number of calls in each piece of `_WATCHED` while they are wanted (recordings: always)."""
    spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])

    def timed(work: Callable[..., Any], label: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            try:
                return work(*args, **options)
            finally:
                if wanted() or label == _RECORDING:
                    spent[label][0] = round(spent[label][0] + time.perf_counter() - begun, 4)
                    spent[label][1] += 1

        return call

    with ExitStack() as patches:
        for owner, name, label in _WATCHED:
            patches.enter_context(patch.object(owner, name, timed(getattr(owner, name), label)))
        yield spent


def _judge(found: dict[str, Any]) -> None:
    for title, job in list(found["jobs"].items())[1:3]:
        met = "met" if job["first_step_s"] <= BAR else "NOT met"
        print(f"{title}: {job['first_step_s']:.2f} s to the first step on {found['device']} (the bar is {BAR}: {met})")
