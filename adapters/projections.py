"""Products of many layers' weights with factors at once: W Aᵀ for DoRA's norms and for chains that W is a part of.

On a GPU with Triton it is one kernel for all layers of a shape (adapters.triton_kernels), elsewhere layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adapters.quantized import Quantized
from adapters.row_gain import has_kernels, kernels
from adapters.sites import Site

_WIDEST = 256
"""Rank up to which a block holds all of W Aᵀ's columns."""


def differentiable_projections(sites: Sequence[Site], downs: Tensor) -> Tensor:
    """`projections` with a gradient for A; layers may have groups."""
    if sites[0].groups > 1:
        return torch.stack([site.project(down) for site, down in zip(sites, downs.unbind(), strict=True)])
    return _Projections.apply(downs, sites)  # pyright: ignore[reportReturnType]


class _Projections(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, downs: Tensor, sites: Sequence[Site]) -> Tensor:
        ctx.sites = sites
        return projections(sites, downs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return back_projections(ctx.sites, grad_outputs[0]), None


def projections(sites: Sequence[Site], downs: Tensor) -> Tensor:
    """W Aᵀ of layers of one shape and one group, [layers, d, r] in A's dtype. downs: [layers, r, κ]."""
    if any(isinstance(site.module, Quantized) for site in sites):  # one dequantised weight at a time
        return torch.stack([site.project(down) for site, down in zip(sites, downs, strict=True)])
    weights = [site.weight for site in sites]
    lying = _as_they_lie(weights, downs) if has_kernels(weights[0]) and downs.shape[1] <= _WIDEST else None
    if lying is None:
        return torch.stack([site.project(down) for site, down in zip(sites, downs, strict=True)])
    layers, rank, columns = lying.shape
    rows = weights[0].shape[0]
    out = downs.new_empty(layers, rows, rank)
    width = max(16, 1 << (rank - 1).bit_length())
    kernels().projections[layers, -(-rows // 64)](
        *(_addresses(weights), lying, out, weights[0], rows, columns, rank, 64, 64, width)
    )
    return out


def back_projections(sites: Sequence[Site], ups: Tensor) -> Tensor:
    """Uᵀ W of layers of one shape and one group, [layers, r, κ] in U's dtype. ups: [layers, d, r]."""
    if any(isinstance(site.module, Quantized) for site in sites):
        return torch.stack([_back(site.weight, up) for site, up in zip(sites, ups, strict=True)])
    weights = [site.weight for site in sites]
    layers, rows, rank = ups.shape
    channels_last = _lie_channels_last(weights)
    if not has_kernels(weights[0]) or rank > _WIDEST or not (channels_last or _lie_as_they_are(weights)):
        return torch.stack([_back(weight, up) for weight, up in zip(weights, ups, strict=True)])
    shape = weights[0].shape
    out = ups.new_empty(layers, rank, shape[1:].numel())
    width = max(16, 1 << (rank - 1).bit_length())
    kernels().back_projections[layers, -(-out.shape[2] // 64)](
        *(_addresses(weights), ups.to(weights[0].dtype).contiguous(), out, weights[0]),
        *(rows, out.shape[2], rank, 64, 64, width),
    )
    if not channels_last:
        return out
    return out.unflatten(2, (*shape[2:], shape[1])).permute(0, 1, 4, 2, 3).flatten(2)


def _back(weight: Tensor, up: Tensor) -> Tensor:
    return (up.T.to(weight.dtype) @ weight.reshape(weight.shape[0], -1)).to(up.dtype)


def _as_they_lie(weights: Sequence[Tensor], downs: Tensor) -> Tensor | None:
    """A in the weights' dtype with its columns in the order in which W's lie in memory; None for another layout."""
    downs = downs.to(weights[0].dtype)
    if _lie_as_they_are(weights):
        return downs.contiguous()
    if _lie_channels_last(weights):
        taps = downs.unflatten(2, tuple(weights[0].shape[1:]))
        return taps.permute(0, 1, 3, 4, 2).flatten(2).contiguous()
    return None


def _lie_as_they_are(weights: Sequence[Tensor]) -> bool:
    return all(weight.is_contiguous() for weight in weights)


def _lie_channels_last(weights: Sequence[Tensor]) -> bool:
    """Convolutions' weights as fast convolutions want them; where both hold (1×1), as they are."""
    if weights[0].ndim != 4 or _lie_as_they_are(weights):
        return False
    return all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


_ADDRESSES: dict[tuple[int, ...], Tensor] = {}


def _addresses(weights: Sequence[Tensor]) -> Tensor:
    """The weights' addresses on their device; kept, since a graph's capture may not copy from the host."""
    key = tuple(weight.data_ptr() for weight in weights)
    if key not in _ADDRESSES:
        _ADDRESSES[key] = torch.tensor(key, dtype=torch.int64, device=weights[0].device)
    return _ADDRESSES[key]
