"""What other programs call SDXL's layers: an SDXL-sized export against each program's own rules (tests/programs.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from torch import Tensor, nn

from adapters.formats.export import find_format
from adapters.formats.layer_format import LayerFormat
from adapters.formats.names import kohya_names
from adapters.formats.sgm import sgm_names
from adapters.inject import attach
from adapters.registry import make_spec
from tests import programs
from trainers.outline import networks_at
from trainers.sources import EMBEDDED, SDXL_LAYOUT

LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.1.resnets.0.conv1"
RANK = 4
Stems = dict[str, dict[str, tuple[int, ...]]]


@pytest.fixture(scope="module")
def sdxl() -> dict[str, Any]:
    """SDXL itself, without numbers."""
    return networks_at(SDXL_LAYOUT)


def exported(sdxl: dict[str, nn.Module], form: str) -> Stems:
    """Stem → part → shape of a LoRA on every layer of SDXL."""
    adapters = attach(sdxl, make_spec("lora", rank=RANK), dict.fromkeys(sdxl, "all"))
    adapters.detach()
    written, found = find_format(form), dict[str, dict[str, tuple[int, ...]]]()
    assert isinstance(written, LayerFormat)
    stems = {f"{part}.{path}": stem for part in sdxl for path, stem in written.names(part, sdxl[part]).items()}
    layers = {stems[name]: adapter for name, adapter in adapters.adapters.items()}
    for name, tensor in written.write(layers, RANK).tensors.items():
        stem, _, part = name.partition(".") if form == "kohya" else _dotted(name)
        found.setdefault(stem, {})[part] = tuple(tensor.shape)
    return found


def _dotted(name: str) -> tuple[str, str, str]:
    stem, dot, end = name.partition(".lora_")
    return stem, dot, f"lora_{end}"


@pytest.fixture(scope="module")
def kohya(sdxl: dict[str, Any]) -> Stems:
    return exported(sdxl, "kohya")


def fits(parts: dict[str, tuple[int, ...]], weight: tuple[int, ...]) -> bool:
    """Whether a pair's shapes are those of a LoRA of RANK on that weight, with one alpha and nothing else."""
    ones = (1,) * (len(weight) - 2)
    return parts == {
        "lora_down.weight": (RANK, *weight[1:]),
        "lora_up.weight": (weight[0], RANK, *ones),
        "alpha": (),
    }


def test_the_export_has_every_layer_of_sdxl(kohya: Stems):
    counts = {
        prefix: sum(stem.startswith(prefix) for stem in kohya) for prefix in ("lora_unet", "lora_te1", "lora_te2")
    }
    assert counts == {"lora_unet": 743 + 51, "lora_te1": 72, "lora_te2": 192} and len(kohya) == sum(counts.values())


def test_names_and_shapes_are_comfyui_s_and_forge_s_one_by_one(kohya: Stems):
    known = programs.comfyui()
    assert kohya.keys() == known.keys()
    assert [stem for stem, parts in kohya.items() if not fits(parts, known[stem])] == []


def test_names_and_shapes_are_a1111_s_one_by_one(kohya: Stems):
    known = {stem: programs.a1111(stem) for stem in kohya}
    assert [stem for stem, shape in known.items() if shape is None or not fits(kohya[stem], shape)] == []


def test_names_and_shapes_are_invokeai_s_one_by_one(kohya: Stems, sdxl: dict[str, Any]):
    """What InvokeAI makes of each name is a layer of diffusers' UNet, or of transformers' encoder, of that shape."""
    layers = {
        "lora_unet_": weights(sdxl["unet"]),
        "lora_te1_": {programs.flat(name): shape for name, shape in programs.CLIP_L.items()},
        "lora_te2_": {programs.flat(name): shape for name, shape in programs.BIG_G.items()},
    }
    found: dict[str, set[str]] = {prefix: set() for prefix in layers}
    for stem, parts in kohya.items():
        prefix = next(prefix for prefix in layers if stem.startswith(prefix))
        path = programs.invokeai(stem)
        found[prefix].add(path)
        assert fits(parts, layers[prefix][path]), stem
    assert found == {prefix: set(known) for prefix, known in layers.items()}


def weights(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        programs.flat(path): tuple(module.weight.shape)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def test_the_encoders_layers_are_those_of_transformers(sdxl: dict[str, Any]):
    """tests/programs.py lists them by hand; the second's text_projection is in no program's map."""
    for part, listed in (("text_encoder", programs.CLIP_L), ("text_encoder_2", programs.BIG_G)):
        own = {name.removeprefix("text_model_"): shape for name, shape in weights(sdxl[part]).items()}
        own.pop("text_projection", None)
        assert own == {programs.flat(name).removeprefix("text_model_"): shape for name, shape in listed.items()}


def test_diffusers_names_are_the_models_own_paths(sdxl: dict[str, Any]):
    found = exported(sdxl, "diffusers")
    unet = {path: m for path, m in sdxl["unet"].named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert {stem.removeprefix("unet.") for stem in found if stem.startswith("unet.")} == unet.keys()
    assert {stem.removeprefix("text_encoder.") for stem in found if stem.startswith("text_encoder.")} == {
        *programs.CLIP_L
    }
    second = {stem.removeprefix("text_encoder_2.") for stem in found if stem.startswith("text_encoder_2.")}
    assert second == {*programs.BIG_G}
    assert found[f"unet.{LAYER}"] == {"lora_A.weight": (RANK, 640), "lora_B.weight": (640, RANK)}
    assert found[f"unet.{CONV}"] == {"lora_A.weight": (RANK, 320, 3, 3), "lora_B.weight": (640, RANK, 1, 1)}


@pytest.mark.parametrize("layout", [EMBEDDED, SDXL_LAYOUT], ids=["embedded", "sdxl"])
def test_sgm_names_are_those_that_diffusers_converts_from(layout: Path):
    config = UNet2DConditionModel.load_config(layout / "unet")
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    names = list(unet.state_dict())
    ours = sgm_names({name.rpartition(".")[0] for name in names})
    sgm = [f"model.diffusion_model.{ours[path]}.{end}" for path, _, end in (name.rpartition(".") for name in names)]
    marks: dict[str, Tensor] = {name: torch.tensor(number) for number, name in enumerate(sgm)}
    converted = convert_ldm_unet_checkpoint(dict(marks), dict(config))
    assert {name: int(mark) for name, mark in converted.items()} == {name: n for n, name in enumerate(names)}


def test_norms_have_lycoris_s_stems(sdxl: dict[str, Any]):
    unet, text = kohya_names("unet", sdxl["unet"]), kohya_names("text_encoder", sdxl["text_encoder"])
    assert unet["down_blocks.1.resnets.0.norm2"] == "lora_unet_input_blocks_4_0_out_layers_0"
    assert unet["conv_norm_out"] == "lora_unet_out_0"
    assert unet["mid_block.attentions.0.norm"] == "lora_unet_middle_block_1_norm"
    assert text["encoder.layers.3.layer_norm1"] == "lora_te1_text_model_encoder_layers_3_layer_norm1"
    assert len(set(unet.values())) == len(unet) == 794 + 256
