"""diffusers' format, which is PEFT's."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from adapters.base import Adapter
from adapters.extras import Extras
from adapters.formats.export import PROGRAMS
from adapters.formats.layer_format import LayerFormat, Written, pairs_of, shaped
from adapters.formats.names import diffusers_names
from adapters.fusion.deltas import LayerDelta


class Diffusers(LayerFormat, name="diffusers"):
    """PEFT's names. Layers share one rank, the smaller filled up with zeros: readers take one alpha for all."""

    def read_by(self, extras: Extras) -> dict[str, str]:
        nothing = dict.fromkeys(("ComfyUI", "SwarmUI"), "no: it loads nothing of it")
        return dict.fromkeys(PROGRAMS, "no") | nothing | {"diffusers": "yes"}

    def names(self, component: str, model: nn.Module) -> dict[str, str]:
        return diffusers_names(component, model)

    def write(self, layers: Mapping[str, Adapter], rank: int) -> Written:
        tensors: dict[str, Tensor] = {}
        pairs = pairs_of(layers, rank)
        widest = max(delta.rank for delta in pairs.values())
        for stem, delta in pairs.items():
            up, down = shaped(layers[stem].site, _widened(delta, widest - delta.rank))
            tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
        return Written(tensors, widest, max(delta.error for delta in pairs.values()))


def _widened(delta: LayerDelta, more: int) -> LayerDelta:
    return LayerDelta(F.pad(delta.up, (0, more)), F.pad(delta.down, (0, 0, 0, more)), delta.error)
