"""LoRA-Dash's own promises: one switch, the right directions, one LoRA in the end."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from adapters.adapter_set import AdapterSet
from adapters.files import AdapterCard, attach_file, save_adapter
from adapters.methods.lora_dash import LoraDash
from tests.contract.harness import LAYERS, Base, Method, nudge, train
from tests.tolerances import FP64, relative_error, same_bits

DASH = Method("lora-dash", {"rank": 4, "alpha": 6.0, "directions": 3, "start_step": 3}, lambda _: 0)
UNCHOSEN = [-1, -1, -1]


def dash(adapter_set: AdapterSet) -> LoraDash:
    found = adapter_set.adapters["unet.layer"]
    assert isinstance(found, LoraDash)
    return found


def test_the_switch_fires_once_whatever_backwards_checkpointing_and_validation_do():
    base = Base(LAYERS["linear"], torch.float64)
    adapter_set = base.attach(DASH)
    nudge(adapter_set)
    adapter, seen = dash(adapter_set), []
    for step in range(1, 6):
        for _ in range(3):
            checkpoint(base, base.x.requires_grad_(), use_reentrant=False).square().mean().backward()
        adapter_set.eval()
        with torch.no_grad():
            base()
        adapter_set.train()
        nudge(adapter_set)
        adapter_set.on_step(step)
        seen.append(adapter.chosen.flatten().tolist())
    assert seen[0] == seen[1] == UNCHOSEN
    assert min(seen[2]) >= 0 and seen[2] == seen[3] == seen[4]


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize("init", ["gaussian", "pissa"])
@pytest.mark.parametrize("layer", ["linear", "conv 3x3"])
def test_the_chosen_directions_are_those_of_the_largest_dense_ratio(layer: str, init: str, relative: bool):
    base = Base(LAYERS[layer], torch.float64)
    adapter_set = base.attach(DASH, epsilon=0.05, relative_epsilon=relative, init=init)
    nudge(adapter_set)
    adapter = dash(adapter_set)
    with torch.no_grad():
        adapter.core.zero_()
    weight = base.layer.weight.detach()
    moved = adapter.delta_weight(weight).flatten(1)
    adapter_set.on_step(3)
    u, s, vt = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    ratio = (u.T @ moved @ vt.T).diagonal().abs() / (s + (0.05 * s[0] if relative else 0.05))
    expected = ratio.argsort(descending=True)[:3]
    assert adapter.chosen.flatten().tolist() == expected.tolist()
    with torch.no_grad():
        adapter.core.copy_(torch.tensor([0.3, -0.2, 0.5]))
    added = (u[:, expected] * adapter.core) @ vt[expected]
    assert relative_error(adapter.delta_weight(weight).flatten(1), moved + added) < FP64


def test_each_group_of_a_convolution_chooses_among_its_own_directions():
    base = Base(LAYERS["conv grouped"], torch.float64)
    adapter_set = base.attach(DASH, directions=8, epsilon=0.05)
    nudge(adapter_set)
    adapter = dash(adapter_set)
    weight = base.layer.weight.detach()
    moved = adapter.delta_weight(weight).flatten(1).unflatten(0, (4, -1))
    adapter_set.on_step(3)
    u, s, vt = torch.linalg.svd(weight.flatten(1).unflatten(0, (4, -1)), full_matrices=False)
    for group in range(4):
        ratio = (u[group].T @ moved[group] @ vt[group].T).diagonal().abs() / (s[group] + 0.05)
        assert adapter.chosen[group].tolist() == ratio.argsort(descending=True)[:2].tolist()


def test_before_the_switch_the_core_does_nothing_at_all():
    base = Base(LAYERS["linear"], torch.float32)
    adapter_set = base.attach(DASH)
    nudge(adapter_set)
    before = base()
    with torch.no_grad():
        dash(adapter_set).core.add_(7)
    assert same_bits(base(), before)
    gradients = torch.autograd.grad(base().square().mean(), dash(adapter_set).core)
    assert not gradients[0].any()


def test_it_folds_into_a_lora_of_rank_r_plus_the_directions():
    base = Base(LAYERS["conv strided"], torch.float64)
    before = base()
    adapter_set = base.attach(DASH)
    train(base, adapter_set, steps=5)
    up, down = dash(adapter_set).factors()
    assert up.shape == (24, 7) and down.shape == (7, 144)
    lora = Base(LAYERS["conv strided"], torch.float64)
    plain = lora.attach(Method("lora", {"rank": 7}, lambda _: 0))
    plain.load_state_dict({"unet.layer.up": up.detach(), "unet.layer.down": down.detach()})
    assert dash(adapter_set).core.abs().max() > 0
    assert relative_error(lora() - before, base() - before) < FP64


def test_a_layer_with_fewer_singular_values_takes_them_all():
    base = Base(LAYERS["linear"], torch.float64)
    adapter = dash(base.attach(DASH, directions=100))
    adapter.on_step(3)
    assert sorted(adapter.chosen.flatten().tolist()) == list(range(40))


def test_the_chosen_directions_are_in_the_file(tmp_path):
    base = Base(LAYERS["linear"], torch.float32)
    adapter_set = base.attach(DASH)
    train(base, adapter_set, steps=4)
    chosen, before = dash(adapter_set).chosen.tolist(), base()
    save_adapter(tmp_path / "a.safetensors", adapter_set, AdapterCard())
    adapter_set.detach()
    loaded = attach_file({"unet": base}, tmp_path / "a.safetensors")
    assert dash(loaded).chosen.tolist() == chosen
    assert same_bits(base(), before)
