"""The rows of the table: every registered way to fuse on the adapters that it is for, and adapters side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adapters.fusion.way import WAYS, FusionOptions, find_way
from benchmarks.fusion.subjects import Group

PLAIN = FusionOptions()


@dataclass(frozen=True)
class Variant:
    """How adapters get into one picture.

    Args:
        way: of fusion; None: attached side by side.
        kinds: of the first member's adapter, and of all others'.
        regions: where adapters act, for those that are side by side.
        most: members of a group. A geodesic lies between two, and by words alone the base draws two things.
    """

    name: str
    way: str | None
    kinds: tuple[str, str] = ("lora", "lora")
    options: FusionOptions = PLAIN
    regions: Literal["none", "given", "auto"] = "none"
    most: int = 3

    def kind(self, index: int) -> str:
        """Of a member's adapter."""
        return self.kinds[0] if index == 0 else self.kinds[1]

    def joins(self, group: Group) -> bool:
        return len(group.members) <= self.most


SPECIAL: dict[str, tuple[Variant, ...]] = {
    "null-space": (
        Variant("null-space, hard", "null-space"),
        Variant("null-space, soft", "null-space", options=FusionOptions(softness=1.0)),
    ),
    "spectral": (
        Variant("spectral: Spectral-A", "spectral", ("spectral-a",) * 2),
        Variant("spectral: Spectral-A confined", "spectral", ("spectral-a confined",) * 2),
        Variant("spectral: Spectral-R", "spectral", ("spectral-r",) * 2),
        Variant("spectral: Spectral-A and LoRA", "spectral", ("spectral-a", "lora")),
    ),
    "least-squares": (
        Variant("least-squares", "least-squares"),
        Variant("least-squares: Spectral-A", "least-squares", ("spectral-a",) * 2),
    ),
    "geodesic": (
        Variant("geodesic: OFT", "geodesic", ("oft",) * 2, most=2),
        Variant("side by side: OFT", None, ("oft",) * 2, most=2),
    ),
}
"""Ways that come in several forms, or are for other adapters than LoRA."""
BASELINE = "sum"
BASELINES = (BASELINE, "side by side: OFT")
"""Naive sums, of LoRAs and of rotations: the first that was drawn is what others are measured against."""


def variants() -> list[Variant]:
    """One or several for each registered way, the naive sum first, and regions."""
    find_way(BASELINE)  # imports all
    names = sorted(WAYS, key=lambda name: name != BASELINE)
    fused = [variant for name in names for variant in SPECIAL.get(name, (Variant(name, name),))]
    return [
        *fused,
        Variant("regions given, side by side", None, regions="given"),
        Variant("regions auto, side by side", None, regions="auto", most=2),
    ]
