"""LoKr's Kronecker product, applied without being built."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from adapters.inject import attach
from adapters.kronecker import Kron, kron
from adapters.registry import make_spec
from adapters.sites import Site, make_site
from tests.tolerances import FP64, relative_error

# a1·b1 outputs, a2·b2 inputs of a group; wide and tall blocks take the two orders
LAYERS = {
    "linear": (lambda: nn.Linear(24, 30), (2, 3, 24)),
    "one token": (lambda: nn.Linear(24, 30), (24,)),
    "conv": (lambda: nn.Conv2d(24, 30, 3, padding=1), (2, 24, 5, 4)),
    "stride 2": (lambda: nn.Conv2d(24, 30, 3, stride=2, padding=1), (2, 24, 7, 9)),
    "not batched": (lambda: nn.Conv2d(24, 30, 3), (24, 6, 5)),
    "reflect": (lambda: nn.Conv2d(24, 30, (3, 1), padding=(1, 0), padding_mode="reflect"), (2, 24, 5, 4)),
    "aligned groups": (lambda: nn.Conv2d(72, 30, 3, groups=3), (2, 72, 5, 4)),
    "groups across blocks": (lambda: nn.Conv2d(120, 30, 3, groups=5), (2, 120, 5, 4)),
}


def site_and_input(name: str) -> tuple[Site, Tensor]:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    site = make_site(name, make().double())
    assert site is not None
    return site, torch.randn(shape).double()


def random_term(site: Site, a1: int, a2: int) -> Kron:
    b1, b2 = site.rows // a1, site.weight.shape[1] // a2
    return Kron(torch.randn(a1, a2).double(), (torch.randn(b1, b2, *site.weight.shape[2:]).double(),))


def dense(term: Kron) -> Tensor:
    first, second = term.first, term.second[0]
    return torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("a1", "a2"), [(3, 2), (3, 12), (15, 2), (6, 4), (1, 1), (30, 24)])
def test_the_output_is_that_of_torchs_own_kronecker_product(name: str, a1: int, a2: int):
    site, x = site_and_input(name)
    assert site.bias is not None
    term = random_term(site, a1, a2)
    y = site.module(x)
    expected = torch.func.functional_call(site.module, {"weight": dense(term)}, (x,)) - site.per_output(site.bias)
    assert relative_error(kron(site, x, y, term), expected) < FP64


@pytest.mark.parametrize("name", ["linear", "conv", "stride 2", "aligned groups"])
@pytest.mark.parametrize(("a1", "a2"), [(3, 12), (15, 2), (6, 4)])
def test_the_cheaper_of_the_two_orders_is_taken(name: str, a1: int, a2: int):
    site, x = site_and_input(name)
    y, term = site.module(x), random_term(site, a1, a2)
    (b1, b2), area = term.second[0].shape[:2], term.second[0][0, 0].numel()
    n_in, n_out = (t.numel() // t.shape[site.channel_axis] for t in (x, y))
    second_first = site.groups * a2 * n_out * b1 * b2 * area + n_out * a1 * a2 * b1
    first_first = n_in * a1 * a2 * b2 + n_out * a1 * b1 * b2 * area
    with FlopCounterMode(display=False) as counter:
        kron(site, x, y, term)
    assert counter.get_total_flops() == 2 * min(second_first, first_first)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("method", ["krona", "lokr"])
def test_the_row_norm_is_that_of_the_built_matrix(name: str, method: str):
    site, _ = site_and_input(name)
    knobs = {"terms": 2, "factor": 2} if method == "krona" else {"rank": 2, "tucker": True, "decompose_both": True}
    adapter = attach({"unet": nn.Sequential(site.module)}, make_spec(method, **knobs), {"unet": "0"}).adapters["unet.0"]
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()
        weight = site.weight.detach()
        expected = site.matricise(weight + adapter.delta_weight(weight)).square().sum(1)
        assert relative_error(adapter.row_norm2(site.matricise(weight).square().sum(1)), expected) < FP64


def test_a_second_factor_of_low_rank_is_applied_in_two_steps_and_not_built():
    layer = nn.Linear(64, 64)
    x = torch.randn(100, 64)
    adapter = attach({"unet": nn.Sequential(layer)}, make_spec("lokr", rank=2, factor=2), {"unet": "0"}).adapters[
        "unet.0"
    ]
    y = layer(x)
    with FlopCounterMode(display=False) as counter:
        adapter.delta(x, y)
    assert counter.get_total_flops() == 2 * 100 * (2 * 2 * (32 + 32) + 2 * 2 * 32)
