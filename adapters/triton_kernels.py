"""Triton kernels of DoRA: the gain a row on activations, and W Aᵀ of many layers in one launch."""

# pyright: basic, reportMissingImports=false, reportArgumentType=false, reportInvalidTypeForm=false
# ruff: noqa: ANN001, ANN201

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_gain_forward(y, gain, bias, out, C, BC: tl.constexpr, BIAS: tl.constexpr):
    """y + gain·(y − bias); gain and bias are numbers a channel."""
    row, c = tl.program_id(0).to(tl.int64), tl.program_id(1) * BC + tl.arange(0, BC)
    inside = c < C
    v = tl.load(y + row * C + c, mask=inside, other=0.0).to(tl.float32)
    moved = v
    if BIAS:
        moved = v - tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    v += tl.load(gain + c, mask=inside, other=0.0).to(tl.float32) * moved
    tl.store(out + row * C + c, v.to(out.dtype.element_ty), mask=inside)


@triton.jit
def row_gain_backward(
    y, gain, bias, g, dy, sums, N, C, RUN: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BIAS: tl.constexpr
):
    """dy = g + gain·g, and Σ g·(y − bias) over a run of rows → sums [run, C]."""
    run, c = tl.program_id(0), tl.program_id(1) * BC + tl.arange(0, BC)
    inside = c < C
    scale = tl.load(gain + c, mask=inside, other=0.0).to(tl.float32)
    move = tl.zeros([BC], tl.float32)
    if BIAS:
        move = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([BC], tl.float32)
    for start in range(0, RUN, BN):
        row = run * RUN + start + tl.arange(0, BN)
        both = (row < N)[:, None] & inside[None, :]
        at = row.to(tl.int64)[:, None] * C + c[None, :]
        d = tl.load(g + at, mask=both, other=0.0).to(tl.float32)
        v = tl.load(y + at, mask=both, other=0.0).to(tl.float32) - move[None, :]
        total += tl.sum(d * v, 0)
        tl.store(dy + at, (d + scale[None, :] * d).to(dy.dtype.element_ty), mask=both)
    tl.store(sums + run * C + c, total, mask=inside)


@triton.jit
def projections(weights, downs, out, like, D, K, R, BD: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr):
    """W Aᵀ of every layer → out [layers, D, R]; `weights` holds the addresses of W [D, K], of the type of `like`."""
    layer, block = tl.program_id(0), tl.program_id(1)
    rows, r = block * BD + tl.arange(0, BD), tl.arange(0, BR)
    w = tl.load(weights + layer).to(tl.pointer_type(like.dtype.element_ty))
    total = tl.zeros([BD, BR], tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        wk = tl.load(w + rows[:, None] * K + k[None, :], mask=(rows < D)[:, None] & (k < K)[None, :], other=0.0)
        at = layer.to(tl.int64) * R * K + r[None, :] * K + k[:, None]
        a = tl.load(downs + at, mask=(r < R)[None, :] & (k < K)[:, None], other=0.0)
        total += tl.dot(wk, a)
    at = (layer.to(tl.int64) * D + rows[:, None]) * R + r[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=(rows < D)[:, None] & (r < R)[None, :])


@triton.jit
def back_projections(weights, ups, out, like, D, K, R, BD: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr):
    """Uᵀ W of every layer → out [layers, R, K]; ups [layers, D, R], `weights` and `like` as in `projections`."""
    layer, block = tl.program_id(0), tl.program_id(1)
    k, r = block * BK + tl.arange(0, BK), tl.arange(0, BR)
    w = tl.load(weights + layer).to(tl.pointer_type(like.dtype.element_ty))
    total = tl.zeros([BR, BK], tl.float32)
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        wd = tl.load(w + d[:, None] * K + k[None, :], mask=(d < D)[:, None] & (k < K)[None, :], other=0.0)
        at = (layer.to(tl.int64) * D + d[None, :]) * R + r[:, None]
        u = tl.load(ups + at, mask=(d < D)[None, :] & (r < R)[:, None], other=0.0)
        total += tl.dot(u, wd)
    at = (layer.to(tl.int64) * R + r[:, None]) * K + k[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=(r < R)[:, None] & (k < K)[None, :])
