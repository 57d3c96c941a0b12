"""`studio slots`: which runs learnt on which columns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def slots(
    forget: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Free the slot of the run in this folder, which need not exist.")
    ] = None,
) -> None:
    """List the slots of columns that spectral adapters learnt on, or free one."""
    from studio import slot_registry

    if forget is not None:
        freed = slot_registry.forget(forget)
        typer.echo(f"Slot {freed.slot} of rank {freed.rank}, of {freed.name}, is free.")
        return
    known = slot_registry.claims()
    if not known:
        typer.echo("No run has a slot. studio train --adapter spectral-a --set adapter.slot=auto takes one.")
    for one in known:
        layers = "; ".join(f"{part}: {target}" for part, target in one.targets.items())
        typer.echo(
            f"slot {one.slot} of {one.slots}, rank {one.rank}, {one.columns} columns ({layers}), base "
            f"{one.base_hash[:12]}: {one.name}, {one.folder}{'' if one.is_held else ' (gone: free)'}"
        )
