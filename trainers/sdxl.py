"""A base model as the trainer and the sampler see it, and pictures from it through diffusers' own pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import diffusers
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from adapters.errors import UnknownNameError, UserInputError
from adapters.inject import base_hash
from trainers.fast.sampling import recorded
from trainers.file_hash import files_hash
from trainers.sources import TRAINED_PARTS, find_source, load_pipeline, with_schedule
from trainers.text import TextStates, encode_tokens, tokenize

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "dpm++-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
}


@dataclass
class Base:
    """SDXL's modules, frozen, with what the trainer must know of them."""

    name: str
    pipe: StableDiffusionXLPipeline
    device: torch.device
    dtype: torch.dtype
    hash: str
    vae_hash: str

    @property
    def unet(self) -> UNet2DConditionModel:
        return self.pipe.unet

    @property
    def vae(self) -> AutoencoderKL:
        return self.pipe.vae

    @property
    def components(self) -> dict[str, nn.Module]:
        """What adapters attach to, by the names that files use."""
        return {name: self.pipe.components[name] for name in TRAINED_PARTS}

    @property
    def scale_factor(self) -> int:
        """Picture pixels a latent pixel, along one side."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def native_resolution(self) -> int:
        return int(self.unet.config["sample_size"]) * self.scale_factor

    @property
    def size_step(self) -> int:
        """Picture sides must be multiples of this for the UNet to halve its latents evenly."""
        return self.scale_factor * 2 ** (len(self.unet.config["block_out_channels"]) - 1)

    @property
    def prediction_type(self) -> str:
        """ "epsilon" or "v_prediction"."""
        return str(self.pipe.scheduler.config["prediction_type"])

    def set_schedule(self, prediction_type: str, zero_terminal_snr: bool) -> None:
        """Sample as an adapter was trained to, where that is not how the base was (sources.with_schedule)."""
        self.pipe.scheduler = with_schedule(self.pipe.scheduler, prediction_type, zero_terminal_snr)

    @torch.no_grad()
    def encode_pictures(self, pixels: Float[Tensor, "b 3 H W"]) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the VAE's latents, "b c h w" in fp32, already scaled as the UNet wants them."""
        posterior = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
        scale, shift = self.vae.config["scaling_factor"], self.vae.config.get("shift_factor") or 0.0
        mean, std = posterior.mean.float(), posterior.std.float()
        if not torch.isfinite(mean).all():
            raise UserInputError(
                "The VAE of this base returns NaN for these pictures.", "Use --set precision=bf16 or fp32."
            )
        return (mean - shift) * scale, std * scale

    def tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids "b l" for the first and the second encoder, on the device."""
        first, second = tokenize(self.pipe.tokenizer, texts), tokenize(self.pipe.tokenizer_2, texts)
        return first.to(self.device), second.to(self.device)

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> TextStates:
        return encode_tokens(self.pipe.text_encoder, self.pipe.text_encoder_2, *self.tokenize(texts))

    def encode_nothing(self) -> TextStates:
        """What no prompt stands for: zeros where the base was trained so (SDXL), else the empty caption. Batch 1."""
        states = self.encode_texts([""])
        if self.pipe.config["force_zeros_for_empty_prompt"]:
            return TextStates(torch.zeros_like(states.context), torch.zeros_like(states.pooled))
        return states


def load_base(name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Base:
    """The base `name` on `device`, frozen and in eval mode."""
    device = torch.device(device)
    source = find_source(name)
    pipe = load_pipeline(source, dtype)
    pipe.set_progress_bar_config(disable=True)
    for module in pipe.components.values():
        if isinstance(module, nn.Module):
            module.requires_grad_(False).eval()
    pipe.to(device)
    digest, vae_digest = files_hash(source.weight_files), base_hash({"vae": pipe.vae})
    return Base(name, pipe, device, dtype, digest, vae_digest)


def make_scheduler(base: Base, name: str) -> Any:
    """diffusers' sampler of that short name with the base's noise schedule."""
    if name not in SCHEDULERS:
        raise UnknownNameError("scheduler", name, list(SCHEDULERS))
    class_name, options = SCHEDULERS[name]
    return getattr(diffusers, class_name).from_config(base.pipe.scheduler.config, **options)


def _latents(base: Base, seed: int, width: int, height: int) -> Float[Tensor, "1 c h w"]:
    """Start noise of one picture; drawn on the CPU, so that every machine gets the same."""
    shape = (1, base.unet.config["in_channels"], height // base.scale_factor, width // base.scale_factor)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(base.device, base.dtype)


@torch.no_grad()
def decode(base: Base, latents: Float[Tensor, "b c h w"]) -> list[Image.Image]:
    """Pictures of the UNet's latents, in the VAE's own precision (fp16 would overflow it)."""
    scale, shift = base.vae.config["scaling_factor"], base.vae.config.get("shift_factor") or 0.0
    pixels = base.vae.decode(latents.to(base.vae.device, base.vae.dtype) / scale + shift, return_dict=False)[0]
    return cast("list[Image.Image]", base.pipe.image_processor.postprocess(pixels.float(), output_type="pil"))


@torch.no_grad()
def generate(
    base: Base,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    negative: str = "",
    width: int | None = None,
    height: int | None = None,
    inference_steps: int = 25,
    guidance: float = 5.0,
    scheduler: str = "euler",
    batch_size: int = 4,
) -> Iterator[Image.Image]:
    """One picture a prompt, each from its own seed, in batches, with whatever adapters are attached.

    Width and height are pixels (left out: the base's native side). An empty negative prompt means SDXL's zeros.
    """
    width, height = width or base.native_resolution, height or base.native_resolution
    if width % base.size_step or height % base.size_step:
        raise UserInputError(
            f"A picture of {width}×{height} does not fit this base.", f"Sides must be multiples of {base.size_step}."
        )
    pipe = StableDiffusionXLPipeline(
        **{**base.pipe.components, "scheduler": make_scheduler(base, scheduler)},
        force_zeros_for_empty_prompt=base.pipe.config["force_zeros_for_empty_prompt"],
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    with recorded(base.unet):
        for start in range(0, len(prompts), batch_size):
            texts, numbers = list(prompts[start : start + batch_size]), seeds[start : start + batch_size]
            (latents,) = cast(
                "tuple[Tensor]",
                pipe(
                    prompt=texts,
                    negative_prompt=[negative] * len(texts) if negative else None,
                    latents=torch.cat([_latents(base, number, width, height) for number in numbers]),
                    generator=[torch.Generator(base.device).manual_seed(number) for number in numbers],
                    width=width,
                    height=height,
                    num_inference_steps=inference_steps,
                    guidance_scale=guidance,
                    output_type="latent",
                    return_dict=False,
                ),
            )
            yield from decode(base, latents)
