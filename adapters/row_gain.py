"""DoRA on activations and for many layers at once: a gain for each output row, and W Aᵀ for the norms.

On a GPU with Triton each is one kernel (adapters.triton_kernels); elsewhere torch's own operations.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adapters.quantized import Quantized
from adapters.side_stream import side_stream
from adapters.sites import Site

_TRITON = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_RUN = 64
"""Rows whose products one block sums."""
_WIDEST = 256
"""Rank up to which a block holds all of W Aᵀ's columns."""


def _kernels() -> Any:
    from adapters import triton_kernels

    return triton_kernels


def _fits(x: Tensor) -> bool:
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
        if not _fits(y):
            return torch.addcmul(y, gain.to(y.dtype), y if bias is None else y - bias)
        rows = y.reshape(-1, y.shape[-1])
        out = torch.empty_like(rows)
        grid = len(rows), -(-rows.shape[1] // 1024)
        _kernels().row_gain_forward[grid](rows, gain, bias, out, rows.shape[1], 1024, bias is not None)
        return out.view(y.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        (g,) = grad_outputs
        y, gain, bias = ctx.saved_tensors
        if not _fits(y):
            v = y if bias is None else y - bias
            d_gain = (g * v).flatten(0, -2).sum(0, dtype=gain.dtype)
            return torch.addcmul(g, gain.to(g.dtype), g), d_gain, None
        rows, given = y.reshape(-1, y.shape[-1]), g.reshape(-1, g.shape[-1]).contiguous()
        size, width = rows.shape
        runs = -(-size // _RUN)
        dy, sums = torch.empty_like(given), gain.new_empty(runs, width, dtype=torch.float32)
        grid = runs, -(-width // 128)
        _kernels().row_gain_backward[grid](
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


def projections(sites: Sequence[Site], downs: Tensor) -> Tensor:
    """W Aᵀ of layers of one shape and one group, [layers, d, r] in A's dtype. downs: [layers, r, κ]."""
    if any(isinstance(site.module, Quantized) for site in sites):  # one dequantised weight at a time
        return torch.stack([site.project(down) for site, down in zip(sites, downs, strict=True)])
    weights = [site.weight for site in sites]
    lying = _as_they_lie(weights, downs) if _fits(weights[0]) and downs.shape[1] <= _WIDEST else None
    if lying is None:
        return torch.stack([site.project(down) for site, down in zip(sites, downs, strict=True)])
    layers, rank, columns = lying.shape
    rows = weights[0].shape[0]
    out = downs.new_empty(layers, rows, rank)
    width = max(16, 1 << (rank - 1).bit_length())
    _kernels().projections[layers, -(-rows // 64)](
        *(_addresses(weights), lying, out, weights[0], rows, columns, rank, 64, 64, width)
    )
    return out


def _as_they_lie(weights: Sequence[Tensor], downs: Tensor) -> Tensor | None:
    """A in the weights' dtype with its columns in the order in which W's lie in memory; None for another layout."""
    downs = downs.to(weights[0].dtype)
    if all(weight.is_contiguous() for weight in weights):
        return downs.contiguous()
    if weights[0].ndim == 4 and all(w.is_contiguous(memory_format=torch.channels_last) for w in weights):
        taps = downs.unflatten(2, tuple(weights[0].shape[1:]))
        return taps.permute(0, 1, 3, 4, 2).flatten(2).contiguous()
    return None


_ADDRESSES: dict[tuple[int, ...], Tensor] = {}


def _addresses(weights: Sequence[Tensor]) -> Tensor:
    """The weights' addresses on their device; kept, since a graph's capture may not copy from the host."""
    key = tuple(weight.data_ptr() for weight in weights)
    if key not in _ADDRESSES:
        _ADDRESSES[key] = torch.tensor(key, dtype=torch.int64, device=weights[0].device)
    return _ADDRESSES[key]
