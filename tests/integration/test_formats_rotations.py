"""OFT and BOFT files of kohya, LyCORIS, PEFT and OneTrainer, each against its own program's formula, written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import OFTConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet
from adapters.errors import StudioError
from tests.formats import CONV, LAYER, SGM_CONV, SGM_LAYER, Components, change, read, weight_of, written
from tests.tolerances import relative_error

STEMS = {LAYER: SGM_LAYER, CONV: SGM_CONV}
EXACT = 3e-5
"""fp32, of R − I."""
layers = pytest.mark.parametrize("layer", [LAYER, CONV], ids=["linear", "conv"])


def draw(*shape: int, size: float = 0.1) -> Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def file_of(folder: Path, parts: dict[str, dict[str, Tensor]]) -> Path:
    return written(
        folder, {f"{stem}.{name}": tensor for stem, found in parts.items() for name, tensor in found.items()}
    )


def kohya_rotation(blocks: Tensor, constraint: float) -> Tensor:
    """networks/oft.py, get_weight."""
    skew = (blocks - blocks.mT).double()
    norm = skew.flatten().norm()
    if constraint:
        skew = skew * ((norm.clamp(max=constraint) + 1e-8) / (norm + 1e-8))
    eye = torch.eye(blocks.shape[-1]).to(skew)
    return (eye + skew) @ (eye - skew).inverse()


def kohya_weight(weight: Tensor, rotation: Tensor) -> Tensor:
    """networks/oft.py, merge_to."""
    split = weight.to(rotation).reshape(*rotation.shape[:2], -1)
    return torch.einsum("k n m, k n ... -> k m ...", rotation, split).reshape(weight.shape)


def lycoris_butterfly(weight: Tensor, blocks: Tensor) -> Tensor:
    """lycoris/functional/boft.py, diff_weight, without its last line."""
    rotation = torch.stack([kohya_rotation(level, 0) for level in blocks])
    found, size = weight.to(rotation), blocks.shape[-1]
    for level, turned in enumerate(rotation):
        reach = 2**level * (size // 2)
        found = found.unflatten(0, (-1, 2, reach)).transpose(1, 2).flatten(0, 2).unflatten(0, (-1, size))
        found = torch.einsum("b i j, b j ... -> b i ...", turned, found)
        found = found.flatten(0, 1).unflatten(0, (-1, reach, 2)).transpose(1, 2).flatten(0, 2)
    return found


def only(adapters: AdapterSet, method: str) -> Any:
    assert adapters.spec.method == method and adapters.warning is None
    (adapter,) = adapters.adapters.values()
    return adapter


@layers
@pytest.mark.parametrize("alpha", [None, 0.0, 1e-3], ids=["no alpha", "alpha 0", "constrained"])
def test_kohya_s_oft_is_exactly_ours_on_the_outputs(
    components: Components, tmp_path: Path, layer: str, alpha: float | None
):
    weight = weight_of(components, layer)
    found = {"oft_blocks": draw(4, 32, 32)}
    if alpha is not None:
        found["alpha"] = torch.tensor(alpha)
    adapter = only(read(components, file_of(tmp_path, {STEMS[layer].replace("lora_", "oft_"): found})), "oft")
    expected = kohya_weight(weight, kohya_rotation(found["oft_blocks"], (alpha or 0) * len(weight)))
    assert relative_error(change(adapter), expected - weight) < EXACT


@layers
def test_lycoris_s_rescale_is_our_boft_s_gain(components: Components, tmp_path: Path, layer: str):
    weight = weight_of(components, layer)
    rescale = (1 + draw(128)).reshape(-1, *(1 for _ in weight.shape[1:]))
    found = {"oft_blocks": draw(16, 8, 8), "rescale": rescale}
    adapter = only(read(components, file_of(tmp_path, {STEMS[layer]: found})), "boft")
    expected = rescale * kohya_weight(weight, kohya_rotation(found["oft_blocks"], 0))
    assert relative_error(change(adapter), expected - weight) < EXACT


@layers
@pytest.mark.parametrize(("levels", "size"), [(1, 8), (3, 8), (6, 4)])
def test_lycoris_s_butterfly_is_exactly_ours(
    components: Components, tmp_path: Path, layer: str, levels: int, size: int
):
    weight = weight_of(components, layer)
    blocks = draw(levels, 128 // size, size, size)
    found = read(components, file_of(tmp_path, {STEMS[layer]: {"oft_blocks": blocks}}))
    (adapter,) = found.adapters.values()
    assert found.spec.method == ("boft" if levels > 1 else "oft")
    assert relative_error(change(adapter), lycoris_butterfly(weight, blocks) - weight) < EXACT


def test_lycoris_s_older_files_hold_the_matrices_themselves(components: Components, tmp_path: Path):
    weight, rotation = weight_of(components, LAYER), kohya_rotation(draw(16, 8, 8), 0)
    adapter = only(read(components, file_of(tmp_path, {SGM_LAYER: {"oft_diag": rotation}})), "oft")
    assert relative_error(change(adapter), kohya_weight(weight, rotation) - weight) < EXACT


def test_matrices_that_are_no_rotations_are_told_by_their_difference(components: Components, tmp_path: Path):
    weight, matrices = weight_of(components, LAYER), torch.eye(8) + draw(16, 8, 8)
    path = file_of(tmp_path, {SGM_LAYER: {"oft_diag": matrices}})
    found = read(components, path, rank=128)
    assert found.spec.method == "lora"
    (adapter,) = found.adapters.values()
    assert relative_error(change(adapter), kohya_weight(weight, matrices) - weight) < 1e-4
    assert "leaves out" in (read(components, path, rank=8).warning or "")


def test_layers_of_different_blocks_and_kinds_make_one_adapter(components: Components, tmp_path: Path):
    parts = {SGM_LAYER: {"oft_blocks": draw(4, 32, 32)}, SGM_CONV: {"oft_blocks": draw(2, 16, 8, 8)}}
    found = read(components, file_of(tmp_path, parts))
    linear, conv = (found.adapters[f"unet.{layer}"] for layer in (LAYER, CONV))
    weight = weight_of(components, LAYER)
    rotation = kohya_rotation(parts[SGM_LAYER]["oft_blocks"], 0)
    assert found.spec.method == "boft" and conv.get_parameter("angles").shape == (2, 16, 28)
    assert relative_error(change(linear), kohya_weight(weight, rotation) - weight) < EXACT


def test_beside_a_lora_a_rotation_is_told_by_its_difference(components: Components, tmp_path: Path):
    pair = {"lora_down.weight": draw(2, 64, 3, 3), "lora_up.weight": draw(128, 2, 1, 1)}
    found = read(components, file_of(tmp_path, {SGM_CONV: pair, SGM_LAYER: {"oft_blocks": draw(16, 8, 8)}}), rank=128)
    weight = weight_of(components, LAYER)
    expected = kohya_weight(weight, kohya_rotation(draw(16, 8, 8), 0)) - weight
    assert found.spec.method == "lora"
    assert relative_error(change(found.adapters[f"unet.{LAYER}"]), expected) < 1e-4


class Peft(nn.Module):
    """One layer with peft's OFT on it."""

    def __init__(self, layer: nn.Module, **options: Any) -> None:
        super().__init__()
        self.layer = layer
        config = OFTConfig(oft_block_size=8, target_modules=["layer"], **options)
        self.model = [get_peft_model(self, config)]  # in a list: not a submodule of what it wraps

    def file(self, folder: Path, stem: str, size: float) -> Path:
        (parameter,) = [p for p in self.parameters() if p.requires_grad]
        parameter.data = draw(*parameter.shape, size=size)
        state = get_peft_model_state_dict(self.model[0])
        assert all(name.startswith("base_model.model.layer.") for name in state)
        return written(folder, {name.replace("layer", stem): tensor for name, tensor in state.items()})

    def change(self) -> Tensor:
        layer: Any = self.layer
        before = layer.base_layer.weight.detach().clone()
        layer.merge()
        return layer.base_layer.weight.detach() - before


def linear(components: Components) -> nn.Linear:
    made = nn.Linear(128, 128, bias=False)
    made.weight.data = weight_of(components, LAYER).clone()
    return made


@pytest.mark.parametrize("shared", [False, True], ids=["blocks", "shared block"])
def test_peft_s_oft_is_ours_on_the_inputs(components: Components, tmp_path: Path, shared: bool):
    """Of small angles peft's truncated series is a rotation to within 1e-4 of what it turns."""
    theirs = Peft(linear(components), block_share=shared)
    adapter = only(read(components, theirs.file(tmp_path, LAYER, size=0.02)), "oft")
    assert adapter.side == "input"
    assert relative_error(change(adapter), theirs.change()) < 1e-3


def test_peft_s_series_of_large_angles_is_no_rotation_and_told_by_its_difference(
    components: Components, tmp_path: Path
):
    theirs = Peft(linear(components))
    found = read(components, theirs.file(tmp_path, LAYER, size=0.3), rank=128)
    (adapter,) = found.adapters.values()
    assert found.spec.method == "lora"
    assert relative_error(change(adapter), theirs.change()) < 1e-4


def test_peft_s_configuration_beside_the_file_says_which_map_is_meant(components: Components, tmp_path: Path):
    """The exact map turns the other way than the series."""
    theirs = Peft(linear(components), use_cayley_neumann=False)
    path = theirs.file(tmp_path, LAYER, size=0.3).rename(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"use_cayley_neumann": false}')
    adapter = only(read(components, path), "oft")
    assert relative_error(change(adapter), theirs.change()) < EXACT


def test_onetrainer_s_oft_of_a_kernel_is_told_by_its_difference(components: Components, tmp_path: Path):
    """modules/module/LoRAModule.py, OFTModule.forward: W·R over channels × taps, angles over 2√(n − 1) if scaled."""
    weight, angles = weight_of(components, CONV), draw(576 // 8, 28, size=0.5)
    found = {"oft_R.weight": angles, "oft_R.scaled_oft": torch.tensor(True)}
    upper = torch.zeros(72, 8, 8)
    rows, columns = torch.triu_indices(8, 8, 1)
    upper[:, rows, columns] = angles / (2 * 7**0.5)
    q = upper - upper.mT
    rotation = torch.eye(8) + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q
    expected = torch.einsum("ork,rkc->orc", weight.reshape(128, 72, 8), rotation).reshape(weight.shape) - weight
    (adapter,) = read(components, file_of(tmp_path, {SGM_CONV: found}), rank=128).adapters.values()
    assert relative_error(change(adapter), expected) < 1e-4


def test_peft_s_butterfly_is_ours(components: Components, tmp_path: Path):
    """tests/contract holds our BOFT against peft's own, whose file has the whole matrices P and the scale."""
    p, scale = draw(2, 16, 8, 8), 1 + draw(128, 1)
    parts = {f"unet.{LAYER}": {"boft_R": p, "boft_s": scale}}
    adapter = only(read(components, file_of(tmp_path, parts)), "boft")
    rows, columns = torch.triu_indices(8, 8, 1)
    assert relative_error(adapter.angles, (0.5 * (p - p.mT))[..., rows, columns]) < EXACT
    assert relative_error(adapter.gain, scale.flatten() - 1) < EXACT


@pytest.mark.parametrize(
    "found",
    [
        {"oft_blocks": torch.zeros(3, 8, 8)},
        {"oft_blocks": torch.zeros(4, 32, 16)},
        {"oft_blocks": torch.zeros(128)},
        {"oft_R.weight": torch.zeros(4, 27)},
        {"oft_blocks": torch.zeros(16, 8, 8), "rescale": torch.zeros(5)},
        {"oft_blocks": torch.zeros(9, 16, 8, 8)},
        {"oft_blocks": torch.zeros(16, 8, 8), "alpha": torch.zeros(2)},
    ],
    ids=["too few", "not square", "flat", "no triangle", "gain", "too many levels", "alphas"],
)
def test_a_rotation_that_does_not_fit_is_refused(components: Components, tmp_path: Path, found: dict[str, Tensor]):
    with pytest.raises(StudioError) as refused:
        read(components, file_of(tmp_path, {SGM_LAYER: found}))
    assert refused.value.what and refused.value.fix
