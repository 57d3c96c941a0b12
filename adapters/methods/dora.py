"""DoRA (arXiv 2402.09353): LoRA with a magnitude of its own for each output row."""

from __future__ import annotations

from typing import ClassVar, Literal

from adapters.anchors import AnchoredSpec
from adapters.base import Adapter
from adapters.magnitude import Magnitude
from adapters.methods.lora import Lora


class DoraSpec(AnchoredSpec, frozen=True):
    method: Literal["dora"] = "dora"


class Dora(Magnitude, spec=DoraSpec):
    """Magnitude over LoRA: r(d + κ) + d parameters. `magnitude` puts the same over any other method."""

    title: ClassVar[str] = "DoRA"
    paper: ClassVar[str] = "arXiv 2402.09353"
    equation: ClassVar[str] = "W' = m ⊙ (W + α/r · B A) / ‖W + α/r · B A‖ per output row"
    inner_type: ClassVar[type[Adapter]] = Lora
