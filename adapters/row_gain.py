"""A gain for each output row (DoRA's m/c) on activations: one kernel forward and one and a sum backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def row_gain(y: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    """y + gain·(y − bias), [..., d]: exactly y where the gain is 0.

    Args:
        y: [..., d]
        gain: m/c − 1, [d], in the factors' precision; its gradient is summed in it.
        bias: [d] or None.
    """
    return _RowGain.apply(y, gain, bias)  # pyright: ignore[reportReturnType]


class _RowGain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(y, gain, bias)
        v = y if bias is None else y - bias
        return torch.addcmul(y, gain.to(y.dtype), v)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        y, gain, bias = ctx.saved_tensors
        v = y if bias is None else y - bias
        d_gain = (g * v).flatten(0, -2).sum(0, dtype=gain.dtype)
        return torch.addcmul(g, gain.to(g.dtype), g), d_gain, None
