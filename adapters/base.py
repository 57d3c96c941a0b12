"""The contract of every adapter method: its knobs (a spec) and its layer.

A method is one file in adapters/methods: a frozen spec and a subclass of Adapter that names it,
`class Lora(Adapter, spec=LoraSpec)`. That registers it; nothing else needs to change.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from adapters.errors import UserInputError
from adapters.sites import Site
from adapters.svd import Decomposer


class AdapterSpec(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The knobs of a method; `method` is its name in the registry."""

    method: str
    magnitude: bool = Field(
        default=False, description="Learn the length of each output row apart from its direction (DoRA over this)."
    )


class RankSpec(AdapterSpec, frozen=True):
    """The knobs that every method with a rank shares."""

    rank: int = Field(default=16, ge=1, le=4096, description="Inner dimension r of the factors: size and capacity.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Chance of dropping each input feature in training.")


class LowRankSpec(RankSpec, frozen=True):
    """A rank, and a scale that goes with it."""

    alpha: float | None = Field(default=None, gt=0, description="Numerator of the scale; unset means the rank.")
    rank_stabilized: bool = Field(default=False, description="Scale by alpha/√rank (rsLoRA) instead of alpha/rank.")

    @property
    def scale(self) -> float:
        """s of ΔW = s·B A: α/r, or α/√r with rank_stabilized (rsLoRA, arXiv 2312.03732)."""
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


def generator_for(seed: int, name: str) -> torch.Generator:
    """A CPU generator from the seed and the name alone: the layers' order and device do not matter."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


@dataclass(frozen=True)
class Context:
    """What a layer's adapter may know of the set that it is built in."""

    seed: int
    sites: Sequence[Site]
    """Every layer of the set, in order."""
    pool: dict[str, nn.Parameter] = field(default_factory=dict[str, nn.Parameter])
    decomposer: Decomposer = field(default_factory=Decomposer)
    """Where singular vectors come from: it may have a cache on disk."""
    steps: int | None = None
    """Optimizer steps of the run, where known: budgets (AdaLoRA) are spread over them."""

    def generator(self, name: str) -> torch.Generator:
        return generator_for(self.seed, name)

    def shared(self, key: str, make: Callable[[torch.Generator], Tensor], trainable: bool = True) -> nn.Parameter:
        """The factor called `key`, made once for the whole set. It is trained once and saved once.

        Frozen banks (VeRA) are Parameters too: moving a module keeps Parameters shared, but splits buffers.
        """
        if key not in self.pool:
            self.pool[key] = nn.Parameter(make(self.generator(f"shared:{key}")), requires_grad=trainable)
        return self.pool[key]


@dataclass(frozen=True)
class GradientPair:
    """The factors of s·B A by which a layer's weight moves: dW = s(dB·A + B·dA)."""

    up: nn.Parameter
    """[d, r/g], the trainable part of B."""
    down: nn.Parameter
    """[r, κ], the trainable part of A."""
    up_value: Tensor
    """B itself: `up`, and its anchor where it has one."""
    down_value: Tensor
    """A itself."""
    scale: float


class Calibration(ABC):
    """Something that one layer learns from gradients of the bare base, before the first step (adapters.calibrate)."""

    draws: int
    """Over how many batches."""

    @abstractmethod
    def observe(self, gradient: Tensor) -> None:
        """One batch's ∂loss/∂W in the weight's shape, fp32 or fp64. Not to be changed."""

    @abstractmethod
    def finish(self) -> None:
        """After the last batch."""


REGISTRY: dict[str, type[Adapter]] = {}


class Adapter(nn.Module, ABC):
    """What one method adds to one layer: ΔW = W' − W, applied on the activation side.

    Trainable factors are Parameters; state that steps change (a budget, a mask, chosen directions) is kept in
    persistent buffers, never a counter in `forward`: both go into the file. What can be derived from W is a
    buffer with persistent=False. An adapter is built in the dtype and on the device of `weight`.

    Args:
        site: the layer; its module stays untouched.
        weight: the base weight W in fp32 (fp64 for an fp64 base), in the weight's own shape. Not to be kept.
        spec: the knobs.
        context: the seed, the other layers and the shared factors.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    equation: ClassVar[str]
    spec_type: ClassVar[type[AdapterSpec]]
    depends_on_steps: ClassVar[bool] = False
    """Whether a schedule of its own is spread over the run's length."""
    resume_only: ClassVar[frozenset[str]] = frozenset()
    """Buffers that go into checkpoints but not into the finished file, where they are zeros when loaded."""
    prunable: ClassVar[Mapping[str, int]] = {}
    """Factors that a file may hold with fewer ranks than they are built with, and the axis of these (see `pruned`)."""

    def __init_subclass__(cls, spec: type[AdapterSpec] | None = None) -> None:
        super().__init_subclass__()
        if spec is None:  # a base class shared by several methods
            return
        missing = [label for label in ("title", "paper", "equation") if not hasattr(cls, label)]
        if missing:
            raise TypeError(f"{cls.__name__} must say its {', '.join(missing)}")
        cls.spec_type = spec
        cls.name = spec.model_fields["method"].default
        if REGISTRY.setdefault(cls.name, cls) is not cls:
            raise TypeError(f"two methods are called {cls.name!r}")

    def __init__(self, site: Site, weight: Tensor, spec: AdapterSpec, context: Context) -> None:
        super().__init__()
        self.site = site
        self.knobs = spec

    @abstractmethod
    def delta(self, x: Tensor, y_base: Tensor) -> Tensor:
        """(W' − W) x, in y_base's shape and of x's precision; y_base is the base layer's own output."""

    @abstractmethod
    def delta_weight(self, weight: Tensor) -> Tensor:
        """W' − W in the weight's shape, given W in fp32 or fp64: for merging and export, not for training.

        Raises:
            UserInputError: the method depends on x and cannot be merged; says why.
        """

    def row_norm2(self, base_norm2: Tensor) -> Tensor:
        """‖W_i + ΔW_i‖² of each output row, [d], from ‖W_i‖² in Gram form: what DoRA needs of a method.

        No d×κ tensor is built; W is reached only through `site.project`. Called without gradients.
        """
        raise UserInputError(
            f"{self.title} offers no row norm, so a magnitude cannot be put over it.", "Use it without DoRA."
        )

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """(up [d, r/g], down [r, κ]) whose product is ΔW, scale included; None where ΔW has no such form."""
        return None

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trainables by role ("down", "up", "magnitude", …): rules such as LoRA+ go by the role."""
        return {"weights": [p for p in self.parameters() if p.requires_grad]}

    def gradient_pair(self) -> GradientPair | None:
        """The trainable factors of ΔW = s·B A with what they stand for, or None: what LoRA-Pro needs."""
        return None

    def calibrations(self) -> Sequence[Calibration]:
        """What must be learnt from the bare base's gradients before the first step; none for most methods."""
        return ()

    def pruned(self) -> dict[str, Tensor]:
        """This layer's state for the finished file, without ranks that are exactly zero (`prunable`)."""
        return self.state_dict()

    def regulariser(self) -> Tensor | None:
        """A scalar to add to the loss, or None."""
        return None

    def on_backward(self) -> None:
        """After backward, before clipping: gradients may be read and rewritten."""

    @classmethod
    def phase(cls, adapters: Sequence[Any], step: int) -> str:
        """A name for what `settled` does after this step of a set: where it changes, a GPU records it anew."""
        return ""

    def settled(self, gradients: Mapping[str, Tensor], phase: str) -> dict[str, Tensor]:
        """After the optimizer's step: new values of this layer's parameters and buffers, by name.

        A pure function of its tensors and their gradients that never reads a number: adapters.bank computes it for
        all layers alike at once.
        """
        return {}

    def on_step(self, step: int) -> None:
        """After `settled`, for what happens at single steps. `step` counts optimizer steps, from 1; no gradients."""

    @classmethod
    def on_step_all(cls, adapters: Sequence[Any], step: int) -> None:
        """on_step for a whole set, all of this class; a method whose layers compete for a budget overrides it."""
        for adapter in adapters:
            adapter.on_step(step)
