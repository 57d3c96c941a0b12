"""Row norms in Gram form against the materialised weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapters.kernels import chain_row_norm2, row_norm2
from adapters.sites import make_site
from tests.tolerances import FP32, FP64, relative_error

LAYERS = {
    "linear": lambda: nn.Linear(48, 32),
    "conv": lambda: nn.Conv2d(8, 32, 3),
    "grouped": lambda: nn.Conv2d(8, 32, 3, groups=4),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize(
    # in bf16 only the cross term W Aᵀ is rounded, so the norm is far closer than a materialised bf16 one (1.7e-3)
    ("dtype", "tolerance"),
    [(torch.float64, FP64), (torch.float32, FP32), (torch.bfloat16, 5e-4)],
    ids=str,
)
def test_the_gram_form_is_the_norm_of_the_materialised_rows(make, dtype: torch.dtype, tolerance: float):
    torch.manual_seed(0)
    site = make_site("layer", make().to(dtype))
    assert site is not None
    weight = site.matricise(site.weight.detach()).to(torch.promote_types(dtype, torch.float32))
    down = torch.randn(8, site.columns).to(weight) / site.columns**0.5
    up = 0.1 * torch.randn(site.rows, 8 // site.groups).to(weight)
    found = chain_row_norm2(site, row_norm2(weight), 0.7 * up, down)
    expected = (weight + 0.7 * site.product(up, down)).double().square().sum(1)
    assert relative_error(found.sqrt(), expected.sqrt()) < tolerance


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_with_an_up_factor_of_zeros_the_gram_form_is_exactly_the_base_norm(make):
    site = make_site("layer", make())
    assert site is not None
    base = row_norm2(site.matricise(site.weight.detach()))
    down = torch.randn(8, site.columns)
    assert torch.equal(chain_row_norm2(site, base, torch.zeros(site.rows, 8 // site.groups), down), base)
