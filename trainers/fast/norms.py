"""What lies between the products of UNet and VAE: norms, activations and additions, each pass over memory made once.

Norms' weights are frozen: gradients flow to activations only. On a GPU with Triton the kernels of
trainers.fast.triton_kernels run; elsewhere, and for shapes they are not made for, torch's own operations.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_TRITON = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_CHANNELS = 64
"""Channels of a block: 128 bytes in bf16, and every width of SDXL is a multiple."""
_SUMS = 1024
"""Sums of channels over runs that are joined at once."""
_INDEXED = 2**31 - 1
"""Numbers that group norm's kernels can tell apart: they count in 32 bits. SDXL's VAE has more above 8 megapixels."""

Picture = Float[Tensor, "n c h w"]
Rows = Float[Tensor, "*rows c"]


def group_norm_silu(
    x: Picture, norm: nn.GroupNorm, shift: Float[Tensor, "n c"] | None = None, silu: bool = True
) -> Picture:
    """silu(group_norm(x + shift)), in channels_last where a kernel makes it."""
    if not _fits(x) or x.numel() > _INDEXED or x.shape[1] % _CHANNELS or not norm.affine:
        moved = x if shift is None else x + shift[:, :, None, None]
        y = F.group_norm(moved, norm.num_groups, norm.weight, norm.bias, norm.eps)
        return F.silu(y) if silu else y
    x = x.contiguous(memory_format=torch.channels_last)
    rows = None if shift is None else shift.expand(len(x), -1).contiguous()
    return cast(Tensor, _GroupNorm.apply(x, rows, norm.weight, norm.bias, norm.num_groups, norm.eps, silu))


def layer_norm(x: Rows, norm: nn.LayerNorm) -> Rows:
    """norm(x)"""
    if not _fits(x):
        return norm(x)
    _, y = cast("tuple[Tensor, Tensor]", _LayerNorm.apply(x, None, norm.weight, norm.bias, norm.eps))
    return remade(y, x, norm)


def add_layer_norm(residual: Rows, x: Rows, norm: nn.LayerNorm) -> tuple[Rows, Rows]:
    """residual + x, and its norm."""
    if not _fits(x):
        total = residual + x
        return total, norm(total)
    total, y = cast("tuple[Tensor, Tensor]", _LayerNorm.apply(x, residual, norm.weight, norm.bias, norm.eps))
    return total, remade(y, total, norm)


def remade(y: Rows, x: Rows, norm: nn.LayerNorm) -> Rows:
    """y = norm(x), marked so that who needs it in backward can compute it again from x, which the norm keeps anyway."""
    if y.requires_grad:
        kept = x.detach()
        y.again = lambda: _normed(kept, norm)  # pyright: ignore[reportAttributeAccessIssue]  # read by adapters.fused
    return y


@torch.no_grad()
def _normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return cast("tuple[Tensor, Tensor]", _LayerNorm.apply(x, None, norm.weight, norm.bias, norm.eps))[1]


def geglu(h: Rows) -> Float[Tensor, "*rows half"]:
    """h[..., :c]·gelu(h[..., c:]) of 2c channels (arXiv 2002.05202), with the exact gelu."""
    if not _fits(h):
        value, gate = h.chunk(2, -1)
        return value * F.gelu(gate)
    return cast(Tensor, _Geglu.apply(h))


def add_shift_residual(x: Picture, shift: Tensor | None, residual: Picture) -> Picture:
    """x + shift + residual; shift is [c] or [n, c]."""
    if _fits(x) and (shift is None or not shift.requires_grad):
        return cast(Tensor, _AddThree.apply(x, shift, residual))
    if shift is not None:
        x = x + (shift[:, None, None] if shift.ndim == 1 else shift[:, :, None, None])
    return x + residual


def _fits(x: Tensor) -> bool:
    return _TRITON and (x.is_cuda or _INTERPRETED) and x.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _kernels() -> Any:
    from trainers.fast import triton_kernels

    return triton_kernels


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
    ) -> Tensor:
        tiles, k = _Tiles(x, groups), _kernels()
        mean, rstd = x.new_empty(2, len(x), groups, dtype=torch.float32)
        sums = tiles.sums(x)
        k.channel_sums[tiles.runs_grid](
            x, shift, sums, tiles.pixels, tiles.channels, tiles.run, tiles.rows, _CHANNELS, shift is not None
        )
        k.group_moments[len(x), groups](
            *(sums, mean, rstd, tiles.runs, tiles.channels, tiles.width, tiles.pixels * tiles.width, eps),
            _SUMS,
        )
        y = torch.empty_like(x, memory_format=torch.channels_last)
        k.group_norm_forward[tiles.grid](
            *(x, shift, weight, bias, mean, rstd, y, tiles.pixels, tiles.channels, groups, tiles.width),
            *(tiles.rows, _CHANNELS, shift is not None, silu),
        )
        ctx.save_for_backward(x, shift, weight, bias, mean, rstd)
        ctx.groups, ctx.silu = groups, silu
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grad_outputs
        x, shift, weight, bias, mean, rstd = ctx.saved_tensors
        tiles, k, groups = _Tiles(x, ctx.groups), _kernels(), ctx.groups
        g = g.contiguous(memory_format=torch.channels_last)
        common = (x, shift, weight, bias, mean, rstd, g)
        size, flags = (tiles.pixels, tiles.channels, groups, tiles.width), (shift is not None, ctx.silu)
        sums = tiles.sums(x)
        k.group_norm_backward_sums[tiles.runs_grid](*common, sums, *size, tiles.run, tiles.rows, _CHANNELS, *flags)
        totals = sums.new_empty(2, len(x), groups)
        k.group_totals[len(x), groups](sums, totals, tiles.runs, tiles.channels, tiles.width, _SUMS)
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        count = tiles.pixels * tiles.width
        k.group_norm_backward[tiles.grid](*common, totals, dx, *size, count, tiles.rows, _CHANNELS, *flags)
        return dx, dx.sum((2, 3)) if ctx.needs_input_grad[1] else None, *(None,) * 5


class _Tiles:
    """How a picture of n samples is cut into blocks of pixels and channels; sums go over runs of blocks."""

    def __init__(self, x: Tensor, groups: int) -> None:
        n, self.channels, height, width = x.shape
        self.pixels, self.width = height * width, self.channels // groups
        self.rows = 32
        self.run = 256 if self.pixels >= 16384 else 128 if self.pixels >= 4096 else 64
        self.runs = -(-self.pixels // self.run)
        blocks = self.channels // _CHANNELS
        self.runs_grid = (self.runs, n, blocks)
        self.grid = (-(-self.pixels // self.rows), n, blocks)

    def sums(self, x: Tensor) -> Tensor:
        return x.new_empty(len(x), self.runs, 2, self.channels, dtype=torch.float32)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        rows, more = _rows(x), None if residual is None else _rows(residual)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        total = x if residual is None else torch.empty_like(y)
        mean, rstd = x.new_empty(2, len(rows), dtype=torch.float32)
        _kernels().layer_norm_forward[(len(rows),)](
            *(rows, more, total, weight, bias, y, mean, rstd, rows.stride(0), 0 if more is None else more.stride(0)),
            *(rows.shape[1], eps, _power_of_two(rows.shape[1]), residual is not None),
        )
        ctx.save_for_backward(rows if residual is None else total, weight, mean, rstd)
        ctx.added = residual is not None
        return total, y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        extra, g = grad_outputs
        total, weight, mean, rstd = ctx.saved_tensors
        if g is None:
            return extra, extra if ctx.added else None, None, None, None
        rows, given, more = _rows(total), _rows(g), None if extra is None else _rows(extra)
        dx = torch.empty_like(g, memory_format=torch.contiguous_format)
        _kernels().layer_norm_backward[(len(rows),)](
            *(rows, weight, mean, rstd, given, more, dx, rows.stride(0), given.stride(0)),
            *(0 if more is None else more.stride(0), rows.shape[1], _power_of_two(rows.shape[1]), more is not None),
        )
        return dx, dx if ctx.added else None, None, None, None


class _Geglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        rows = _rows(h)
        half = rows.shape[1] // 2
        y = h.new_empty(*h.shape[:-1], half)
        grid = len(rows), -(-half // 1024)
        _kernels().geglu_forward[grid](rows, y, rows.stride(0), half, min(1024, _power_of_two(half)))
        ctx.save_for_backward(rows)
        ctx.shape = h.shape
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (g,) = grad_outputs
        (rows,) = ctx.saved_tensors
        given, half = _rows(g), rows.shape[1] // 2
        dh = torch.empty(ctx.shape, dtype=rows.dtype, device=rows.device)
        grid = len(rows), -(-half // 1024)
        block = min(1024, _power_of_two(half))
        _kernels().geglu_backward[grid](rows, given, dh, rows.stride(0), given.stride(0), half, block)
        return dh


class _AddThree(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor | None, residual: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        residual = residual.contiguous(memory_format=torch.channels_last)
        y = torch.empty_like(x, memory_format=torch.channels_last)
        each = x[0].numel() if shift is not None and shift.ndim == 2 else x.numel()
        given = None if shift is None else shift.contiguous()
        grid = (-(-x.numel() // 1024),)
        _kernels().add_three[grid](x, given, residual, y, x.numel(), x.shape[1], each, 1024, shift is not None)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, Tensor]:
        (g,) = grad_outputs
        return g, None, g


def _rows(x: Tensor) -> Tensor:
    """[N, c] with channels side by side; a view where x lies so."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()
