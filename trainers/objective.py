"""Noise, target and loss weights of a training step: small pure functions, one idea each.

Shapes: latents "b c h w"; timesteps, weights and signal-to-noise ratios "b".
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Generator, Tensor

PredictionType = Literal["auto", "epsilon", "v_prediction"]


class ObjectiveConfig(BaseModel):
    """What the model is asked to predict, and how much each timestep counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    prediction_type: PredictionType = Field(default="auto", description="auto: what the base was trained for")
    zero_terminal_snr: bool = Field(default=False, description="rescale the betas so that the last step is pure noise")
    min_snr_gamma: float | None = Field(
        default=None, gt=0, description="cap of the signal-to-noise weight (5 is usual)"
    )
    debiased: bool = Field(default=False, description="weight by 1/sqrt(SNR) (debiased estimation)")
    noise_offset: float = Field(default=0.0, ge=0, description="one more noise value a channel (0.05 is usual)")
    multires_discount: float = Field(
        default=0.0, ge=0, lt=1, description="multi-resolution (pyramid) noise; 0.3 is usual"
    )
    loss: Literal["l2", "huber"] = Field(default="l2", description="l2, or pseudo-Huber (robust to odd pictures)")
    huber_c: float = Field(default=0.1, gt=0, description="where pseudo-Huber turns from square to linear")
    min_timestep: int = Field(default=0, ge=0, description="smallest timestep drawn")
    max_timestep: int = Field(default=999, le=999, description="largest timestep drawn")

    @model_validator(mode="after")
    def _consistent(self) -> ObjectiveConfig:
        if self.min_timestep > self.max_timestep:
            raise ValueError("min_timestep is larger than max_timestep")
        if self.min_snr_gamma is not None and self.debiased:
            raise ValueError("choose min_snr_gamma or debiased, not both")
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            raise ValueError("zero_terminal_snr needs prediction_type v_prediction: pure noise tells nothing of itself")
        return self


def training_scheduler(base: DDPMScheduler, config: ObjectiveConfig) -> DDPMScheduler:
    """The base's noise schedule with the asked prediction type and terminal SNR."""
    changes: dict[str, Any] = {}
    if config.prediction_type != "auto":
        changes["prediction_type"] = config.prediction_type
    if config.zero_terminal_snr:
        changes["rescale_betas_zero_snr"] = True
    return DDPMScheduler.from_config(base.config, **changes)  # pyright: ignore[reportReturnType]


def multires_noise(noise: Float[Tensor, "b c h w"], discount: float, generator: Generator) -> Float[Tensor, "b c h w"]:
    """Pyramid noise: coarser and coarser noise added with weight discount^i, then unit variance again.

    Whitaker, "Multi-resolution noise for diffusion model training" (2023).
    """
    b, c, height, width = noise.shape
    total = noise.clone()
    h, w, level = height, width, 0
    while discount > 0 and min(h, w) > 1:
        level += 1
        h, w = max(1, h // 2), max(1, w // 2)
        coarse = torch.randn(b, c, h, w, generator=generator, device=noise.device, dtype=noise.dtype)
        total += F.interpolate(coarse, size=(height, width), mode="bilinear") * discount**level
    return total / total.std()


def draw_noise(
    latents: Float[Tensor, "b c h w"], config: ObjectiveConfig, generator: Generator
) -> Float[Tensor, "b c h w"]:
    """Gaussian noise, with an offset a channel (Guttenberg 2023) or as a pyramid where asked."""
    shape, device, dtype = latents.shape, latents.device, latents.dtype
    noise = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    if config.multires_discount > 0:
        noise = multires_noise(noise, config.multires_discount, generator)
    if config.noise_offset > 0:
        offset = torch.randn(shape[0], shape[1], 1, 1, generator=generator, device=device, dtype=dtype)
        noise = noise + config.noise_offset * offset
    return noise


def draw_timesteps(
    count: int, config: ObjectiveConfig, generator: Generator, device: torch.device
) -> Int[Tensor, " b"]:
    """Uniform integer timesteps in [min_timestep, max_timestep]."""
    return torch.randint(config.min_timestep, config.max_timestep + 1, (count,), generator=generator, device=device)


def snr_weight(
    alphas_cumprod: Float[Tensor, " t"], timesteps: Int[Tensor, " b"], config: ObjectiveConfig, velocity: bool
) -> Float[Tensor, " b"]:
    """Loss weight a timestep: min-SNR-γ (arXiv 2303.09556, eq. 8), debiased (arXiv 2310.08442, eq. 10), or 1.

    Both are defined on ε's error. At a given x_t, e_ε² = ᾱ·e_v² with ᾱ = SNR/(SNR+1), so a v target's weight is that
    much smaller. Finite at SNR 0.
    """
    alpha = alphas_cumprod.to(timesteps.device)[timesteps].float()
    snr = alpha / (1 - alpha)
    if config.min_snr_gamma is not None:
        weight = snr.clamp(max=config.min_snr_gamma) / snr.clamp(min=1e-8)
    elif config.debiased:
        weight = snr.clamp(1e-3, 1e3).rsqrt()
    else:
        return torch.ones_like(snr)
    return weight * alpha if velocity else weight


def prediction_target(
    scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor
) -> Float[Tensor, "b c h w"]:
    """ε, or v = sqrt(ᾱ)·ε − sqrt(1−ᾱ)·x0 (arXiv 2202.00512, app. D)."""
    if scheduler.config["prediction_type"] == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)  # pyright: ignore[reportArgumentType]
    return noise


def elementwise_loss(prediction: Tensor, target: Tensor, config: ObjectiveConfig) -> Float[Tensor, "b c h w"]:
    """Squared error, or pseudo-Huber 2c·(sqrt(e²+c²)−c), which equals e² for small e (arXiv 2403.16728)."""
    error = (prediction.float() - target.float()).square()
    if config.loss == "l2":
        return error
    return 2 * config.huber_c * ((error + config.huber_c**2).sqrt() - config.huber_c)


def picture_losses(
    elementwise: Float[Tensor, "b c h w"], mask: Float[Tensor, "b 1 h w"] | None, weights: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """One weighted loss a picture; the mask weights latent positions (mean 1 over a picture)."""
    if mask is not None:
        elementwise = elementwise * mask
    return elementwise.mean(dim=(1, 2, 3)) * weights
