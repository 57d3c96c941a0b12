"""How close is equal, in one place. Relative to the largest magnitude of what is expected."""

from __future__ import annotations

import torch
from torch import Tensor

FP32 = 1e-5
"""Two orders of summation in float32."""
FP64 = 1e-12
"""Two orders of summation in float64: any formula that is off shows at 1e-6 or more."""
FP64_GRADIENT = 1e-9
"""Gradients in float64 against autograd on the materialised weight."""
BF16 = 2e-2
"""One or two roundings to bfloat16 (2⁻⁸ each) on top of each other."""


def relative_error(found: Tensor, expected: Tensor) -> float:
    """max|found − expected| / max|expected|, in float64; shapes must agree."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    found, expected = found.detach().double(), expected.detach().double()
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float64).tiny)).item()


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit: tells −0 from 0, which torch.equal does not."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    left, right = (t.detach().contiguous().flatten().view(torch.uint8) for t in (a, b))
    return torch.equal(left, right)
