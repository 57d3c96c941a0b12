"""What every stage shares: the ranks of one run, a clock they agree on, flat gradients, checkpoints."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """This process among those of one torchrun (or alone), and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0

    def say(self, *words: object) -> None:
        """Prints on the first rank."""
        if self.main:
            print(time.strftime("%H:%M:%S"), *words, flush=True)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def mean(self, value: Tensor) -> Tensor:
        """The mean over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def copy_from_main(self, module: nn.Module) -> None:
        """Gives every rank the first one's weights."""
        if self.size > 1:
            for tensor in [*module.parameters(), *module.buffers()]:
                dist.broadcast(tensor.data, 0)


def join_world() -> World:
    """Joins the processes that torchrun started, or runs alone on a GPU or CPU."""
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        device = torch.device("cuda", rank)
    else:
        device = torch.device("cpu")
    if size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return World(rank, size, device)


class StageClock:
    """How far a timed stage is, from 0 to 1: the same number on every rank, asked of the clock every few steps."""

    EVERY = 10

    def __init__(self, world: World, seconds: float) -> None:
        self.world = world
        # Ranks that disagreed on the time left would take different numbers of steps and wait for each other for ever.
        self.seconds = max(float(world.mean(torch.tensor(float(seconds), device=world.device))), 1e-3)
        self.begin, self.step, self.fraction = time.monotonic(), 0, 0.0

    def tick(self) -> bool:
        """Counts a step; false once the time is up."""
        if self.step % self.EVERY == 0:
            elapsed = torch.tensor(time.monotonic() - self.begin, device=self.world.device)
            self.fraction = float(self.world.mean(elapsed)) / self.seconds
        self.step += 1
        return self.fraction < 1

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.begin


class HalfCopies:
    """bfloat16 copies of fp32 modules: the step runs on the copies, the optimizer on the originals.

    Faster than autocast, which casts every weight, gradient and norm of a step by kernels of their own.
    """

    def __init__(self, modules: list[nn.Module], parameters: list[nn.Parameter]) -> None:
        self.masters, self.modules = parameters, [deepcopy(m).to(torch.bfloat16) for m in modules]
        wanted = {id(p) for p in parameters}
        pairs = [
            (copy, master)
            for copies, originals in zip(self.modules, modules, strict=True)
            for copy, master in zip(copies.parameters(), originals.parameters(), strict=True)
        ]
        for copy, master in pairs:
            copy.requires_grad_(id(master) in wanted)
        by_master = {id(master): copy for copy, master in pairs}
        self.copies = [by_master[id(p)] for p in parameters]
        self.half = _flat_gradients(self.copies, torch.bfloat16)
        self.full = _flat_gradients(self.masters, torch.float32)

    @torch.no_grad()
    def refresh(self) -> None:
        """Brings the copies up to date and clears their gradients: before each step."""
        torch._foreach_copy_(self.copies, self.masters)
        self.half.zero_()

    def settle(self, world: World, limit: float = 1.0) -> Tensor:
        """Gives the originals the averaged, clipped gradients; a norm that is not finite makes them all zero."""
        self.full.copy_(self.half)
        return _settle(self.full, world, limit)


def _flat_gradients(parameters: list[nn.Parameter], dtype: torch.dtype) -> Tensor:
    """One zeroed buffer whose views become the parameters' gradients."""
    buffer = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device, dtype=dtype)
    offset = 0
    for p in parameters:
        p.grad = buffer.as_strided(p.shape, p.stride(), offset)
        offset += p.numel()
    return buffer


def _settle(buffer: Tensor, world: World, limit: float) -> Tensor:
    world.mean(buffer)
    norm = buffer.norm()
    factor = torch.clamp(limit / (norm + 1e-6), max=1.0)
    torch.nan_to_num(buffer, 0.0, 0.0, 0.0, out=buffer)
    buffer.mul_(torch.where(norm.isfinite(), factor, 0.0))
    return norm


class FlatGradients:
    """One buffer that holds all gradients: averaged over ranks, clipped, and zeroed when any is not finite."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.buffer = _flat_gradients(list(parameters), torch.float32)

    def settle(self, world: World, limit: float = 1.0) -> Tensor:
        """Averages and clips; returns the norm."""
        return _settle(self.buffer, world, limit)

    def zero(self) -> None:
        self.buffer.zero_()


class Ema:
    """An exponential moving average of parameters, warmed up from their start."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.average = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        torch._foreach_lerp_(self.average, self.parameters, 1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges weights and averages; twice restores both."""
        for p, a in zip(self.parameters, self.average, strict=True):
            kept = p.detach().clone()
            p.copy_(a)
            a.copy_(kept)


class Graphed:
    """A step captured once in a CUDA graph and replayed: no launch costs, no compiler. On a CPU a plain call.

    The step takes nothing and returns tensors that stay in place; it may draw from the default generator and from
    `generators`, and may not wait for the device.
    """

    def __init__(
        self, step: Callable[[], tuple[Tensor, ...]], world: World, generators: Iterable[torch.Generator]
    ) -> None:
        self.step, self.world, self.generators = step, world, list(generators)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.out: tuple[Tensor, ...] = ()
        self.failed = False

    def _capture(self) -> torch.cuda.CUDAGraph:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        # Other threads (NCCL's watchdog) may speak to the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.out = self.step()
        return graph

    def __call__(self) -> tuple[Tensor, ...]:
        if self.world.device.type != "cuda":
            return self.step()
        if self.graph is None and not self.failed:
            try:
                self.graph = self._capture()
            except RuntimeError as error:
                self.failed = True
                self.world.say("no CUDA graph, going on without:", error)
        if self.graph is None:
            return self.step()
        self.graph.replay()
        return self.out


def write(path: Path, content: object) -> None:
    """torch.save that never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def read(path: Path, device: torch.device) -> dict[str, object]:
    """The content of a checkpoint that `write` made."""
    return torch.load(path, map_location=device, weights_only=True)
