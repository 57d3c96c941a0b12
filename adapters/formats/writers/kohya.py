"""kohya's format: what loads nearly everywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from adapters.base import Adapter
from adapters.extras import Extras
from adapters.files import AdapterCard
from adapters.formats.beside import bundled
from adapters.formats.export import PROGRAMS
from adapters.formats.layer_format import LayerFormat, Written, pairs_of, shaped
from adapters.formats.names import is_norm, kohya_names
from adapters.fusion.deltas import LayerDelta
from adapters.sites import Site

_BASE_VERSION = "sdxl_base_v1-0"
"""A1111 takes a file for SD 1 unless this begins with sdxl_."""
_OF_VECTORS = {
    "A1111": "yes, but for the biases of layers, if any",
    "InvokeAI": "yes, but for the biases of layers, if any",
    "kohya_ss": "yes, without biases and norms",
    "diffusers": "no: it refuses biases and norms",
}
_OF_WORDS = {
    "Forge": "yes, without the embedded words",
    "ComfyUI": "yes; for the words lay a copy among the embeddings",
    "SwarmUI": "yes; for the words lay a copy among the embeddings",
    "InvokeAI": "no: it refuses embedded words",
    "kohya_ss": "yes, without the embedded words",
    "diffusers": "no: it refuses embedded words",
}


class Kohya(LayerFormat, name="kohya"):
    """Flattened sgm names, 2-D and 4-D factors, one alpha a layer, none of DoRA's or Tucker's further keys."""

    readers: ClassVar[Mapping[str, str]] = {}
    """Programs that do not simply read it."""
    module: ClassVar[str] = "networks.lora"
    arguments: ClassVar[Mapping[str, str]] = {}

    def read_by(self, extras: Extras) -> dict[str, str]:
        limits = (_OF_VECTORS if extras.vectors else {}) | (_OF_WORDS if extras.words else {})
        return dict.fromkeys(PROGRAMS, "yes") | limits | dict(self.readers)

    def names(self, component: str, model: nn.Module) -> dict[str, str]:
        return kohya_names(component, model)

    def write(self, layers: Mapping[str, Adapter], rank: int) -> Written:
        tensors: dict[str, Tensor] = {}
        pairs = pairs_of(layers, rank)
        for stem, delta in pairs.items():
            tensors |= pair_tensors(stem, layers[stem].site, delta)
        return Written(tensors, max(d.rank for d in pairs.values()), max(d.error for d in pairs.values()))

    def beside(self, extras: Extras, components: Mapping[str, nn.Module]) -> tuple[dict[str, Tensor], list[str]]:
        """LyCORIS's names: `.diff_b` of a layer, `.w_norm` and `.b_norm` of a norm, of which A1111 wants both."""
        tensors, unsaid = bundled(extras), list[str]()
        stems = {component: kohya_names(component, model) for component, model in components.items()}
        for name, vector in extras.vectors.items():
            owner, _, end = name.rpartition(".")
            component, _, path = owner.partition(".")
            stem = stems.get(component, {}).get(path)
            if stem is None:
                unsaid.append(name)
            elif is_norm(components[component], path):
                tensors[f"{stem}.{end[0]}_norm"] = vector
                tensors.setdefault(f"{stem}.{'b' if end == 'weight' else 'w'}_norm", torch.zeros_like(vector))
            else:
                tensors[f"{stem}.diff_b"] = vector
        return tensors, unsaid

    def metadata(self, card: AdapterCard, rank: int, digest: str) -> dict[str, str]:
        found = {
            "ss_base_model_version": _BASE_VERSION,
            "ss_network_module": self.module,
            "ss_network_dim": str(rank),
            "ss_network_alpha": str(rank),
            "ss_output_name": card.trigger or "adapter",
            "ss_v2": "False",
            "sshs_model_hash": digest,
        }
        if self.arguments:
            found["ss_network_args"] = json.dumps(dict(self.arguments))
        if card.trigger:
            found["ss_tag_frequency"] = json.dumps({card.trigger: {card.trigger: max(1, card.steps)}})
        if card.resolution:
            found["ss_resolution"] = f"({card.resolution}, {card.resolution})"
        return super().metadata(card, rank, digest) | found


def pair_tensors(stem: str, site: Site, delta: LayerDelta) -> dict[str, Tensor]:
    """A plain pair with its alpha."""
    up, down = shaped(site, delta)
    alpha = torch.tensor(float(delta.rank))
    return {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": alpha}
