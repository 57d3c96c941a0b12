"""All trainings and pictures as small tasks, those of most rows of the table first, done by processes."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from adapters.atomic import atomic_path
from benchmarks.fusion import draw, train
from benchmarks.fusion.subjects import Group
from benchmarks.fusion.variants import Variant
from trainers.result import ADAPTER_NAME

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is wanted; smaller for a trial."""

    work: Path
    groups: tuple[Group, ...]
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    count: int
    """Pictures of a cell."""
    tries: int = 64
    """Noises from which those of three members are chosen."""
    steps: int | None = None
    """Of training, where not the kind's own."""


@dataclass(frozen=True)
class Train:
    training: train.Training

    def done(self, plan: Plan, rows: Sequence[Row]) -> bool:
        return (self.training.folder(plan.work) / ADAPTER_NAME).exists()

    def needs(self, plan: Plan) -> list[Path]:
        return []

    def run(self, plan: Plan) -> list[Row]:
        seconds = train.run(self.training, plan.work, plan.steps)
        training = self.training
        about = {"name": training.name, "kind": training.kind, "seed": training.seed}
        return [{"what": "training", **about, "seconds": round(seconds, 2)}]


@dataclass(frozen=True)
class Noises:
    """Only groups of three need them chosen."""

    group: Group

    def done(self, plan: Plan, rows: Sequence[Row]) -> bool:
        return bool(draw.noises(self.group, plan.work))

    def needs(self, plan: Plan) -> list[Path]:
        return []

    def run(self, plan: Plan) -> list[Row]:
        draw.choose_noises(self.group, plan.work, plan.count, plan.tries)
        return []


@dataclass(frozen=True)
class Base:
    group: Group

    def done(self, plan: Plan, rows: Sequence[Row]) -> bool:
        return any(row["what"] == "base" and row["group"] == self.group.name for row in rows)

    def needs(self, plan: Plan) -> list[Path]:
        return _noises_of(self.group, plan)

    def run(self, plan: Plan) -> list[Row]:
        return [draw.draw_base(self.group, plan.work, plan.count)]


@dataclass(frozen=True)
class Alone:
    group: Group
    member: int
    kind: str
    seed: int

    def done(self, plan: Plan, rows: Sequence[Row]) -> bool:
        own = {"what": "alone", "group": self.group.name, "member": self.member, "kind": self.kind, "seed": self.seed}
        return any(own.items() <= row.items() for row in rows)

    def needs(self, plan: Plan) -> list[Path]:
        return [*_noises_of(self.group, plan), _adapter(self.group, self.member, self.kind, self.seed, plan)]

    def run(self, plan: Plan) -> list[Row]:
        return [draw.draw_alone(self.group, self.member, self.kind, self.seed, plan.work, plan.count)]


@dataclass(frozen=True)
class Joint:
    """All variants that join the same adapters."""

    group: Group
    variants: tuple[Variant, ...]
    seed: int

    def done(self, plan: Plan, rows: Sequence[Row]) -> bool:
        return not self.missing(rows)

    def needs(self, plan: Plan) -> list[Path]:
        kinds = [self.variants[0].kind(index) for index in range(len(self.group.members))]
        files = [_adapter(self.group, index, kind, self.seed, plan) for index, kind in enumerate(kinds)]
        return [*_noises_of(self.group, plan), *files]

    def missing(self, rows: Sequence[Row]) -> tuple[Variant, ...]:
        known = {row["variant"] for row in rows if self._mine(row)}
        return tuple(variant for variant in self.variants if variant.name not in known)

    def _mine(self, row: Row) -> bool:
        return row["what"] == "joint" and row["group"] == self.group.name and row["seed"] == self.seed

    def run(self, plan: Plan) -> list[Row]:
        return draw.draw_joint(self.group, self.variants, self.seed, plan.work, plan.count)


Task = Train | Noises | Base | Alone | Joint


def _noises_of(group: Group, plan: Plan) -> list[Path]:
    return [draw.noises_path(group, plan.work)] if len(group.members) > 2 else []


def _adapter(group: Group, member: int, kind: str, seed: int, plan: Plan) -> Path:
    return train.training_of(group.members[member], kind, seed).folder(plan.work) / ADAPTER_NAME


def kinds_of(plan: Plan) -> list[str]:
    """The adapters' kinds, those of most variants first."""
    kinds = sorted({kind for variant in plan.variants for kind in variant.kinds})
    return sorted(kinds, key=lambda kind: -sum(variant.kinds.count(kind) for variant in plan.variants))


def trainings(plan: Plan, kind: str) -> list[Task]:
    """Every adapter of this kind that pictures need."""
    wanted = [
        train.training_of(member, kind, seed)
        for seed in plan.seeds
        for group in plan.groups
        for index, member in enumerate(group.members)
        if any(variant.joins(group) and variant.kind(index) == kind for variant in plan.variants)
    ]
    return [Train(training) for training in dict.fromkeys(wanted)]


def drawings(plan: Plan, known: Sequence[str]) -> list[Task]:
    """Pictures that need the last of the known kinds and no unknown one: each adapter's alone, then all ways."""
    tasks: list[Task] = []
    for group, seed in ((group, seed) for group in plan.groups for seed in plan.seeds):
        by_kinds: dict[tuple[str, ...], list[Variant]] = {}
        for variant in plan.variants:
            if variant.joins(group):
                by_kinds.setdefault(tuple(map(variant.kind, range(len(group.members)))), []).append(variant)
        alone = {(index, kind) for kinds in by_kinds for index, kind in enumerate(kinds)}
        tasks += [Alone(group, index, kind, seed) for index, kind in sorted(alone) if kind == known[-1]]
        tasks += [Joint(group, tuple(variants), seed) for kinds, variants in by_kinds.items() if _last(kinds, known)]
    return tasks


def _last(kinds: Sequence[str], known: Sequence[str]) -> bool:
    return known[-1] in kinds and set(kinds) <= set(known)


def ordered(plan: Plan, stages: Sequence[str]) -> Iterator[Task]:
    """Kind by kind of the adapters: their trainings, then the pictures that have waited for them."""
    if "draw" in stages:
        yield from (Noises(group) for group in plan.groups if len(group.members) > 2)
        yield from (Base(group) for group in plan.groups)
    kinds = kinds_of(plan)
    for number, kind in enumerate(kinds, 1):
        if "train" in stages:
            yield from trainings(plan, kind)
        if "draw" in stages:
            yield from drawings(plan, kinds[:number])


class Record:
    """The rows of a work folder, written after each task."""

    def __init__(self, work: Path) -> None:
        self.path = work / "rows.json"
        self.rows: list[Row] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else []

    def add(self, rows: Sequence[Row]) -> None:
        self.rows += rows
        with atomic_path(self.path) as part:
            part.write_text(json.dumps(self.rows, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


def work_through(plan: Plan, stages: Sequence[str], jobs: int, seconds: float | None) -> None:
    """Does what is missing in `jobs` processes until the time is up; what runs then is let end."""
    begin, record = time.monotonic(), Record(plan.work)
    missing = [task for task in ordered(plan, stages) if not task.done(plan, record.rows)]
    wanted = len(missing)
    print(f"{wanted} tasks, {jobs} processes", flush=True)
    context = multiprocessing.get_context("spawn")
    running: dict[Future[list[Row]], Task] = {}
    with ProcessPoolExecutor(jobs, context, _start, (context.Value("i", 0),)) as pool:
        while True:
            if seconds is None or time.monotonic() - begin < seconds:
                for task in ready(missing, plan, jobs - len(running)):
                    missing.remove(task)
                    running[pool.submit(_run, task, plan)] = task
            if not running:
                break
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                ended = wanted - len(missing) - len(running) + 1
                _note(record, running.pop(done), done, f"{time.monotonic() - begin:.0f} s, {ended} of {wanted}")
    if missing:
        print(f"{len(missing)} tasks left: the time is up, or what they need is not there.", flush=True)


def ready(missing: Sequence[Task], plan: Plan, count: int) -> list[Task]:
    """The first `count` tasks whose adapters and noises are there."""
    return list(islice((task for task in missing if all(path.exists() for path in task.needs(plan))), count))


def _note(record: Record, task: Task, done: Future[list[Row]], when: str) -> None:
    if (error := done.exception()) is not None:
        print(f"{when}: {task} FAILED: {type(error).__name__}: {error}", flush=True)
        return
    record.add(done.result())
    for row in done.result():
        shown = {key: value for key, value in row.items() if key not in ("report", "file", "pictures")}
        print(f"{when}: {' '.join(map(str, shown.values()))}", flush=True)


def _start(numbers: Any) -> None:
    """One thread a process, processes spread over the GPUs."""
    torch.set_num_threads(1)
    with numbers.get_lock():
        number, numbers.value = numbers.value, numbers.value + 1
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())


def _run(task: Task, plan: Plan) -> list[Row]:
    return task.run(plan)
