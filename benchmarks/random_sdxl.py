"""A base of SDXL's exact architecture with random weights: speed and memory at real size need no download.

`python -m benchmarks.random_sdxl FOLDER` writes a diffusers folder (fp16, 6.9 GB).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from trainers.sources import SDXL_LAYOUT, VOCABULARY, clip_tokenizer


def random_pipeline(layout: Path = SDXL_LAYOUT, device: str = "cpu") -> StableDiffusionXLPipeline:
    """Every component of `layout` in fp16, freshly initialised on `device`."""

    def config(part: str) -> dict[str, Any]:
        return json.loads((layout / part / "config.json").read_text())

    def tokenizer(part: str, pad_token: str) -> CLIPTokenizer:
        length, size = config(part)["max_position_embeddings"], config(part)["vocab_size"]
        return clip_tokenizer(VOCABULARY, pad_token, max_length=length, size=size)

    torch.manual_seed(0)
    with torch.device(device):
        parts = {
            "unet": UNet2DConditionModel.from_config(config("unet")).half(),
            "vae": AutoencoderKL.from_config(config("vae")).half(),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**config("text_encoder"))).half(),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**config("text_encoder_2"))).half(),
        }
    return StableDiffusionXLPipeline(
        **parts,
        tokenizer=tokenizer("text_encoder", "<|endoftext|>"),
        tokenizer_2=tokenizer("text_encoder_2", "!"),
        scheduler=EulerDiscreteScheduler.from_pretrained(layout / "scheduler"),
    )


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    random_pipeline(device=device).save_pretrained(sys.argv[1], safe_serialization=True)
