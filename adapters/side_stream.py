"""Work beside the main chain of kernels on a GPU: what nothing waits for soon runs where processors are idle.

At batch 1 a product of SDXL fills half of a large GPU. The factors' gradients are needed by nobody before the
optimizer, and x Aᵀ only after x Wᵀ: on a second stream they cost almost nothing. On a CPU everything runs in place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LAG = 4
"""Pieces of work whose inputs are kept alive before the main stream waits for the oldest."""


class SideStream:
    """The further streams of one device: one for what is soon needed, one for what can wait."""

    def __init__(self) -> None:
        self._soon, self._late = torch.cuda.Stream(), torch.cuda.Stream()
        self._pending: deque[tuple[Any, Any]] = deque()

    def fork(self, work: Callable[[], None]) -> Any:
        """Runs `work` beside; its tensors must have been allocated before. Wait for the event before using them."""
        return _beside(self._soon, work)

    def later(self, work: Callable[[], None], *alive: Any) -> None:
        """Runs `work` beside, waited for at `join` at the latest; `alive` (what it reads and writes) lives as long."""
        self._pending.append((_beside(self._late, work), alive))
        if len(self._pending) > _LAG:
            torch.cuda.current_stream().wait_event(self._pending.popleft()[0])

    def join(self) -> None:
        while self._pending:
            torch.cuda.current_stream().wait_event(self._pending.popleft()[0])

    def forget(self) -> None:
        self._pending.clear()


def _beside(stream: torch.cuda.Stream, work: Callable[[], None]) -> Any:
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
        return stream.record_event()


_SIDES: dict[torch.device, SideStream] = {}


def side_stream(device: torch.device) -> SideStream:
    """A tensor's device's own; made at the first call, which must not be within a graph's capture."""
    if device not in _SIDES:
        _SIDES[device] = SideStream()
    return _SIDES[device]


def abandon_pending() -> None:
    """Lets go of what is pending on every device: the recording that it belonged to has failed."""
    for side in _SIDES.values():
        side.forget()


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stack: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        ctx.like = stack.dtype
        return stack.to(dtype).unbind()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        if gradients[0].is_cuda:
            side_stream(gradients[0].device).join()
        return torch.stack(gradients).to(ctx.like), None


def spread(stack: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The rows of a stack in `dtype`. On the way back all that is pending beside is waited for first."""
    return _Spread.apply(stack, dtype)  # pyright: ignore[reportReturnType]
