"""kohya's format: what loads nearly everywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from adapters.base import Adapter
from adapters.files import AdapterCard
from adapters.formats.export import Format, Written, pairs_of, shaped
from adapters.formats.names import kohya_names
from adapters.fusion.deltas import LayerDelta
from adapters.sites import Site

_BASE_VERSION = "sdxl_base_v1-0"
"""A1111 takes a file for SD 1 unless this begins with sdxl_."""


class Kohya(Format, name="kohya"):
    """Flattened sgm names, 2-D and 4-D factors, one alpha a layer, none of DoRA's or Tucker's further keys."""

    read_by: ClassVar[Mapping[str, str]] = {
        "A1111, Forge": "yes",
        "ComfyUI": "yes",
        "InvokeAI": "yes",
        "diffusers": "yes",
        "kohya_ss": "yes",
    }
    module: ClassVar[str] = "networks.lora"
    arguments: ClassVar[Mapping[str, str]] = {}

    def names(self, component: str, model: nn.Module) -> dict[str, str]:
        return kohya_names(component, model)

    def write(self, layers: Mapping[str, Adapter], rank: int) -> Written:
        tensors: dict[str, Tensor] = {}
        pairs = pairs_of(layers, rank)
        for stem, delta in pairs.items():
            tensors |= pair_tensors(stem, layers[stem].site, delta)
        return Written(tensors, max(d.rank for d in pairs.values()), max(d.error for d in pairs.values()))

    def metadata(self, card: AdapterCard, rank: int) -> dict[str, str]:
        found = {
            "ss_base_model_version": _BASE_VERSION,
            "ss_network_module": self.module,
            "ss_network_dim": str(rank),
            "ss_network_alpha": str(rank),
            "ss_output_name": card.trigger or "adapter",
            "ss_v2": "False",
        }
        if self.arguments:
            found["ss_network_args"] = json.dumps(dict(self.arguments))
        if card.trigger:
            found["ss_tag_frequency"] = json.dumps({card.trigger: {card.trigger: max(1, card.steps)}})
        if card.resolution:
            found["ss_resolution"] = f"({card.resolution}, {card.resolution})"
        return super().metadata(card, rank) | found


def pair_tensors(stem: str, site: Site, delta: LayerDelta) -> dict[str, Tensor]:
    """A plain pair with its alpha."""
    up, down = shaped(site, delta)
    alpha = torch.tensor(float(delta.rank))
    return {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": alpha}
