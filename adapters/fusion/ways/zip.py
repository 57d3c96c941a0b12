"""ZipLoRA (arXiv 2311.13600): learnt numbers say how much of each column of each change is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from adapters.fusion.deltas import LayerDelta, concatenated, spans_of
from adapters.fusion.way import FusionLayer, Way
from adapters.sites import Site


class Zip(Way, name="zip"):
    """Σ ΔW_i·diag(m_i) with mergers m_i that minimise, from m = 1 by Adam,

        Σ_i E_i‖Σ_j ΔW_j·diag(m_j) x − ΔW_i x‖² / E_i‖ΔW_i x‖² + λ Σ_{i<j} mean|m_i ∘ m_j|,

    E_i over inputs x of this layer on prompts of concept i. The paper compares the noise that the whole model predicts
    with that of each adapter alone; here each layer's own outputs are compared, so that no step runs the model. λ's
    term is the paper's |m_i·m_j| where no merger is negative, over the columns, so that λ weighs the same in wide
    layers. On a convolution m_i scales input channels, all taps alike: a column of the paper is a feature of the
    input, and one number a tap would be more unknowns than samples tell. ΔW_i·diag(m_i) = B_i (A_i·diag(m_i)) is exact.
    Layers with groups are summed.
    """

    title: ClassVar[str] = "ZipLoRA"
    paper: ClassVar[str] = "arXiv 2311.13600"
    meaning: ClassVar[str] = (
        "Learns how much of each subject to keep, input by input; as good as least squares with two subjects "
        "(71 of 100 kept), nearly so with three, and slower."
    )
    knobs: ClassVar[tuple[str, ...]] = ("steps", "learning_rate", "similarity", "samples")
    needs_activations: ClassVar[bool] = True
    samples_inputs: ClassVar[bool] = True

    def fuse(self, layer: FusionLayer) -> LayerDelta:
        site, deltas = layer.site, layer.deltas
        if layer.grams is None or len(deltas) == 1:
            return concatenated(site, deltas)
        options = layer.options
        problem = Zipped(site, deltas, layer.grams.inputs[:-1], options.similarity)
        columns = spread(site, problem.learnt(options.steps, options.learning_rate))
        return concatenated(site, [replace(d, down=d.down * m) for d, m in zip(deltas, columns, strict=True)])


def spread(site: Site, merger: Tensor) -> Tensor:
    """A number an input channel as one a column of the matrix. [..., c] → [..., κ]"""
    return merger.repeat_interleave(site.columns // site.channels, dim=-1)


class Zipped:
    """One layer's problem. All is told of A x and BᵀB: no d×κ matrix is made.

    Args:
        deltas: ΔW_i = B_i A_i, N of them.
        inputs: x on prompts of each concept, [n_i, κ].
        similarity: λ.
    """

    def __init__(self, site: Site, deltas: Sequence[LayerDelta], inputs: Sequence[Tensor], similarity: float) -> None:
        whole = concatenated(site, deltas)
        self.site, self.similarity, self.count = site, similarity, len(deltas)
        self.down, self.inputs, self.metric = whole.down, torch.cat(list(inputs)), whole.up.mT @ whole.up
        self.owner = self.down.new_zeros(whole.rank, self.count)
        seen = self.inputs @ self.down.mT
        self.target = torch.zeros_like(seen)
        self.weight = seen.new_zeros(len(seen), 1)
        rows = torch.arange(len(seen)).split([len(part) for part in inputs])
        for number, (span, own) in enumerate(zip(spans_of(deltas), rows, strict=True)):
            self.owner[span, number] = 1
            self.target[own, span] = seen[own, span]
            energy = ((seen[own, span] @ self.metric[span, span]) * seen[own, span]).sum()
            self.weight[own] = torch.where(energy > 0, 1 / energy, 0)

    def objective(self, mergers: Tensor) -> Tensor:
        """What is minimised. [N, c] → ()"""
        error, size = self._error(mergers), mergers.abs()
        shared = (size.sum(0).square() - size.square().sum(0)).mean() / 2
        return (self.weight * (error @ self.metric) * error).sum() + self.similarity * shared

    def gradient(self, mergers: Tensor) -> Tensor:
        """Of the objective, in closed form: two products with the inputs. [N, c] → [N, c]"""
        pulled = 2 * self.weight * (self._error(mergers) @ self.metric)
        slope = self.owner.mT @ ((pulled.mT @ self.inputs) * self.down)
        size = mergers.abs()
        shared = mergers.sign() * (size.sum(0) - size) / self.site.channels
        return slope.unflatten(1, (self.site.channels, -1)).sum(2) + self.similarity * shared

    def _error(self, mergers: Tensor) -> Tensor:
        """A·diag(m) x less what should be there, [Σn, Σr]."""
        scaled = self.down * spread(self.site, self.owner @ mergers)
        return torch.addmm(self.target, self.inputs, scaled.mT, beta=-1)

    def learnt(self, steps: int, learning_rate: float) -> Tensor:
        """The mergers, [N, c]."""
        mergers = self.down.new_ones(self.count, self.site.channels)
        adam = torch.optim.Adam([mergers], lr=learning_rate)
        for _ in range(steps):
            mergers.grad = self.gradient(mergers)
            adam.step()
        return mergers
