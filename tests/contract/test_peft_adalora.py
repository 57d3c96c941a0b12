"""The same triplets in peft's AdaLoRA and in ours give the same outputs and gradients, in float64.

peft's convolution leaves out padding_mode, and its factors know no groups: those two layers are checked against the
merged weight by the contract suite alone.
"""

from __future__ import annotations

import pytest
import torch
from peft import AdaLoraConfig, inject_adapter_in_model

from tests.contract.harness import LAYERS, Base, Layer, Method, nudge
from tests.tolerances import FP64, relative_error

RANK = 4
COMPARED = {name: layer for name, layer in LAYERS.items() if name not in ("conv grouped", "conv dilated")}


@pytest.mark.parametrize("layer", COMPARED.values(), ids=COMPARED)
def test_output_and_gradients_agree_with_peft(layer: Layer):
    ours, theirs = Base(layer, torch.float64), Base(layer, torch.float64)
    adapter_set = ours.attach(Method("adalora", {"rank": RANK, "target_rank": 2, "alpha": 6.0}, lambda _: 0))
    nudge(adapter_set, 0.3)
    adapter = adapter_set.adapters["unet.layer"]
    config = AdaLoraConfig(init_r=RANK, target_r=2, lora_alpha=6, target_modules=["layer"], total_step=20)
    inject_adapter_in_model(config, theirs)
    wrapped = theirs.layer
    # peft divides by ranknum + 1e-5; taken off here, so that the scale is α/r0
    wrapped.ranknum["default"].data = torch.tensor([RANK - 1e-5], dtype=torch.float64)
    their_factors = [getattr(wrapped, f"lora_{letter}")["default"] for letter in "AEB"]
    our_factors = [adapter.get_parameter(name) for name in ("down", "core", "up")]
    for their_factor, our_factor in zip(their_factors, our_factors, strict=True):
        their_factor.data = our_factor.detach().reshape(their_factor.shape).clone()
    x = ours.x.requires_grad_()
    found, expected = ours(x), theirs(x)
    assert relative_error(found, expected) < FP64
    assert relative_error(found, wrapped.base_layer(x)) > 0.01
    direction = torch.randn_like(found)
    our_gradients = torch.autograd.grad(found, [x, *our_factors], direction)
    their_gradients = torch.autograd.grad(expected, [x, *their_factors], direction)
    for our_gradient, their_gradient in zip(our_gradients, their_gradients, strict=True):
        assert relative_error(our_gradient, their_gradient.reshape(our_gradient.shape)) < FP64
