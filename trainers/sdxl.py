"""A base model as the trainer and the sampler see it, and pictures from it through diffusers' own pipeline."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, cast

import diffusers
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from adapters.errors import UnknownNameError, UserInputError
from adapters.inject import base_hash
from trainers.fast.sampling import recorded
from trainers.fast.vae import hasten
from trainers.file_hash import files_hash
from trainers.placement import visiting
from trainers.schedulers import SCHEDULERS
from trainers.sources import TRAINED_PARTS, find_source, load_pipeline, with_schedule
from trainers.stage import Stages
from trainers.text import TextStates, encode_tokens, tokenize
from trainers.words import Vocabulary, Words, speaking


@dataclass
class Base:
    """SDXL's modules, frozen, with what the trainer must know of them."""

    name: str
    pipe: StableDiffusionXLPipeline
    device: torch.device
    dtype: torch.dtype
    hash: str
    vae_hash: str
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    stages: Stages = field(default_factory=Stages)

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

    @contextmanager
    def using(self, *names: str) -> Generator[None]:
        """Within, these parts of the pipeline are on the device."""
        with visiting([self.pipe.components[name] for name in names], self.device):
            yield

    @contextmanager
    def speaking(self, words: Words) -> Generator[None]:
        """Within, these words of a prompt mean their embeddings (trainers.words)."""
        with speaking(self.pipe, self.vocabulary, words):
            yield

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
        with self.using("vae"):
            found = self.vae.encode(pixels.to(self.device).to(self.vae.dtype))  # a GPU rounds faster
        posterior = found.latent_dist  # pyright: ignore[reportAttributeAccessIssue]
        scale, shift = self.vae.config["scaling_factor"], self.vae.config.get("shift_factor") or 0.0
        mean, std = posterior.mean.float(), posterior.std.float()
        if not torch.isfinite(mean).all():
            raise UserInputError(
                "The VAE of this base returns NaN for these pictures.", "Use --set precision=bf16 or fp32."
            )
        return (mean - shift) * scale, std * scale

    def tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids "b l" for the first and the second encoder, on the device."""
        first = tokenize(self.pipe.tokenizer, self.vocabulary.spell("text_encoder", texts))
        second = tokenize(self.pipe.tokenizer_2, self.vocabulary.spell("text_encoder_2", texts))
        return first.to(self.device), second.to(self.device)

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> TextStates:
        with self.using("text_encoder", "text_encoder_2"):
            return encode_tokens(self.pipe.text_encoder, self.pipe.text_encoder_2, *self.tokenize(texts))

    def encode_nothing(self) -> TextStates:
        """What no prompt stands for: zeros where the base was trained so (SDXL), else the empty caption. Batch 1."""
        if not self.pipe.config["force_zeros_for_empty_prompt"]:
            return self.encode_texts([""])
        first, second = self.pipe.text_encoder.config, self.pipe.text_encoder_2.config
        length, width = self.pipe.tokenizer.model_max_length, first.hidden_size + second.hidden_size
        zeros = partial(torch.zeros, device=self.device, dtype=self.dtype)
        return TextStates(zeros(1, length, width), zeros(1, second.projection_dim))


def load_base(
    name: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    resident: Sequence[str] = (),
    compress: Callable[[nn.Module], None] | None = None,
) -> Base:
    """The base `name`, frozen and in eval mode: the UNet on `device`, the rest visits it where it is used.

    A GPU becomes the process's current one: Triton's kernels run there, wherever their tensors lie.

    Args:
        resident: further parts that stay on the device.
        compress: what is to be done to the UNet before it moves there (trainers.quantize).
    """
    device = torch.device(device)
    if device.type == "cuda" and cast("int | None", device.index) is not None:
        torch.cuda.set_device(device)
    source = find_source(name)
    with ThreadPoolExecutor(1) as beside:  # reads the files along with the loader
        digest = beside.submit(files_hash, source.weight_files)
        pipe = load_pipeline(source, dtype)
    pipe.set_progress_bar_config(disable=True)
    for module in pipe.components.values():
        if isinstance(module, nn.Module):
            module.requires_grad_(False).eval()
    hasten(pipe.vae)
    if compress is not None:
        compress(pipe.unet)
    for part in {"unet", *resident}:
        pipe.components[part].to(device)
    return Base(name, pipe, device, dtype, digest.result(), base_hash({"vae": pipe.vae}))


def tile_vae(vae: AutoencoderKL) -> None:
    """Lets the VAE work through tiles of half the native side, blended where they meet."""
    sides = vae.config["sample_size"] // 2
    vae.enable_tiling()
    vae.tile_sample_min_size = sides
    vae.tile_latent_min_size = sides // 2 ** (len(vae.config["block_out_channels"]) - 1)


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
    with base.using("vae"):
        ready = latents.to(base.device, base.vae.dtype) / scale + shift
        parts = [base.vae.decode(one[None], return_dict=False)[0].float().cpu() for one in ready]  # one: memory
    return cast("list[Image.Image]", base.pipe.image_processor.postprocess(torch.cat(parts), output_type="pil"))


def _pipeline(base: Base, scheduler: str) -> StableDiffusionXLPipeline:
    pipe = StableDiffusionXLPipeline(
        **{**base.pipe.components, "scheduler": make_scheduler(base, scheduler)},
        force_zeros_for_empty_prompt=base.pipe.config["force_zeros_for_empty_prompt"],
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


_CONDITIONS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


def _conditions(
    base: Base, pipe: StableDiffusionXLPipeline, prompts: list[str], negative: str, guidance: float
) -> dict[str, Tensor | None]:
    """What the UNet is told, a row a prompt, before the text encoders leave the device."""
    first, second = (
        {"prompt": base.vocabulary.spell(encoder, prompts), "negative": base.vocabulary.spell(encoder, [negative])}
        for encoder in ("text_encoder", "text_encoder_2")
    )
    with base.using("text_encoder", "text_encoder_2"):
        found = cast(Any, pipe).encode_prompt(  # its annotations know of one prompt only
            first["prompt"],
            second["prompt"],
            device=base.device,
            do_classifier_free_guidance=guidance > 1,
            negative_prompt=first["negative"] * len(prompts) if negative else None,
            negative_prompt_2=second["negative"] * len(prompts) if negative else None,
        )
    return dict(zip(_CONDITIONS, found, strict=True))


def _part(conditions: dict[str, Tensor | None], rows: slice) -> dict[str, Any]:
    return {name: None if value is None else value[rows] for name, value in conditions.items()}


class Routing(Protocol):
    """Where adapters act in each batch of pictures, found while it is drawn (trainers.auto_regions)."""

    def batch(self, rows: slice) -> AbstractContextManager[Callable[..., dict[str, Any]]]:
        """Within, these pictures are drawn; yields a diffusers pipeline's callback_on_step_end."""
        ...


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
    routing: Routing | None = None,
) -> Iterator[Image.Image]:
    """One picture a prompt, each from its own seed, in batches, with whatever adapters are attached.

    Width and height are pixels (left out: the base's native side). An empty negative prompt means SDXL's zeros.
    A routing changes what the UNet does while it draws, and records it itself.
    """
    width, height = width or base.native_resolution, height or base.native_resolution
    if width % base.size_step or height % base.size_step:
        raise UserInputError(
            f"A picture of {width}×{height} does not fit this base.", f"Sides must be multiples of {base.size_step}."
        )
    if not prompts:
        return
    pipe = _pipeline(base, scheduler)
    conditions = _conditions(base, pipe, list(prompts), negative, guidance)
    with recorded(base.unet) if routing is None else nullcontext():
        for start in range(0, len(prompts), batch_size):
            rows = slice(start, start + batch_size)
            with nullcontext() if routing is None else routing.batch(rows) as after_step:
                latents = pipe(
                    **_part(conditions, rows),
                    latents=torch.cat([_latents(base, number, width, height) for number in seeds[rows]]),
                    generator=[torch.Generator(base.device).manual_seed(number) for number in seeds[rows]],
                    width=width,
                    height=height,
                    num_inference_steps=inference_steps,
                    guidance_scale=guidance,
                    output_type="latent",
                    return_dict=False,
                    callback_on_step_end=cast(Any, after_step),  # its annotation has fewer arguments than it gives
                )[0]
            yield from decode(base, cast(Tensor, latents))
