"""Which parts of a base lie on the GPU: those in use, and no others.

The UNet, and text encoders that learn, stay there; everything else visits. A visitor's weights are frozen, so the
copy in main memory stays valid: leaving costs no transfer.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn


@contextmanager
def visiting(modules: Sequence[nn.Module], device: torch.device) -> Generator[None]:
    """These modules on `device`; afterwards their tensors are again the ones from before, which must not change."""
    away = [(tensor, tensor.data) for tensor in _tensors(modules) if tensor.device != device]
    try:
        for tensor, home in away:
            tensor.data = home.to(device, non_blocking=True)
        yield
    finally:
        for tensor, home in away:
            tensor.data = home
        if away and device.type == "cuda":
            torch.cuda.empty_cache()


def ready_to_visit(modules: Sequence[nn.Module], device: torch.device) -> None:
    """Moves what is not on `device` into pinned memory, from where a GPU fetches it several times as fast.

    Pinning 2 GB takes most of a second: for bases that will be visited again and again.
    """
    if device.type != "cuda":
        return
    for tensor in _tensors(modules):
        if tensor.device != device:
            with suppress(RuntimeError):  # a system may allow little of it; the rest goes the slow way
                tensor.data = tensor.data.pin_memory()


def _tensors(modules: Sequence[nn.Module]) -> Iterator[Tensor]:
    for module in modules:
        yield from module.parameters()
        yield from module.buffers()
