"""What other programs call SDXL's layers, against diffusers' own conversion of checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from adapters.formats.names import kohya_names, sgm_names
from trainers.sdxl import Base
from trainers.sources import EMBEDDED, SDXL_LAYOUT

LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.1.resnets.0.conv1"


@pytest.mark.parametrize("layout", [EMBEDDED, SDXL_LAYOUT], ids=["embedded", "sdxl"])
def test_sgm_names_are_those_that_diffusers_converts_from(layout: Path):
    config = UNet2DConditionModel.load_config(layout / "unet")
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    names = list(unet.state_dict())
    ours = sgm_names({name.rpartition(".")[0] for name in names})
    sgm = [f"model.diffusion_model.{ours[path]}.{end}" for path, _, end in (name.rpartition(".") for name in names)]
    marks = {name: torch.tensor(number) for number, name in enumerate(sgm)}
    converted = convert_ldm_unet_checkpoint(dict(marks), dict(config))
    assert {name: int(mark) for name, mark in converted.items()} == {name: n for n, name in enumerate(names)}


def test_kohya_s_stems_of_sdxl_are_the_known_ones():
    config = UNet2DConditionModel.load_config(SDXL_LAYOUT / "unet")
    with torch.device("meta"):
        stems = kohya_names("unet", UNet2DConditionModel.from_config(config))
    assert (
        stems[LAYER] == "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
        and stems[CONV] == "lora_unet_input_blocks_4_0_in_layers_2"
    )
    assert stems["up_blocks.1.upsamplers.0.conv"] == "lora_unet_output_blocks_5_2_conv"
    assert stems["down_blocks.0.downsamplers.0.conv"] == "lora_unet_input_blocks_3_0_op"
    attention = [s for s in stems.values() if "_attn" in s]
    assert len(attention) == 560 and len(set(stems.values())) == len(stems) == 794


def test_text_encoders_stems_are_kohya_s(base: Base):
    one, two = (kohya_names(name, base.components[name]) for name in ("text_encoder", "text_encoder_2"))
    assert "lora_te1_text_model_encoder_layers_0_self_attn_q_proj" in one.values()
    assert "lora_te2_text_model_encoder_layers_1_mlp_fc2" in two.values()
    assert not any("text_projection" in stem or "embed" in stem for stem in (*one.values(), *two.values()))
