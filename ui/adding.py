"""Adapter files that were sent, put into the library one by one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from adapters.errors import StudioError
from ui.studio import Studio
from ui.uploads import received

_PEFT = "adapter_config.json"
"""PEFT keeps alphas in it, beside its file."""


def add(studio: Studio, paths: Sequence[str | Path]) -> tuple[list[str], list[str]]:
    """Ids of those that were taken, and a sentence for each file that was not. The files are gone afterwards."""
    files = received(studio.home, paths)
    beside = next((file for file in files if file.name == _PEFT), None)
    taken: list[str] = []
    refused: list[str] = []
    for file in files:
        if file == beside and len(files) > 1:
            continue
        try:
            taken.append(_add(studio, file, beside))
        except StudioError as error:
            refused.append(f"{file.name}: {error}")
    for file in files:
        file.unlink(missing_ok=True)
    return taken, refused


def _add(studio: Studio, file: Path, beside: Path | None) -> str:
    """In a folder of its own, where what belongs to it can lie beside it."""
    with TemporaryDirectory(dir=studio.home / "web") as folder:
        lying = Path(folder) / file.name
        shutil.move(file, lying)
        if beside is not None and beside.is_file():
            shutil.copyfile(beside, lying.with_name(_PEFT))
        try:
            return studio.clerk.ask("take", home=str(studio.home), path=str(lying))
        except StudioError as error:  # where it lies says nothing to whoever sent it
            raise StudioError(error.what.replace(str(lying), "It"), error.fix.replace(str(lying), "it")) from error
