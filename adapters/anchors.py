"""Starts of a low-rank pair that are not zero, in a form that is still the identity (shared by all anchored methods).

With anchors B0 and A0 the layer learns ΔW = s[δB(A0 + δA) + B0·δA], that is s(B A − B0 A0): exactly 0 at the start,
and the base is never rewritten.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, NamedTuple

from pydantic import AfterValidator, Field
from torch import Tensor

from adapters.base import Calibration, Context, LowRankSpec
from adapters.errors import UnknownNameError
from adapters.sites import Site

ORDINARY = "gaussian"
INITIALISATIONS: dict[str, type[Initialisation]] = {}


class Anchors(NamedTuple):
    """B0 [d, r/g] and A0 [r, κ]."""

    up: Tensor
    down: Tensor


class Initialisation(ABC):
    """A start by name: `class Pissa(Initialisation, name="pissa")` registers it."""

    title: ClassVar[str]
    paper: ClassVar[str]
    equation: ClassVar[str]

    def __init_subclass__(cls, name: str) -> None:
        super().__init_subclass__()
        if INITIALISATIONS.setdefault(name, cls) is not cls:
            raise TypeError(f"two initialisations are called {name!r}")

    @abstractmethod
    def anchors(self, site: Site, weight: Tensor, spec: AnchoredSpec, context: Context) -> Anchors:
        """From W in fp32 or fp64, in the weight's own shape; zeros where `calibration` finds them later."""

    def calibration(self, site: Site, spec: AnchoredSpec, anchors: Anchors) -> Calibration | None:
        """What writes into `anchors` from gradients, if they decide them."""
        return None


def _known(name: str) -> str:
    if name != ORDINARY and name not in INITIALISATIONS:
        raise UnknownNameError("initialisation", name, [ORDINARY, *INITIALISATIONS])
    return name


class AnchoredSpec(LowRankSpec, frozen=True):
    """The knobs of a method whose pair B A may start anywhere."""

    init: Annotated[str, AfterValidator(_known)] = Field(
        default=ORDINARY,
        description="How the factors start: gaussian (up is zero), pissa, milora, olora, lora-ga or loftq.",
    )
    calibration_draws: int = Field(
        default=16, ge=1, description="Batches that the base's gradients are averaged over, where the start needs them."
    )
