"""Gradients of the bare base, one layer's at a time, for the methods that start from them (LoRA-GA, RoSA)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from adapters.adapter_set import AdapterSet
from adapters.base import Calibration
from adapters.layer import master
from adapters.quantized import Quantized, weight_shape

CHUNK_BYTES = 1 << 30
"""How much the layers that are calibrated together may hold at most, at four bytes a weight."""


def _as_it_is(gradient: torch.Tensor) -> None:
    """What a gradient needs where one process computes all of it: nothing."""


def calibrate(
    adapter_set: AdapterSet,
    backward: Callable[[int], None],
    combine: Callable[[torch.Tensor], None] = _as_it_is,
) -> Iterator[tuple[int, int]]:
    """Runs all calibrations of the set; yields (backward passes done, passes in all).

    Each layer's gradient is given away the moment that autograd has it and is freed then: no more than one d×k
    gradient is alive. What a calibration keeps is its own affair; layers are taken in chunks to bound it.

    Args:
        adapter_set: attached, at strength 0, so that gradients are the base's.
        backward: computes the loss of batch n (from 0; the same batch each time) and calls backward on it. Its scale
            does not matter to any calibration.
        combine: what is done to each layer's gradient (fp32) in place before it is looked at: where several processes
            compute parts of a batch, the sum over them.
    """
    waiting = [
        (adapter.site.module, found) for adapter in adapter_set.adapters.values() if (found := adapter.calibrations())
    ]
    chunks = _chunks(waiting)
    total = sum(_draws(chunk) for chunk in chunks)
    done = 0
    for chunk in chunks:
        watch = _Watch(chunk, combine)
        with watch:
            for draw in range(_draws(chunk)):
                backward(draw)
                done += 1
                yield done, total
        for calibration in watch.seen:
            calibration.finish()


Waiting = tuple[nn.Linear | nn.Conv2d, Sequence[Calibration]]


def _draws(chunk: list[Waiting]) -> int:
    return max(calibration.draws for _, calibrations in chunk for calibration in calibrations)


def _chunks(waiting: list[Waiting]) -> list[list[Waiting]]:
    chunks: list[list[Waiting]] = []
    room = 0
    for module, calibrations in waiting:
        size = 4 * weight_shape(module).numel() * len(calibrations)
        if size > room or not chunks:
            chunks.append([])
            room = CHUNK_BYTES
        chunks[-1].append((module, calibrations))
        room -= size
    return chunks


class _Watch:
    """Lets the weights of a chunk have gradients, and takes each away as soon as it is there."""

    def __init__(self, chunk: list[Waiting], combine: Callable[[torch.Tensor], None]) -> None:
        self.chunk, self.combine = chunk, combine
        self.seen: dict[Calibration, None] = {}
        """Those with a gradient: SDXL never uses its first text encoder's last layer, which then keeps its start."""
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> None:
        for module, calibrations in self.chunk:
            leaf = module.watch() if isinstance(module, Quantized) else module.weight.requires_grad_(True)
            self._handles.append(leaf.register_post_accumulate_grad_hook(self._taker(calibrations)))

    def _taker(self, calibrations: Sequence[Calibration]) -> Callable[[torch.Tensor], None]:
        def take(weight: torch.Tensor) -> None:
            assert weight.grad is not None
            with torch.no_grad():
                gradient = master(weight.grad)
                self.combine(gradient)
                finite = bool(gradient.isfinite().all())  # fp16 may overflow: such a batch tells nothing
                for calibration in calibrations if finite else ():
                    calibration.observe(gradient)
                    self.seen[calibration] = None
            weight.grad = None

        return take

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        for module, _ in self.chunk:
            if isinstance(module, Quantized):
                module.unwatch()
            else:
                module.weight.requires_grad_(False)
