"""The ways a delta acts on x without ever being a d×κ matrix. `chain` carries LoRA and its kin."""

from __future__ import annotations

from torch import Tensor

from adapters.sites import Site


def chain(site: Site, x: Tensor, up: Tensor, down: Tensor, scale: float = 1.0, core: Tensor | None = None) -> Tensor:
    """s·B C A x at N·r(κ+d) multiply-adds, and N·r² more for a matrix in the middle.

    Args:
        x: the layer's input; factors are cast to its dtype.
        up: B, [d, r'/g].
        down: A, [r, κ].
        scale: s; applied to the r-wide middle, the cheapest place.
        core: C: None for the identity, [r] for a diagonal, [r', r/g] for a matrix (block by block of each group).
    """
    z = site.apply_down(x, down.to(x.dtype))
    if core is not None:
        z = z * site.per_output(core.to(z.dtype)) if core.ndim == 1 else site.apply_up(z, core.to(z.dtype))
    if scale != 1.0:
        z = z * scale
    return site.apply_up(z, up.to(z.dtype))


def fold(site: Site, up: Tensor, scale: float = 1.0, core: Tensor | None = None) -> Tensor:
    """s·B C, [d, r/g]: what is left of the chain above A."""
    if core is not None and core.ndim == 1:
        up = (site.split_groups(up) * core.unflatten(0, (site.groups, 1, -1))).flatten(0, 1)
    elif core is not None:
        up = site.product(up, core)
    return up if scale == 1.0 else scale * up


def chain_row_norm2(site: Site, base_norm2: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """‖(W + B A)_i‖², [d], for r·d·κ multiply-adds and no d×κ copy.

    ‖W_i‖² + 2·Σ_r B_ir (W Aᵀ)_ir + B_i (A Aᵀ) B_iᵀ.
    """
    cross = (up * site.project(down)).sum(1)
    a, b = site.split_groups(down), site.split_groups(up)
    square = ((b @ (a @ a.mT)) * b).sum(-1).flatten()
    return base_norm2 + 2 * cross + square


def row_norm2(matrix: Tensor) -> Tensor:
    """‖M_i‖² of each row of a d×κ matrix, [d]."""
    return matrix.norm(dim=1).square()
