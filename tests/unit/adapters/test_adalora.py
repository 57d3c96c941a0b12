"""AdaLoRA's own promises: the budget, what it leaves at 0, and how the factors are held orthonormal."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft.tuners.adalora.layer import RankAllocator
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet
from adapters.errors import UserInputError
from adapters.files import AdapterCard, attach_file, load_adapter, save_adapter
from adapters.inject import attach
from adapters.methods.adalora import AdaLora
from adapters.registry import make_spec
from tests.contract.harness import LAYERS, Base, Method
from tests.tolerances import FP64, relative_error, same_bits

STEPS, RANK = 40, 6
KNOBS = {"rank": RANK, "target_rank": 2, "initial": 0.1, "final": 0.25, "interval": 3}
BEGIN, END = 4, 30


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(20, 24).double(), nn.Linear(24, 12).double()
        self.x = torch.randn(5, 20).double()

    def forward(self) -> Tensor:
        return self.b(self.a(self.x).tanh())


def started(steps: int | None = STEPS, **knobs: object) -> tuple[Two, AdapterSet]:
    model = Two().requires_grad_(False)
    return model, attach({"unet": model}, make_spec("adalora", **{**KNOBS, **knobs}), {"unet": "linear"}, steps=steps)


def layers(adapter_set: AdapterSet) -> list[AdaLora]:
    found = [getattr(adapter, "inner", adapter) for adapter in adapter_set.adapters.values()]
    assert all(isinstance(adapter, AdaLora) for adapter in found)
    return found


def run(model: Two, adapter_set: AdapterSet, first: int, last: int, optimizer: torch.optim.Optimizer) -> None:
    for step in range(first, last + 1):
        model().square().mean().backward()
        optimizer.step()
        adapter_set.on_step(step)
        for parameter in adapter_set.parameters():
            parameter.grad = None


def adam(adapter_set: AdapterSet) -> torch.optim.Optimizer:
    return torch.optim.AdamW(adapter_set.parameters(), lr=1e-2)


def alive(adapter_set: AdapterSet) -> int:
    return sum(int((adapter.core != 0).sum()) for adapter in layers(adapter_set))


@pytest.mark.parametrize("magnitude", [False, True], ids=["plain", "magnitude"])
def test_what_the_set_keeps_follows_the_cubic_budget(magnitude: bool):
    model, adapter_set = started(magnitude=magnitude)
    optimizer = adam(adapter_set)
    pruned = 0
    for step in range(1, STEPS + 1):
        run(model, adapter_set, step, step, optimizer)
        if step <= BEGIN:
            assert alive(adapter_set) == 2 * RANK
        elif step >= END:
            assert alive(adapter_set) == 4
        elif step % 3 == 0:
            pruned += 1
            assert alive(adapter_set) == int(4 + 8 * (1 - (step - BEGIN) / (END - BEGIN)) ** 3)
            assert sum(int(adapter.kept.sum()) for adapter in layers(adapter_set)) == alive(adapter_set)
    assert pruned == 8


def test_equal_scores_do_not_break_the_budget():
    _, adapter_set = started()
    for step in (3, 6, 30):  # no gradients at all: every score is 0
        adapter_set.on_step(step)
    assert sum(int(adapter.kept.sum()) for adapter in layers(adapter_set)) == 4


def test_after_the_final_choice_zeroed_triplets_stay_zero_against_momentum_and_decay():
    model, adapter_set = started()
    optimizer = adam(adapter_set)
    run(model, adapter_set, 1, END, optimizer)
    dead = [adapter.core == 0 for adapter in layers(adapter_set)]
    before = [adapter.core.clone() for adapter in layers(adapter_set)]
    model().square().mean().backward()
    optimizer.step()
    assert any((adapter.core[zero] != 0).any() for adapter, zero in zip(layers(adapter_set), dead, strict=True))
    adapter_set.on_step(END + 1)
    for adapter, zero, was in zip(layers(adapter_set), dead, before, strict=True):
        assert torch.equal(adapter.core == 0, zero)
        assert not torch.equal(adapter.core, was)


def test_before_the_final_choice_a_zeroed_triplet_may_come_back():
    model, adapter_set = started()
    optimizer = adam(adapter_set)
    run(model, adapter_set, 1, 15, optimizer)
    dead = [adapter.core == 0 for adapter in layers(adapter_set)]
    run(model, adapter_set, 16, 16, optimizer)
    assert any((adapter.core[zero] != 0).any() for adapter, zero in zip(layers(adapter_set), dead, strict=True))


def test_without_a_known_length_nothing_is_pruned():
    model, adapter_set = started(steps=None)
    run(model, adapter_set, 1, STEPS, adam(adapter_set))
    assert alive(adapter_set) == 2 * RANK


def in_peft(model: Two, adapter_set: AdapterSet) -> tuple[nn.Module, RankAllocator]:
    """peft's allocator over copies of our factors, under its own names."""
    names = {"lora_A": "down", "lora_B": "up", "lora_E": "core"}
    holder = nn.Module()
    for layer in layers(adapter_set):
        part = nn.Module()
        for theirs, ours in names.items():
            value = layer.get_parameter(ours).detach().clone()
            part.add_module(theirs, nn.ParameterDict({"x": value[:, None] if ours == "core" else value}))
        holder.add_module(layer.site.name.replace(".", "_"), part)
    config = SimpleNamespace(
        beta1=0.85, beta2=0.85, target_r=2, tinit=BEGIN, tfinal=STEPS - END, total_step=STEPS, deltaT=3
    )
    return holder, RankAllocator(holder, config, "x")


def test_importances_and_pruning_are_those_of_pefts_allocator():
    model, adapter_set = started()
    optimizer = adam(adapter_set)
    holder, allocator = in_peft(model, adapter_set)
    theirs = dict(holder.named_parameters())
    masks = 0
    for step in range(1, END):
        model().square().mean().backward()
        optimizer.step()
        for layer in layers(adapter_set):
            for name, ours in (("lora_A", "down"), ("lora_B", "up"), ("lora_E", "core")):
                parameter = theirs[f"{layer.site.name.replace('.', '_')}.{name}.x"]
                own = layer.get_parameter(ours)
                assert own.grad is not None
                parameter.data = own.detach().clone().reshape(parameter.shape)
                parameter.grad = own.grad.reshape(parameter.shape).clone()
        allocator.update_and_allocate(holder, step)
        adapter_set.on_step(step)
        for layer in layers(adapter_set):
            expected = theirs[f"{layer.site.name.replace('.', '_')}.lora_E.x"].flatten()
            assert torch.equal(layer.core == 0, expected == 0), step
            masks += int((expected == 0).sum())
        for parameter in adapter_set.parameters():
            parameter.grad = None
    assert masks > 0


def test_a_step_that_overflowed_does_not_poison_the_importance():
    _, adapter_set = started()
    for parameter in adapter_set.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    adapter_set.on_step(1)
    assert all(adapter.scores().isfinite().all() for adapter in layers(adapter_set))


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_the_factors_start_orthonormal_and_the_penalty_at_0(layer):
    adapter_set = Base(layer, torch.float64).attach(Method("adalora", {"rank": 8}, lambda _: 0))
    adapter = layers(adapter_set)[0]
    groups = adapter.site.groups
    for block in adapter.up.chunk(groups):
        assert (block.T @ block - torch.eye(8 // groups)).abs().max() < 1e-6
    for block in adapter.down.chunk(groups):
        assert (block @ block.T - torch.eye(8 // groups)).abs().max() < 1e-6
    penalty = adapter_set.regulariser()
    assert penalty is not None and penalty < 1e-12


def test_the_penalty_is_summed_over_layers():
    _, adapter_set = started(orthogonal_weight=0.05)
    with torch.no_grad():
        for parameter in adapter_set.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    expected = 0.0
    for adapter in layers(adapter_set):
        for factor in (adapter.up.detach().T, adapter.down.detach()):
            off = factor @ factor.T - torch.eye(RANK)
            expected += 0.05 * torch.linalg.matrix_norm(off).item() ** 2
    penalty = adapter_set.regulariser()
    assert penalty is not None and abs(penalty.item() / expected - 1) < FP64


def test_a_finished_file_leaves_the_importances_out_and_gives_the_same_output(tmp_path):
    model, adapter_set = started()
    run(model, adapter_set, 1, STEPS, adam(adapter_set))
    before, state = model(), {name: t.clone() for name, t in adapter_set.state_dict().items()}
    save_adapter(tmp_path / "a.safetensors", adapter_set, AdapterCard())
    adapter_set.detach()
    held = set(load_adapter(tmp_path / "a.safetensors").tensors)
    assert held == {f"unet.{layer}.{name}" for layer in "ab" for name in ("up", "core", "down", "kept")}
    loaded = attach_file({"unet": model}, tmp_path / "a.safetensors").state_dict()
    assert list(loaded) == list(state)
    for name, tensor in loaded.items():
        assert same_bits(tensor.to(state[name].dtype), state[name].float().to(state[name].dtype)) or name not in held
        assert name in held or not tensor.any()
    assert relative_error(model(), before) < 1e-6  # a file holds fp32


def test_a_rank_above_the_layers_size_is_refused():
    with pytest.raises(UserInputError, match="12 singular values"):
        started(rank=13)


@pytest.mark.parametrize(
    ("knobs", "words"), [({"target_rank": 7}, "more than the rank"), ({"final": 0.95}, "leave a part")]
)
def test_impossible_budgets_are_refused_in_words(knobs: dict[str, object], words: str):
    with pytest.raises(UserInputError, match=words):
        make_spec("adalora", **{**KNOBS, **knobs})
