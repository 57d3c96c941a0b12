"""RoSA's own promises, and the `sparse` kernel against a dense matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adapters import sparse as kernel
from adapters.base import Context
from adapters.methods.rosa import LargestGradients, Rosa, RosaSpec
from adapters.sites import Site, make_site
from tests.contract.harness import LAYERS, Base, Layer, Method, nudge
from tests.tolerances import BF16, FP32, FP64, relative_error

ROSA = Method("rosa", {"rank": 4, "density": 0.02, "calibration_draws": 3}, lambda _: 0)
EXTRA = {
    "conv valid": Layer(lambda: nn.Conv2d(16, 24, 3, padding="valid", stride=(1, 2)), (2, 16, 7, 9)),
    "conv same": Layer(lambda: nn.Conv2d(16, 24, (2, 3), padding="same"), (2, 16, 5, 7)),
    "conv reflected": Layer(lambda: nn.Conv2d(16, 24, 3, padding=(1, 2), padding_mode="reflect"), (2, 16, 5, 7)),
    "conv uneven": Layer(lambda: nn.Conv2d(16, 24, (3, 2), stride=(2, 1), padding=(2, 1), groups=2), (2, 16, 6, 7)),
}


def rosa(base: Base, **knobs: object) -> Rosa:
    found = base.attach(ROSA, **knobs).adapters["unet.layer"]
    assert isinstance(found, Rosa)
    return found


def drawn(site: Site, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Values and entries, not in order."""
    total = site.rows * site.columns
    entries = torch.randperm(total, generator=torch.Generator().manual_seed(2))[: total // 20].int()
    return torch.randn(len(entries)).to(dtype), entries


def dense(site: Site, values: Tensor, entries: Tensor) -> Tensor:
    return torch.zeros(site.rows * site.columns).to(values).index_put((entries.long(),), values).reshape_as(site.weight)


def reference(site: Site, x: Tensor, weight: Tensor) -> Tensor:
    bare = {"weight": weight} if site.bias is None else {"weight": weight, "bias": torch.zeros_like(site.bias)}
    return torch.func.functional_call(site.module, bare, (x,))


@pytest.mark.parametrize("layer", (LAYERS | EXTRA).values(), ids=LAYERS | EXTRA)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, FP64), (torch.float32, FP32), (torch.bfloat16, BF16)], ids=str
)
@pytest.mark.parametrize("chunk", [kernel._CHUNK, 100], ids=["whole", "in chunks"])
def test_sparse_and_its_gradients_equal_a_dense_matrix(
    layer: Layer, dtype: torch.dtype, tolerance: float, chunk: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(kernel, "_CHUNK", chunk)
    base = Base(layer, torch.float64)
    site = make_site("unet.layer", base.layer)
    assert site is not None
    values, entries = drawn(site, torch.float64)
    x = base.x.to(dtype).double().requires_grad_()
    values = values.to(dtype).double().requires_grad_()
    expected = reference(site, x, dense(site, values, entries))
    direction = torch.randn_like(expected).to(dtype)
    expected_gradients = torch.autograd.grad(expected, [x, values], direction.double())
    low_x = x.detach().to(dtype).requires_grad_()
    low_values = values.detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    found = kernel.sparse(site, low_x, low_values, entries)
    assert found.dtype == dtype
    assert relative_error(found, expected) < tolerance
    gradients = torch.autograd.grad(found, [low_x, low_values], direction)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert relative_error(ours, theirs) < tolerance


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_the_operators_keep_the_rules_of_torch_library(layer: Layer):
    base = Base(layer, torch.float64)
    site = make_site("unet.layer", base.layer)
    assert site is not None
    values, entries = drawn(site, torch.float64)
    x, geometry = site.windows(base.x)
    arguments = (x.requires_grad_(), values.requires_grad_(), entries, site.rows, site.groups, geometry)
    torch.library.opcheck(kernel._apply, arguments)


class Largest(TorchDispatchMode):
    """The most numbers in any dense result."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                self.numel = max(self.numel, tensor.numel())
        return result


def test_inside_the_operators_nothing_is_as_large_as_the_weight_or_as_entries_times_tokens(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(kernel, "_CHUNK", 4096)
    site = make_site("unet.layer", nn.Linear(128, 160))
    assert site is not None
    values, entries = drawn(site, torch.float32)
    x, gradient = torch.randn(64, 128), torch.randn(64, 160)
    rest = (x, values, entries, site.rows, 1, [])
    with Largest() as largest:
        kernel._forward(*rest)
        kernel._input_gradient(gradient, *rest)
        kernel._value_gradient(gradient, *rest)
    assert len(entries) * 64 > 160 * 128
    assert largest.numel <= 64 * 160 < site.weight.numel()


@pytest.mark.parametrize("name", ["linear", "conv strided", "conv grouped"])
def test_the_entries_are_those_of_the_largest_mean_squared_gradient(name: str):
    base = Base(LAYERS[name], torch.float64)
    adapter = rosa(base)
    bare, total = Base(LAYERS[name], torch.float64), torch.zeros(())
    for draw in range(3):
        target = torch.randn(bare().shape, generator=torch.Generator().manual_seed(draw))
        loss = (bare() - target).float().square().mean()
        total = total + torch.autograd.grad(loss, bare.layer.weight)[0] ** 2
    count = round(0.02 * total.numel())
    expected = (total / 3).flatten().argsort(descending=True)[:count].sort().values
    assert adapter.entries.tolist() == expected.tolist()
    assert adapter.entries.dtype == torch.int32


def test_one_batch_with_a_large_gradient_outweighs_many_that_cancel():
    entries = torch.zeros(1, dtype=torch.int32)
    calibration = LargestGradients(entries, 2)
    for first in (3.0, -3.0):  # the mean gradient of entry 1 is 0, its mean square 9
        calibration.observe(torch.tensor([[1.0, first], [2.0, 0.0]]))
    calibration.finish()
    assert entries.tolist() == [1]


def test_before_calibration_the_entries_are_distinct_and_spread_over_the_weight():
    base = Base(LAYERS["linear"], torch.float32)
    site = make_site("unet.layer", base.layer)
    assert site is not None
    fresh = Rosa(site, site.weight.detach(), RosaSpec(rank=4, density=0.02), Context(0, (site,))).entries
    assert len(fresh.unique()) == len(fresh) == 45
    assert fresh.max() > 0.95 * site.weight.numel()


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("init", ["gaussian", "pissa"])
def test_the_row_norm_in_gram_form_is_that_of_the_dense_sum(layer: Layer, init: str):
    base = Base(layer, torch.float64)
    adapter_set = base.attach(ROSA, init=init, density=0.2)
    nudge(adapter_set, 0.3)
    adapter = adapter_set.adapters["unet.layer"]
    weight = base.layer.weight.detach()
    expected = (weight + adapter.delta_weight(weight)).flatten(1).square().sum(1)
    found = adapter.row_norm2(weight.flatten(1).square().sum(1))
    assert relative_error(found, expected) < FP64


def test_a_start_from_gradients_and_the_entries_share_the_batches():
    base = Base(LAYERS["linear"], torch.float64)
    method = Method("rosa", {"rank": 4, "density": 0.02, "init": "lora-ga", "calibration_draws": 2}, lambda _: 0)
    adapter = base.attach(method).adapters["unet.layer"]
    assert adapter.pair.anchor_up.abs().max() > 0
    assert not torch.equal(adapter.entries, base.attach(method, calibration_draws=1).adapters["unet.layer"].entries)
