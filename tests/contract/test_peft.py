"""The same parameters in peft and in ours give the same outputs and gradients, in float64."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from adapters.adapter_set import AdapterSet
from tests.contract.harness import LAYERS, Base, Layer, Method, nudge
from tests.tolerances import FP32, FP64, relative_error

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


def first_rows_sign(ours: Tensor, theirs: Tensor) -> Tensor:
    """±1 for each row: which of our vectors peft has the other way round."""
    return torch.sign((ours * theirs).sum(1))


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_anchored_start_is_pefts_up_to_sign_and_learns_the_same(init: str):
    """peft rewrites the base to W − s·B0 A0; ours keeps W and learns s(B A − B0 A0). peft decomposes in fp32 only."""
    theirs = Base(LAYERS["linear"], torch.float32)
    config = LoraConfig(r=RANK, lora_alpha=6, target_modules=["layer"], init_lora_weights=init)
    inject_adapter_in_model(config, theirs)
    theirs = theirs.double()
    theirs.x = theirs.x.double()
    down, up = theirs.layer.lora_A["default"].weight, theirs.layer.lora_B["default"].weight

    start = Base(LAYERS["linear"], torch.float32)
    method = Method("lora", {"rank": RANK, "alpha": 6.0, "init": init}, lambda _: 0)
    adapter = start.attach(method).adapters["unet.layer"]
    sign = first_rows_sign(adapter.anchor_down, down.float())
    assert relative_error(sign[:, None] * adapter.anchor_down, down) < FP32
    assert relative_error(sign * adapter.anchor_up, up) < FP32

    ours = Base(LAYERS["linear"], torch.float64)
    with torch.no_grad():  # the sum that peft's residual was taken from, in float64
        ours.layer.weight.copy_(theirs.layer.base_layer.weight + 6 / RANK * up @ down)
    adapter_set = ours.attach(method)
    adapter = adapter_set.adapters["unet.layer"]
    adapter.anchor_down.copy_(down.detach())
    adapter.anchor_up.copy_(up.detach())
    nudge(adapter_set)
    with torch.no_grad():
        down.add_(adapter.down)
        up.add_(adapter.up)
    found, expected = ours(ours.x.requires_grad_()), theirs(theirs.x.requires_grad_())
    assert relative_error(found, expected) < FP64
    direction = torch.randn_like(found)
    our_gradients = torch.autograd.grad(found, [ours.x, adapter.down, adapter.up], direction)
    their_gradients = torch.autograd.grad(expected, [theirs.x, down, up], direction)
    for our_gradient, their_gradient in zip(our_gradients, their_gradients, strict=True):
        assert relative_error(our_gradient, their_gradient) < FP64
