"""What an adapter set promises, whatever the method."""

from __future__ import annotations

from typing import ClassVar, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from adapters.adapter_set import AdapterSet
from adapters.base import REGISTRY, Adapter, AdapterSpec, Context
from adapters.errors import MismatchError, StudioError, UserInputError
from adapters.files import AdapterCard, attach_file, save_adapter
from adapters.inject import attach, base_hash
from adapters.registry import make_spec
from adapters.sites import Site
from tests.contract.harness import LAYERS, Base, Method, nudge
from tests.contract.table import METHODS
from tests.tolerances import FP32, relative_error, same_bits

DORA = next(method for method in METHODS if method.name == "dora")


class Two(nn.Module):
    def __init__(self, reverse: bool = False, width: int = 6) -> None:
        super().__init__()
        for name in ("b", "a") if reverse else ("a", "b"):
            self.add_module(name, nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule("b")(self.get_submodule("a")(x))


each_method = pytest.mark.parametrize("method", [m for m in METHODS if "compile" not in m.exempt], ids=str)


def test_every_registered_method_has_a_row_in_the_table():
    make_spec("lora")
    assert {method.name for method in METHODS} == set(REGISTRY)


@each_method
def test_repeated_blocks_compile_once_and_whole_and_give_the_same_output(method: Method):
    """What makes compile_repeated_blocks affordable on SDXL's 70 blocks: no guard on the identity of a hook."""
    torch.compiler.reset()
    blocks = nn.ModuleList([Two(width=32) for _ in range(3)])
    nudge(attach({"unet": blocks}, make_spec(method.name, **method.knobs), {"unet": "linear"}))
    x = torch.randn(2, 32, requires_grad=True)
    expected = blocks[2](blocks[1](blocks[0](x)))
    counter = CompileCounterWithBackend("aot_eager")
    for block in blocks:
        block.compile(fullgraph=True, backend=counter)
    assert relative_error(blocks[2](blocks[1](blocks[0](x))), expected) < FP32
    assert counter.frame_count == 1


def test_the_start_depends_on_seed_and_layer_name_but_not_on_the_order_of_layers():
    spec = make_spec("lora")
    first = attach({"unet": Two()}, spec, {"unet": "linear"}, seed=3).state_dict()
    again = attach({"unet": Two(reverse=True)}, spec, {"unet": "linear"}, seed=3).state_dict()
    other = attach({"unet": Two()}, spec, {"unet": "linear"}, seed=4).state_dict()
    assert torch.equal(first["unet.a.down"], again["unet.a.down"])
    assert not torch.equal(first["unet.a.down"], first["unet.b.down"])
    assert not torch.equal(first["unet.a.down"], other["unet.a.down"])


def test_training_one_component_leaves_the_other_out_of_its_parameters():
    sets = attach({"unet": Two(), "text_encoder": Two()}, make_spec("dora"), {"unet": "a", "text_encoder": "b"})
    assert [name for name, _ in sets.named_parameters("text_encoder")] == [
        "text_encoder.b.magnitude",
        "text_encoder.b.inner.down",
        "text_encoder.b.inner.up",
    ]
    assert sets.num_parameters() == sets.num_parameters("unet") + sets.num_parameters("text_encoder")
    found = [(group.component, group.role, len(group.parameters)) for group in sets.parameter_groups("unet")]
    assert found == [("unet", "down", 1), ("unet", "up", 1), ("unet", "magnitude", 1)]


def test_an_unmerged_adapter_beside_a_merged_one_is_refused():
    base = Base(LAYERS["linear"], torch.float32)
    merged, unmerged = (base.attach(METHODS[0]) for _ in range(2))
    merged.merge()
    with pytest.raises(StudioError, match="Merge all of them or none"):
        base()
    unmerged.strength = 0.0
    base()


def test_attaching_to_merged_weights_is_refused():
    base = Base(LAYERS["linear"], torch.float32)
    base.attach(METHODS[0]).merge()
    with pytest.raises(StudioError, match="Unmerge"):
        base.attach(METHODS[0])


def test_the_strength_of_a_merged_adapter_cannot_change():
    adapter_set = Base(LAYERS["linear"], torch.float32).attach(METHODS[0])
    adapter_set.merge()
    with pytest.raises(StudioError, match="Unmerge it first"):
        adapter_set.strength = 0.5


def test_a_rank_that_the_groups_do_not_divide_is_refused_with_what_to_do():
    with pytest.raises(UserInputError, match="multiple of 4"):
        Base(LAYERS["conv grouped"], torch.float32).attach(METHODS[0], rank=6)


def test_a_target_for_a_component_that_was_not_given_is_refused():
    with pytest.raises(UserInputError, match="text_encoder"):
        attach({"unet": Two()}, make_spec("lora"), {"text_encoder": "all"})


def test_a_dead_row_of_the_base_stays_finite_under_dora():
    base = Base(LAYERS["linear"], torch.float32)
    with torch.no_grad():
        base.layer.weight[3] = 0
    before = base()
    adapter_set = base.attach(DORA)
    assert same_bits(base(), before)
    base().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in adapter_set.parameters() if p.grad is not None)


def test_base_hash_depends_on_names_dtypes_and_every_value():
    model = Two()
    digest = base_hash({"unet": model})
    assert base_hash({"unet": model}) == digest
    assert base_hash({"text_encoder": model}) != digest
    with torch.no_grad():
        model.get_parameter("b.bias")[5] += 1
    changed = base_hash({"unet": model})
    assert changed != digest
    assert base_hash({"unet": model.bfloat16()}) != changed


def test_loading_tensors_that_do_not_fit_names_the_layer_and_changes_nothing():
    adapter_set = attach({"unet": Two()}, make_spec("lora", rank=2), {"unet": "linear"})
    before = {name: tensor.clone() for name, tensor in adapter_set.state_dict().items()}
    wrong = {**before, "unet.b.up": torch.ones(6, 3)}
    with pytest.raises(MismatchError, match=r"unet\.b\.up is 6×3"):
        adapter_set.load_state_dict(wrong)
    assert all(torch.equal(adapter_set.state_dict()[name], tensor) for name, tensor in before.items())


# --- a method with what later ones need: a factor shared by all layers, schedule state, every hook -----------------


class BudgetSpec(AdapterSpec, frozen=True):
    method: Literal["budget"] = "budget"


class Budget(Adapter):
    """ΔW = diag(gain)·bank with a bank shared by the set; the weakest layer's gain is cut at every step."""

    title: ClassVar[str] = "Budget"
    paper: ClassVar[str] = "none"
    equation: ClassVar[str] = "ΔW = diag(g) R"
    alive: Tensor

    def __init__(self, site: Site, weight: Tensor, spec: AdapterSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        widest = max(other.columns for other in context.sites)
        self.bank = context.shared("bank", lambda g: torch.randn(6, widest, generator=g).to(weight))
        self.gain = nn.Parameter(weight.new_zeros(site.rows))
        self.register_buffer("alive", torch.ones((), dtype=torch.int64))

    def delta(self, x: Tensor, y_base: Tensor) -> Tensor:
        return F.linear(x, self.bank[:, : self.site.columns]) * self.gain * self.alive

    def delta_weight(self, weight: Tensor) -> Tensor:
        raise UserInputError("Budget cannot be merged.", "Keep it attached.")

    def regulariser(self) -> Tensor:
        return self.gain.square().sum()

    def on_backward(self) -> None:
        assert self.gain.grad is not None
        self.gain.grad.mul_(2)

    @classmethod
    def on_step_all(cls, adapters, step):
        min(adapters, key=lambda a: a.gain.abs().sum().item()).alive.zero_()


@pytest.fixture
def budget():
    Budget.__init_subclass__(spec=BudgetSpec)
    yield make_spec("budget")
    del REGISTRY["budget"]


@pytest.fixture
def budget_set(budget: AdapterSpec) -> tuple[Two, AdapterSet]:
    model = Two()
    return model, attach({"unet": model}, budget, {"unet": "linear"})


def test_a_factor_shared_by_layers_is_trained_once_and_saved_once(budget_set: tuple[Two, AdapterSet], tmp_path):
    model, adapter_set = budget_set
    assert [name for name, _ in adapter_set.named_parameters()] == ["unet.a.bank", "unet.a.gain", "unet.b.gain"]
    assert [len(group.parameters) for group in adapter_set.parameter_groups()] == [3]
    assert list(adapter_set.state_dict()) == [
        "unet.a.bank",
        "unet.a.gain",
        "unet.a.alive",
        "unet.b.gain",
        "unet.b.alive",
    ]
    nudge(adapter_set)
    x = torch.randn(2, 6)
    before = model(x)
    save_adapter(tmp_path / "a.safetensors", adapter_set, AdapterCard())
    adapter_set.detach()
    loaded = attach_file({"unet": model}, tmp_path / "a.safetensors")
    assert same_bits(model(x), before)
    assert loaded.adapters["unet.a"].bank is loaded.adapters["unet.b"].bank


def test_moving_a_set_keeps_shared_factors_shared(budget_set: tuple[Two, AdapterSet]):
    _, adapter_set = budget_set
    adapter_set.to("cpu")
    assert adapter_set.adapters["unet.a"].bank is adapter_set.adapters["unet.b"].bank


def test_schedule_state_is_saved_in_the_file(budget_set: tuple[Two, AdapterSet], tmp_path):
    model, adapter_set = budget_set
    adapter_set.on_step(1)
    save_adapter(tmp_path / "a.safetensors", adapter_set, AdapterCard(), dtype="bfloat16")
    adapter_set.detach()
    loaded = attach_file({"unet": model}, tmp_path / "a.safetensors")
    alive = [loaded.state_dict()[f"unet.{layer}.alive"].item() for layer in ("a", "b")]
    assert sorted(alive) == [0, 1]


def test_the_hooks_of_a_method_are_called(budget_set: tuple[Two, AdapterSet]):
    model, adapter_set = budget_set
    nudge(adapter_set)
    term = adapter_set.regulariser()
    assert term is not None
    (model(torch.ones(1, 6)).sum() + term).backward()
    before = {name: p.grad.clone() for name, p in adapter_set.named_parameters() if p.grad is not None}
    adapter_set.on_backward()
    doubled = [name for name, p in adapter_set.named_parameters() if torch.equal(p.grad, 2 * before[name])]
    assert doubled == ["unet.a.gain", "unet.b.gain"]


def test_a_method_that_cannot_merge_says_so_and_leaves_the_base_alone(budget_set: tuple[Two, AdapterSet]):
    model, adapter_set = budget_set
    digest = base_hash({"unet": model})
    with pytest.raises(UserInputError, match="cannot be merged"):
        adapter_set.merge()
    assert base_hash({"unet": model}) == digest and not adapter_set.merged
