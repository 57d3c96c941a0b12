"""DoRA's own promises: the norm's precision, and that it wraps any method with a row norm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adapters.base import Adapter, AdapterSpec, Context
from adapters.errors import UserInputError
from adapters.kernels import row_norm2
from adapters.magnitude import Magnitude
from adapters.methods.dora import Dora, DoraSpec
from adapters.sites import Site, make_site
from tests.tolerances import FP64, relative_error, same_bits


class RowGain(Adapter):
    """ΔW = diag(g) W: not low rank, and with a norm of its own."""

    def __init__(self, site: Site, weight: Tensor, spec: AdapterSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        self.gain = nn.Parameter(weight.new_zeros(site.rows))

    def delta(self, x: Tensor, y_base: Tensor) -> Tensor:
        assert self.site.bias is not None
        return (y_base - self.site.bias) * self.gain

    def delta_weight(self, weight: Tensor) -> Tensor:
        return weight * self.gain[:, None]

    def row_norm2(self, base_norm2: Tensor) -> Tensor:
        return base_norm2 * (1 + self.gain) ** 2


class NoNorm(RowGain):
    title = "NoNorm"
    row_norm2 = Adapter.row_norm2


class WithHooks(RowGain):
    def __init__(self, site: Site, weight: Tensor, spec: AdapterSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        self.heard: list[object] = []

    def regulariser(self) -> Tensor:
        return self.gain.square().sum() + 3

    def on_backward(self) -> None:
        self.heard.append("backward")

    def on_step(self, step: int) -> None:
        self.heard.append(step)


class DoraOverRowGain(Magnitude):
    inner_type = RowGain


class DoraWithHooks(Magnitude):
    inner_type = WithHooks


class DoraOverNoNorm(Magnitude):
    inner_type = NoNorm


def build(kind: type[Dora], dtype: torch.dtype) -> tuple[Dora, Site]:
    torch.manual_seed(0)
    site = make_site("unet.a", nn.Linear(24, 16).to(dtype))
    assert site is not None
    weight = site.weight.detach().to(torch.promote_types(dtype, torch.float32))
    return kind(site, weight, DoraSpec(rank=4), Context(0, (site,))), site


def test_dora_goes_over_any_method_with_a_row_norm():
    dora, site = build(DoraOverRowGain, torch.float64)
    x = torch.randn(5, 24).double()
    assert not dora.delta(x, site.module(x)).any()
    with torch.no_grad():
        for parameter in dora.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    found = dora.delta(x, site.module(x))
    assert relative_error(found, x @ dora.delta_weight(site.weight).mT) < FP64
    assert set(dora.parameter_groups()) == {"weights", "magnitude"}


def test_dora_over_a_method_without_a_row_norm_says_so():
    dora, site = build(DoraOverNoNorm, torch.float32)
    x = torch.randn(5, 24)
    with pytest.raises(UserInputError, match="NoNorm offers no row norm"):
        dora.delta(x, site.module(x))


def test_the_inner_methods_hooks_are_called():
    dora, _ = build(DoraWithHooks, torch.float32)
    dora.on_backward()
    DoraWithHooks.on_step_all([dora], 7)
    assert isinstance(dora.inner, WithHooks) and dora.inner.heard == ["backward", 7]
    assert dora.regulariser() == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_magnitude_starts_as_the_row_norms(dtype: torch.dtype):
    dora, site = build(Dora, dtype)
    assert dora.magnitude.dtype == torch.float32
    assert torch.allclose(dora.magnitude, site.weight.float().norm(dim=1))


def test_autocast_does_not_reach_the_norm():
    dora, _ = build(Dora, torch.float32)
    with torch.no_grad():
        for parameter in dora.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    outside = dora.gain_minus_one()
    with torch.autocast("cpu", torch.bfloat16):
        assert same_bits(dora.gain_minus_one(), outside)


def test_the_norm_is_a_constant_to_the_gradient():
    dora, site = build(Dora, torch.float64)
    x = torch.randn(5, 24).double()
    with torch.no_grad():
        for parameter in dora.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        gain = dora.magnitude / (site.weight + dora.inner.delta_weight(site.weight)).norm(dim=1)
    dora.delta(x, site.module(x).detach()).sum().backward()
    u = dora.inner.delta(x, site.module(x))
    expected = torch.autograd.grad((gain * u).sum(), list(dora.inner.parameters()))
    for parameter, gradient in zip(dora.inner.parameters(), expected, strict=True):
        assert parameter.grad is not None and relative_error(parameter.grad, gradient) < FP64


def test_one_output_sized_tensor_is_saved_for_backward():
    dora, site = build(Dora, torch.float32)
    x = torch.randn(5, 24, requires_grad=True)
    y_base = site.module.requires_grad_(False)(x)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        dora.delta(x, y_base)
    assert sum(t.shape == y_base.shape for t in saved) == 1


def test_the_base_norm_is_derived_not_saved():
    dora, site = build(Dora, torch.float32)
    assert set(dora.state_dict()) == {"magnitude", "inner.down", "inner.up"}
    assert torch.equal(dora.base_norm2, row_norm2(site.weight.detach()))
