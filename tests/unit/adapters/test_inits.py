"""The starts of an anchored pair, against their papers' definitions in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet
from adapters.calibrate import calibrate
from adapters.inject import attach
from adapters.methods.lora import Lora
from adapters.registry import make_spec
from tests.contract.harness import LAYERS, Base
from tests.tolerances import FP64, relative_error

KINDS = ["linear", "conv 3x3", "conv grouped"]


def started(kind: str, init: str, **knobs: object) -> Lora:
    spec = make_spec("lora", init=init, **{"rank": 8, "alpha": 3.0, **knobs})
    adapter = attach({"unet": Base(LAYERS[kind], torch.float64)}, spec, {"unet": "layer"}).adapters["unet.layer"]
    assert isinstance(adapter, Lora)
    return adapter


def anchored_part(adapter: Lora) -> tuple[Tensor, Tensor]:
    """(W, s·B0 A0) group by group."""
    site = adapter.site
    part = adapter.scale * site.product(adapter.anchor_up, adapter.anchor_down)
    return site.split_groups(site.matricise(site.weight.detach())), site.split_groups(part)


@pytest.mark.parametrize("kind", KINDS)
def test_pissa_starts_at_the_best_approximation_of_w(kind: str):
    adapter = started(kind, "pissa")
    weight, part = anchored_part(adapter)
    values = torch.linalg.svdvals(weight)[:, 8 // adapter.site.groups :]
    assert relative_error(torch.linalg.matrix_norm(weight - part), values.square().sum(1).sqrt()) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_milora_starts_at_the_smallest_singular_values(kind: str):
    adapter = started(kind, "milora")
    weight, part = anchored_part(adapter)
    count = 8 // adapter.site.groups
    values = torch.linalg.svdvals(weight)
    assert relative_error(torch.linalg.svdvals(part)[:, :count], values[:, -count:]) < 1e-9
    assert relative_error(torch.linalg.svdvals(weight - part)[:, :-count], values[:, :-count]) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_pissa_and_milora_are_balanced_between_the_factors(kind: str):
    for init in ("pissa", "milora"):
        adapter = started(kind, init)
        up = adapter.site.split_groups(adapter.anchor_up).norm(dim=1).flatten()
        assert relative_error(up, adapter.anchor_down.norm(dim=1)) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_olora_starts_at_the_qr_decomposition_of_w(kind: str):
    adapter = started(kind, "olora")
    site, count = adapter.site, 8 // adapter.site.groups
    q, r = torch.linalg.qr(site.split_groups(site.matricise(site.weight.detach())))
    expected = q[..., :count] @ r[:, :count]
    assert relative_error(site.split_groups(site.product(adapter.anchor_up, adapter.anchor_down)), expected) < FP64
    up = site.split_groups(adapter.anchor_up)
    assert relative_error(up.mT @ up, torch.eye(count, dtype=torch.float64).expand(site.groups, -1, -1)) < FP64


def test_the_start_follows_the_scale_rule():
    plain, stabilized = started("linear", "pissa"), started("linear", "pissa", rank_stabilized=True)
    assert plain.scale != stabilized.scale
    assert relative_error(anchored_part(plain)[1], anchored_part(stabilized)[1]) < FP64


class Regression(nn.Module):
    """A layer with a loss whose gradient is known: batch n's is that of ‖layer(x_n) − y_n‖²."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = LAYERS[kind].make().double()
        self.inputs = [torch.randn(LAYERS[kind].input_shape, dtype=torch.float64) for _ in range(3)]
        self.targets = [torch.randn_like(self.layer(x)) for x in self.inputs]

    def loss(self, draw: int) -> Tensor:
        return (self.layer(self.inputs[draw]) - self.targets[draw]).square().sum()

    def gradients(self) -> list[Tensor]:
        return [torch.autograd.grad(self.loss(draw), self.layer.weight)[0] for draw in range(3)]


def calibrated(model: Regression, **knobs: object) -> AdapterSet:
    spec = make_spec("lora", init="lora-ga", calibration_draws=3, **knobs)
    adapter_set = attach({"unet": model}, spec, {"unet": "layer"})
    model.requires_grad_(False)
    adapter_set.strength = 0.0
    assert list(calibrate(adapter_set, lambda draw: model.loss(draw).backward()))[-1] == (3, 3)
    adapter_set.strength = 1.0
    return adapter_set


@pytest.mark.parametrize("kind", KINDS)
def test_lora_ga_reaches_the_optimal_residual(kind: str):
    """Its first step moves W by a multiple of the best rank-2r approximation of G (theorem 3.1)."""
    model = Regression(kind)
    mean = torch.stack(model.gradients()).mean(0)
    (adapter,) = calibrated(model, rank=4).adapters.values()
    assert isinstance(adapter, Lora)
    site = adapter.site
    gradient = site.split_groups(site.matricise(mean))
    up, down = site.split_groups(adapter.anchor_up), site.split_groups(adapter.anchor_down)
    gain2 = site.rows**0.5 / 16
    moved = (up @ (up.mT @ gradient) + (gradient @ down.mT) @ down) / gain2
    best = torch.linalg.svdvals(gradient)[:, 2 * 4 // site.groups :].square().sum(1).sqrt()
    residual = torch.linalg.matrix_norm(gradient - moved)
    assert (residual <= best * (1 + 1e-9)).all()
    assert (residual >= best * (1 - 1e-9)).all()


def test_calibration_leaves_the_base_without_gradients_and_hooks():
    model = Regression("linear")
    calibrated(model, rank=4)
    assert model.layer.weight.grad is None and not model.layer.weight.requires_grad
    assert not model.layer.weight._post_accumulate_grad_hooks


def test_a_calibrated_start_is_saved_and_not_sought_again():
    model = Regression("linear")
    adapter_set = calibrated(model, rank=4)
    assert any(
        name.endswith("anchor_up") and tensor.abs().max() > 0 for name, tensor in adapter_set.file_state().items()
    )


def test_only_methods_that_start_from_gradients_run_batches():
    model = Regression("linear")
    adapter_set = attach({"unet": model}, make_spec("lora", rank=4), {"unet": "layer"})
    assert list(calibrate(adapter_set, lambda _: pytest.fail("a batch was run"))) == []
