"""Optimizer rules: what each does to gradients and rates, and what it refuses."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet, LayerOverride
from adapters.base import REGISTRY
from adapters.errors import UnknownNameError, UserInputError
from adapters.inject import attach
from adapters.registry import make_spec
from tests.contract.harness import LAYERS, backward
from tests.contract.harness import Base as Contract
from tests.contract.table import METHODS
from tests.tolerances import FP64_GRADIENT, relative_error
from trainers.config import TrainConfig
from trainers.engine import parameter_groups
from trainers.optim import OptimConfig
from trainers.rules import RULES, LoraFa, LoraPlus, LoraPro, Rule, lora_pro_gradients


def config(**changes: object) -> TrainConfig:
    data = {"folder": "pictures", "captions": {"trigger": "sks"}}
    return TrainConfig.model_validate({"data": data, "targets": {"unet": "all"}, **changes})


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(10, 12)
        self.again = nn.Linear(10, 12)
        self.conv = nn.Conv2d(8, 12, 3, groups=2)
        self.double().requires_grad_(False)

    def backward(self, adapter: AdapterSet) -> dict[str, Tensor]:
        """The gradients of the bare weights as their own, those of the factors as the adapter's."""
        for parameter in self.parameters():
            parameter.requires_grad_(True)
        x = torch.randn(7, 10, generator=torch.Generator().manual_seed(1)).double()
        picture = torch.randn(3, 8, 5, 5, generator=torch.Generator().manual_seed(2)).double()
        loss = self.linear(x).sin().sum() + self.again(x).cos().sum() + self.conv(picture).sin().sum()
        loss.backward()
        return {name: module.weight.grad for name, module in self.named_children() if module.weight.grad is not None}


def with_factors(**knobs: object) -> tuple[Base, AdapterSet]:
    """LoRA on three layers, its factors off their start."""
    base = Base()
    spec = make_spec("lora", **{"rank": 4, "alpha": 6.0, **knobs})
    adapter = attach({"unet": base}, spec, {"unet": "all"})
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return base, adapter


# --- LoRA-Pro -----------------------------------------------------------------------------------------------------


def projector(basis: Tensor) -> Tensor:
    """Onto the columns of `basis`, by QR: not how the code gets it."""
    orthonormal = torch.linalg.qr(basis).Q
    return orthonormal @ orthonormal.mT


@pytest.mark.parametrize("knobs", [{}, {"rank_stabilized": True}, {"init": "pissa"}], ids=["plain", "rslora", "pissa"])
def test_lora_pro_moves_the_weight_by_the_projected_gradient_of_the_whole_weight(knobs: dict[str, object]):
    """The weight's own gradient G comes from autograd on W: both paths see the same loss, since dL/dΔW = dL/dW."""
    base, adapter = with_factors(**knobs)
    whole = base.backward(adapter)
    LoraPro(adapter, 16).on_backward()
    for name, layer in adapter.adapters.items():
        pair, site = layer.gradient_pair(), layer.site
        assert pair is not None and pair.up.grad is not None and pair.down.grad is not None
        moved = site.product(pair.up.grad, pair.down_value) + site.product(pair.up_value, pair.down.grad)
        gradients = site.split_groups(site.matricise(whole[name.removeprefix("unet.")]))
        blocks = zip(gradients, site.split_groups(pair.up_value), site.split_groups(pair.down_value), strict=True)
        expected: list[Tensor] = []
        for gradient, up, down in blocks:
            left, right = projector(up), projector(down.mT)
            expected.append(left @ gradient + (torch.eye(len(up)) - left) @ gradient @ right)
        assert relative_error(pair.scale * moved, torch.cat(expected)) < FP64_GRADIENT, name


def problem(rank: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(12, rank, generator=generator), torch.randn(rank, 10, generator=generator)
    return up.double(), down.double(), torch.randn(12, 10, generator=generator).double()


def test_of_all_pairs_with_that_step_lora_pros_is_nearest_to_the_factors_own_gradients():
    """Theorem 2.3: X minimises ‖g̃_A − g_A‖² + ‖g̃_B − g_B‖²."""
    up, down, gradient = problem()
    own_up, own_down = 1.5 * gradient @ down.mT, 1.5 * up.mT @ gradient
    new_up, new_down = lora_pro_gradients(up, down, own_up, own_down, 1.5)

    def distance(shift: Tensor) -> Tensor:
        return (new_up - up @ shift - own_up).square().sum() + (new_down + shift @ down - own_down).square().sum()

    shift = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(distance(shift), shift)
    assert slope.abs().max() < FP64_GRADIENT * own_up.abs().max() * up.abs().max()


def test_at_the_start_lora_pro_moves_the_up_factor_alone_and_by_the_projected_gradient():
    _, down, gradient = problem()
    zero = torch.zeros(12, 4, dtype=torch.float64)
    new_up, new_down = lora_pro_gradients(zero, down, 1.5 * gradient @ down.mT, zero.new_zeros(4, 10), 1.5)
    assert not new_down.any()
    assert relative_error(1.5 * new_up @ down, gradient @ projector(down.mT)) < FP64_GRADIENT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dead", ["up", "down", "both", "column"])
def test_lora_pro_is_never_nan_where_a_factor_has_lost_its_rank(dead: str, dtype: torch.dtype):
    up, down, gradient = (tensor.to(dtype) for tensor in problem())
    if dead in ("up", "both"):
        up.zero_()
    if dead in ("down", "both"):
        down.zero_()
    if dead == "column":
        up[:, 1] = up[:, 0]
        down[2] = 0
    found = lora_pro_gradients(up, down, gradient @ down.mT, up.mT @ gradient, 1.0)
    assert all(torch.isfinite(one).all() for one in found)
    step = found[0] @ down + up @ found[1]
    assert step.norm() <= 1.001 * gradient.norm()


def test_lora_pro_in_fp32_agrees_with_fp64():
    up, down, gradient = problem()
    exact = lora_pro_gradients(up, down, gradient @ down.mT, up.mT @ gradient, 1.0)
    singles = [tensor.float() for tensor in (up, down, gradient @ down.mT, up.mT @ gradient)]
    for found, expected in zip(lora_pro_gradients(*singles, 1.0), exact, strict=True):
        assert relative_error(found, expected) < 1e-4


# --- LoRA+ and LoRA-FA --------------------------------------------------------------------------------------------


def test_lora_plus_gives_only_the_up_factors_their_own_rate():
    adapter = attach({"unet": Base()}, make_spec("dora", rank=4), {"unet": "all"})
    groups = parameter_groups(adapter, config(optim={"learning_rate": 1e-4}), LoraPlus(adapter, 16))
    assert {group["name"]: group["lr"] for group in groups} == {
        "unet.down": 1e-4,
        "unet.up": pytest.approx(1.6e-3),
        "unet.magnitude": 1e-4,
    }
    assert sum(len(group["params"]) for group in groups) == 9


def test_lora_plus_leaves_vectors_of_the_role_up_at_the_base_rate():
    rule = LoraPlus(with_factors()[1], 16)
    assert rule.rate_factor("up", nn.Parameter(torch.zeros(3))) == 1
    assert rule.rate_factor("up", nn.Parameter(torch.zeros(3, 2))) == 16
    assert rule.rate_factor("down", nn.Parameter(torch.zeros(3, 2))) == 1


def test_lora_plus_multiplies_the_rate_that_an_override_gives():
    override = LayerOverride(layers="conv", learning_rate=1e-5)
    adapter = attach({"unet": Base()}, make_spec("lora", rank=4), {"unet": "all"}, overrides=[override])
    groups = parameter_groups(adapter, config(optim={"learning_rate": 1e-4}), LoraPlus(adapter, 4))
    assert sorted(group["lr"] for group in groups) == pytest.approx([1e-5, 4e-5, 1e-4, 4e-4])


def test_lora_fa_leaves_the_up_factors_to_learn_and_keeps_the_others_in_the_file():
    _, adapter = with_factors()
    before = adapter.state_dict().keys()
    LoraFa(adapter, 16)
    assert [name.rpartition(".")[2] for name, _ in adapter.named_parameters()] == ["up"] * 3
    assert adapter.state_dict().keys() == before == set(adapter.factor_names())


@pytest.mark.parametrize("rule", [name for name in RULES if name != "none"])
@pytest.mark.parametrize("method", sorted(REGISTRY))
def test_every_method_takes_steps_under_every_rule_or_says_why_not(method: str, rule: str):
    knobs = next((row.knobs for row in METHODS if row.name == method), {})
    spec = make_spec(method, **knobs)
    base = Contract(LAYERS["linear"], torch.float32)
    adapter = attach({"unet": base}, spec, {"unet": "layer"}, steps=20)
    try:
        RULES[rule].check(spec)
        made = RULES[rule](adapter, 16)
    except UserInputError as error:
        assert rule in error.what and error.fix
        return
    before = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    groups = parameter_groups(adapter, config(optim={"learning_rate": 1e-2}), made)
    optimizer = torch.optim.AdamW(groups)
    base.requires_grad_(False)
    for step in (1, 2, 3):
        backward(base, adapter)
        adapter.on_backward()
        made.on_backward()
        optimizer.step()
        adapter.on_step(step)
        for parameter in adapter.parameters():
            parameter.grad = None
    after = adapter.state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert any(not torch.equal(after[name], before[name]) for name in before)


# --- refusals -----------------------------------------------------------------------------------------------------


class Unshaped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)


@pytest.mark.parametrize("rule", ["lora+", "lora-fa", "lora-pro"])
def test_a_rule_that_the_method_gives_nothing_to_is_refused_before_anything_is_loaded(rule: str, unstructured: str):
    with pytest.raises(UserInputError, match="Unstructured") as caught:
        config(optim={"rule": rule}, adapter={"method": unstructured})
    assert rule in caught.value.what and "optim.rule" in caught.value.fix


@pytest.mark.parametrize("adapter", [{"method": "dora"}, {"method": "lora", "magnitude": True}])
def test_lora_pro_under_a_magnitude_is_refused_before_anything_is_loaded(adapter: dict[str, object]):
    with pytest.raises(UserInputError, match="lora-pro works on a plain pair"):
        config(optim={"rule": "lora-pro"}, adapter=adapter)


@pytest.mark.parametrize("rule", [LoraPlus, LoraFa, LoraPro])
def test_a_rule_that_the_method_gives_nothing_to_is_refused_when_the_engine_is_built(
    rule: type[Rule], unstructured: str
):
    adapter = attach({"unet": Unshaped()}, make_spec(unstructured), {"unet": "all"})
    with pytest.raises(UserInputError, match="does not have"):
        rule(adapter, 16)


@pytest.fixture
def unstructured():
    """A method that tells nothing of its factors."""
    from adapters.base import REGISTRY, Adapter, AdapterSpec

    class UnstructuredSpec(AdapterSpec, frozen=True):
        method: Literal["unstructured"] = "unstructured"

    class Unstructured(Adapter, spec=UnstructuredSpec):
        title, paper, equation = "Unstructured", "none", "ΔW = diag(g) W"

        def __init__(self, site, weight, spec, context):
            super().__init__(site, weight, spec, context)
            self.gain = nn.Parameter(weight.new_zeros(site.rows))

        def delta(self, x: Tensor, y_base: Tensor) -> Tensor:
            return y_base * self.site.per_output(self.gain)

        def delta_weight(self, weight: Tensor) -> Tensor:
            return self.site.as_weight(self.gain[:, None] * self.site.matricise(weight))

    yield "unstructured"
    del REGISTRY["unstructured"]


@pytest.mark.parametrize("name", ["Prodigy", "DAdaptAdam"])
def test_lora_plus_with_an_optimizer_that_finds_its_rate_is_refused(name: str):
    with pytest.raises(ValueError, match="one learning rate for all factors"):
        OptimConfig(name=name, rule="lora+")
    OptimConfig(name=name, rule="lora-pro")


def test_an_unknown_rule_names_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        OptimConfig(rule="lora-plus")
    assert caught.value.nearest == "lora-pro"


def test_the_rule_and_its_ratio_are_part_of_the_configuration_that_a_resume_checks():
    prints = {config(optim=o).fingerprint() for o in ({}, {"rule": "lora+"}, {"rule": "lora+", "rule_ratio": 4})}
    assert len(prints) == 3


def test_a_rule_is_one_class():
    class Halved(Rule, name="halved"):
        title, paper, equation = "Halved", "none", "g/2"

    try:
        assert OptimConfig(rule="halved").rule == "halved"
    finally:
        del RULES["halved"]
