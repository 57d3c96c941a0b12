"""From several adapter sets on one base to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet, knobs_told
from adapters.errors import UserInputError
from adapters.extras import summed
from adapters.fusion.deltas import LayerDelta, concatenated, delta_of
from adapters.fusion.grams import Watched
from adapters.fusion.way import FusionLayer, FusionOptions, LayerGrams, Way
from adapters.inject import build
from adapters.layer import master
from adapters.registry import make_spec
from adapters.sites import Site
from adapters.svd import Unread

DENSE_RANK = 64
"""Rank by which a change without factors (DoRA, OFT, LoKr) is told, where the options name none."""


@dataclass(frozen=True)
class Concept:
    """One adapter to be fused: built, not attached."""

    name: str
    adapters: AdapterSet
    weight: float = 1.0


@dataclass(frozen=True)
class Changes:
    """Every layer that any concept changes, and how: what a way, the activations and the report read."""

    concepts: Sequence[Concept]
    sites: Mapping[str, Site]
    deltas: Mapping[str, Mapping[int, LayerDelta]]
    """Layer → concept by its number → change, weights included."""

    def watched(self) -> dict[str, Watched]:
        """Rows [A_1; …; A_N] of every layer, in the order of LayerGrams."""
        return {
            name: Watched(self.sites[name], concatenated(self.sites[name], list(found.values())).down)
            for name, found in self.deltas.items()
        }


@torch.no_grad()
def changes_of(concepts: Sequence[Concept], options: FusionOptions) -> Changes:
    """The changes of every layer. Raises UserInputError for fewer than two concepts."""
    if len(concepts) < 2:
        raise UserInputError("A fusion needs two adapters or more.", "Name further adapter files or runs.")
    sites: dict[str, Site] = {}
    deltas: dict[str, dict[int, LayerDelta]] = {}
    for number, concept in enumerate(concepts):
        for name, adapter in concept.adapters.adapters.items():
            sites[name] = adapter.site
            found = delta_of(adapter, master(adapter.site.weight), options.rank or DENSE_RANK)
            deltas.setdefault(name, {})[number] = found.times(concept.weight)
    return Changes(concepts, sites, deltas)


@torch.no_grad()
def fused_deltas(
    changes: Changes, way: Way, options: FusionOptions, grams: Mapping[str, LayerGrams] | None = None
) -> dict[str, LayerDelta]:
    """The one change of every layer, by `way`.

    Raises:
        UserInputError: these concepts cannot be fused so, or the way needs activations and none are given.
    """
    if way.needs_activations and grams is None:
        raise UserInputError(f"{way.title} needs activations of each subject's prompts.", "Leave --no-prompts out.")
    result: dict[str, LayerDelta] = {}
    for name, found in changes.deltas.items():
        site = changes.sites[name]
        weight = master(site.weight)
        layer = FusionLayer(
            site=site,
            weight=weight,
            deltas=[_to(delta, weight) for delta in found.values()],
            names=[changes.concepts[number].name for number in found],
            concepts=len(changes.concepts),
            options=options,
            grams=None if grams is None or name not in grams else _grams_to(grams[name], weight),
        )
        result[name] = way.fuse(layer)
    return result


def _to(delta: LayerDelta, weight: Tensor) -> LayerDelta:
    return replace(delta, up=delta.up.to(weight), down=delta.down.to(weight))


def _grams_to(grams: LayerGrams, weight: Tensor) -> LayerGrams:
    inputs = [rows.to(weight) for rows in grams.inputs]
    return LayerGrams([gram.to(weight) for gram in grams.own], grams.neutral.to(weight), inputs)


def as_adapter(components: Mapping[str, nn.Module], changes: Changes, deltas: Mapping[str, LayerDelta]) -> AdapterSet:
    """The fused change as one adapter on all these layers."""
    targets: dict[str, list[str]] = {}
    for concept in changes.concepts:
        for component, target in concept.adapters.targets.items():
            targets.setdefault(component, []).append(target)
    joined = {component: ", ".join(dict.fromkeys(words)) for component, words in targets.items()}
    made = lora_of(components, joined, deltas)
    made.extras = summed([(concept.adapters.extras, concept.weight) for concept in changes.concepts])
    return made


@torch.no_grad()
def lora_of(
    components: Mapping[str, nn.Module], targets: Mapping[str, str], deltas: Mapping[str, LayerDelta]
) -> AdapterSet:
    """Changes as a LoRA of strength 1, not attached; `targets` names the layers of `deltas`, each with its own rank."""
    knobs, overrides = knobs_told({name: (("rank", delta.rank),) for name, delta in deltas.items()})
    spec = make_spec("lora", **knobs)
    made = build(components, spec, targets, seed=0, overrides=overrides, decomposer=Unread())
    for name, adapter in made.adapters.items():
        adapter.get_parameter("up").copy_(deltas[name].up)
        adapter.get_parameter("down").copy_(deltas[name].down)
    return made.eval()
