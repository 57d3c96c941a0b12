"""What a base is, before it is loaded: the hash of its weights and its networks without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from trainers.file_hash import files_hash
from trainers.sources import find_source


def hash_of(name: str) -> str:
    """The hash that Base.hash will be. Raises what find_source raises."""
    return files_hash(find_source(name).weight_files)


def networks_of(name: str) -> dict[str, nn.Module]:
    """The base's components as Base.components has them, on the meta device: shapes, but no numbers."""
    return networks_at(find_source(name).layout)


def networks_at(layout: Path) -> dict[str, nn.Module]:
    """The same from a folder of configurations alone."""
    with torch.device("meta"):
        unet = cast(Any, UNet2DConditionModel).from_config(json.loads((layout / "unet" / "config.json").read_text()))
        first, second = (CLIPTextConfig.from_pretrained(layout / part) for part in ("text_encoder", "text_encoder_2"))
        return {
            "unet": unet,
            "text_encoder": CLIPTextModel(first),
            "text_encoder_2": CLIPTextModelWithProjection(second),
        }
