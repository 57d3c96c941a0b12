"""What PEFT and diffusers say of an adapter beside its tensors: alphas, and how OFT's angles are meant."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

_HEADER = "lora_adapter_metadata"
"""diffusers' key in the header: {"unet.lora_alpha": 16, …}."""
_SIDECAR = "adapter_config.json"
"""PEFT's file beside the tensors: {"lora_alpha": 16, …}."""
_LARGEST = 1 << 20


@dataclass(frozen=True)
class PeftOptions:
    """By component; "" stands for all."""

    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])

    def alpha(self, name: str, rank: int) -> float | None:
        """alpha of a layer ("unet.down_blocks.…") as it is divided by `rank`; None where nothing is said."""
        component, path = name.split(".", 1)
        options = self._of(component)
        patterns = options.get("alpha_pattern")
        named = cast("Mapping[str, Any]", patterns) if isinstance(patterns, dict) else {}
        fitting = [value for key, value in named.items() if path == key or path.endswith(f".{key}")]
        alpha = fitting[0] if fitting else options.get("lora_alpha")
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            return None
        return float(alpha) * (math.sqrt(rank) if options.get("use_rslora") else 1.0)

    def series(self) -> bool:
        """Whether OFT's angles go through Neumann's series: PEFT's default, and what OneTrainer always does."""
        return bool(self._of("unet").get("use_cayley_neumann", True))

    def _of(self, component: str) -> Mapping[str, Any]:
        return self.values.get(component) or self.values.get("", {})


def peft_options(path: Path, metadata: Mapping[str, str]) -> PeftOptions:
    """From the header, or from the file beside; damaged ones say nothing."""
    if _HEADER in metadata:
        found: dict[str, dict[str, Any]] = {}
        for key, value in _object(metadata[_HEADER]).items():
            component, _, name = key.rpartition(".")
            found.setdefault(component, {})[name] = value
        return PeftOptions(found)
    beside = sidecar(path)
    if beside.is_file() and beside.stat().st_size < _LARGEST:
        return PeftOptions({"": _object(beside.read_text(encoding="utf-8", errors="replace"))})
    return PeftOptions()


def sidecar(path: Path) -> Path:
    """Where the file beside would lie: PEFT's own name for PEFT's own; a copy of another name has one of its name."""
    return path.with_name(_SIDECAR if path.name.startswith("adapter_model") else f"{path.stem}.{_SIDECAR}")


def _object(text: str) -> dict[str, Any]:
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
