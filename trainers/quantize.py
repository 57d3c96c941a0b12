"""A base's UNet in fewer bits (adapters.quantized): which of its layers, and in what order they cross to the GPU."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from adapters.anchors import AnchoredSpec
from adapters.quantized import quantizable, quantize_
from adapters.targets import select_sites
from trainers.config import TrainConfig

KEPT = ("conv_in", "conv_out", "time_embedding", "add_embedding", "time_emb_proj")
"""Layers by a part of their path that stay as they are: one in fifty of SDXL's weights, and all that follows them."""


def quantize_unet(unet: nn.Module, kind: str, device: torch.device, loftq_ranks: Mapping[str, int]) -> None:
    """Quantises the UNet's layers on `device`, one after the other: it never holds more than one as it was.

    Args:
        kind: a name in adapters.quantized.QUANTIZATIONS.
        loftq_ranks: path → rank of the residual that LoftQ leaves.
    """
    for path, module in list(unet.named_modules()):
        if quantizable(module) and not set(path.split(".")) & set(KEPT):
            assert isinstance(module, nn.Linear | nn.Conv2d)
            quantize_(module, kind, device, loftq_ranks.get(path, 0))


def loftq_ranks(unet: nn.Module, config: TrainConfig) -> dict[str, int]:
    """The layers that start at a LoftQ residual, and its rank; none where the start is another."""
    spec = config.adapter
    if not isinstance(spec, AnchoredSpec) or spec.init != "loftq" or config.targets.unet == "none":
        return {}
    return {site.name.split(".", 1)[1]: spec.rank for site in select_sites(unet, "unet", config.targets.unet)}
