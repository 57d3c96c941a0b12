"""AdaLoRA (arXiv 2303.10512)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from adapters.base import Context, LowRankSpec
from adapters.budget import Schedule, best
from adapters.low_rank import Chain, LowRank, rank_within
from adapters.sites import Site

_FACTORS = ("up", "core", "down")
_WATCHED, _FIXED = "importances are watched", "the choice is fixed"


class AdaLoraSpec(LowRankSpec, frozen=True):
    method: Literal["adalora"] = "adalora"
    target_rank: int | None = Field(
        default=None, ge=1, description="Triplets that a layer keeps in the end, on average; unset means half the rank."
    )
    initial: float = Field(default=0.1, ge=0, lt=1, description="Part of the run before anything is pruned.")
    final: float = Field(default=0.3, ge=0, lt=1, description="Part of the run, at its end, with a settled budget.")
    interval: int = Field(default=10, ge=1, description="Optimizer steps between two prunings.")
    beta1: float = Field(default=0.85, ge=0, lt=1, description="Smoothing of the importance.")
    beta2: float = Field(default=0.85, ge=0, lt=1, description="Smoothing of its uncertainty.")
    orthogonal_weight: float = Field(default=0.1, ge=0, description="γ: how hard P and Q are held orthonormal.")

    @field_validator("target_rank")
    @classmethod
    def _within_rank(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value > info.data.get("rank", value):
            raise ValueError(f"it cannot be more than the rank, {info.data['rank']}")
        return value

    @property
    def target(self) -> int:
        return max(1, self.rank // 2) if self.target_rank is None else self.target_rank

    @field_validator("final")
    @classmethod
    def _leaves_time(cls, value: float, info: ValidationInfo) -> float:
        if value + info.data.get("initial", 0) >= 1:
            raise ValueError("initial and final together must leave a part of the run for the pruning")
        return value


class AdaLora(LowRank, spec=AdaLoraSpec):
    """ΔW = α/r0 · P diag(λ) Q, λ = 0 and P, Q orthonormal at the start: r0(d + κ) + r0 parameters.

    All layers of a set share a budget b(t). A triplet's score is that of λ_i plus the means of those of P's column and
    Q's row; an entry's score is the smoothed |w·∂w| times its smoothed deviation (equations 8–10). While the
    budget falls, every `interval` steps the λ outside the best b(t) are set to 0; as in the paper and in PEFT they
    go on learning, so one may come back. From the final phase on the choice is fixed, and λ is set to 0 after
    each step. Exactly b(t), rounded down, are kept, also where scores are equal.

    γ(‖PᵀP − I‖² + ‖QQᵀ − I‖²) is summed over layers (equation 4), so that γ weighs the same whatever other layers
    learn; PEFT takes the mean of norms not squared. A grouped convolution's P and Q are orthonormal in each group.
    Where the run's length is not known (`context.steps`) nothing is pruned. An average of the weights (EMA) still
    holds something of pruned triplets, and so does a file saved from it.
    """

    title: ClassVar[str] = "AdaLoRA"
    paper: ClassVar[str] = "arXiv 2303.10512"
    equation: ClassVar[str] = "ΔW = α/r₀ · P diag(λ) Q"
    depends_on_steps: ClassVar[bool] = True
    resume_only: ClassVar[frozenset[str]] = frozenset(f"{kind}_{f}" for kind in ("mean", "spread") for f in _FACTORS)

    kept: Tensor

    def __init__(self, site: Site, weight: Tensor, spec: AdaLoraSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        each = rank_within(site, spec.rank) // site.groups
        self.spec, self.scale, self.steps = spec, spec.scale, context.steps
        generator = context.generator(site.name)
        p = torch.randn(site.groups, site.rows // site.groups, each, generator=generator)
        q = torch.randn(site.groups, site.columns, each, generator=generator)
        # in fp64 on the CPU: the start does not depend on the device, and is orthonormal to the factors' rounding
        self.up = nn.Parameter(torch.linalg.qr(p.double()).Q.flatten(0, 1).to(weight))
        self.core = nn.Parameter(weight.new_zeros(spec.rank))
        self.down = nn.Parameter(torch.linalg.qr(q.double()).Q.mT.flatten(0, 1).to(weight))
        self.register_buffer("kept", torch.ones(spec.rank, dtype=torch.bool, device=weight.device))
        for name in _FACTORS:
            for kind in ("mean", "spread"):
                self.register_buffer(f"{kind}_{name}", torch.zeros_like(self.get_parameter(name)))

    def chain(self) -> Chain:
        return Chain(self.up, self.down, self.scale, self.core)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"down": [self.down], "up": [self.up], "core": [self.core]}

    def regulariser(self) -> Tensor | None:
        if self.spec.orthogonal_weight == 0:
            return None
        up, down = self.site.split_groups(self.up), self.site.split_groups(self.down)
        identity = torch.eye(up.shape[-1], dtype=up.dtype, device=up.device)
        return self.spec.orthogonal_weight * sum(
            ((gram - identity).square().sum() for gram in (up.mT @ up, down @ down.mT)), start=up.new_zeros(())
        )

    def settled(self, gradients: Mapping[str, Tensor], phase: str) -> dict[str, Tensor]:
        """Until the choice is fixed, the smoothed importance and its uncertainty; afterwards λ without the pruned."""
        if phase == _FIXED:
            return {"core": self.core.masked_fill(~self.kept, 0)}
        found: dict[str, Tensor] = {}
        for name, gradient in gradients.items() if phase == _WATCHED else ():
            mean, spread = getattr(self, f"mean_{name}"), getattr(self, f"spread_{name}")
            # a step skipped in fp16 must not stay for ever
            now = (getattr(self, name) * gradient).abs().nan_to_num(0, 0, 0)
            mean = mean.lerp(now, 1 - self.spec.beta1)
            found |= {f"mean_{name}": mean, f"spread_{name}": spread.lerp((now - mean).abs(), 1 - self.spec.beta2)}
        return found

    def scores(self) -> Tensor:
        """[r], one a triplet."""
        up, core, down = (self.get_buffer(f"mean_{name}") * self.get_buffer(f"spread_{name}") for name in _FACTORS)
        return core + self.site.split_groups(up).mean(1).flatten() + down.mean(1)

    @classmethod
    def schedule(cls, adapters: Sequence[AdaLora]) -> Schedule | None:
        """The phases of the run are those of the first layer's knobs; ranks and targets are each layer's own."""
        spec, steps = adapters[0].spec, adapters[0].steps
        if steps is None:
            return None
        ranks, targets = (sum(getattr(a.spec, knob) for a in adapters) for knob in ("rank", "target"))
        return Schedule(ranks, targets, int(spec.initial * steps), steps - int(spec.final * steps))

    @classmethod
    def phase(cls, adapters: Sequence[AdaLora], step: int) -> str:
        schedule = cls.schedule(adapters)
        if schedule is None or step == schedule.end:
            return ""
        return _WATCHED if step < schedule.end else _FIXED

    @classmethod
    @torch.no_grad()
    def on_step_all(cls, adapters: Sequence[AdaLora], step: int) -> None:
        schedule, interval = cls.schedule(adapters), adapters[0].spec.interval
        if schedule is None:
            return
        due = schedule.begin < step < schedule.end and step % interval == 0
        if not due and step != schedule.end:
            return
        scores = torch.cat([adapter.scores() for adapter in adapters]).cpu()
        kept = best(scores, schedule.budget(step)).to(adapters[0].kept.device)
        for adapter, part in zip(adapters, kept.split([a.spec.rank for a in adapters]), strict=True):
            adapter.kept.copy_(part)
            adapter.core.masked_fill_(~part, 0)
