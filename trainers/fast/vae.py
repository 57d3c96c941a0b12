"""SDXL's VAE, whose time on a GPU goes into group norms over a million pixels in few groups, with our own."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from trainers.fast.norms import group_norm_silu
from trainers.fast.resnets import is_plain_resnet, resnet


def hasten(vae: AutoencoderKL) -> None:
    """Replaces forwards within it by ones that compute the same, and lays its convolutions out in channels_last.

    For good: nothing is attached to a VAE. Its weights, names and hash stay; blocks of other kinds are left alone.
    """
    cast(Any, vae).to(memory_format=torch.channels_last)
    for name, module in cast("list[tuple[str, Any]]", list(vae.named_modules())):
        if isinstance(module, ResnetBlock2D) and is_plain_resnet(module, with_time=False):
            module.forward = partial(resnet, module)
        elif name.endswith("conv_norm_out") and type(module) is nn.GroupNorm:
            cast(Any, module).forward = partial(group_norm_silu, norm=module, silu=False)
