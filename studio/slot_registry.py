"""Who learnt on which columns: slots.json in the user's folder, over all runs, so that subjects of later runs fit in.

A run holds its slot as long as its folder is there. Columns are compared within one base: top ones by number, whatever
the ranks; combs with combs of the same rank and layers, since other combs are other columns.
"""

from __future__ import annotations

import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import BaseModel, Field, ValidationError

from adapters.atomic import atomic_path
from adapters.errors import FileFormatError, UnknownNameError, UserInputError
from studio.paths import state_dir


class Claim(BaseModel, frozen=True, extra="ignore"):
    """One run's slot."""

    base_hash: str
    columns: Literal["top", "comb"]
    rank: int = Field(ge=1)
    targets: dict[str, str]
    slots: int = Field(ge=1)
    """K: how many slots of that rank these layers have."""
    slot: int = Field(ge=0)
    concept: str
    trigger: str
    class_word: str
    folder: str

    @property
    def name(self) -> str:
        return f"{self.trigger} {self.class_word}".strip()

    @property
    def is_held(self) -> bool:
        return Path(self.folder).is_dir()

    def first_columns(self) -> range:
        """Of the top scheme: the columns by number."""
        return range(self.slot * self.rank, (self.slot + 1) * self.rank)

    def meets(self, other: Claim) -> bool:
        """Whether two claims are known to share columns."""
        if self.base_hash != other.base_hash or self.columns != other.columns:
            return False
        if self.columns == "comb":
            return _comb(self) == _comb(other)
        mine, others = self.first_columns(), other.first_columns()
        return mine.start < others.stop and others.start < mine.stop


def _comb(claim: Claim) -> tuple[object, ...]:
    return claim.slot, claim.rank, claim.slots, sorted(claim.targets.items())


class _Table(BaseModel, extra="ignore"):
    claims: list[Claim] = Field(default_factory=list[Claim])


def registry_path() -> Path:
    return state_dir() / "slots.json"


def claims() -> list[Claim]:
    """All claims, by base and slot; also those whose folder is gone."""
    return sorted(_read().claims, key=lambda one: (one.base_hash, one.columns, one.rank, one.slot))


def claim(wanted: Claim, *, search: bool, insist: bool) -> tuple[Claim, Claim | None]:
    """Registers a slot; returns it, and another concept's claim that it shares columns with, if it does.

    A run that is in the registry keeps its slot. What a concept has learnt on before is its own.

    Args:
        wanted: with the slot to take; where `search` is set, the first free one from hash(concept) mod K on.
        insist: refuse columns of another concept.

    Raises UserInputError where no slot is free, or the one insisted upon is not.
    """
    with _changing() as table:
        table.claims = [one for one in table.claims if one.is_held]
        known = [one for one in table.claims if one.folder == wanted.folder and one.concept == wanted.concept]
        others = [one for one in table.claims if one.concept != wanted.concept and one.folder != wanted.folder]
        if search:
            wanted = _search(wanted, known, others)
        met = next((one for one in others if wanted.meets(one)), None)
        if met is not None and insist:
            raise UserInputError(
                f"Slot {wanted.slot} of rank {wanted.rank} shares columns with {met.name}: {met.folder} has slot "
                f"{met.slot} of rank {met.rank}.",
                f"Use --set adapter.slot=auto, or free it: studio slots --forget {met.folder}",
            )
        table.claims = [one for one in table.claims if one.folder != wanted.folder] + [wanted]
    return wanted, met


def _search(wanted: Claim, known: Sequence[Claim], others: Sequence[Claim]) -> Claim:
    """Linear probing from the concept's own place; a run's own earlier slot first."""
    start = known[0].slot if known else uuid.UUID(wanted.concept).int % wanted.slots
    for step in range(wanted.slots):
        tried = wanted.model_copy(update={"slot": (start + step) % wanted.slots})
        if not any(tried.meets(one) for one in others):
            return tried
    raise UserInputError(
        f"All {wanted.slots} slots of rank {wanted.rank} in these layers are taken on this base.",
        "Choose a smaller rank, or free some: studio slots lists them, studio slots --forget RUN frees one.",
    )


def forget(folder: Path) -> Claim:
    """Frees a run's slot. Raises UnknownNameError where the registry does not know the run."""
    with _changing() as table:
        held = {one.folder: one for one in table.claims}
        found = held.pop(str(folder.absolute()), None)
        if found is None:
            raise UnknownNameError("run with a slot called", str(folder), list(held))
        table.claims = list(held.values())
    return found


@contextmanager
def _changing() -> Generator[_Table]:
    """The table, locked against other processes; written when the block ends without an error."""
    path = registry_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        table = _read()
        yield table
        with atomic_path(path) as temporary:
            temporary.write_text(table.model_dump_json(indent=1), encoding="utf-8")


def _read() -> _Table:
    path = registry_path()
    try:
        return _Table.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return _Table()
    except (ValidationError, UnicodeDecodeError) as error:
        raise FileFormatError(
            f"{path}, which says what runs learnt on which columns, cannot be read.",
            "Mend it, or delete it: runs from now on are registered anew.",
        ) from error
