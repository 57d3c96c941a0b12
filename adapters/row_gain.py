"""DoRA on activations: a gain for each output row; one kernel on a GPU with Triton, elsewhere torch's own."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from adapters.side_stream import side_stream

_TRITON = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_RUN = 64
"""Rows whose products one block sums."""


def kernels() -> Any:
    from adapters import triton_kernels

    return triton_kernels


def has_kernels(x: Tensor) -> bool:
    return _TRITON and (x.is_cuda or _INTERPRETED) and x.dtype in (torch.float32, torch.bfloat16, torch.float16)


def row_gain(y: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    """y + gain·(y − bias), [..., d]: exactly y where the gain is 0.

    Args:
        y: [..., d]
        gain: m/c − 1, [d], in the factors' precision; its gradient is summed in it, beside: it comes from `spread`.
        bias: [d] or None.
    """
    return _RowGain.apply(y, gain, bias)  # pyright: ignore[reportReturnType]


class _RowGain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(y, gain, bias)
        if not has_kernels(y):
            return torch.addcmul(y, gain.to(y.dtype), y if bias is None else y - bias)
        rows = y.reshape(-1, y.shape[-1])
        out = torch.empty_like(rows)
        grid = len(rows), -(-rows.shape[1] // 1024)
        kernels().row_gain_forward[grid](rows, gain, bias, out, rows.shape[1], 1024, bias is not None)
        return out.view(y.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        (g,) = grad_outputs
        y, gain, bias = ctx.saved_tensors
        if not has_kernels(y):
            v = y if bias is None else y - bias
            d_gain = (g * v).flatten(0, -2).sum(0, dtype=gain.dtype)
            return torch.addcmul(g, gain.to(g.dtype), g), d_gain, None
        rows, given = y.reshape(-1, y.shape[-1]), g.reshape(-1, g.shape[-1]).contiguous()
        size, width = rows.shape
        runs = -(-size // _RUN)
        dy, sums = torch.empty_like(given), gain.new_empty(runs, width, dtype=torch.float32)
        grid = runs, -(-width // 128)
        kernels().row_gain_backward[grid](
            *(rows, gain, bias, given, dy, sums, size, width, _RUN, 16, 128, bias is not None)
        )
        d_gain = torch.empty_like(gain)
        if g.is_cuda:
            side_stream(g.device).later(lambda: _sum_into(d_gain, sums), sums, d_gain)
        else:
            _sum_into(d_gain, sums)
        return dy.view(g.shape), d_gain, None


def _sum_into(out: Tensor, sums: Tensor) -> None:
    torch.sum(sums, 0, out=out) if out.dtype == sums.dtype else out.copy_(sums.sum(0))
