"""Triton kernels of trainers.fast.norms. Arithmetic is in fp32; sums have a fixed order, so runs repeat bit for bit.

Pictures are channels_last: pixel p of sample n has its C channels side by side at (n·P + p)·C. Group norm sums each
channel over runs of pixels first and joins channels and runs afterwards: a group's 10 to 80 channels are no good width
for a block. Pixels are on a grid's first axis: the others end at 65 535.

A kernel is compiled anew for each constexpr, and for each number that is a multiple of 16 or is not, unless told so:
a quarter of a second each, for which a machine's first run waits. Sizes are therefore ordinary numbers.
"""

# pyright: basic, reportMissingImports=false, reportArgumentType=false, reportInvalidTypeForm=false
# ruff: noqa: ANN001, ANN202, ANN201

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _silu(u):
    return u * tl.sigmoid(u)


@triton.jit
def _silu_slope(u):
    s = tl.sigmoid(u)
    return s * (1.0 + u * (1.0 - s))


@triton.jit
def channel_sums(x, shift, sums, P, C, length, BP: tl.constexpr, BC: tl.constexpr, SHIFT: tl.constexpr):
    """Σx and Σx² of each channel over a run of pixels → sums [n, run, 2, C]."""
    run, n, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    c = block * BC + tl.arange(0, BC)
    move = tl.load(shift + n * C + c).to(tl.float32) if SHIFT else tl.zeros([BC], tl.float32)
    first, second = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
    for start in range(0, length, BP):
        p = run * length + start + tl.arange(0, BP)
        inside = (p < P)[:, None]
        v = tl.load(x + (n * P + p[:, None]) * C + c[None, :], mask=inside, other=0.0).to(tl.float32) + move[None, :]
        v = tl.where(inside, v, 0.0)
        first += tl.sum(v, 0)
        second += tl.sum(v * v, 0)
    at = ((n * tl.num_programs(0) + run) * 2) * C + c
    tl.store(sums + at, first)
    tl.store(sums + at + C, second)


@triton.jit(do_not_specialize=["runs", "width", "count"])
def group_moments(sums, mean, rstd, runs, C, width, count, eps, BLOCK: tl.constexpr):
    """Mean and 1/deviation of each group from its channels' sums → [n, G]."""
    n, g = tl.program_id(0), tl.program_id(1)
    first, second = _group_totals(sums, n, g, runs, C, width, BLOCK)
    average = first / count
    at = n * tl.num_programs(1) + g
    tl.store(mean + at, average)
    tl.store(rstd + at, 1.0 / tl.sqrt(tl.maximum(second / count - average * average, 0.0) + eps))


@triton.jit(do_not_specialize=["runs", "width"])
def group_totals(sums, totals, runs, C, width, BLOCK: tl.constexpr):
    """Both sums of each group from its channels' → totals [2, n, G]."""
    n, g = tl.program_id(0), tl.program_id(1)
    first, second = _group_totals(sums, n, g, runs, C, width, BLOCK)
    at, size = n * tl.num_programs(1) + g, tl.num_programs(0) * tl.num_programs(1)
    tl.store(totals + at, first)
    tl.store(totals + size + at, second)


@triton.jit
def _group_totals(sums, n, g, runs, C, width, BLOCK: tl.constexpr):
    first, second = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, runs * width, BLOCK):
        each = start + tl.arange(0, BLOCK)  # run by run, channel by channel
        inside = each < runs * width
        at = ((n * runs + each // width) * 2) * C + g * width + each % width
        first += tl.load(sums + at, mask=inside, other=0.0)
        second += tl.load(sums + at + C, mask=inside, other=0.0)
    return tl.sum(first, 0), tl.sum(second, 0)


@triton.jit(do_not_specialize=["width"])
def group_norm_forward(
    x, shift, weight, bias, mean, rstd, y, P, C, G, width,
    BP: tl.constexpr, BC: tl.constexpr, SHIFT: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    n, block = tl.program_id(1), tl.program_id(2)
    c = block * BC + tl.arange(0, BC)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    inside = (p < P)[:, None]
    m, r = tl.load(mean + n * G + c // width), tl.load(rstd + n * G + c // width)
    scale = r * tl.load(weight + c).to(tl.float32)
    move = tl.load(bias + c).to(tl.float32) - m * scale
    if SHIFT:
        move += tl.load(shift + n * C + c).to(tl.float32) * scale
    at = (n * P + p[:, None]) * C + c[None, :]
    u = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * scale[None, :] + move[None, :]
    if SILU:
        u = _silu(u)
    tl.store(y + at, u.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _slope(x, shift, weight, bias, mean, rstd, g, n, p, c, P, C, G, width, SHIFT: tl.constexpr, SILU: tl.constexpr):
    """x̂ and ∂loss/∂x̂ of a block of pixels and channels."""
    inside = (p < P)[:, None]
    at = (n * P + p[:, None]) * C + c[None, :]
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if SHIFT:
        v += tl.load(shift + n * C + c).to(tl.float32)[None, :]
    normed = (v - tl.load(mean + n * G + c // width)[None, :]) * tl.load(rstd + n * G + c // width)[None, :]
    w = tl.load(weight + c).to(tl.float32)[None, :]
    d = tl.load(g + at, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        d *= _silu_slope(normed * w + tl.load(bias + c).to(tl.float32)[None, :])
    return normed, tl.where(inside, d * w, 0.0)


@triton.jit(do_not_specialize=["width"])
def group_norm_backward_sums(
    x, shift, weight, bias, mean, rstd, g, sums, P, C, G, width, length,
    BP: tl.constexpr, BC: tl.constexpr, SHIFT: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Σd and Σd·x̂ of each channel over a run of pixels, d = ∂loss/∂x̂ → sums [n, run, 2, C]."""
    run, n, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    c = block * BC + tl.arange(0, BC)
    first, second = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
    for start in range(0, length, BP):
        p = run * length + start + tl.arange(0, BP)
        normed, d = _slope(x, shift, weight, bias, mean, rstd, g, n, p, c, P, C, G, width, SHIFT, SILU)
        first += tl.sum(d, 0)
        second += tl.sum(d * normed, 0)
    at = ((n * tl.num_programs(0) + run) * 2) * C + c
    tl.store(sums + at, first)
    tl.store(sums + at + C, second)


@triton.jit(do_not_specialize=["width", "count"])
def group_norm_backward(
    x, shift, weight, bias, mean, rstd, g, totals, dx, P, C, G, width, count,
    BP: tl.constexpr, BC: tl.constexpr, SHIFT: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    n, block = tl.program_id(1), tl.program_id(2)
    c = block * BC + tl.arange(0, BC)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    normed, d = _slope(x, shift, weight, bias, mean, rstd, g, n, p, c, P, C, G, width, SHIFT, SILU)
    size = tl.num_programs(1) * G
    first = tl.load(totals + n * G + c // width) / count
    second = tl.load(totals + size + n * G + c // width) / count
    d = (d - first[None, :] - normed * second[None, :]) * tl.load(rstd + n * G + c // width)[None, :]
    tl.store(dx + (n * P + p[:, None]) * C + c[None, :], d.to(dx.dtype.element_ty), mask=(p < P)[:, None])


@triton.jit
def layer_norm_forward(
    x, residual, total, weight, bias, y, mean, rstd, x_stride, residual_stride, C, eps,
    BC: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """One row; with ADD the sum residual + x is written to `total` and normed as it was rounded."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BC)
    inside = c < C
    v = tl.load(x + row * x_stride + c, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        v += tl.load(residual + row * residual_stride + c, mask=inside, other=0.0).to(tl.float32)
        rounded = v.to(total.dtype.element_ty)
        tl.store(total + row * C + c, rounded, mask=inside)
        v = rounded.to(tl.float32)
    m = tl.sum(v, 0) / C
    centred = tl.where(inside, v - m, 0.0)
    r = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / C + eps)
    w = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * C + c, (centred * r * w + b).to(y.dtype.element_ty), mask=inside)
    tl.store(mean + row, m)
    tl.store(rstd + row, r)


@triton.jit
def layer_norm_backward(
    x, weight, mean, rstd, g, extra, dx, x_stride, g_stride, extra_stride, C, BC: tl.constexpr, EXTRA: tl.constexpr
):
    """One row's gradient through the norm, and `extra`, the gradient that reaches its input besides."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BC)
    inside = c < C
    v = tl.load(x + row * x_stride + c, mask=inside, other=0.0).to(tl.float32)
    r = tl.load(rstd + row)
    normed = tl.where(inside, (v - tl.load(mean + row)) * r, 0.0)
    d = tl.load(g + row * g_stride + c, mask=inside, other=0.0).to(tl.float32)
    d *= tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    d = (d - tl.sum(d, 0) / C - normed * (tl.sum(d * normed, 0) / C)) * r
    if EXTRA:
        d += tl.load(extra + row * extra_stride + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + row * C + c, d.to(dx.dtype.element_ty), mask=inside)


@triton.jit
def _gelu_parts(gate):
    """Φ(gate) and the normal density there: gelu is gate·Φ, its slope Φ + gate·φ."""
    phi = 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    return phi, 0.3989422804014327 * tl.exp(-0.5 * gate * gate)


@triton.jit
def geglu_forward(h, y, h_stride, C, BC: tl.constexpr):
    row, c = tl.program_id(0).to(tl.int64), tl.program_id(1) * BC + tl.arange(0, BC)
    inside = c < C
    value = tl.load(h + row * h_stride + c, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(h + row * h_stride + C + c, mask=inside, other=0.0).to(tl.float32)
    phi, _ = _gelu_parts(gate)
    tl.store(y + row * C + c, (value * gate * phi).to(y.dtype.element_ty), mask=inside)


@triton.jit
def geglu_backward(h, g, dh, h_stride, g_stride, C, BC: tl.constexpr):
    row, c = tl.program_id(0).to(tl.int64), tl.program_id(1) * BC + tl.arange(0, BC)
    inside = c < C
    value = tl.load(h + row * h_stride + c, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(h + row * h_stride + C + c, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(g + row * g_stride + c, mask=inside, other=0.0).to(tl.float32)
    phi, density = _gelu_parts(gate)
    at = dh + row * 2 * C + c
    tl.store(at, (d * gate * phi).to(dh.dtype.element_ty), mask=inside)
    tl.store(at + C, (d * value * (phi + gate * density)).to(dh.dtype.element_ty), mask=inside)


@triton.jit
def add_three(x, shift, residual, y, size, C, per_sample, BLOCK: tl.constexpr, SHIFT: tl.constexpr):
    """x + shift + residual over channels_last memory; per_sample: numbers that share a row of shift."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if SHIFT:
        v += tl.load(shift + at // per_sample * C + at % C, mask=inside, other=0.0).to(tl.float32)
    v += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, v.to(y.dtype.element_ty), mask=inside)
