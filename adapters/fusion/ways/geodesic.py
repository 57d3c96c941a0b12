"""OrthoFuse (arXiv 2604.05183): two rotations of a layer's inputs joined on the shortest way between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from adapters.errors import UserInputError
from adapters.fusion.deltas import LayerDelta, Rotation, compress
from adapters.fusion.way import Candidate, FusionLayer, Way
from adapters.rotations import cayley, turn_weight

_ROTATIONS = ("oft", "boft")


class Geodesic(Way, name="geodesic"):
    """R = R_1 (R_1ᵀR_2)^t block by block and level by level, then its angles made larger again.

    Halfway between two rotations both have about half their angles. The paper's spectra restoration turns an angle φ
    into 2·atan(η sin φ), η = ½ + 2t(1 − t): about φ at both ends and 2φ halfway, where small rotations so add up. The
    result is a rotation still, W' = W·Rᵀ, whose change is factored to `rank`. BOFT's gains are joined alike,
    2η((1 − t)g_1 + t g_2); the paper leaves the first adapter's.
    """

    title: ClassVar[str] = "OrthoFuse"
    paper: ClassVar[str] = "arXiv 2604.05183"
    meaning: ClassVar[str] = "Joins the rotations of two OFT or BOFT adapters halfway between them; nearly their sum."
    knobs: ClassVar[tuple[str, ...]] = ("position", "rank", "samples")
    samples_inputs: ClassVar[bool] = True

    @classmethod
    def refusal(cls, candidates: Sequence[Candidate]) -> str:
        for one in candidates:
            if one.method not in _ROTATIONS or one.weight != 1:
                return _no_rotation(one.name)
        return "" if len(candidates) == 2 else _not_two(len(candidates))

    def fuse(self, layer: FusionLayer) -> LayerDelta:
        rotations = [_rotation(name, delta) for name, delta in zip(layer.names, layer.deltas, strict=True)]
        if layer.concepts != 2:
            raise UserInputError(_not_two(layer.concepts), "Fuse two, or choose another --how.")
        if len(rotations) == 1:
            return layer.deltas[0]
        first, second = rotations
        if first.turns.shape != second.turns.shape:
            raise UserInputError(
                f"The two adapters cut {layer.site.name} into other blocks.",
                "Train both with the same block_size (and factors), or choose another --how.",
            )
        t = layer.options.position
        eta = 0.5 + 2 * t * (1 - t)
        turns = restored(between(first.turns, second.turns, t), eta)
        moved = turn_weight(layer.site, layer.weight, turns)
        gain = 2 * eta * ((1 - t) * first.gain + t * second.gain)
        rows = layer.site.matricise(moved)
        change = rows + gain[:, None] * (layer.site.matricise(layer.weight) + rows)
        return compress(layer.site, change, layer.rank)


def _rotation(name: str, delta: LayerDelta) -> Rotation:
    if delta.rotation is None:
        raise UserInputError(
            _no_rotation(name),
            "Train with --adapter oft, leave --weights out (position says which counts more), or choose another --how.",
        )
    return delta.rotation


def _no_rotation(name: str) -> str:
    return f"{name} is no rotation: a geodesic joins OFT and BOFT adapters of weight 1."


def _not_two(count: int) -> str:
    return f"A geodesic lies between two adapters, not {count}."


def between(first: Tensor, second: Tensor, t: float) -> Tensor:
    """R_1 (R_1ᵀR_2)^t from R_1 − I and R_2 − I, [..., n, n].

    The power by the real angles of R_1ᵀR_2 = (I − Q)(I + Q)⁻¹: Q/i is Hermitian, so that equal angles do no harm.
    """
    eye = torch.eye(first.shape[-1]).to(first)
    relative = (eye + first).mT @ (eye + second)
    skew = torch.linalg.solve(eye + relative, eye - relative)
    tangents, vectors = torch.linalg.eigh(-0.5j * (skew - skew.mT))
    power = (vectors * torch.exp(-2j * t * tangents.atan())[..., None, :]) @ vectors.mH
    return (eye + first) @ power.real


def restored(rotation: Tensor, eta: float) -> Tensor:
    """R' − I, R' = (I + K)(I − K)⁻¹, K = η(R − Rᵀ)/2: angles φ become 2·atan(η sin φ)."""
    return cayley(-eta * rotation) - torch.eye(rotation.shape[-1]).to(rotation)
