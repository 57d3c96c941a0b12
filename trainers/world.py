"""The processes that train one run together, one a GPU: which of them this is, and what they tell each other.

Accelerate knows who was started with whom, and on which device. Sums of gradients go through the devices' own library
(NCCL; gloo on a CPU) and may be part of a recording. Words between hosts (a command, "go on") go through gloo, so that
they wait for no device. A process that dies is noticed by whoever started it, not by a clock: waiting has no limit, as
the first one may be making class pictures for an hour.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from adapters.errors import StudioError, UserInputError

T = TypeVar("T")
_PATIENCE = timedelta(days=30)


class LostError(StudioError):
    """Another process of the run has ended, or cannot be reached."""


@dataclass(frozen=True)
class World:
    """This process among those of its run; alone unless `join` says otherwise."""

    rank: int = 0
    size: int = 1
    device: torch.device | None = None
    """This process's own; None: the caller chooses."""
    words: dist.ProcessGroup | None = None
    """The hosts' own group."""

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes files, shows events and listens to commands."""
        return self.rank == 0

    def check_batch(self, batch_size: int) -> None:
        """Raises UserInputError where a batch cannot be shared evenly."""
        if batch_size % self.size:
            near = -(-batch_size // self.size) * self.size
            raise UserInputError(
                f"A batch of {batch_size} cannot be shared evenly among {self.size} processes.",
                f"batch_size counts the pictures of all of them: use --set batch_size={near}, or fewer processes.",
            )

    def add_up(self, values: Tensor) -> None:
        """Makes `values` the sum over all processes, in place and the same bits everywhere; no host waits."""
        if self.size > 1:
            with _reaching():
                dist.all_reduce(values)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes."""
        if self.size == 1:
            return value
        total = value.clone()
        self.add_up(total)
        return total / self.size

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Makes all tensors the main process's, in place."""
        for tensor in tensors if self.size > 1 else ():
            value = tensor.contiguous()
            with _reaching():
                dist.broadcast(value, 0)
            tensor.copy_(value)

    def from_main(self, ask: Callable[[], T]) -> T:
        """What `ask` gives in the main process; the others do not call it."""
        if self.size == 1:
            return ask()
        found = [ask() if self.is_main else None]
        with _reaching():
            dist.broadcast_object_list(found, 0, self.words)
        return found[0]  # pyright: ignore[reportReturnType]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            with _reaching():
                dist.barrier(self.words)

    @contextmanager
    def main_first(self) -> Generator[None]:
        """The main process goes through the block before the others do, which then find its files."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    def first_to_fail(self, code: int) -> int | None:
        """None for the first process that calls it, which tells the error; for others the first one's code."""
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        try:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = dist.PrefixStore(f"failure/{attempt}", dist.TCPStore(address, port, timeout=timedelta(seconds=10)))
            if store.add("count", 1) == 1:
                store.set("code", str(code))
                return None
            return int(store.get("code"))
        except (RuntimeError, KeyError, ValueError):  # the one that kept the store is gone, and has spoken
            return code

    def close(self) -> None:
        """Ends the connection; recordings that hold a sum must be forgotten before."""
        if self.size > 1:
            dist.destroy_process_group()


ALONE = World()


def started_together() -> int:
    """How many processes `accelerate launch`, torchrun or --gpus started together with this one (1: it is alone)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join() -> World:
    """This process's place among those that were started with it. Before anything else touches a GPU."""
    if started_together() == 1:
        return ALONE
    # Recorded sums would otherwise register their buffers with the driver, which hangs where the allocator's segments
    # grow (trainers/__init__.py; pytorch issue 158029). It would save a copy within one GPU: 0.1 ms of a step.
    os.environ.setdefault("NCCL_GRAPH_REGISTER", "0")
    from accelerate import PartialState

    with _reaching():
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
        words = dist.new_group(backend="gloo", timeout=_PATIENCE)
    assert state.device is not None and isinstance(words, dist.ProcessGroup)
    device = state.device if state.device.type == "cuda" else torch.device("cpu")  # not cpu:0, which has no meaning
    return World(state.process_index, state.num_processes, device, words)


@contextmanager
def _reaching() -> Generator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        detail = re.sub(r"^\[.*?\]\s*", "", str(error).strip()).partition(". ")[0]  # without gloo's source line
        raise LostError(
            f"Another process of this run has ended, or cannot be reached: {detail.rstrip('.')}.",
            "If it said nothing it was killed: memory may have run out. Go on with --resume.",
        ) from error
