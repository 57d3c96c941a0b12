"""Quantised layers: as near to W as their kind says, and under every method exactly the layer of W̃."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet
from adapters.bank import FactorBank
from adapters.errors import StudioError, UnknownNameError, UserInputError
from adapters.files import AdapterCard, attach_file, load_adapter, save_adapter
from adapters.fused import project
from adapters.inject import attach
from adapters.quantized import QUANTIZATIONS, Quantized, QuantizedConv2d, quantizable, quantize_
from adapters.registry import make_spec
from tests.contract.harness import LAYERS, Base, Method
from tests.contract.table import METHODS
from tests.tolerances import FP32, FP64, FP64_GRADIENT, relative_error, same_bits

CPU = torch.device("cpu")
KINDS = sorted(QUANTIZATIONS)
LAYER_KINDS = ["linear", "conv strided", "conv grouped"]


def quantised(layer: str, kind: str, dtype: torch.dtype = torch.float32, loftq_rank: int = 0) -> tuple[Base, Base]:
    """(a base whose layer is quantised, the same with W̃ as an ordinary weight)."""
    base = Base(LAYERS[layer], dtype)
    base.requires_grad_(False)
    plain = copy.deepcopy(base)
    quantize_(base.layer, kind, CPU, loftq_rank)
    plain.layer.weight.data = base.layer.weight.clone()
    return base, plain


def trained(base: Base, method: Method) -> AdapterSet:
    """An adapter a few steps from its start, the same on every base."""
    adapter = attach({"unet": base}, make_spec(method.name, **method.knobs), {"unet": "layer"})
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws, dtype=parameter.dtype))
    return adapter


@pytest.mark.parametrize("loftq_rank", [0, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_is_as_near_as_its_kind_says(kind: str, loftq_rank: int):
    torch.manual_seed(0)
    layer = nn.Linear(256, 192)
    layer.weight.data.normal_(std=0.02)
    weight = layer.weight.detach().clone()
    quantize_(layer, kind, CPU, loftq_rank)
    error = ((layer.weight - weight).norm() / weight.norm()).item()
    assert 0 < error < QUANTIZATIONS[kind].error


@pytest.mark.parametrize("layer", LAYER_KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_loftq_leaves_less_than_quantising_alone(kind: str, layer: str):
    weight = Base(LAYERS[layer], torch.float32).layer.weight
    errors = [(quantised(layer, kind, loftq_rank=rank)[0].layer.weight - weight).norm() for rank in (0, 8)]
    assert errors[1] < 0.95 * errors[0]


@pytest.mark.parametrize("layer", LAYER_KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradient_are_those_of_the_dequantised_layer(kind: str, layer: str):
    base, plain = quantised(layer, kind)
    gradients: list[Tensor] = []
    for one in (base, plain):
        x = one.x.clone().requires_grad_()
        one(x).square().sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    assert relative_error(base(), plain()) < FP32
    assert relative_error(*gradients) < FP32


@pytest.mark.parametrize("layer", ["linear", "conv strided"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_every_method_over_a_quantised_layer_is_the_method_over_its_dequantised_weight(method: Method, layer: str):
    found: list[tuple[Tensor, dict[str, Tensor]]] = []
    for base in quantised(layer, "fp8", torch.float64):
        if layer in method.refuses:
            pytest.skip("the method says no to this kind of layer")
        adapter = trained(base, method)
        out = base()
        out.square().mean().backward()
        found.append((out, {name: p.grad for name, p in adapter.named_parameters() if p.grad is not None}))
    (out, gradients), (expected, expected_gradients) = found
    assert relative_error(out, expected) < FP64
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert relative_error(gradients[name], gradient) < FP64_GRADIENT


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_the_fused_product_is_the_hooks(method: str):
    base, _ = quantised("linear", "nf4")
    adapter = trained(base, next(m for m in METHODS if m.name == method))
    expected = base()
    expected.square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in adapter.named_parameters() if p.grad is not None}
    bank = FactorBank(adapter, torch.float32)
    for leaf in bank.leaves(adapter.parameters()):
        leaf.grad = torch.zeros_like(leaf)
    bank.connect_gradients()
    with bank.staged():
        found = project(base.x, (base.layer,))[0]
        found.square().mean().backward()
    assert relative_error(found, expected) < FP32
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None
        assert relative_error(parameter.grad, gradients[name]) < 10 * FP32


@pytest.mark.parametrize("layer", ["linear", "conv strided"])
def test_nothing_of_the_weights_size_is_kept_for_the_way_back(layer: str):
    base, _ = quantised(layer, "nf4")
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        base(base.x.clone().requires_grad_())
    assert all(tensor.numel() < base.layer.weight.numel() for tensor in kept)


def test_a_fresh_adapter_changes_no_bit():
    base, plain = quantised("linear", "nf4")
    before = base()
    attach({"unet": base}, make_spec("dora", rank=4), {"unet": "layer"})
    assert same_bits(base(), before)
    assert relative_error(before, plain()) < FP32


def test_merging_into_a_quantised_base_is_refused_and_says_where_to():
    base, _ = quantised("linear", "nf4")
    adapter = attach({"unet": base}, make_spec("lora", rank=4), {"unet": "layer"})
    with pytest.raises(UserInputError, match="full precision"):
        adapter.merge()
    assert not adapter.merged


def test_a_file_learnt_on_a_quantised_base_merges_into_the_full_one(tmp_path: Path):
    base = Base(LAYERS["linear"], torch.float32)
    base.requires_grad_(False)
    full = copy.deepcopy(base)
    quantize_(base.layer, "nf4", CPU, loftq_rank=4)
    spec = make_spec("lora", rank=4, init="loftq", alpha=8.0)
    adapter = attach({"unet": base}, spec, {"unet": "layer"})
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.05)
    change = base() - nn.functional.linear(base.x, base.layer.weight, base.layer.bias)
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, adapter, AdapterCard())
    before = full()
    attach_file({"unet": full}, load_adapter(path)).merge()
    assert relative_error(full() - before, change) < 10 * FP32


def test_loftq_starts_at_the_residual_and_changes_nothing():
    base, plain = quantised("linear", "nf4", loftq_rank=4)
    adapter = attach({"unet": base}, make_spec("lora", rank=4, init="loftq", alpha=8.0), {"unet": "layer"})
    layer = adapter.adapters["unet.layer"]
    started = 2.0 * layer.site.product(layer.anchor_up, layer.anchor_down)  # pyright: ignore
    assert isinstance(base.layer, Quantized)
    assert base.layer.residual_up is not None
    assert relative_error(started, layer.site.product(base.layer.residual_up, base.layer.residual_down)) < FP32
    assert relative_error(base(), plain()) < FP32


def test_loftq_without_quantisation_or_at_another_rank_is_refused():
    plain, (base, _) = Base(LAYERS["linear"], torch.float32), quantised("linear", "nf4", loftq_rank=4)
    for one, words in ((plain, "not quantised"), (base, "one rank")):
        with pytest.raises(UserInputError) as refused:
            attach({"unet": one}, make_spec("lora", rank=8, init="loftq"), {"unet": "layer"})
        assert words in str(refused.value)


def test_a_cast_of_the_model_leaves_the_codes_alone():
    base, _ = quantised("linear", "fp8")
    codes = base.layer.codes.clone()  # pyright: ignore
    base.to(torch.bfloat16)
    assert same_bits(base.layer.codes, codes)  # pyright: ignore


def test_convolutions_come_out_channels_last():
    base, _ = quantised("conv strided", "int8")
    assert isinstance(base.layer, QuantizedConv2d)
    assert base.layer.weight.is_contiguous(memory_format=torch.channels_last)


def test_what_cannot_be_quantised_says_so():
    dilated = LAYERS["conv dilated"].make()
    assert not quantizable(dilated)
    with pytest.raises(StudioError, match="cannot be quantised"):
        quantize_(dilated, "fp8", CPU)
    with pytest.raises(UnknownNameError, match="nf5"):
        quantize_(nn.Linear(4, 4), "nf5", CPU)
