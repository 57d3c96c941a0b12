"""Columns that are still free: a new subject beside others that it is to be fused with (`studio train --with`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adapters.base import AdapterSpec
from adapters.columns import SpectralSpec
from adapters.errors import MismatchError, UserInputError
from adapters.files import AdapterHeader, read_header
from studio.sampling import adapter_path


def beside(spec: AdapterSpec, others: Sequence[Path]) -> AdapterSpec:
    """`spec` on the first slot, from its own on, that none of these adapters learnt on.

    Adapters of other methods have no columns: when fused, they are moved to free ones.

    Raises:
        UserInputError: the method has no columns.
        MismatchError: an adapter's columns cannot be compared with these: which they are depends on its layers.
    """
    if not isinstance(spec, SpectralSpec):
        raise UserInputError(
            f"--with picks columns for a subject, and {spec.method} has none.",
            "Add --adapter spectral-a (or spectral-r), or leave --with out.",
        )
    taken: list[range] = []
    for path in map(adapter_path, others):
        other = read_header(path)
        if isinstance(other.spec, SpectralSpec):
            taken.append(_taken(spec, other, other.spec, path))
    slot = spec.slot
    while any(_meet(_range(slot, spec), used) for used in taken):
        slot += 1
    return spec.model_copy(update={"slot": slot})


def _taken(spec: SpectralSpec, header: AdapterHeader, other: SpectralSpec, path: Path) -> range:
    """The other's columns, counted as the new one's are: by number, or (comb) by slot."""
    ranks = {int(override.adapter.get("rank", other.rank)) for override in header.overrides} | {other.rank}
    if other.columns != spec.columns or (spec.columns == "comb" and ranks != {spec.rank}) or len(ranks) > 1:
        raise MismatchError(
            f"{path} learnt on {other.columns} columns of rank {', '.join(map(str, sorted(ranks)))}; these are "
            f"{spec.columns} columns of rank {spec.rank}.",
            f"Use --set adapter.columns={other.columns} --set adapter.rank={other.rank}.",
        )
    return _range(other.slot, other)


def _range(slot: int, spec: SpectralSpec) -> range:
    if spec.columns == "comb":  # slots of one rank never meet
        return range(slot, slot + 1)
    return range(slot * spec.rank, (slot + 1) * spec.rank)


def _meet(first: range, second: range) -> bool:
    return first.start < second.stop and second.start < first.stop
