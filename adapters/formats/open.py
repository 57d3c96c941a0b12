"""Any adapter file, whoever wrote it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from torch import nn

from adapters.adapter_set import AdapterSet
from adapters.files import AdapterCard, AdapterFile, attach_file, load_adapter, read_header
from adapters.formats.convert import convert, whole_set
from adapters.formats.foreign import ForeignFile, is_foreign, read_foreign, read_foreign_facts
from adapters.formats.placed import place

AnyFile = AdapterFile | ForeignFile
NOTABLE = 0.01
"""Relative error of a layer from which a person is told."""


def open_adapter(path: str | os.PathLike[str]) -> AnyFile:
    """A file of ours or of another program's. Raises what files.load_adapter and foreign.read_foreign raise."""
    return read_foreign(path) if is_foreign(path) else load_adapter(path)


def read_facts(path: str | os.PathLike[str]) -> tuple[str, AdapterCard]:
    """Method and card of either kind, by the header alone. Raises what files.read_header and read_foreign raise."""
    if is_foreign(path):
        return read_foreign_facts(path)
    header = read_header(path)
    return header.spec.method, header.card


def attach_any(
    components: Mapping[str, nn.Module],
    file: AnyFile,
    known_hash: str | None = None,
    part: str | None = None,
    rank: int = 64,
) -> AdapterSet:
    """files.attach_file for either kind; its `warning` also says what another program's file lost on the way.

    Args:
        rank: by which changes without factors are told (foreign.convert).
    """
    if isinstance(file, AdapterFile):
        return attach_file(components, file, known_hash, part)
    converted = convert(file, components, rank)
    adapters = attach_file(components, converted.file, known_hash, part)
    notes = [f"a rank of {rank} leaves out up to {converted.error:.0%} of a layer's change"]
    adapters.warning = _warning(file, converted.left_out, notes if converted.error > NOTABLE else [])
    return adapters


def attach_whole(components: Mapping[str, nn.Module], file: AnyFile, known_hash: str | None = None) -> AdapterSet:
    """attach_any for a set that is only to be merged: nothing of another program's file is cut to a rank."""
    if isinstance(file, AdapterFile):
        return attach_file(components, file, known_hash)
    placed = place(file, components)
    adapters = whole_set(placed, components)
    adapters.attach()
    adapters.warning = _warning(file, placed.left_out, [])
    return adapters.eval()


def _warning(file: ForeignFile, left_out: Sequence[str], notes: Sequence[str]) -> str | None:
    told = list(notes)
    if left_out:
        told.insert(0, f"{len(left_out)} parts have no place in this base (such as {left_out[0]})")
    return f"{file.path} was made by another program: {'; '.join(told)}." if told else None
