"""Options that several commands take, declared once; most are of training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from studio.training import Request

Folder = Annotated[
    Path | None, typer.Argument(metavar="FOLDER", help="Folder of pictures, with captions beside them or not.")
]
Trigger = Annotated[str | None, typer.Option(metavar="WORD", help="Word that will stand for the subject, such as sks.")]
ClassWord = Annotated[str | None, typer.Option("--class", metavar="WORD", help="What the subject is, such as dog.")]
Base = Annotated[
    str | None, typer.Option(metavar="BASE", help="embedded, a hub id, a diffusers folder or a .safetensors file.")
]
Adapter = Annotated[str | None, typer.Option(metavar="NAME", help="Method; studio adapters lists them.")]
Steps = Annotated[int | None, typer.Option(metavar="N", help="Optimizer steps.")]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="quick, balanced (unless said otherwise), best, small-gpu, low-memory or b-lora."
    ),
]
Config = Annotated[Path | None, typer.Option(metavar="FILE.yaml", help="Keys from a YAML file.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key, such as adapter.rank=32.")
]
Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of the run; left out: runs/<trigger>-<class>-<n>.")
]
QueueOut = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of the run; left out: one of the queue's, see jobs show.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where the run in --out stopped.")]
Library = Annotated[bool, typer.Option("--library", help="Add it to the library, too; prints its id.")]
Beside = Annotated[
    list[Path] | None,
    typer.Option("--with", metavar="ADAPTER", help="Learn on columns that this adapter does not use."),
]


def request(
    folder: Path | None,
    trigger: str | None,
    class_word: str | None,
    base: str | None,
    adapter: str | None,
    steps: int | None,
    preset: str | None,
    config: Path | None,
    assignments: list[str] | None,
    out: Path | None,
    resume: bool,
    beside: list[Path] | None,
) -> Request:
    """What these options ask for. Imports the trainer."""
    from studio.training import Request

    flags = {
        "data.folder": None if folder is None else str(folder.expanduser().absolute()),
        "data.captions.trigger": trigger,
        "data.captions.class_word": class_word,
        "base": base,
        "adapter.method": adapter,
        "steps": steps,
    }
    return Request(flags, preset, config, assignments or (), out, resume, beside or ())
