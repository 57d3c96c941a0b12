"""What adapters do to each other, in their weights and on real prompts: numbers, and a verdict for a person."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from pydantic import BaseModel, ConfigDict, Field

from adapters.fusion.deltas import LayerDelta, concatenated, in_terms_of, inner, row_directions, spans_of
from adapters.fusion.fuse import Changes
from adapters.fusion.way import LayerGrams
from adapters.sites import Site

STRONG = 0.3
"""Crosstalk, or loss of a subject's own output, from which a person will see it (docs/fusion.md)."""
WEAK = 0.1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PairReport(_Part):
    """Two concepts in one layer, or over all (root mean squares; collisions are summed)."""

    first: str
    second: str
    shared_columns: int = Field(description="columns of W's singular vectors that both learnt on")
    overlap: float = Field(description="cosine of the two changes, ⟨ΔW_1, ΔW_2⟩/(‖ΔW_1‖ ‖ΔW_2‖)")
    angle: float = Field(description="cosine of the smallest principal angle between what the two look at (rows)")
    crosstalk: float | None = Field(description="‖ΔW_2 x‖/‖ΔW_1 x‖ on the first's prompts")
    crosstalk_back: float | None = Field(description="‖ΔW_1 x‖/‖ΔW_2 x‖ on the second's prompts")


class ConceptReport(_Part):
    name: str
    lost: float | None = Field(description="‖ΔW x − ΔW_1 x‖/‖ΔW_1 x‖ on its own prompts: what fusion changes there")
    drift: float | None = Field(description="‖ΔW_1 x‖ on neutral prompts, over ‖ΔW_1 x‖ on its own")
    error: float = Field(description="what of its change the factors leave out")


class LayerReport(_Part):
    layer: str
    pairs: tuple[PairReport, ...]
    concepts: tuple[ConceptReport, ...]


class FusionReport(_Part):
    """Everything about one fusion; `verdict` is for people."""

    way: str
    concepts: tuple[ConceptReport, ...]
    pairs: tuple[PairReport, ...]
    drift: float | None = Field(
        description="the fused change on neutral prompts, over the largest of single ones there"
    )
    layers: tuple[LayerReport, ...]
    verdict: str


@torch.no_grad()
def report_on(
    way: str, changes: Changes, fused: Mapping[str, LayerDelta], grams: Mapping[str, LayerGrams] | None
) -> FusionReport:
    """Judges a fusion layer by layer and as a whole.

    Args:
        fused: as fuse.fused_deltas gives it.
        grams: second moments of activations; without them everything on prompts is None.
    """
    layers: list[LayerReport] = []
    energies: dict[str, _Energies] = {}
    for name, found in changes.deltas.items():
        names = {number: changes.concepts[number].name for number in found}
        measured = None if grams is None or name not in grams else grams[name]
        if measured is not None:
            energies[name] = _Energies(changes.sites[name], found, fused[name], measured)
        layers.append(_layer(name, changes.sites[name], found, names, energies.get(name)))
    names = [concept.name for concept in changes.concepts]
    concepts = tuple(_over_all_concept(name, layers) for name in names)
    pairs = tuple(_over_all_pair(first, second, layers) for first, second in combinations(names, 2))
    drift = _drift(list(energies.values()))
    return FusionReport(
        way=way,
        concepts=concepts,
        pairs=pairs,
        drift=drift,
        layers=tuple(layers),
        verdict=_verdict(concepts, pairs, drift),
    )


class _Energies:
    """E‖…‖² of single and fused changes on each concept's prompts and on neutral ones, of one layer."""

    def __init__(self, site: Site, found: Mapping[int, LayerDelta], fused: LayerDelta, grams: LayerGrams) -> None:
        order = list(found)
        ups = [found[number].up.float().cpu() for number in order]
        spans = spans_of(list(found.values()))
        old = concatenated(site, list(found.values())).down.float().cpu()
        moments = _moments(old, fused.down.float().cpu(), grams)
        whole = torch.nn.functional.pad(fused.up.float().cpu(), (len(old), 0))  # as it acts on [old; new] x
        self.single: dict[tuple[int, int], float] = {}
        self.neutral: dict[int, float] = {}
        self.lost: dict[int, float] = {}
        for at, number in enumerate(order):
            gram = moments[at]
            for other, up, span in zip(order, ups, spans, strict=True):
                self.single[number, other] = _energy(up, gram[span, span])
            wanted = torch.zeros_like(whole)
            wanted[:, spans[at]] = ups[at]
            self.lost[number] = _energy(whole - wanted, gram)
            self.neutral[number] = _energy(ups[at], moments[-1][spans[at], spans[at]])
        self.fused_neutral = _energy(whole, moments[-1])


def _moments(old: torch.Tensor, new: torch.Tensor, grams: LayerGrams) -> list[torch.Tensor]:
    """E[z zᵀ] of z = [old; new] x on each concept's prompts, then on neutral ones.

    From the second moments of old x, where new are combinations of old; else from the sampled inputs.
    """
    if grams.inputs:
        outputs = [rows.float() @ torch.cat([old, new]).mT for rows in grams.inputs]
        return [z.mT @ z / max(1, len(z)) for z in outputs]
    both = torch.cat([torch.eye(len(old)), in_terms_of(old, new)])
    return [both @ gram.float() @ both.mT for gram in (*grams.own, grams.neutral)]


def _energy(up: torch.Tensor, gram: torch.Tensor) -> float:
    """E‖B z‖² = tr(B G Bᵀ)."""
    return max(0.0, float(((up @ gram) * up).sum()))


def _layer(
    name: str, site: Site, found: Mapping[int, LayerDelta], names: Mapping[int, str], energies: _Energies | None
) -> LayerReport:
    pairs = [
        PairReport(
            first=names[a],
            second=names[b],
            shared_columns=_shared(found[a], found[b]),
            overlap=_cosine(site, found[a], found[b]),
            angle=_closest(site, found[a], found[b]),
            crosstalk=None if energies is None else _ratio(energies.single[a, b], energies.single[a, a]),
            crosstalk_back=None if energies is None else _ratio(energies.single[b, a], energies.single[b, b]),
        )
        for a, b in combinations(found, 2)
    ]
    concepts = [
        ConceptReport(
            name=names[number],
            lost=None if energies is None else _ratio(energies.lost[number], energies.single[number, number]),
            drift=None if energies is None else _ratio(energies.neutral[number], energies.single[number, number]),
            error=delta.error,
        )
        for number, delta in found.items()
    ]
    return LayerReport(layer=name, pairs=tuple(pairs), concepts=tuple(concepts))


def _shared(first: LayerDelta, second: LayerDelta) -> int:
    if first.columns is None or second.columns is None:
        return 0
    return int(torch.isin(first.columns.indices, second.columns.indices).sum())


def _cosine(site: Site, first: LayerDelta, second: LayerDelta) -> float:
    norms = math.sqrt(inner(site, first, first) * inner(site, second, second))
    return inner(site, first, second) / norms if norms > 0 else 0.0


def _closest(site: Site, first: LayerDelta, second: LayerDelta) -> float:
    one, two = row_directions(site, first, 0.99), row_directions(site, second, 0.99)
    if one.shape[1] == 0 or two.shape[1] == 0:
        return 0.0
    return min(1.0, float(torch.linalg.svdvals(one @ two.mT).max()))


def _ratio(part: float, whole: float) -> float:
    return math.sqrt(part / whole) if whole > 0 else 0.0


def root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values)) if values else 0.0


def _known(values: Sequence[float | None]) -> float | None:
    """The root mean square of those that were measured."""
    known = [value for value in values if value is not None]
    return root_mean_square(known) if known else None


def _over_all_pair(first: str, second: str, layers: Sequence[LayerReport]) -> PairReport:
    met = [pair for layer in layers for pair in layer.pairs if (pair.first, pair.second) == (first, second)]
    return PairReport(
        first=first,
        second=second,
        shared_columns=sum(pair.shared_columns for pair in met),
        overlap=root_mean_square([pair.overlap for pair in met]),
        angle=root_mean_square([pair.angle for pair in met]),
        crosstalk=_known([pair.crosstalk for pair in met]),
        crosstalk_back=_known([pair.crosstalk_back for pair in met]),
    )


def _over_all_concept(name: str, layers: Sequence[LayerReport]) -> ConceptReport:
    met = [concept for layer in layers for concept in layer.concepts if concept.name == name]
    return ConceptReport(
        name=name,
        lost=_known([concept.lost for concept in met]),
        drift=_known([concept.drift for concept in met]),
        error=root_mean_square([concept.error for concept in met]),
    )


def _drift(energies: Sequence[_Energies]) -> float | None:
    """Layer by layer over the largest single one's, root mean square."""
    ratios = [_ratio(e.fused_neutral, max(e.neutral.values())) for e in energies if max(e.neutral.values()) > 0]
    return _known(ratios)


def _verdict(concepts: Sequence[ConceptReport], pairs: Sequence[PairReport], drift: float | None) -> str:
    collided = [pair for pair in pairs if pair.shared_columns]
    if collided:
        named = "; ".join(f"{pair.first} and {pair.second}" for pair in collided)
        return (
            f"These subjects learnt on the same columns and will mix: {named}. Train one again with --with the other."
        )
    known = [(concept.lost, concept.name) for concept in concepts if concept.lost is not None]
    if not known:
        return "Only weights were compared; what happens in pictures was not measured."
    worst, name = max(known)
    strength = "hardly changes" if worst < WEAK else "changes somewhat" if worst < STRONG else "changes strongly"
    text = f"On its own prompts each subject's effect {strength}: by {worst:.0%} at most ({name})."
    if drift is not None and drift > 1 + WEAK:
        text += f" Pictures without these subjects drift {drift:.1f} × as far as with one adapter."
    return text
