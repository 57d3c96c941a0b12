"""The commands of the library. Their modules are imported when they run."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from studio.library import Library
    from studio.store import LibraryAdapter

library = typer.Typer(no_args_is_help=True, help="Keep adapters: find, tag, rename and throw them away.")
Id = Annotated[str, typer.Argument(metavar="ADAPTER", help="Its id, or as much of it as tells it from others.")]
Ids = Annotated[list[str], typer.Argument(metavar="ADAPTER...", help="Ids, or the beginnings of ids.")]
Tags = Annotated[list[str], typer.Argument(metavar="TAG...", help="Tags.")]
Tag = Annotated[str | None, typer.Option(metavar="TAG", help="Only those with this tag.")]
Base = Annotated[str | None, typer.Option(metavar="BASE", help="Only those made on the base of this name, or hash.")]
Trash = Annotated[bool, typer.Option("--trash", help="What is in the trash.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]


def add_to(app: typer.Typer) -> None:
    app.add_typer(library, name="library")


@library.command("list")
def list_adapters(tag: Tag = None, base: Base = None, trash: Trash = False, as_json: Json = False) -> None:
    """List the adapters, the newest first."""
    _list("", tag, base, trash, as_json)


@library.command()
def search(
    text: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Words, or parts of words.")],
    tag: Tag = None,
    base: Base = None,
    trash: Trash = False,
    as_json: Json = False,
) -> None:
    """List those that have every word in their name, trigger, class, tags, method or base."""
    _list(" ".join(text), tag, base, trash, as_json)


def _list(text: str, tag: str | None, base: str | None, trash: bool, as_json: bool) -> None:
    from studio import library_texts
    from studio.library import Library

    shelf = Library()
    found = shelf.list_adapters(text, tag=tag, base=base, trashed=trash)
    if as_json:
        typer.echo(json.dumps([library_texts.as_json(shelf, entry) for entry in found], indent=1))
    else:
        Console().print(library_texts.table(shelf, found) if found else "There is none.")


@library.command()
def show(adapter: Id, as_json: Json = False) -> None:
    """Tell all about one adapter: its base, its words, what it was made of and what was made of it."""
    from studio import library_texts
    from studio.library import Library

    shelf = Library()
    entry = shelf.get_adapter(adapter)
    if as_json:
        typer.echo(json.dumps(library_texts.whole_json(shelf, entry), indent=1))
        return
    for line in library_texts.lines(shelf, entry):
        typer.echo(line)


@library.command()
def add(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Adapter files or run folders.")],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What to call it; left out: by what it was taught.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="TAG", help="A tag; may be given several times.")] = None,
) -> None:
    """Copy adapters into the library; prints their ids. A file that is there already keeps its name."""
    from studio.library import Library
    from studio.library_texts import short

    shelf = Library()
    for file in files:
        id = shelf.add(file, name=name)
        if tag:
            shelf.tag(id, tag)
        typer.echo(short(id))


@library.command()
def tag(adapter: Id, tags: Tags) -> None:
    """Tag an adapter; prints its tags."""
    _edit(lambda shelf: shelf.tag(adapter, tags))


@library.command()
def untag(adapter: Id, tags: Tags) -> None:
    """Take tags away; prints those that are left."""
    _edit(lambda shelf: shelf.untag(adapter, tags))


def _edit(edit: Callable[[Library], LibraryAdapter]) -> None:
    from studio.library import Library

    typer.echo(", ".join(edit(Library()).tags))


@library.command()
def rename(adapter: Id, name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")]) -> None:
    """Give an adapter another name. Its id and its file stay."""
    from studio.library import Library

    typer.echo(Library().rename(adapter, name).name)


@library.command()
def trash(adapters: Ids) -> None:
    """Put adapters into the trash; studio library restore takes them out again."""
    from studio.library import Library

    shelf = Library()
    for id in _all_of(shelf, adapters):
        typer.echo(shelf.trash(id).name)


@library.command()
def restore(adapters: Ids) -> None:
    """Take adapters out of the trash."""
    from studio.library import Library

    shelf = Library()
    for id in _all_of(shelf, adapters):
        typer.echo(shelf.restore(id).name)


def _all_of(shelf: Library, adapters: list[str]) -> list[str]:
    """Their whole ids, found before any is changed: one that is not there stops all, not some."""
    return [shelf.get_adapter(id).id for id in adapters]


@library.command()
def empty(
    older_than: Annotated[
        float, typer.Option(metavar="DAYS", min=0, max=36500, help="Only what has been in the trash for so long.")
    ] = 0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete what is in the trash, for good; prints what it was."""
    from studio.library import Library

    if not yes:
        typer.confirm("Delete the files in the trash for good?", abort=True)
    for entry in Library().empty_trash(timedelta(days=older_than)):
        typer.echo(entry.name)
