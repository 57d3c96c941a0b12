"""The ways a delta acts on x without ever being a d×κ matrix. `chain` carries LoRA and its kin."""

from __future__ import annotations

from torch import Tensor

from adapters.sites import Site


def chain(site: Site, x: Tensor, up: Tensor, down: Tensor, scale: float) -> Tensor:
    """s·B(A x) at N·r(κ+d) multiply-adds.

    Args:
        x: the layer's input; factors are cast to its dtype.
        up: B, [d, r/g].
        down: A, [r, κ].
        scale: s; applied to the r-wide middle, the cheapest place.
    """
    z = site.apply_down(x, down.to(x.dtype))
    if scale != 1.0:
        z = z * scale
    return site.apply_up(z, up.to(z.dtype))


def chain_row_norm2(site: Site, base_norm2: Tensor, up: Tensor, down: Tensor, scale: float) -> Tensor:
    """‖(W + s·B A)_i‖², [d], for r·d·κ multiply-adds and no d×κ copy.

    ‖W_i‖² + 2s·Σ_r B_ir (W Aᵀ)_ir + s²·B_i (A Aᵀ) B_iᵀ.
    """
    cross = (up * site.project(down)).sum(1)
    a, b = site.split_groups(down), site.split_groups(up)
    square = ((b @ (a @ a.mT)) * b).sum(-1).flatten()
    return base_norm2 + 2 * scale * cross + scale**2 * square


def row_norm2(matrix: Tensor) -> Tensor:
    """‖M_i‖² of each row of a d×κ matrix, [d]."""
    return matrix.norm(dim=1).square()
