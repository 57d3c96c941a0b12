"""Adapters of one group put together by a way of the registry; activations are gathered once for all ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from adapters.adapter_set import AdapterSet
from adapters.formats.open import AnyFile, attach_any
from adapters.fusion.fuse import Changes, Concept, as_adapter, changes_of, fused_deltas
from adapters.fusion.report import FusionReport, report_on, root_mean_square
from adapters.fusion.way import FusionOptions, LayerGrams, find_way
from benchmarks.fusion.variants import Variant
from studio.fusing import prompts_of
from trainers.activations import gather
from trainers.sdxl import Base


@dataclass
class Fusing:
    """A group's adapters: what all ways read of them, on the CPU.

    A way is thousands of small products, many of which wait for their result: on a card that processes share, each of
    them waits for its turn (12 s a sum there, 0.1 s on one core).
    """

    base: Base
    changes: Changes
    grams: Mapping[str, LayerGrams]

    @classmethod
    @torch.no_grad()
    def of(cls, base: Base, on_cpu: Base, files: Sequence[AnyFile]) -> Fusing:
        """`on_cpu` is the same base there, or `base` itself."""
        changes = changes_of(_concepts(on_cpu, files), FusionOptions())
        concepts = _concepts(base, files)
        sites = {name: adapter.site for concept in concepts for name, adapter in concept.adapters.adapters.items()}
        prompts, samples = prompts_of([file.card for file in files]), FusionOptions().samples
        watched = replace(changes, concepts=concepts, sites=sites)
        found = list(gather(base, watched, prompts, samples=samples))[-1]
        assert isinstance(found, dict)
        return cls(base, changes, found)

    @torch.no_grad()
    def by(self, variant: Variant) -> tuple[AdapterSet, dict[str, Any]]:
        """The fused adapter, not attached, and what the report says. Raises UserInputError where the way refuses."""
        assert variant.way is not None
        way, options = find_way(variant.way), variant.options
        deltas = fused_deltas(self.changes, way, options, self.grams)
        report = report_on(variant.way, self.changes, deltas, self.grams)
        adapter = as_adapter(self.base.components, self.changes, deltas)
        adapter.to(self.base.device)
        return adapter, told(report)


def _concepts(base: Base, files: Sequence[AnyFile]) -> list[Concept]:
    """The files' adapters on their base's device, not attached."""
    concepts: list[Concept] = []
    for file in files:
        adapters = attach_any(base.components, file, base.hash)
        adapters.detach()
        adapters.to(base.device)
        concepts.append(Concept(file.card.trigger, adapters))
    return concepts


def told(report: FusionReport) -> dict[str, Any]:
    """What is compared with the pictures: root mean squares over pairs and concepts."""
    crosstalk = [value for pair in report.pairs for value in (pair.crosstalk, pair.crosstalk_back) if value is not None]
    return {
        "overlap": root_mean_square([pair.overlap for pair in report.pairs]),
        "angle": root_mean_square([pair.angle for pair in report.pairs]),
        "crosstalk": root_mean_square(crosstalk),
        "lost": root_mean_square([concept.lost for concept in report.concepts if concept.lost is not None]),
        "neutral": report.drift,
    }
