"""What all contestants share: a UNet of SDXL's architecture and random latents and text states, on the device."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from trainers.sources import EMBEDDED, SDXL_LAYOUT
from trainers.text import TextStates


@dataclass(frozen=True)
class Setting:
    """Where and at what size a contestant steps; `tiny`: the embedded base in the place of SDXL."""

    batch_size: int
    device: torch.device
    dtype: torch.dtype
    tiny: bool = False

    @property
    def layout(self) -> str:
        return str(EMBEDDED if self.tiny else SDXL_LAYOUT)

    @property
    def native_side(self) -> int:
        """Pixels: what the base was made for (1024 for SDXL)."""
        return int(self.config("unet")["sample_size"]) * (8 if not self.tiny else 16)

    @property
    def tokens(self) -> int:
        """Length of a caption, padding included."""
        return self.config("text_encoder")["max_position_embeddings"]

    def config(self, part: str) -> dict[str, int]:
        root = EMBEDDED if self.tiny else SDXL_LAYOUT
        return json.loads((root / part / "config.json").read_text())

    def unet(self) -> UNet2DConditionModel:
        """A frozen UNet: the embedded base's, or SDXL's with random weights (speed does not depend on them)."""
        if self.tiny:
            unet = UNet2DConditionModel.from_pretrained(EMBEDDED / "unet", torch_dtype=self.dtype).to(self.device)
        else:
            torch.manual_seed(0)
            with _default_dtype(self.dtype), self.device:
                unet = UNet2DConditionModel.from_config(self.config("unet"))
        return unet.requires_grad_(False).eval()

    def text_encoders(self) -> tuple[nn.Module, nn.Module]:
        """SDXL's two, frozen, with random weights."""
        first, second = (CLIPTextConfig(**self.config(part)) for part in ("text_encoder", "text_encoder_2"))
        with _default_dtype(self.dtype), self.device:
            pair = CLIPTextModel(first), CLIPTextModelWithProjection(second)
        return pair[0].requires_grad_(False).eval(), pair[1].requires_grad_(False).eval()

    def scheduler(self) -> DDPMScheduler:
        return DDPMScheduler.from_pretrained(self.layout, subfolder="scheduler")

    def latents(self, count: int) -> Tensor:
        """[count, c, h, w] in fp32."""
        return torch.randn(self.latent_shape(count), device=self.device, generator=self._generator(1))

    def latent_shape(self, count: int) -> tuple[int, int, int, int]:
        side = self.config("unet")["sample_size"]
        return count, self.config("unet")["in_channels"], side, side

    def text_shapes(self, count: int) -> tuple[tuple[int, int, int], tuple[int, int]]:
        """Of the context and of the pooled state."""
        unet = self.config("unet")
        pooled = unet["projection_class_embeddings_input_dim"] - 6 * unet["addition_time_embed_dim"]
        return (count, self.tokens, unet["cross_attention_dim"]), (count, pooled)

    def text_states(self, count: int) -> TextStates:
        """Random states of `count` captions, in the base's dtype."""
        draws = self._generator(2)
        context, summary = (
            torch.randn(shape, device=self.device, generator=draws) for shape in self.text_shapes(count)
        )
        return TextStates(context.to(self.dtype), summary.to(self.dtype))

    def time_ids(self, count: int) -> Tensor:
        """[count, 6]: size, crop and target size of an uncut square picture."""
        side = float(self.native_side)
        return torch.tensor([[side, side, 0.0, 0.0, side, side]] * count, device=self.device)

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Generator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
