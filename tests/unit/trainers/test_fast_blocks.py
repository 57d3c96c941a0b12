"""The UNet's fast forwards against diffusers' own, with adapters and without."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet
from adapters.bank import FactorBank
from adapters.inject import attach
from adapters.registry import make_spec
from tests.tolerances import FP64, FP64_GRADIENT, relative_error
from trainers.fast.blocks import FastUnet
from trainers.fast.sampling import fast_sampling, recorded
from trainers.sdxl import load_base


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return load_base("embedded", dtype=torch.float64).unet


@pytest.fixture(scope="module")
def predict(unet: nn.Module) -> Callable[[], Tensor]:
    config = unet.config
    draws = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draws, dtype=torch.float64)

    side = config["sample_size"]
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    latents, context = random(2, config["in_channels"], side, side), random(2, 40, config["cross_attention_dim"])
    ids = torch.tensor([[128.0, 128, 0, 0, 128, 128]] * 2, dtype=torch.float64)
    conditions = {"text_embeds": random(2, pooled), "time_ids": ids}
    times = torch.tensor([3, 700])
    return lambda: unet(latents, times, context, added_cond_kwargs=conditions, return_dict=False)[0]


def adapted(unet: nn.Module, method: str, targets: str) -> AdapterSet:
    adapter = attach({"unet": unet}, make_spec(method=method), {"unet": targets})
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draws, dtype=parameter.dtype))
    return adapter


def test_they_give_diffusers_prediction(unet: nn.Module, predict: Callable[[], Tensor]):
    expected = predict()
    fast = FastUnet(unet)
    assert relative_error(predict(), expected) < FP64
    fast.remove()


@pytest.mark.parametrize(
    ("method", "targets"),
    [
        ("lora", "attention"),
        ("lora", "all"),
        ("dora", "all"),
        ("loha", "linear"),
        ("lokr", "attention"),
        ("oft", "linear"),
    ],
)
def test_with_an_adapter_outputs_and_gradients_are_those_of_the_hooks(
    unet: nn.Module, predict: Callable[[], Tensor], method: str, targets: str
):
    adapter = adapted(unet, method, targets)
    expected = predict()
    expected.square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in adapter.named_parameters() if p.grad is not None}
    bank, fast = FactorBank(adapter, torch.float64), FastUnet(unet)
    for leaf in bank.leaves(adapter.parameters()):
        leaf.grad = torch.zeros_like(leaf)
    bank.connect_gradients()
    with bank.staged():
        found = predict()
    found.square().mean().backward()
    fast.remove()
    adapter.detach()
    assert relative_error(found, expected) < FP64
    assert gradients
    for name, parameter in adapter.named_parameters():
        if name in gradients:
            assert relative_error(parameter.grad, gradients[name]) < FP64_GRADIENT, name


def test_afterwards_the_unet_is_as_it_was(unet: nn.Module):
    before = {name: (tensor.clone(), tensor.is_contiguous()) for name, tensor in unet.state_dict().items()}
    forwards = {
        name: module.forward.__func__ for name, module in unet.named_modules() if hasattr(module.forward, "__func__")
    }
    FastUnet(unet).remove()
    assert all(
        torch.equal(tensor, before[name][0]) and tensor.is_contiguous() == before[name][1]
        for name, tensor in unet.state_dict().items()
    )
    assert all(unet.get_submodule(name).forward.__func__ is forward for name, forward in forwards.items())
    storages = [parameter.untyped_storage().data_ptr() for parameter in unet.parameters()]
    assert len(set(storages)) == len(storages)


def test_gradients_of_the_bases_own_weights_still_flow_where_they_are_asked_for(
    unet: nn.Module, predict: Callable[[], Tensor]
):
    layer = next(module for name, module in unet.named_modules() if name.endswith("attn1.to_k"))
    fast = FastUnet(unet)
    layer.weight.requires_grad_(True)
    predict().square().mean().backward()
    found, layer.weight.grad = layer.weight.grad, None
    layer.weight.requires_grad_(False)
    fast.remove()
    layer.weight.requires_grad_(True)
    predict().square().mean().backward()
    assert found is not None and relative_error(found, layer.weight.grad) < FP64_GRADIENT
    layer.weight.requires_grad_(False)
    layer.weight.grad = None


@pytest.mark.parametrize("method", ["lora", "dora", "lokr"])
def test_drawing_fast_at_any_strength_gives_the_hooks_prediction(
    unet: nn.Module, predict: Callable[[], Tensor], method: str
):
    adapter = adapted(unet, method, "attention")
    adapter.strength = 0.6
    with torch.no_grad():
        expected = predict()
    with fast_sampling(unet, [adapter]), recorded(unet):
        found = predict()
    adapter.detach()
    assert relative_error(found, expected) < FP64
