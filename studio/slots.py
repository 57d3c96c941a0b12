"""Columns that are still free: beside given adapters (`studio train --with`), and beside all runs of the user's."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from adapters.base import AdapterSpec
from adapters.columns import SpectralSpec, slot_count
from adapters.errors import MismatchError, StudioError, UserInputError
from adapters.files import AdapterHeader, read_header
from adapters.targets import select_sites
from studio.sampling import adapter_path
from studio.slot_registry import Claim, claim, forget
from trainers.checkpoint import newest
from trainers.concept import concept_of
from trainers.config import TrainConfig
from trainers.outline import hash_of, networks_of
from trainers.result import ADAPTER_NAME

_KNOBS_OF_COLUMNS = ("rank", "columns", "slot")


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
    slot = _number(spec)
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
    return _range(_number(other), other)


def _range(slot: int, spec: SpectralSpec) -> range:
    if spec.columns == "comb":  # slots of one rank never meet
        return range(slot, slot + 1)
    return range(slot * spec.rank, (slot + 1) * spec.rank)


def _meet(first: range, second: range) -> bool:
    return first.start < second.stop and second.start < first.stop


def _number(spec: SpectralSpec) -> int:
    """The slot, or where a search for one begins."""
    return 0 if spec.slot == "auto" else spec.slot


@contextmanager
def claimed(config: TrainConfig, out: Path, *, insist: bool) -> Generator[tuple[TrainConfig, str | None]]:
    """The configuration with a slot that is registered for the run in `out`, and what to warn of.

    A method without columns goes as it is, and so do layers with columns of their own (targets.overrides), which have
    no slot in common. Where the run fails before anything is saved its slot is free again.

    Args:
        insist: refuse a slot that was asked for and is another concept's; one by default only makes a warning.

    Raises UserInputError where there is no such slot, or none is free.
    """
    wanted = _wanted(config, out)
    if wanted is None:
        yield config, None
        return
    spec = config.adapter
    assert isinstance(spec, SpectralSpec)
    asked = insist and "slot" in spec.model_fields_set
    got, met = claim(wanted, search=spec.slot == "auto", insist=asked)
    warning = met and (
        f"Slot {got.slot} is also that of {met.name} ({met.folder}): the two cannot be fused by their columns. "
        "--set adapter.slot=auto takes a free one."
    )
    try:
        yield config.model_copy(update={"adapter": spec.model_copy(update={"slot": got.slot})}), warning
    except BaseException:
        if newest(out) is None and not (out / ADAPTER_NAME).exists():
            with suppress(StudioError):
                forget(out)
        raise


def _wanted(config: TrainConfig, out: Path) -> Claim | None:
    """The claim that a configuration makes, with slot 0 where it is to be searched for."""
    spec, targets = config.adapter, config.targets.chosen()
    if not isinstance(spec, SpectralSpec):
        return None
    if any(knob in override.adapter for override in config.targets.overrides for knob in _KNOBS_OF_COLUMNS):
        if spec.slot == "auto":
            raise UserInputError(
                "Layers with columns of their own (targets.overrides) have no slot in common with other runs.",
                "Give a number as adapter.slot, or leave rank, columns and slot out of the overrides.",
            )
        return None
    networks = networks_of(config.base)
    sites = [site for part, target in targets.items() for site in select_sites(networks[part], part, target)]
    captions = config.data.captions
    return Claim(
        base_hash=hash_of(config.base),
        columns=spec.columns,
        rank=spec.rank,
        targets=targets,
        slots=max(1, slot_count(sites, spec.rank)),
        slot=_number(spec),
        concept=concept_of(config.data),
        trigger=captions.trigger,
        class_word=captions.class_word,
        folder=str(out.absolute()),
    )
