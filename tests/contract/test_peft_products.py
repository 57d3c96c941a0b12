"""The same LoKr and LoHa parameters in peft and in ours give the same outputs and gradients, in float64."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, inject_adapter_in_model
from peft.tuners.loha.layer import make_weight_cp
from peft.tuners.lokr.layer import factorization as factorization_in_peft
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet
from adapters.kronecker import factorization
from tests.contract.harness import LAYERS, Base, Layer, Method, nudge
from tests.tolerances import FP64, relative_error

# peft leaves out the base's padding mode, so that its merged and unmerged outputs differ on the circular layer; the
# contract suite checks ours against the merged weight there
COMPARED = {name: layer for name, layer in LAYERS.items() if name != "conv dilated"}
COMPARED["conv dilated, zeros around"] = Layer(lambda: nn.Conv2d(16, 24, 3, padding=2, dilation=2), (2, 16, 5, 7))
# 2 blocks of 12 outputs and 4 groups of 6: a group is half a block
COMPARED["conv grouped, split blocks"] = Layer(lambda: nn.Conv2d(16, 24, (3, 1), groups=4), (2, 16, 5, 7))
each_layer = pytest.mark.parametrize("layer", COMPARED.values(), ids=COMPARED)

LOKR: Mapping[str, dict[str, object]] = {
    "whole": {"rank": 16},
    "low rank": {"rank": 2},
    "low rank on both sides": {"rank": 1, "decompose_both": True},
    "tucker": {"rank": 2, "tucker": True},
    "two blocks": {"rank": 4, "factor": 2},
    "three blocks": {"rank": 2, "factor": 3, "tucker": True},
}


def compare(
    ours: Base,
    adapter_set: AdapterSet,
    config: LoKrConfig | LoHaConfig,
    layer: Layer,
    prefix: str,
    wrong_in_peft: frozenset[str] = frozenset(),
) -> None:
    theirs = Base(layer, torch.float64)
    inject_adapter_in_model(config, theirs)
    wrapped = theirs.layer
    our_factors = {name.rsplit(".", 1)[-1]: factor for name, factor in adapter_set.named_parameters()}
    held = {name for name in wrapped.adapter_layer_names if getattr(wrapped, name)}
    assert held == {f"{prefix}_{name}" for name in our_factors}
    their_factors: list[Tensor] = []
    for name, factor in our_factors.items():
        parameter = getattr(wrapped, f"{prefix}_{name}")["default"]
        assert parameter.shape == factor.shape
        parameter.data = factor.detach().clone()
        their_factors.append(parameter)
    x = ours.x.requires_grad_()
    found, expected = ours(x), theirs(x)
    assert relative_error(found, expected) < FP64
    direction = torch.randn_like(found)
    our_gradients = torch.autograd.grad(found, [x, *our_factors.values()], direction)
    their_gradients = torch.autograd.grad(expected, [x, *their_factors], direction)
    for name, our_gradient, their_gradient in zip(["x", *our_factors], our_gradients, their_gradients, strict=True):
        assert (relative_error(our_gradient, their_gradient) < FP64) == (name not in wrong_in_peft), name


@each_layer
@pytest.mark.parametrize("knobs", LOKR.values(), ids=LOKR)
def test_lokr_agrees_with_peft_in_names_shapes_output_and_gradients(layer: Layer, knobs: dict[str, object]):
    ours = Base(layer, torch.float64)
    adapter_set = ours.attach(Method("lokr", {"alpha": 6.0, **knobs}, lambda _: 0))
    nudge(adapter_set)
    config = LoKrConfig(
        r=knobs["rank"],
        alpha=6,
        target_modules=["layer"],
        decompose_both=knobs.get("decompose_both", False),
        decompose_factor=knobs.get("factor", -1),
        use_effective_conv2d=knobs.get("tucker", False),
    )
    compare(ours, adapter_set, config, layer, "lokr")


@each_layer
@pytest.mark.parametrize("tucker", [False, True], ids=["plain", "tucker"])
def test_loha_agrees_with_peft_in_names_shapes_output_and_gradients(layer: Layer, tucker: bool):
    ours = Base(layer, torch.float64)
    adapter_set = ours.attach(Method("loha", {"rank": 3, "alpha": 6.0, "tucker": tucker}, lambda _: 0))
    nudge(adapter_set)
    config = LoHaConfig(r=3, alpha=6, target_modules=["layer"], use_effective_conv2d=tucker)
    # HadaWeightCP.backward takes the other pair's core for w1_a and w2_a: the next test shows that ours is right
    has_core = any(name.endswith(".t1") for name in adapter_set.state_dict())
    compare(ours, adapter_set, config, layer, "hada", frozenset({"w1_a", "w2_a"} if has_core else ()))


def test_pefts_backward_of_loha_with_cores_is_not_the_gradient_of_its_forward():
    """Wrong for w1_a and w2_a alone; autograd through the same forward, written out, is what ours equals."""
    layer = LAYERS["conv 3x3"]
    ours = Base(layer, torch.float64)
    adapter_set = ours.attach(Method("loha", {"rank": 3, "tucker": True}, lambda _: 0))
    nudge(adapter_set)
    f = {name.rsplit(".", 1)[-1]: factor for name, factor in adapter_set.named_parameters()}
    order = [f[name] for name in ("t1", "w1_a", "w1_b", "t2", "w2_a", "w2_b")]

    def written_out(*factors: Tensor) -> Tensor:
        first, second = (torch.einsum("ijkl,jr,ip->prkl", t, b, a) for t, a, b in (factors[:3], factors[3:]))
        return first * second

    direction = torch.randn(24, 16, 3, 3).double()
    theirs = torch.autograd.grad(make_weight_cp(*order, torch.tensor(1.0).double()), order, direction)
    right = torch.autograd.grad(written_out(*order), order, direction)
    found = torch.autograd.grad(adapter_set.adapters["unet.layer"].delta_weight(ours.layer.weight), order, direction)
    assert [relative_error(a, b) < FP64 for a, b in zip(theirs, right, strict=True)] == [True, False, True] * 2
    assert all(relative_error(a, b) < FP64 for a, b in zip(found, right, strict=True))


@pytest.mark.parametrize("factor", [None, 1, 2, 3, 4, 7, 8, 16, 40])
def test_sizes_are_split_as_in_peft(factor: int | None):
    sizes = [*range(1, 200), 320, 640, 768, 960, 1280, 1920, 2048, 2560, 2816, 3072, 5120, 10240]
    theirs = [factorization_in_peft(size, -1 if factor is None else factor) for size in sizes]
    assert [factorization(size, factor) for size in sizes] == theirs
