"""`sparse`: S x for a d×κ matrix S of few entries, without a d×κ tensor and without one number per entry and token.

Custom operators, so that torch.compile takes them whole. The sums run in fp32 (fp64 for fp64 inputs), also under
autocast. A convolution's x is unfolded picture by picture, again in backward: only x itself is saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.sites import Site

_CHUNK = 1 << 24
"""How many numbers of activations the gradient of the values gathers at a time."""


def sparse(site: Site, x: Tensor, values: Tensor, entries: Tensor) -> Tensor:
    """S x, of x's dtype and the layer's output shape.

    Args:
        x: the layer's input.
        values: [nnz], in their own precision.
        entries: [nnz] integers, distinct: row·κ + column of each value.
    """
    x, geometry = site.windows(x)
    return _apply(x, values, entries, site.rows, site.groups, geometry)


def sparse_row_norm2(
    site: Site, base_norm2: Tensor, up: Tensor, down: Tensor, values: Tensor, entries: Tensor
) -> Tensor:
    """‖(W + B A + S)_i‖² − ‖(W + B A)_i‖² + base_norm2, [d]: 2(W + B A)_ij S_ij + S_ij² summed over S's entries."""
    rows, columns = entries // site.columns, entries % site.columns
    per_group = site.rows // site.groups
    picked = site.split_groups(down)[rows // per_group, :, columns]
    dense = site.matricise(site.weight)[rows, columns].to(values.dtype) + (up[rows] * picked).sum(1)
    return base_norm2.index_add(0, rows, (2 * dense + values) * values)


# --- the operators: geometry is [] for a Linear, else kernel, stride, dilation and padding, two numbers each ------


def _matrix(values: Tensor, entries: Tensor, rows: int, groups: int, width: int, dtype: torch.dtype) -> Tensor:
    """S as d×(g·κ) in coordinates: each group's rows meet its own block of columns."""
    columns = width // groups
    row = entries.long() // columns
    column = entries.long() % columns + row // (rows // groups) * columns
    return torch.sparse_coo_tensor(torch.stack([row, column]), values.to(dtype), (rows, width), check_invariants=False)


def _window(geometry: list[int]) -> dict[str, tuple[int, int]]:
    """The geometry as F.unfold and F.fold take it."""
    pairs = zip(geometry[::2], geometry[1::2], strict=True)
    return dict(zip(("kernel_size", "stride", "dilation", "padding"), pairs, strict=True))


def _columns(x: Tensor, geometry: list[int], dtype: torch.dtype) -> Iterator[Tensor]:
    """What S is multiplied by, [g·κ, positions], in parts: a Linear's tokens at once, a convolution's by picture."""
    if not geometry:
        yield x.reshape(-1, x.shape[-1]).T.to(dtype)
        return
    for picture in x.to(dtype).split(1):
        yield F.unfold(picture, **_window(geometry))[0]


def _positions(y: Tensor, geometry: list[int], dtype: torch.dtype) -> Iterator[Tensor]:
    """The output (or its gradient) as [d, positions], in the same parts."""
    if not geometry:
        yield y.reshape(-1, y.shape[-1]).T.to(dtype)
        return
    for picture in y.to(dtype):
        yield picture.flatten(1)


def _width(x: Tensor, geometry: list[int]) -> int:
    return x.shape[1] * geometry[0] * geometry[1] if geometry else x.shape[-1]


def _output_shape(x: Tensor, rows: int, geometry: list[int]) -> list[Any]:
    if not geometry:
        return [*x.shape[:-1], rows]
    sizes = [
        (x.shape[2 + i] + 2 * geometry[6 + i] - geometry[4 + i] * (geometry[i] - 1) - 1) // geometry[2 + i] + 1
        for i in (0, 1)
    ]
    return [x.shape[0], rows, *sizes]


def _forward(x: Tensor, values: Tensor, entries: Tensor, rows: int, groups: int, geometry: list[int]) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    matrix = _matrix(values, entries, rows, groups, _width(x, geometry), dtype)
    shape = _output_shape(x, rows, geometry)
    parts = [torch.sparse.mm(matrix, part) for part in _columns(x, geometry, dtype)]
    if geometry:
        return torch.stack(parts).reshape(shape).to(x.dtype)
    return parts[0].T.reshape(shape).to(x.dtype).contiguous()


def _forward_fake(x: Tensor, values: Tensor, entries: Tensor, rows: int, groups: int, geometry: list[int]) -> Tensor:
    return x.new_empty(_output_shape(x, rows, geometry))


def _input_gradient(
    gradient: Tensor, x: Tensor, values: Tensor, entries: Tensor, rows: int, groups: int, geometry: list[int]
) -> Tensor:
    """Sᵀ g, folded back onto the input."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    matrix = _matrix(values, entries, rows, groups, _width(x, geometry), dtype).t()
    parts = [torch.sparse.mm(matrix, part) for part in _positions(gradient, geometry, dtype)]
    if not geometry:
        return parts[0].T.reshape(x.shape).to(x.dtype).contiguous()
    size = (x.shape[2], x.shape[3])
    folded = [F.fold(part[None], size, **_window(geometry)) for part in parts]
    return torch.cat(folded).to(x.dtype)


def _input_gradient_fake(
    gradient: Tensor, x: Tensor, values: Tensor, entries: Tensor, rows: int, groups: int, geometry: list[int]
) -> Tensor:
    return x.new_empty(x.shape)


def _value_gradient(
    gradient: Tensor, x: Tensor, values: Tensor, entries: Tensor, rows: int, groups: int, geometry: list[int]
) -> Tensor:
    """(g xᵀ) at the entries, [nnz]: gathered a chunk of entries at a time."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    matrix = _matrix(values, entries, rows, groups, _width(x, geometry), dtype)
    row, column = matrix._indices()
    total = values.new_zeros(values.shape, dtype=dtype)
    for left, right in zip(_positions(gradient, geometry, dtype), _columns(x, geometry, dtype), strict=True):
        left, right = left.contiguous(), right.contiguous()
        size = max(1, _CHUNK // max(1, left.shape[1]))
        for part, r, c in zip(total.split(size), row.split(size), column.split(size), strict=True):
            part += torch.linalg.vecdot(left[r], right[c])
    return total.to(values.dtype)


def _value_gradient_fake(
    gradient: Tensor, x: Tensor, values: Tensor, entries: Tensor, rows: int, groups: int, geometry: list[int]
) -> Tensor:
    return values.new_empty(values.shape)


# schemas are written out: they do not depend on annotations, which run-time checkers rewrite
_ARGUMENTS = "Tensor x, Tensor values, Tensor entries, int rows, int groups, int[] geometry) -> Tensor"
_apply = torch.library.custom_op("spectral::sparse", _forward, mutates_args=(), schema=f"({_ARGUMENTS}")
_to_input = torch.library.custom_op(
    "spectral::sparse_input_gradient", _input_gradient, mutates_args=(), schema=f"(Tensor gradient, {_ARGUMENTS}"
)
_to_values = torch.library.custom_op(
    "spectral::sparse_value_gradient", _value_gradient, mutates_args=(), schema=f"(Tensor gradient, {_ARGUMENTS}"
)
_apply.register_fake(_forward_fake)
_to_input.register_fake(_input_gradient_fake)
_to_values.register_fake(_value_gradient_fake)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, entries, *ctx.rest = inputs
    ctx.save_for_backward(x, values, entries)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    given = (gradient, *ctx.saved_tensors, *ctx.rest)
    wants_x, wants_values = ctx.needs_input_grad[:2]
    return _to_input(*given) if wants_x else None, _to_values(*given) if wants_values else None, None, None, None, None


_apply.register_autograd(_backward, setup_context=_keep)
