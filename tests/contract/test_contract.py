"""What every method promises on every kind of layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from adapters.adapter_set import AdapterSet
from adapters.errors import UserInputError
from adapters.files import AdapterCard, attach_file, save_adapter
from adapters.inject import base_hash
from tests.contract.harness import Base, Layer, Method, backward, nudge, train
from tests.contract.table import promised, refusals
from tests.tolerances import BF16, FP32, FP64, FP64_GRADIENT, relative_error, same_bits

low_and_full = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@promised("identity")
@low_and_full
def test_at_the_start_the_output_is_the_bases_bit_for_bit(method: Method, layer: Layer, dtype: torch.dtype):
    base = Base(layer, dtype)
    before = base()
    base.attach(method)
    assert same_bits(base(), before)


@promised("identity")
def test_at_the_start_the_output_under_autocast_is_the_bases_bit_for_bit(method: Method, layer: Layer):
    base = Base(layer, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        before = base()
        base.attach(method)
        assert same_bits(base(), before)


@promised("trace")
@low_and_full
def test_attaching_training_and_detaching_leave_no_trace_in_the_base(method: Method, layer: Layer, dtype: torch.dtype):
    base = Base(layer, dtype)
    before, digest, keys = base(), base_hash({"unet": base}), list(base.state_dict())
    adapter_set = base.attach(method)
    train(base, adapter_set, steps=2)
    assert base_hash({"unet": base}) == digest
    assert list(base.state_dict()) == keys
    adapter_set.detach()
    assert not base.layer._forward_hooks
    assert same_bits(base(), before)


@promised("nudge")
@low_and_full
def test_a_nudge_changes_the_output(method: Method, layer: Layer, dtype: torch.dtype):
    base = Base(layer, dtype)
    before = base()
    nudge(base.attach(method))
    assert relative_error(base(), before) > 0.01


@promised("gradients")
@low_and_full
def test_every_trainable_gets_a_gradient_within_two_steps(method: Method, layer: Layer, dtype: torch.dtype):
    base = Base(layer, dtype)
    adapter_set = base.attach(method)
    train(base, adapter_set, steps=1)
    backward(base, adapter_set)
    for name, parameter in adapter_set.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@promised("gradients")
def test_factors_train_in_fp32_over_a_bf16_base_and_under_autocast(method: Method, layer: Layer):
    for base in (Base(layer, torch.bfloat16), Base(layer, torch.float32)):
        adapter_set = base.attach(method)
        with torch.autocast("cpu", torch.bfloat16):
            loss = base().float().square().mean()
        loss.backward()
        assert {p.dtype for p in adapter_set.parameters()} == {torch.float32}


@promised("merge")
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, FP32), (torch.float64, FP64), (torch.bfloat16, BF16)], ids=str
)
def test_merged_weights_give_the_unmerged_output(method: Method, layer: Layer, dtype: torch.dtype, tolerance: float):
    base = Base(layer, dtype)
    digest = base_hash({"unet": base})
    adapter_set = base.attach(method)
    nudge(adapter_set)
    adapter_set.strength = 0.7
    unmerged = base()
    adapter_set.merge()
    assert base_hash({"unet": base}) != digest
    assert relative_error(base(), unmerged) < tolerance
    adapter_set.unmerge()
    assert base_hash({"unet": base}) == digest
    assert same_bits(base(), unmerged)


@promised("autograd")
def test_gradients_equal_autograd_on_the_materialised_weight(method: Method, layer: Layer):
    base = Base(layer, torch.float64)
    adapter_set = base.attach(method)
    nudge(adapter_set)
    adapter = adapter_set.adapters["unet.layer"]
    x, parameters = base.x.requires_grad_(), adapter_set.parameters()
    output = base(x)
    direction = torch.randn_like(output)
    found = torch.autograd.grad(output, [x, *parameters], direction)
    bare = Base(layer, torch.float64).layer
    weight = bare.weight.detach()
    reference = torch.func.functional_call(bare, {"weight": weight + adapter.delta_weight(weight)}, (x,))
    expected = torch.autograd.grad(reference, [x, *parameters], direction)
    assert relative_error(output, reference) < FP64
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours, theirs) < FP64_GRADIENT


@promised("factors")
def test_the_product_of_the_factors_is_the_delta(method: Method, layer: Layer):
    adapter_set = Base(layer, torch.float64).attach(method)
    nudge(adapter_set)
    adapter = adapter_set.adapters["unet.layer"]
    factors = adapter.factors()
    assert (factors is not None) == method.low_rank
    if factors is not None:
        site = adapter.site
        assert relative_error(site.as_weight(site.product(*factors)), adapter.delta_weight(site.weight)) < FP64


@promised("strength")
def test_strength_is_linear_and_0_is_exactly_the_base(method: Method, layer: Layer):
    base = Base(layer, torch.float64)
    before = base()
    adapter_set = base.attach(method)
    nudge(adapter_set)
    whole = base() - before
    for strength in (0.5, 2.0, -1.0):
        adapter_set.strength = strength
        assert relative_error(base() - before, strength * whole) < FP64
    adapter_set.strength = 0.0
    assert same_bits(base(), before)


@promised("parameters")
def test_the_number_of_parameters_equals_the_formula(method: Method, layer: Layer):
    adapter_set = Base(layer, torch.float32).attach(method)
    site = adapter_set.adapters["unet.layer"].site
    assert adapter_set.num_parameters() == method.parameters(site)


class Allocations(TorchDispatchMode):
    """Counts the results as large as a weight that any operation computes, views of the weight itself left out."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight, self.found = weight, list[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        own = self.weight.untyped_storage().data_ptr()
        for tensor in result if isinstance(result, tuple | list) else (result,):
            large = isinstance(tensor, Tensor) and tensor.numel() == self.weight.numel()
            if large and tensor.untyped_storage().data_ptr() != own:
                self.found.append(str(func))
        return result


@promised("allocations")
@low_and_full
def test_a_training_step_never_builds_a_tensor_as_large_as_the_weight(method: Method, layer: Layer, dtype: torch.dtype):
    base = Base(layer, dtype)
    adapter_set = base.attach(method)
    base.requires_grad_(False)
    x = base.x.requires_grad_()
    with Allocations(base.layer.weight) as allocations:
        base(x).float().square().mean().backward()
        adapter_set.on_backward()
    assert allocations.found == []


@promised("allocations")
def test_no_tensor_as_large_as_the_weight_is_saved_for_backward(method: Method, layer: Layer):
    base = Base(layer, torch.float32)
    base.attach(method)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        base(base.x.requires_grad_())
    own = base.layer.weight.data_ptr()
    assert [t.shape for t in saved if t.numel() == base.layer.weight.numel() and t.data_ptr() != own] == []


@promised("file")
@low_and_full
def test_saving_and_loading_is_bitwise(method: Method, layer: Layer, dtype: torch.dtype, tmp_path):
    base = Base(layer, dtype)
    adapter_set = base.attach(method)
    train(base, adapter_set, steps=2)
    before, state = base(), adapter_set.state_dict()
    save_adapter(tmp_path / "a.safetensors", adapter_set, AdapterCard())
    adapter_set.detach()
    loaded = attach_file({"unet": base}, tmp_path / "a.safetensors")
    assert same_bits(base(), before)
    assert list(loaded.state_dict()) == list(state)
    for name, tensor in loaded.state_dict().items():
        if name in adapter_set.file_state():
            assert same_bits(tensor, state[name]), name
        else:
            assert not tensor.any(), name


@promised("resume")
def test_an_interrupted_training_goes_on_bit_for_bit(method: Method, layer: Layer):
    base = Base(layer, torch.float32)
    whole = base.attach(method)
    train(base, whole, steps=6)
    expected = whole.state_dict()
    whole.detach()
    first = base.attach(method)
    optimizer = train(base, first, steps=3)
    kept, moments = {name: tensor.clone() for name, tensor in first.state_dict().items()}, optimizer.state_dict()
    first.detach()
    second = base.attach(method)
    second.load_state_dict(kept)
    fresh = torch.optim.AdamW([p for group in second.parameter_groups() for p in group.parameters])
    fresh.load_state_dict(moments)
    train(base, second, steps=3, optimizer=fresh, first=4)
    for name, tensor in second.state_dict().items():
        assert same_bits(tensor, expected[name]), name


@promised("checkpointing")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(method: Method, layer: Layer, reentrant: bool):
    base = Base(layer, torch.float32)
    adapter_set = base.attach(method)
    nudge(adapter_set)
    x = base.x.requires_grad_()
    expected = torch.autograd.grad(base(x).square().mean(), adapter_set.parameters())
    checkpoint(base, x, use_reentrant=reentrant).square().mean().backward()
    for parameter, gradient in zip(adapter_set.parameters(), expected, strict=True):
        assert parameter.grad is not None and torch.equal(parameter.grad, gradient)


@promised("sum")
def test_an_adapter_is_trained_the_same_whatever_another_does(method: Method, layer: Layer):
    """Each set is a delta of the base's own W: together they are the sum."""
    base = Base(layer, torch.float64)
    before = base()
    alone: list[Tensor] = []
    sets: list[AdapterSet] = []
    for size in (0.1, 0.2):
        sets.append(base.attach(method))
        nudge(sets[-1], size)
        alone.append(base() - before)
        sets[-1].strength = 0.0
    for adapter_set in sets:
        adapter_set.strength = 1.0
    assert relative_error(base() - before, alone[0] + alone[1]) < FP64
    for adapter_set in sets:
        adapter_set.merge()
    assert relative_error(base() - before, alone[0] + alone[1]) < FP64
    sets[0].detach()
    assert relative_error(base() - before, alone[1]) < FP64


@promised("dropout")
def test_dropout_acts_in_training_only(method: Method, layer: Layer):
    base = Base(layer, torch.float32)
    adapter_set = base.attach(method, dropout=0.5)
    nudge(adapter_set)
    assert not torch.equal(base(), base())
    adapter_set.eval()
    assert torch.equal(base(), base())


@pytest.mark.parametrize(("method", "layer", "words"), list(refusals()))
def test_a_layer_that_a_method_cannot_take_is_refused_in_words(method: Method, layer: Layer, words: str):
    with pytest.raises(UserInputError, match=words):
        Base(layer, torch.float32).attach(method)
