"""The same parameters in peft and in ours give the same outputs and gradients, in float64."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from adapters.adapter_set import AdapterSet
from tests.contract.table import LAYERS, Base, Layer, Method, nudge
from tests.tolerances import FP64, relative_error

RANK = 4
# peft's down layer leaves out the base's dilation, groups and padding mode, so that its merged and unmerged outputs
# differ there; the contract suite checks ours against the merged weight
COMPARED = {name: layer for name, layer in LAYERS.items() if name not in ("conv grouped", "conv dilated")}


def in_peft(layer: Layer, ours: AdapterSet, **knobs: bool) -> tuple[Base, list[Tensor]]:
    """A peft model with our factors: its magnitude is [1, d, 1, 1] on a convolution and [d] on a Linear."""
    theirs = Base(layer, torch.float64)
    config = LoraConfig(r=RANK, lora_alpha=6, target_modules=["layer"], init_lora_weights=False, **knobs)
    inject_adapter_in_model(config, theirs)
    state = {name.rsplit(".", 1)[-1]: tensor for name, tensor in ours.named_parameters()}
    wrapped = theirs.layer
    pairs = [(wrapped.lora_A["default"].weight, state["down"]), (wrapped.lora_B["default"].weight, state["up"])]
    if "magnitude" in state:
        magnitude = wrapped.lora_magnitude_vector["default"]
        pairs.append((magnitude.weight, state["magnitude"]))
    with torch.no_grad():
        for theirs_factor, our_factor in pairs:
            theirs_factor.data = our_factor.detach().double().reshape(theirs_factor.shape).clone()
    return theirs, [theirs_factor for theirs_factor, _ in pairs]


@pytest.mark.parametrize("stabilized", [False, True], ids=["plain", "rslora"])
@pytest.mark.parametrize("name", ["lora", "dora"])
@pytest.mark.parametrize("layer", COMPARED.values(), ids=COMPARED)
def test_output_and_gradients_agree_with_peft(layer: Layer, name: str, stabilized: bool):
    ours = Base(layer, torch.float64)
    method = Method(name, {"rank": RANK, "alpha": 6.0, "rank_stabilized": stabilized}, lambda _: 0)
    adapter_set = ours.attach(method)
    nudge(adapter_set)
    theirs, their_factors = in_peft(layer, adapter_set, use_dora=name == "dora", use_rslora=stabilized)
    roles = {group.role: group.parameters for group in adapter_set.parameter_groups()}
    our_factors = [roles[role][0] for role in ("down", "up", "magnitude") if role in roles]
    x = ours.x.requires_grad_()
    found, expected = ours(x), theirs(x)
    assert relative_error(found, expected) < FP64
    direction = torch.randn_like(found)
    our_gradients = torch.autograd.grad(found, [x, *our_factors], direction)
    their_gradients = torch.autograd.grad(expected, [x, *their_factors], direction)
    for our_gradient, their_gradient in zip(our_gradients, their_gradients, strict=True):
        assert relative_error(our_gradient, their_gradient.reshape(our_gradient.shape)) < FP64
