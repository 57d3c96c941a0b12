"""Training as a generator of events: prepare, step, look, save, finish. Nothing here knows of terminals or jobs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Hashable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import psutil
import torch
from torch.utils.checkpoint import checkpoint as checkpoint_of

from adapters.adapter_set import AdapterSet
from adapters.calibrate import calibrate
from adapters.errors import DivergedError, MissingError, UserInputError
from adapters.inject import building
from adapters.svd import Decomposer
from trainers import checkpoint, dreambooth, images, samples
from trainers.bases import Bases, as_trained, load_for, pick_device
from trainers.batches import BatchPlan
from trainers.cache import TensorCache
from trainers.checkpoint import RunIdentity
from trainers.config import TrainConfig
from trainers.dataset import own_pictures
from trainers.dreambooth import TrainingData
from trainers.engine import Engine, StepResult
from trainers.evaluate import base_validation_loss, validation_loss
from trainers.events import Command, Event, Finished, Note, Progress, Saved, Started, Stepped, Validated
from trainers.objective import training_scheduler
from trainers.optim import rate_warning
from trainers.result import adapter_path, save_result
from trainers.rules import RULES
from trainers.sdxl import Base
from trainers.stage import Stage, stage_key
from trainers.world import ALONE, World

_FP16_SCALE = 1024.0
"""Lifts the base's gradients out of fp16's underflow where they are looked at before the first step."""
Commands = Callable[[], Command | None]
Reason = Literal["done", "cancelled", "paused"]


def never() -> Command | None:
    """The commands of a run that nobody steers."""
    return None


def train(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    device: str | None = None,
    commands: Commands = never,
    cache: TensorCache | None = None,
    bases: Bases = load_for,
    world: World = ALONE,
) -> Generator[Event]:
    """Teach the base a subject; leaves `out`/adapter.safetensors, checkpoints and samples.

    The same configuration, pictures and seed give the same file bit for bit on a CPU, interrupted or not. The base that
    `bases` gives is afterwards as it was, bit for bit, whether the run ends, is closed or fails after its first step.
    Several processes (`world`) call it alike and share each batch; the main one writes, reports and is asked for
    commands.
    Raises StudioError where the input does not allow it, DivergedError where the loss is no longer a number.
    """
    started = time.monotonic()
    world.check_batch(config.batch_size)
    where = world.device or pick_device(device)
    found = _latest(out) if resume else None
    if warning := rate_warning(config.optim):
        yield Note(level="warning", text=warning)
    images.require_pictures(config.data.folder)
    yield Note(text=f"Loading the base {config.base} on {where}.")
    base = bases(config, where)
    with ExitStack() as undo:
        undo.enter_context(as_trained(base, config))
        run = yield from _prepared(config, out, base, found, cache or TensorCache(), commands, world, undo)
        reason = yield from run.steps()
        path = None
        if reason == "done" and world.is_main:
            path = run.save_result()
            yield Saved(step=run.step, path=path, final=True)
        world.wait()  # the others must not end while the main one writes: that would look like a failure
        base.stages.keep(run.key, run.engine.stage)
    yield Finished(reason=reason, step=run.step, seconds=time.monotonic() - started, adapter=path)


def _prepared(
    config: TrainConfig,
    out: Path,
    base: Base,
    found: checkpoint.Checkpoint | None,
    cache: TensorCache,
    commands: Commands,
    world: World,
    undo: ExitStack,
) -> Generator[Event, None, _Run]:
    """The run before its next step; `undo` will give the base back as it was."""
    with world.main_first():
        adapter = yield from _attach(base, config, Decomposer(cache.root.parent / "decompositions"))
        undo.callback(adapter.detach)
        adapter.strength = 0.0
        key = stage_key(config, adapter, base.dtype, world)
        if (stage := base.stages.borrow(key)) is not None:
            undo.callback(stage.close)
        data = yield from dreambooth.prepare(base, config, cache)
    decisive = config.decisive() | {"precision": str(base.dtype).removeprefix("torch.")}
    identity = RunIdentity(base=config.base, base_hash=base.hash, config=decisive, pictures=data.manifest)
    if found is not None:
        checkpoint.check_identity(found, identity)
    engine = _engine(base, adapter, data, config, world, stage)
    run = _Run(config, out, base, adapter, engine, identity, key, commands)
    undo.callback(run.engine.close)
    if found is not None:
        run.restore(found)
    else:
        yield from run.calibrate()
    world.spread(adapter.state_dict().values())
    adapter.strength = 1.0
    yield run.started(data.pictures)
    return run


def _attach(base: Base, config: TrainConfig, decomposer: Decomposer) -> Generator[Event, None, AdapterSet]:
    layers = building(
        base.components,
        config.adapter,
        config.targets.chosen(),
        config.seed,
        overrides=config.targets.overrides,
        decomposer=decomposer,
        steps=config.steps,
    )
    while True:
        try:
            done, total = next(layers)
        except StopIteration as end:
            adapter: AdapterSet = end.value
            RULES[config.optim.rule](adapter, config.optim.rule_ratio)  # refuses before pictures are encoded
            adapter.attach()
            return adapter
        yield Progress(stage="layers", done=done, total=total)


def _latest(out: Path) -> checkpoint.Checkpoint:
    found = checkpoint.load_latest(out)
    if found is None:
        raise MissingError(f"There is no checkpoint in {out} to resume from.", "Start it without --resume.")
    return found


def _engine(
    base: Base, adapter: AdapterSet, data: TrainingData, config: TrainConfig, world: World, stage: Stage | None
) -> Engine:
    scheduler = training_scheduler(base.pipe.scheduler, config.objective)
    if config.gradient_checkpointing:
        draws = config.adapter.model_dump().get("dropout", 0.0) > 0
        base.unet.enable_gradient_checkpointing(partial(checkpoint_of, use_reentrant=False, preserve_rng_state=draws))
    plan = BatchPlan(data.buckets, config.batch_size, config.seed, world)
    return Engine(base.unet, adapter, plan, data.text, scheduler, config, base.dtype, stage)


@dataclass
class _Run:
    """The steps of one run and all that happens between them."""

    config: TrainConfig
    out: Path
    base: Base
    adapter: AdapterSet
    engine: Engine
    identity: RunIdentity
    key: Hashable
    commands: Commands
    step: int = 0
    _window: list[StepResult] = field(default_factory=list[StepResult])
    _since: float = 0.0
    _base_loss: float | None = None

    @property
    def world(self) -> World:
        return self.engine.world

    def restore(self, found: checkpoint.Checkpoint) -> None:
        """Go on from a checkpoint; UserInputError where it has more steps than are asked for."""
        if found.step > self.config.steps:
            raise UserInputError(
                f"{self.out} has already done {found.step} steps; {self.config.steps} are asked for.",
                f"Ask for {found.step} --steps or more, or start a new run with another --out.",
            )
        self.step = checkpoint.restore(self.engine, found)

    def started(self, pictures: int) -> Started:
        return Started(
            step=self.step,
            steps=self.config.steps,
            trainable_parameters=self.adapter.num_parameters(),
            pictures=pictures,
            base=self.base.name,
            device=str(self.engine.device),
            precision=str(self.base.dtype).removeprefix("torch."),
            processes=self.world.size,
        )

    def calibrate(self) -> Iterator[Event]:
        """Let the methods that start from the base's gradients see them, on batches of their own."""

        def backward(draw: int) -> None:
            index = -1 - draw
            loss = self.engine.batch_loss(self.engine.plan.batch(draw), index)
            if loss.requires_grad:  # else the loss reaches none of these layers, which then keep their start
                (loss * _FP16_SCALE if self.engine.scaler.is_enabled() else loss).backward()

        for done, total in calibrate(self.adapter, backward, self.world.add_up):
            yield Progress(stage="gradients", done=done, total=total)

    def save_result(self, path: Path | None = None) -> Path:
        with self.engine.as_saved():
            pictures = own_pictures(self.identity.pictures)
            return save_result(self.out, self.step, self.base, self.adapter, self.config, pictures, path)

    def steps(self) -> Generator[Event, None, Reason]:
        yield from self._validate()
        if self.engine.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.engine.device)
        self._since, begun = time.perf_counter(), self.step
        while self.step < self.config.steps:
            self._window.append(self.engine.step(self.step))
            self.step += 1
            command = self.world.from_main(self.commands)
            first = self.step == begun + 1  # soon a sign of life, and the others' times are without its recordings
            if first or self._due(1 if self.engine.device.type == "cpu" else 10) or command is not None:
                yield from self._report()
            finished = self.step == self.config.steps
            stop = command in ("cancel", "pause") and not finished
            if stop or command == "save" or self._due(self.config.save_every):
                yield from self._save()
            if stop:
                return "cancelled" if command == "cancel" else "paused"
            if not finished:
                yield from self._look(command)
        self._make_room()
        yield from self._validate()
        yield from self._sample()
        return "done"

    def _due(self, every: int) -> bool:
        return (every > 0 and self.step % every == 0) or self.step == self.config.steps

    def _look(self, command: Command | None) -> Iterator[Event]:
        before = time.perf_counter()
        if self.config.validate_every and self.step % self.config.validate_every == 0:
            yield from self._validate()
        if command == "sample" or (self.config.sample.every and self.step % self.config.sample.every == 0):
            yield from self._sample()
        self._since += time.perf_counter() - before

    def _sample(self) -> Iterator[Event]:
        if self.config.sample.count:
            self._make_room()
        if self.config.sample.count and self.world.is_main:
            with self.engine.as_saved():
                yield from samples.draw(self.base, self.config, self.out, self.step)

    def _make_room(self) -> None:
        """A recording holds the memory of its step, which pictures may want."""
        if not self.base.stages.have_room(self.key, self.engine.device):
            self.engine.forget()

    def _report(self) -> Iterator[Event]:
        """Read the losses since the last report (the only place that waits for the device) and judge them."""
        if not self.world.is_main:
            self._window.clear()
            return
        loss = float(torch.stack([result.loss for result in self._window]).mean())
        norm = float(self._window[-1].grad_norm)
        scaling = self.engine.scaler.is_enabled()
        if not math.isfinite(loss) or not (math.isfinite(norm) or scaling):
            raise self._diverged()
        now = time.perf_counter()
        seconds, self._since = (now - self._since) / len(self._window), now
        self._window.clear()
        yield Stepped(
            step=self.step,
            steps=self.config.steps,
            loss=loss,
            learning_rate=self.engine.learning_rate,
            grad_norm=norm,
            seconds_per_step=seconds,
            memory_bytes=_memory(self.engine.device),
        )

    def _diverged(self) -> DivergedError:
        kept = checkpoint.newest(self.out)
        good = f"The last good checkpoint is {kept}." if kept else "No checkpoint had been saved yet."
        return DivergedError(
            f"The loss is no longer a number at step {self.step}. {good}",
            "Lower the learning rate (--set optim.learning_rate=…), or use --set precision=bf16 or fp32.",
        )

    def _save(self) -> Iterator[Event]:
        if not self.world.is_main:
            return
        if not all(bool(torch.isfinite(value).all()) for value in self.engine.parameters):
            raise self._diverged()
        self.save_result(adapter_path(self.out, self.step))  # first: averages are taken out and put back
        path = checkpoint.save_checkpoint(self.out, self.step, self.engine, self.identity, self.config.keep_checkpoints)
        kept = {one.name for one in path.parent.iterdir()}
        for old in adapter_path(self.out, 0).parent.glob("step-*.safetensors"):
            if old.name not in kept:
                old.unlink(missing_ok=True)
        yield Saved(step=self.step, path=path)

    def _validate(self) -> Iterator[Event]:
        levels = self.config.validation_levels
        if levels == 0:
            return
        if self._base_loss is None:
            with self.engine.as_saved():
                self._base_loss = base_validation_loss(self.engine, self.config.seed, levels)
        loss = self._base_loss
        if self.step > 0:  # before, every method is the identity, bit for bit
            with self.engine.as_saved():
                loss = validation_loss(self.engine, self.config.seed, levels)
        yield Validated(step=self.step, loss=loss, base_loss=self._base_loss)


def _memory(device: torch.device) -> int:
    """Peak bytes allocated on the GPU, or this process's resident bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss
