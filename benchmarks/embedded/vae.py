"""Stage 1: the autoencoder. Its pictures are the scenes and cluttered ones, so that photographs pass as well."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from benchmarks.embedded.config import LATENT_CHANNELS, LATENT_SIDE, PICTURE
from benchmarks.embedded.perceptual import Perceptual
from benchmarks.embedded.runtime import Graphed, HalfCopies, StageClock, World
from benchmarks.embedded.scenes import SceneSampler, compose, render


@dataclass(frozen=True)
class VaeRecipe:
    """Sizes and weights of the autoencoder's training."""

    batch: int = 64  # a rank
    learning_rate: float = 1.0e-3
    warm_up: int = 200
    perceptual_weight: float = 0.2
    kl_weight: float = 1.0e-6
    clutter: float = 0.4
    objects: int = 5


def clutter(sampler: SceneSampler, batch: int, objects: int) -> Tensor:
    """Pictures without captions: many objects at any size over soft, textured backgrounds, some with odd colours."""
    bank, device, generator = sampler.bank, sampler.bank.device, sampler.generator
    background = torch.zeros(batch, 3, PICTURE, PICTURE, device=device)
    for side, weight in ((2, 0.6), (5, 0.3), (24, 0.1), (64, 0.05)):
        coarse = torch.rand(batch, 3, side, side, device=device, generator=generator)
        background += weight * F.interpolate(coarse, size=(PICTURE, PICTURE), mode="bilinear", align_corners=False)
    rows = sampler.below(batch * objects, len(bank.concept)).view(batch, objects)
    count = batch * objects
    placement = torch.stack(
        [
            sampler.uniform(count, 0.25, 1.4),
            sampler.uniform(count, -1, 1),
            sampler.uniform(count, -1, 1),
            sampler.uniform(count, -math.pi, math.pi),
            sampler.chance(count, 0.8).float(),
        ],
        1,
    ).view(batch, objects, 5)
    image = compose(bank, (background / 1.05).clamp(0, 1), rows, placement)
    image = torch.where(sampler.chance(batch, 0.15)[:, None, None, None], -image, image)
    fade = sampler.uniform(batch, 0.5, 1.0)[:, None, None, None]
    return torch.where(sampler.chance(batch, 0.4)[:, None, None, None], image.flip(1) * fade, image)


def pictures(sampler: SceneSampler, recipe: VaeRecipe, batch: int) -> Tensor:
    """A training batch: scenes and clutter."""
    messy = round(batch * recipe.clutter)
    return torch.cat([render(sampler.bank, sampler.sample(batch - messy)), clutter(sampler, messy, recipe.objects)])


def encode(vae: AutoencoderKL, image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the latents, as AutoencoderKL.encode gives them."""
    mean, log_variance = vae.quant_conv(vae.encoder(image.to(vae.dtype))).float().chunk(2, 1)
    return mean, torch.exp(0.5 * log_variance.clamp(-30, 20))


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pictures in −1…1, as AutoencoderKL.decode gives them."""
    return vae.decoder(vae.post_quant_conv(latents.to(vae.dtype)))


def pixel_losses(vae: AutoencoderKL, image: Tensor, noise: Tensor, kl_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss without the perceptual part, mean squared error, and the reconstruction."""
    mean, deviation = encode(vae, image)
    out = decode(vae, mean + deviation * noise).float()
    error = out - image
    across = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    kl = 0.5 * (mean.square() + deviation.square() - 1 - 2 * deviation.log()).sum((1, 2, 3)).mean()
    squared = error.square().mean()
    return error.abs().mean() + squared + 0.5 * across + kl_weight * kl, squared.detach(), out


def psnr(squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of pictures in −1…1."""
    return 10 * math.log10(4 / max(squared_error, 1e-12))


def train_vae(
    vae: AutoencoderKL, sampler: SceneSampler, trunk: Perceptual, world: World, recipe: VaeRecipe, seconds: float
) -> None:
    """Trains for about `seconds`, with a learning rate that falls to zero over them."""
    vae.to(world.device).requires_grad_(True)
    world.copy_from_main(vae)
    parameters = list(vae.parameters())
    fused = world.device.type == "cuda"
    optimizer = torch.optim.AdamW(parameters, recipe.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=fused)
    copies = HalfCopies([vae], parameters)
    half_vae = cast(AutoencoderKL, copies.modules[0])

    def forward_backward() -> tuple[Tensor, ...]:
        image = pictures(sampler, recipe, recipe.batch)
        noise = torch.randn(len(image), LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE, device=world.device)
        loss, squared, out = pixel_losses(half_vae, image, noise, recipe.kl_weight)
        loss = loss + recipe.perceptual_weight * trunk(out[::2], image[::2]).mean()
        loss.backward()
        return loss.detach(), squared

    step = Graphed(forward_backward, world, [sampler.generator])
    step()
    clock = StageClock(world, seconds)
    while clock.tick():
        rate = 0.5 + 0.5 * math.cos(math.pi * min(1.0, clock.fraction))
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * min(1, clock.step / recipe.warm_up) * rate + 1e-6
        copies.refresh()
        loss, squared = step()
        copies.settle(world)
        optimizer.step()
        if clock.step % 500 == 1:
            world.say(f"vae {clock.step} {clock.elapsed:.0f} s psnr {psnr(float(squared)):.2f} loss {float(loss):.4f}")
    world.say(f"vae done: {clock.step} steps, {clock.step * recipe.batch * world.size / 1e6:.2f} M pictures")
    for p in parameters:
        p.grad = None


@torch.no_grad()
def normalise(vae: AutoencoderKL, image: Tensor) -> None:
    """Folds each latent channel's mean and deviation into the 1×1 convolutions, so that latents are standardised."""
    mean = torch.cat([encode(vae, part)[0] for part in image.split(64)])
    shift, scale = mean.mean((0, 2, 3)), mean.std((0, 2, 3))
    into, back = vae.quant_conv, vae.post_quant_conv
    channels = len(scale)
    back.bias += (back.weight[:, :, 0, 0] * shift).sum(1)
    back.weight *= scale[None, :, None, None]
    into.bias[:channels] -= shift
    into.bias[:channels] /= scale
    into.weight[:channels] /= scale[:, None, None, None]
    into.bias[channels:] -= 2 * scale.log()


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, image: Tensor) -> float:
    """PSNR in dB over pictures, from the latents' mean (what img2img and training see without noise)."""
    total = 0.0
    for part in image.split(64):
        error = decode(vae, encode(vae, part)[0]).float().clamp(-1, 1) - part
        total += float(error.square().mean()) * len(part)
    return psnr(total / len(image))
