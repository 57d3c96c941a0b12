"""A UNet that draws pictures: our blocks, factors computed once for all steps, and each call recorded and replayed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet
from adapters.bank import FactorBank
from trainers.fast.attention import Backend
from trainers.fast.blocks import FastUnet
from trainers.fast.capture import Recorder


@contextmanager
def fast_sampling(unet: nn.Module, adapters: Sequence[AdapterSet] = (), attention: Backend = "sdpa") -> Generator[None]:
    """Within, `unet` computes the same by faster ways. Strengths may change, but not within one `recorded`.

    Args:
        adapters: what is attached to it, on its device; their factors must not change meanwhile.
    """
    dtype = next(unet.parameters()).dtype
    fast = FastUnet(unet, attention)
    try:
        with torch.no_grad(), ExitStack() as stack:
            for adapter in adapters:
                stack.enter_context(FactorBank(adapter, dtype).staged())
            yield
    finally:
        fast.remove()


@contextmanager
def recorded(unet: nn.Module, forward: RecordedForward | None = None) -> Generator[None]:
    """Within, calls of one shape are recorded on a GPU and replayed; adapters and strengths must not change.

    Args:
        forward: what has recorded some already, of the same unet in the same state.
    """
    device = next(unet.parameters()).device
    if forward is None and device.type != "cuda":
        yield
        return
    before = vars(unet).get("forward")
    unet.forward = forward or RecordedForward(unet.forward, device, Recorder(device))
    try:
        yield
    finally:
        del unet.forward
        if before is not None:
            unet.forward = before


class RecordedForward:
    """The UNet's forward as diffusers' pipelines call it, on tensors at fixed addresses."""

    def __init__(self, forward: Callable[..., Any], device: torch.device, recorder: Recorder) -> None:
        self._forward, self._device, self._recorder = forward, device, recorder
        self._inputs: dict[Hashable, dict[str, Tensor]] = {}
        self._output: dict[Hashable, Tensor] = {}

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: dict[str, Tensor],
        return_dict: bool = False,
        **others: Any,
    ) -> tuple[Tensor]:
        if any(value is not None for value in others.values()):
            raise TypeError(f"a recorded UNet cannot be given {', '.join(others)}")
        given = {
            "sample": sample,
            "timestep": torch.as_tensor(timestep, device=self._device),
            "encoder_hidden_states": encoder_hidden_states,
            **added_cond_kwargs,
        }
        shape = tuple((name, tuple(value.shape), value.dtype) for name, value in given.items())
        kept = self._inputs.setdefault(shape, {name: value.clone() for name, value in given.items()})
        for name, value in given.items():
            kept[name].copy_(value)
        self._recorder.run(("forward", shape), lambda: self._run(shape))
        return (self._output[shape].clone(),)

    def _run(self, shape: Hashable) -> None:
        inputs = dict(self._inputs[shape])
        sample, timestep, context = (inputs.pop(name) for name in ("sample", "timestep", "encoder_hidden_states"))
        found = self._forward(sample, timestep, context, added_cond_kwargs=inputs, return_dict=False)[0]
        if shape in self._output:
            self._output[shape].copy_(found)
        else:
            self._output[shape] = found.clone()
