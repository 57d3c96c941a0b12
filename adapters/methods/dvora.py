"""DVoRA (arXiv 2402.09353, section 5.5): VeRA with a magnitude of its own for each output row."""

from __future__ import annotations

from typing import ClassVar, Literal

from adapters.base import Adapter
from adapters.magnitude import Magnitude
from adapters.methods.vera import Vera, VeraKnobs


class DvoraSpec(VeraKnobs, frozen=True):
    method: Literal["dvora"] = "dvora"


class Dvora(Magnitude, spec=DvoraSpec):
    """Magnitude over VeRA: 2d_out + r parameters.

    A is frozen, so the norm's terms W Aᵀ (d×r) and A Aᵀ are constants. They are computed at each step all the same:
    over SDXL's attention layers Σd = 665 600, so W Aᵀ would hold 0.68 GB at rank 256 in fp32, an eighth of the UNet in
    bf16, against 5.9 MB of trainables. Computing it costs r·d·κ multiply-adds, r/N of the layer's own forward pass:
    6 % at 4096 tokens, 25 % at the 1024 of most layers with one picture a batch, and no backward.
    """

    title: ClassVar[str] = "DVoRA"
    paper: ClassVar[str] = "arXiv 2402.09353"
    equation: ClassVar[str] = "W' = m ⊙ (W + diag(b) B diag(d) A) / ‖W + diag(b) B diag(d) A‖ per output row"
    inner_type: ClassVar[type[Adapter]] = Vera
