"""The contract of a way to fuse: layer by layer, from every concept's change to one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from adapters.base import generator_for
from adapters.errors import UnknownNameError
from adapters.fusion.deltas import LayerDelta
from adapters.plugins import import_modules
from adapters.sites import Site

WAYS: dict[str, type[Way]] = {}


class FusionOptions(BaseModel):
    """The knobs of all ways."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    rank: int | None = Field(
        default=None,
        ge=1,
        description="rank of the result; left out: the largest of the adapters' (svd), their sum (ties, dare …)",
    )
    density: float = Field(default=0.5, gt=0, le=1, description="part of each change that ties and dare keep")
    scaling: float = Field(default=1.0, ge=0, description="ties: λ, what the merged change is multiplied by")
    energy: float = Field(default=0.99, gt=0, le=1, description="null-space: part of a change that is protected")
    softness: float | None = Field(
        default=None, ge=0, description="null-space: μ takes the part μ/(1 + μ) away; left out: all, the hard one"
    )
    ridge: float = Field(default=1e-3, gt=0, description="least-squares: ridge, relative to the mean activation")
    background: float = Field(
        default=0.1, ge=0, description="least-squares: weight of neutral prompts, left as they are"
    )
    seed: int = Field(default=0, ge=0, description="dare: which entries are dropped")
    steps: int = Field(default=100, ge=0, description="zip: steps of Adam")
    learning_rate: float = Field(default=0.03, gt=0, description="zip: how far a merger moves in a step")
    similarity: float = Field(default=0.01, ge=0, description="zip: λ, weight of columns that several adapters use")
    samples: int = Field(default=256, ge=1, description="zip, ties, dare, geodesic: inputs of each layer looked at")
    position: float = Field(default=0.5, ge=0, le=1, description="geodesic: place between the first and the second")


@dataclass(frozen=True)
class LayerGrams:
    """Second moments of z = [A_1; …; A_N] x on prompts, over the positions of one layer."""

    own: Sequence[Tensor]
    """E[z zᵀ] on each concept's own prompts with its adapter on, [Σr, Σr] each."""
    neutral: Tensor
    """The same on neutral prompts with the bare base."""
    inputs: Sequence[Tensor] = ()
    """x at some positions, [n, κ]: on each concept's own prompts, then on neutral ones; for ways that sample inputs."""


@dataclass(frozen=True)
class FusionLayer:
    """All that a way is told of one layer."""

    site: Site
    weight: Tensor
    """W in fp32 or fp64."""
    deltas: Sequence[LayerDelta]
    """One a concept that changes this layer, weights included."""
    names: Sequence[str]
    """Of these concepts."""
    concepts: int
    """Of the whole fusion: a mean divides by it."""
    options: FusionOptions
    grams: LayerGrams | None = None

    def generator(self) -> torch.Generator:
        return generator_for(self.options.seed, self.site.name)

    @property
    def rank(self) -> int:
        """Of the result, where the way is free to choose it."""
        return self.options.rank or sum(delta.rank for delta in self.deltas)


@dataclass(frozen=True)
class Candidate:
    """What a file tells of an adapter before any base is loaded."""

    name: str
    method: str
    weight: float = 1.0
    columns: Mapping[str, frozenset[int]] = field(default_factory=dict[str, frozenset[int]])
    """Layer → the columns of its weight's singular vectors that were learnt on."""

    def shared_with(self, other: Candidate) -> list[str]:
        """Layers where both learnt on one column or more."""
        return [name for name, own in self.columns.items() if own & other.columns.get(name, frozenset())]


class Way(ABC):
    """`class Mean(Way, name="mean")` registers it."""

    title: ClassVar[str]
    paper: ClassVar[str]
    meaning: ClassVar[str]
    """A sentence for people who know no mathematics, with what was measured (docs/fusion.md)."""
    knobs: ClassVar[tuple[str, ...]] = ()
    """Those of FusionOptions that it reads."""
    recommended: ClassVar[bool] = False
    """Where nobody chooses: of one way alone."""
    needs_activations: ClassVar[bool] = False
    samples_inputs: ClassVar[bool] = False
    """Whether the result looks at x along other rows than the adapters': second moments of A x cannot judge it then."""

    def __init_subclass__(cls, name: str) -> None:
        super().__init_subclass__()
        if WAYS.setdefault(name, cls) is not cls:
            raise TypeError(f"two ways to fuse are called {name!r}")

    @classmethod
    def refusal(cls, candidates: Sequence[Candidate]) -> str:
        """Why these cannot be fused so, as far as files tell; "" where they may. `fuse` refuses the same."""
        del candidates
        return ""

    @abstractmethod
    def fuse(self, layer: FusionLayer) -> LayerDelta:
        """The one change of this layer. Raises UserInputError where these concepts cannot be fused so."""


def find_way(name: str) -> Way:
    """The way called `name`. Raises UnknownNameError with the nearest."""
    known = all_ways()
    if name not in known:
        raise UnknownNameError("way to fuse", name, list(known))
    return known[name]()


def all_ways() -> dict[str, type[Way]]:
    """Every way by its name."""
    from adapters.fusion import ways

    import_modules(ways)
    return WAYS
