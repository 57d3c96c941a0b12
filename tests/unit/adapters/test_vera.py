"""VeRA's shared banks, and DVoRA's norm over them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet, LayerOverride
from adapters.files import AdapterCard, attach_file, save_adapter
from adapters.inject import attach
from adapters.magnitude import Magnitude
from adapters.methods.vera import Vera
from adapters.registry import make_spec
from tests.tolerances import FP64, relative_error, same_bits


class Net(nn.Module):
    """Layers of several sizes, κ and groups."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.tall = nn.Linear(20, 6), nn.Linear(6, 30)
        self.pixel, self.small, self.large = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 6, 3), nn.Conv2d(4, 10, 3)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.tall(self.wide(x))


def build(method: str = "vera") -> tuple[Net, AdapterSet]:
    net = Net()
    adapter_set = attach({"unet": net}, make_spec(method, rank=4), {"unet": "all"})
    for parameter in adapter_set.parameters():
        nn.init.normal_(parameter)
    return net, adapter_set


def layer(adapter_set: AdapterSet, name: str) -> Vera:
    found = adapter_set.adapters[f"unet.{name}"]
    assert isinstance(found, Vera)
    return found


@torch.no_grad()
def test_each_layers_delta_is_the_corner_of_the_banks_between_two_diagonals():
    _, adapter_set = build()
    for name in ("wide", "tall", "pixel", "small", "large"):
        vera = layer(adapter_set, name)
        site = vera.site
        down, up = vera.bank_down[:, : site.columns], vera.bank_up[: site.rows]
        expected = torch.diag(vera.b) @ up @ torch.diag(vera.d) @ down
        assert relative_error(site.matricise(vera.delta_weight(site.weight)), expected) < FP64


@torch.no_grad()
def test_a_groups_rows_meet_its_own_part_of_d_and_of_the_bank():
    _, adapter_set = build()
    vera = layer(adapter_set, "grouped")
    found = vera.site.matricise(vera.delta_weight(vera.site.weight))
    for group in (0, 1):
        rows, ranks = slice(4 * group, 4 * group + 4), slice(2 * group, 2 * group + 2)
        middle = torch.diag(vera.d[ranks]) @ vera.bank_down[ranks]
        assert relative_error(found[rows], torch.diag(vera.b[rows]) @ vera.bank_up[rows, :2] @ middle) < FP64


def test_linear_layers_share_one_pair_of_banks_as_large_as_the_largest_of_them():
    _, adapter_set = build()
    wide, tall = layer(adapter_set, "wide"), layer(adapter_set, "tall")
    assert wide.bank_down is tall.bank_down and wide.bank_up is tall.bank_up
    assert wide.bank_down.shape == (4, 20) and wide.bank_up.shape == (30, 4)


def test_convolutions_share_banks_with_those_of_the_same_k_only():
    _, adapter_set = build()
    small, large, grouped = (layer(adapter_set, name) for name in ("small", "large", "grouped"))
    assert small.bank_down is large.bank_down is grouped.bank_down
    assert small.bank_down.shape == (4, 36) and small.bank_up.shape == (10, 4)
    assert layer(adapter_set, "pixel").bank_down.shape == (4, 4)


def test_only_the_vectors_are_trained():
    _, adapter_set = build()
    rows = 6 + 30 + 8 + 6 + 10 + 8
    assert adapter_set.num_parameters() == rows + 6 * 4
    assert {group.role for group in adapter_set.parameter_groups()} == {"core", "gate"}


def test_the_banks_are_kaiming_uniform_over_their_whole_width():
    net = nn.ModuleDict({"a": nn.Linear(2000, 8), "b": nn.Linear(8, 1000)})
    adapter_set = attach({"unet": net}, make_spec("vera", rank=64), {"unet": "all"})
    vera = layer(adapter_set, "a")
    for bank, width in ((vera.bank_down, 2000), (vera.bank_up, 64)):
        bound = math.sqrt(6 / width)
        assert 0.99 * bound < bank.abs().max() <= bound
        assert abs(bank.std() / (bound / math.sqrt(3)) - 1) < 0.01


def test_the_banks_are_in_the_file_once_and_come_back_from_it(tmp_path):
    net, adapter_set = build()
    names = [name for name in adapter_set.state_dict() if "bank" in name]
    assert len(names) == 6  # a pair each for Linear layers, κ = 4 and κ = 36
    x = torch.randn(2, 20).double()
    before = net(x)
    with torch.no_grad():
        layer(adapter_set, "wide").bank_down.mul_(2)  # as another driver's random numbers would differ
    moved = net(x)
    assert relative_error(moved, before) > 0.01
    save_adapter(tmp_path / "a.safetensors", adapter_set, AdapterCard(), dtype="float32")
    adapter_set.detach()
    loaded = attach_file({"unet": net}, tmp_path / "a.safetensors")
    kept = layer(loaded, "wide").bank_down
    assert same_bits(kept, layer(adapter_set, "wide").bank_down.float().double())
    assert layer(loaded, "tall").bank_down is kept


def test_an_override_of_the_rank_has_banks_of_its_own():
    override = LayerOverride(component="unet", layers="tall", adapter={"rank": 8})
    adapter_set = attach({"unet": Net()}, make_spec("vera", rank=4), {"unet": "linear"}, overrides=[override])
    assert layer(adapter_set, "wide").bank_down.shape == (4, 20)
    assert layer(adapter_set, "tall").bank_down.shape == (8, 20)


@torch.no_grad()
def test_dvoras_norm_is_that_of_the_materialised_rows():
    _, adapter_set = build("dvora")
    for adapter in adapter_set.adapters.values():
        assert isinstance(adapter, Magnitude)
        site = adapter.site
        dense = site.matricise(site.weight + adapter.inner.delta_weight(site.weight))
        assert relative_error(adapter.inner.row_norm2(adapter.base_norm2), dense.square().sum(1)) < FP64
        whole = site.matricise(site.weight + adapter.delta_weight(site.weight))
        assert relative_error(whole.norm(dim=1), adapter.magnitude.abs()) < FP64


def test_dvora_is_vera_with_a_magnitude():
    _, dvora = build("dvora")
    other = attach({"unet": Net()}, make_spec("vera", rank=4, magnitude=True), {"unet": "all"})
    other.load_state_dict(dvora.state_dict())
    for name, adapter in dvora.adapters.items():
        weight = adapter.site.weight
        assert same_bits(adapter.delta_weight(weight), other.adapters[name].delta_weight(weight))
