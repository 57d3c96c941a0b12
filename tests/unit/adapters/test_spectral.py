"""What Spectral-A and Spectral-R claim (arXiv 2405.13952), in float64 unless said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet
from adapters.base import Adapter
from adapters.errors import UserInputError
from adapters.files import AdapterCard, attach_file, save_adapter
from adapters.inject import attach
from adapters.registry import make_spec
from tests.contract.harness import LAYERS, Base, nudge
from tests.tolerances import FP32, FP64, relative_error, same_bits

KINDS = ["linear", "conv 3x3", "conv grouped"]


def attached(kind: str, method: str, dtype: torch.dtype = torch.float64, **knobs: object) -> tuple[Base, Adapter]:
    base = Base(LAYERS[kind], dtype)
    adapter_set = attach({"unet": base}, make_spec(method, **knobs), {"unet": "layer"})
    return base, adapter_set.adapters["unet.layer"]


def nudged(adapter: Adapter, size: float = 0.1) -> Adapter:
    nudge(AdapterSet(make_spec("lora"), {}, {"unet.layer": adapter}), size)
    return adapter


def matrices(adapter: Adapter) -> Tensor:
    """ΔW group by group."""
    weight = adapter.site.weight.detach()
    return adapter.site.split_groups(adapter.site.matricise(adapter.delta_weight(weight)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_delta_of_spectral_a_has_rank_exactly_2r(kind: str):
    _, adapter = attached(kind, "spectral-a", rank=8)
    nudged(adapter)
    count = 2 * 8 // adapter.site.groups
    values = torch.linalg.svdvals(matrices(adapter)).detach()
    assert (values[:, count - 1] > 1e-3 * values[:, 0]).all()
    if count < values.shape[1]:
        assert (values[:, count] < FP64 * values[:, 0]).all()


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_spectral_a_is_the_papers_formula(kind: str, normalised: bool):
    """[U1 + A_U, U2] S [V1 + A_V, V2]ᵀ with all of U, S, V from an independent decomposition."""
    _, adapter = attached(kind, "spectral-a", rank=4, normalised=normalised, learn_sigma=True)
    nudged(adapter)
    site = adapter.site
    left, right, sigma = (t.detach() for t in (adapter.left, adapter.right, adapter.sigma))
    gain = sigma.unflatten(0, (site.groups, -1)) if normalised else torch.ones(site.groups, 4 // site.groups)
    moved_left = site.split_groups(left) + site.split_groups(adapter.up) / gain[:, None]
    moved_right = site.split_groups(right) + site.split_groups(adapter.down) / gain[:, :, None]
    moved_sigma = (sigma + adapter.delta_sigma).unflatten(0, (site.groups, -1))
    weight = site.split_groups(site.matricise(site.weight.detach()))
    rest = weight - (site.split_groups(left) * sigma.unflatten(0, (site.groups, 1, -1))) @ site.split_groups(right)
    expected = rest + (moved_left * moved_sigma[:, None]) @ moved_right
    assert relative_error(weight + matrices(adapter), expected) < FP64


def test_pissa_and_spectral_a_are_one_function_class():
    """A_U = δB S^-½ and A_V = δAᵀ S^-½ give PiSSA's ΔW, from the same start (methods.md, 0.1)."""
    base, pissa = attached("linear", "lora", rank=4, init="pissa")
    nudged(pissa)
    other, spectral = attached("linear", "spectral-a", rank=4, normalised=False)
    root = spectral.sigma.sqrt()
    with torch.no_grad():
        spectral.up.copy_(pissa.up / root)
        spectral.down.copy_(pissa.down / root[:, None])
    weight = base.layer.weight.detach()
    assert relative_error(spectral.delta_weight(weight), pissa.delta_weight(weight)) < FP64
    assert relative_error(other(), base()) < FP64


def test_spectral_r_stays_orthogonal_and_keeps_the_singular_values_over_1250_steps():
    base = nn.Linear(48, 64)
    adapter_set = attach({"unet": nn.ModuleDict({"layer": base})}, make_spec("spectral-r", rank=8), {"unet": "layer"})
    adapter = adapter_set.adapters["unet.layer"]
    x, target = torch.randn(32, 48), torch.randn(32, 64)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=5e-2)
    for _ in range(1250):
        (base(x) - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    eye = torch.eye(8)
    for rotation in adapter.rotations():
        assert (rotation.mT @ rotation - eye).abs().max() < 1e-6
        assert (rotation - eye).abs().max() > 0.1
    weight = base.weight.detach().double()
    before = torch.linalg.svdvals(weight)
    assert relative_error(torch.linalg.svdvals(weight + adapter.delta_weight(weight)), before) < FP32


@pytest.mark.parametrize("kind", KINDS)
def test_the_learnt_scale_of_spectral_r_multiplies_the_chosen_singular_values(kind: str):
    _, adapter = attached(kind, "spectral-r", rank=8, learn_scale=True)
    nudged(adapter)
    site, weight = adapter.site, adapter.site.weight.detach()
    whole = site.split_groups(site.matricise(weight)) + matrices(adapter).detach()
    values = torch.linalg.svdvals(site.split_groups(site.matricise(weight)))
    count = 8 // site.groups
    values[:, :count] *= 1 + adapter.gain.detach().unflatten(0, (site.groups, -1))
    assert relative_error(torch.linalg.svdvals(whole), values.sort(-1, descending=True).values) < 1e-10


@pytest.mark.parametrize("method", ["spectral-a", "spectral-r"])
def test_a_file_gives_the_same_delta_whatever_signs_another_driver_would_choose(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base = Base(LAYERS["linear"], torch.float32)
    made = attach({"unet": base}, make_spec(method, rank=4), {"unet": "layer"})
    nudge(made)
    before = base()
    save_adapter(tmp_path / "a.safetensors", made, AdapterCard())
    made.detach()
    svd = torch.linalg.svd

    def flipped(matrix: Tensor, full_matrices: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        u, s, vt = svd(matrix, full_matrices)
        return -u, s, -vt

    monkeypatch.setattr(torch.linalg, "svd", flipped)
    attach_file({"unet": base}, tmp_path / "a.safetensors")
    assert same_bits(base(), before)


@pytest.mark.parametrize("columns", ["top", "comb"])
def test_slots_share_no_column_and_their_vectors_are_orthogonal(columns: str):
    found = [attached("linear", "spectral-a", rank=4, columns=columns, slot=slot)[1] for slot in range(10)]
    chosen = torch.cat([adapter.columns for adapter in found])
    assert len(chosen.unique()) == 40
    cross = found[1].left.mT @ found[7].left
    assert cross.abs().max() < FP64


def test_a_slot_that_is_not_there_is_refused_with_how_many_there_are():
    with pytest.raises(UserInputError, match="There are 10 slots of rank 4"):
        attached("linear", "spectral-a", rank=4, slot=10)


def test_a_rank_larger_than_the_layer_is_refused():
    with pytest.raises(UserInputError, match="more than its 40 singular values"):
        attached("linear", "spectral-a", rank=41)


class Wide(nn.Module):
    """A layer wide enough that the randomised way would be taken, with values that hardly fall: the real case."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(160, 128, dtype=torch.float64)


def test_slot_0_is_made_of_the_weights_own_singular_vectors_in_a_layer_of_real_size():
    slots = [
        attach({"unet": Wide()}, make_spec("spectral-a", rank=8, slot=slot), {"unet": "layer"}).adapters["unet.layer"]
        for slot in (0, 1)
    ]
    assert relative_error(slots[0].sigma, torch.linalg.svdvals(Wide().layer.weight)[:8]) < FP64
    assert (slots[0].left.mT @ slots[1].left).abs().max() < FP64


def test_spectral_r_keeps_the_singular_values_of_a_layer_of_real_size():
    model = Wide()
    adapter = attach({"unet": model}, make_spec("spectral-r", rank=8), {"unet": "layer"}).adapters["unet.layer"]
    nudged(adapter, 1.0)
    weight = model.layer.weight.detach()
    moved = torch.linalg.svdvals(weight + adapter.delta_weight(weight))
    assert relative_error(moved, torch.linalg.svdvals(weight)) < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_confined_spectral_a_is_the_papers_formula_within_its_columns(kind: str):
    _, adapter = attached(kind, "spectral-a", rank=4, confined=True, normalised=False, learn_sigma=True)
    nudged(adapter)
    site = adapter.site
    left, right = site.split_groups(adapter.left), site.split_groups(adapter.right)
    moved_left = left + left @ site.split_groups(adapter.up)
    moved_right = right + site.split_groups(adapter.down).mT @ right
    sigma = adapter.sigma.unflatten(0, (site.groups, 1, -1))
    moved = (adapter.sigma + adapter.delta_sigma).unflatten(0, (site.groups, 1, -1))
    expected = (moved_left * moved) @ moved_right - (left * sigma) @ right
    assert relative_error(matrices(adapter), expected) < 1e-11


@pytest.mark.parametrize(("confined", "orthogonal"), [(True, True), (False, False)])
def test_only_confined_subjects_on_other_slots_are_orthogonal(confined: bool, orthogonal: bool):
    found = [nudged(attached("linear", "spectral-a", rank=4, slot=slot, confined=confined)[1]) for slot in (0, 1)]
    one, two = (matrices(adapter).flatten() for adapter in found)
    assert (float((one @ two).abs() / (one.norm() * two.norm())) < FP64) is orthogonal
