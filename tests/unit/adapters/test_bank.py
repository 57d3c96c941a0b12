"""Stacked factors: the same numbers, the same names, fewer tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet
from adapters.bank import FactorBank
from adapters.inject import attach
from adapters.registry import REGISTRY, make_spec
from tests.tolerances import FP64, FP64_GRADIENT, relative_error, same_bits

STEPS = 20


class Net(nn.Module):
    """Two layers alike of each kind, and one that is like no other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.e = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 48)
        self.c, self.d = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        picture = self.b(self.a(x).tanh()).unflatten(1, (16, 2, 1))
        return self.e(self.d(self.c(picture).tanh()).flatten(1))


def build(method: str, **knobs: object) -> tuple[Net, AdapterSet]:
    torch.manual_seed(0)
    net = Net().double().requires_grad_(False)
    if method == "boft":
        knobs = {"block_size": 4, "factors": 2, **knobs}
    adapter = attach({"unet": net}, make_spec(method=method, **knobs), {"unet": "a, b, c, d, e"}, steps=STEPS)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws, dtype=parameter.dtype))
    return net, adapter


def step(net: Net, adapter: AdapterSet) -> Tensor:
    torch.manual_seed(2)
    out = net(torch.randn(6, 32, dtype=torch.float64))
    penalty = adapter.regulariser()
    loss = out.square().mean() if penalty is None else out.square().mean() + penalty
    loss.backward()
    return out.detach()


def stacked(adapter: AdapterSet) -> FactorBank:
    bank = FactorBank(adapter, torch.float64)
    for leaf in bank.leaves(adapter.parameters()):
        leaf.grad = torch.zeros_like(leaf)
    bank.connect_gradients()
    return bank


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("method", sorted(REGISTRY))
def test_stacks_give_the_outputs_and_gradients_of_single_layers(method: str, magnitude: bool):
    if magnitude and (method in ("dora", "dvora") or "row_norm2" not in _offered(method)):
        pytest.skip("no magnitude can be put over this method")
    net, adapter = build(method, magnitude=magnitude)
    expected = step(net, adapter)
    gradients = {name: p.grad.clone() for name, p in adapter.named_parameters() if p.grad is not None}
    net, adapter = build(method, magnitude=magnitude)
    with stacked(adapter).staged():
        found = step(net, adapter)
    assert relative_error(found, expected) < FP64
    for name, parameter in adapter.named_parameters():
        if name in gradients and gradients[name].any():
            assert relative_error(parameter.grad, gradients[name]) < FP64_GRADIENT, name


def _offered(method: str) -> set[str]:
    from adapters.base import Adapter

    kind = REGISTRY[method]
    return {"row_norm2"} if kind.row_norm2 is not Adapter.row_norm2 else set()


@pytest.mark.parametrize("magnitude", [False, True], ids=["plain", "magnitude"])
@pytest.mark.parametrize(("method", "at"), [("adalora", 1), ("adalora", STEPS), ("sora", 1)])
def test_what_a_method_does_after_a_step_it_does_for_all_layers_at_once(method: str, at: int, magnitude: bool):
    found: list[dict[str, Tensor]] = []
    for at_once in (False, True):
        net, adapter = build(method, magnitude=magnitude)
        bank = stacked(adapter)
        for name, tensor in adapter.state_dict().items():
            if name.endswith("kept"):
                tensor[::2] = False
        with bank.staged():
            step(net, adapter)
        before = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
        (bank if at_once else adapter).settle(adapter.phase(at))
        found.append({name: t.clone() for name, t in adapter.state_dict().items() if not same_bits(t, before[name])})
    assert list(found[0]) == list(found[1]) != []
    assert all(relative_error(found[1][name], value) < FP64_GRADIENT for name, value in found[0].items())


def test_the_penalty_of_stacks_is_the_layers():
    net, adapter = build("adalora")
    bank = stacked(adapter)
    with bank.staged():
        step(net, adapter)
        assert relative_error(bank.regulariser(), adapter.regulariser()) < FP64


def test_layers_that_are_alike_share_a_stack_and_others_do_not():
    _, adapter = build("lora")
    bank = stacked(adapter)
    assert len(bank.leaves(adapter.parameters())) == 2 * 3  # up and down of: Linear 32→32, Linear 32→48, Conv


def test_the_adapters_state_does_not_change_by_a_bit():
    _, adapter = build("dora")
    before = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    stacked(adapter)
    after = adapter.state_dict()
    assert list(after) == list(before) and all(same_bits(after[name], before[name]) for name in before)


def test_what_an_optimizer_does_to_a_stack_is_seen_by_the_layers():
    net, adapter = build("lora")
    bank = stacked(adapter)
    with bank.staged():
        step(net, adapter)
    before = adapter.state_dict()["unet.b.up"].clone()
    torch.optim.SGD(bank.leaves(adapter.parameters()), lr=1.0).step()
    layer = adapter.adapters["unet.b"]
    assert torch.allclose(layer.get_parameter("up"), before - layer.get_parameter("up").grad)


def test_a_factor_that_layers_share_stays_one():
    _, adapter = build("vera")
    stacked(adapter)
    banks = {id(layer.get_parameter("bank_down")) for name, layer in adapter.adapters.items() if name[-1] in "abe"}
    assert len(banks) == 1


def test_outside_the_context_the_layers_compute_by_themselves():
    net, adapter = build("lora")
    expected = step(net, adapter)
    with stacked(adapter).staged():
        pass
    assert relative_error(step(net, adapter), expected) < FP64
    assert all("staged" not in vars(layer) for layer in adapter.adapters.values())


def test_layers_of_different_rates_are_not_stacked_together():
    from adapters.adapter_set import LayerOverride

    net = Net().requires_grad_(False)
    overrides = (LayerOverride(layers="b", learning_rate=0.5),)
    adapter = attach({"unet": net}, make_spec(method="lora"), {"unet": "a, b"}, overrides=overrides)
    assert len(FactorBank(adapter, torch.float32).leaves(adapter.parameters())) == 4
