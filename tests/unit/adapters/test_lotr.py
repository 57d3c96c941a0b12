"""LoTR: outer factors that layers of one shape share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet, LayerOverride
from adapters.files import AdapterCard, attach_file, save_adapter
from adapters.inject import attach
from adapters.registry import make_spec
from tests.tolerances import FP64, relative_error, same_bits


class Model(nn.Module):
    """Three Linear layers of one shape, one of another, and two convolutions of one shape with other strides."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))
        self.wide = nn.Linear(8, 16)
        self.first = nn.Conv2d(6, 10, 3, padding=1)
        self.second = nn.Conv2d(6, 10, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(self.c(self.b(self.a(x))))


def attached(model: nn.Module, target: str = "all", **knobs: object) -> AdapterSet:
    return attach({"unet": model}, make_spec("lotr", **{"rank": 4, **knobs}), {"unet": target})


def randomise(adapter_set: AdapterSet) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in adapter_set.parameters():
            parameter.normal_()


def test_layers_of_one_shape_share_all_but_their_cores():
    adapters = attached(Model()).adapters
    a, b, wide = (adapters[f"unet.{name}"] for name in ("a", "b", "wide"))
    assert a.up is b.up and a.down is b.down and a.core is not b.core
    assert wide.up is not a.up and wide.down is not a.down
    first, second = adapters["unet.first"], adapters["unet.second"]
    assert all(getattr(first, name) is getattr(second, name) for name in ("up", "down", "tall", "wide"))
    assert first.core is not second.core


def test_shared_factors_count_once():
    linear = 4 * (8 + 8) + 3 * 16 + 4 * (8 + 16) + 16
    convolutions = 4 * (10 + 6) + 2 * 9 + 2 * 16 * 9
    adapter_set = attached(Model())
    assert adapter_set.num_parameters() == linear + convolutions
    assert sum(p.numel() for group in adapter_set.parameter_groups() for p in group.parameters) == linear + convolutions


def test_with_share_layer_each_layer_has_factors_of_its_own():
    adapters = attached(Model(), share="layer").adapters
    a, b = adapters["unet.a"], adapters["unet.b"]
    assert a.up is not b.up and not torch.equal(a.up, b.up)


def test_layers_of_another_component_do_not_share():
    both = {"unet": Model(), "text_encoder": Model()}
    sets = attach(both, make_spec("lotr", rank=4), {"unet": "a", "text_encoder": "a"})
    assert sets.adapters["unet.a"].up is not sets.adapters["text_encoder.a"].up


def test_layers_of_another_rank_do_not_share():
    override = LayerOverride(layers="b", adapter={"rank": 2})
    sets = attach({"unet": Model()}, make_spec("lotr", rank=4), {"unet": "a, b"}, overrides=[override])
    assert sets.adapters["unet.a"].up.shape == (8, 4) and sets.adapters["unet.b"].up.shape == (8, 2)


def test_the_delta_is_the_product_with_all_four_factors_at_any_stride():
    model = Model().double()
    adapter_set = attached(model, "conv", alpha=6.0)
    randomise(adapter_set)
    for name, layer in (("first", model.first), ("second", model.second)):
        adapter = adapter_set.adapters[f"unet.{name}"]
        f = adapter.state_dict()
        expected = torch.einsum("pqab,op,qi,ka,lb->oikl", f["core"], f["up"], f["down"], f["tall"], f["wide"]) * 1.5
        assert relative_error(adapter.delta_weight(layer.weight), expected) < FP64
        x = torch.randn(2, 6, 7, 9).double()
        built = nn.functional.conv2d(x, expected, stride=layer.stride, padding=layer.padding)
        assert relative_error(adapter.delta(x, layer(x)), built) < FP64


def test_the_gradient_of_a_shared_factor_is_the_sum_over_its_layers():
    model = Model().double()
    x = torch.randn(5, 8).double()
    shared, own = attached(model, "a,b"), attached(model, "a,b", share="layer")
    randomise(shared)
    with torch.no_grad():
        for name, adapter in own.adapters.items():
            for ours, theirs in zip(adapter.parameters(), shared.adapters[name].parameters(), strict=True):
                ours.copy_(theirs)
    own.strength = 0.0
    model(x).square().sum().backward()
    shared.strength, own.strength = 0.0, 1.0
    model(x).square().sum().backward()
    first, second = own.adapters["unet.a"], own.adapters["unet.b"]
    assert relative_error(shared.adapters["unet.a"].up.grad, first.up.grad + second.up.grad) < FP64


def test_shared_factors_are_once_in_the_file_and_shared_again_when_it_is_loaded(tmp_path):
    model = Model()
    adapter_set = attached(model, "a,b,c")
    randomise(adapter_set)
    x = torch.randn(5, 8)
    before = model(x)
    assert [name for name in adapter_set.state_dict() if name.endswith(".up")] == ["unet.a.up"]
    save_adapter(tmp_path / "a.safetensors", adapter_set, AdapterCard())
    adapter_set.detach()
    loaded = attach_file({"unet": model}, tmp_path / "a.safetensors")
    assert loaded.adapters["unet.a"].up is loaded.adapters["unet.c"].up
    assert same_bits(model(x), before)
