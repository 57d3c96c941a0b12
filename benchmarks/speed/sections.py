"""What runs against what: the rows of each section, and the bars of issue 4 that they are held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from adapters.low_rank import LowRank
from adapters.quantized import QUANTIZATIONS
from adapters.registry import REGISTRY
from benchmarks.speed.measure import Contestant
from benchmarks.speed.model import Setting
from benchmarks.speed.ours import OurFloor, OurStep
from benchmarks.speed.peers import PeerStep


@dataclass(frozen=True)
class Row:
    """One contestant; `slow` ones are timed over fewer steps."""

    name: str
    build: Callable[[Setting], Contestant]
    slow: bool = False


@dataclass(frozen=True)
class Section:
    """Rows that are measured in one process, in order and in reverse."""

    title: str
    batch_size: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Bar:
    """A figure of the issue: a row in ms or GiB, or divided by another of the same section."""

    section: str
    row: str
    limit: float
    over: str | None = None
    """The row that it is divided by, or (with `at_least`) that is divided by it."""
    at_least: bool = False
    field: str = "ms"


_HEADLINE = (
    Row("ours: LoRA", OurStep),
    Row("PEFT LoRA", lambda s: PeerStep(s, "peft-lora"), slow=True),
    Row("ours: frozen UNet", OurFloor),
    Row("ours: DoRA", lambda s: OurStep(s, "dora")),
    Row("PEFT DoRA", lambda s: PeerStep(s, "peft-dora"), slow=True),
    Row("frozen UNet, diffusers", lambda s: PeerStep(s, "frozen"), slow=True),
    Row("PEFT LoRA, compiled", lambda s: PeerStep(s, "peft-lora", "blocks"), slow=True),
    Row("PEFT DoRA, compiled", lambda s: PeerStep(s, "peft-dora", "blocks"), slow=True),
    Row("LyCORIS LoRA", lambda s: PeerStep(s, "lycoris-lora"), slow=True),
    Row("LyCORIS LoKr", lambda s: PeerStep(s, "lycoris-lokr"), slow=True),
    Row("LyCORIS LoRA, compiled", lambda s: PeerStep(s, "lycoris-lora", "blocks"), slow=True),
    Row("LyCORIS LoKr, compiled", lambda s: PeerStep(s, "lycoris-lokr", "blocks"), slow=True),
)


def _method_row(method: str) -> Row:
    return Row(f"ours: {method}, linear + conv", lambda s: OurStep(s, method, "linear, conv & resnet"))


def factor_methods() -> list[str]:
    """Every method of the registry whose delta is a chain of factors, LoRA first."""
    found = sorted(name for name, kind in REGISTRY.items() if issubclass(kind, LowRank) and name != "lora")
    return ["lora", *found]


_METHODS = tuple(_method_row(method) for method in factor_methods())
_TEXT = (Row("ours: LoRA", OurStep), Row("ours: LoRA + both text encoders", lambda s: OurStep(s, text=True)))
_QUANTIZED = (
    Row("ours: LoRA", OurStep),
    *(Row(f"ours: LoRA, {kind} base", lambda s, kind=kind: OurStep(s, quantization=kind)) for kind in QUANTIZATIONS),
    Row("ours: DoRA, nf4 base", lambda s: OurStep(s, "dora", quantization="nf4")),
    Row("ours: DoRA, fp8 base", lambda s: OurStep(s, "dora", quantization="fp8")),
)
_WHOLE = tuple(
    Row(f"{library} LoRA, whole UNet compiled", lambda s, kind=kind: PeerStep(s, kind, "whole"), slow=True)
    for library, kind in (("PEFT", "peft-lora"), ("LyCORIS", "lycoris-lora"))
)

SECTIONS: dict[str, Section] = {
    "headline-1": Section("Batch 1, rank 16 on attention", 1, _HEADLINE),
    "headline-4": Section("Batch 4, rank 16 on attention", 4, _HEADLINE),
    "methods-1": Section("Batch 1, every factor method on linear + conv", 1, _METHODS),
    "methods-4": Section("Batch 4, every factor method on linear + conv", 4, _METHODS),
    "text-1": Section("Batch 1, text encoders trained, too", 1, _TEXT),
    "quantized-1": Section("Batch 1, a base of fewer bits", 1, _QUANTIZED),
    "whole-1": Section("Batch 1, peers with the whole UNet compiled", 1, (Row("ours: LoRA", OurStep), *_WHOLE)),
}
BY_DEFAULT = ("headline-1", "headline-4", "methods-1", "methods-4", "text-1")
"""`whole-1` takes 3 minutes of compilation a peer: on request."""


def _bars(size: int, ms: float, peft: float, floor: float, dora: float) -> list[Bar]:
    section = f"headline-{size}"
    return [
        Bar(section, "ours: LoRA", ms),
        Bar(section, "ours: LoRA", peft, "PEFT LoRA", at_least=True),
        Bar(section, "ours: LoRA", floor, "ours: frozen UNet"),
        Bar(section, "ours: DoRA", 1.10, "ours: LoRA"),
        Bar(section, "ours: DoRA", dora, "PEFT DoRA", at_least=True),
        *(Bar(f"methods-{size}", row.name, 1.15, "ours: lora, linear + conv") for row in _METHODS[1:]),
    ]


BARS = (
    *_bars(1, 60, 9, 1.12, 12),
    *_bars(4, 160, 3.3, 1.08, 5),
    Bar("text-1", "ours: LoRA + both text encoders", 1.25, "ours: LoRA"),
    Bar("headline-1", "ours: LoRA", 9.5, field="allocated_gib"),
)
