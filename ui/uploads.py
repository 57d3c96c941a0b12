"""A drop of files, judged one by one: pictures are taken, captions go to their pictures, the rest is named and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import gradio as gr
from gradio import processing_utils

from adapters.errors import StudioError, UserInputError
from trainers.decode import readable_suffixes
from ui.drafts import MAX_CAPTION, Draft, Drafts

_HERE = Path(__file__).parent
_SAMPLES = (_HERE / "samples" / "octopus", _HERE.parent / "examples" / "octopus")
"""In an installed package (pyproject.toml puts them there), and in a checkout."""
_TEXT = ".txt"
_SERVED = "/gradio_api/file="
"""What Gradio puts before an upload's path to make an address of it."""


def only_what_was_sent(demo: gr.Blocks, home: Path) -> None:
    """Has Gradio take nothing for an upload but what was uploaded.

    An app that is mounted never counts as launched by itself, and before its launch Gradio copies whatever path a
    request names to where it can be fetched from. What is named by an address it would fetch.
    """
    demo.has_launched = True

    async def sent_here(url: str, cache_dir: str) -> str:
        del cache_dir
        try:
            return str(received(home, [path_of(url)])[0])
        except UserInputError as error:
            raise gr.Error(str(error), print_exception=False) from error

    processing_utils.async_ssrf_protected_download = sent_here


def path_of(address: str) -> str:
    """The path that an upload's address (or its path) names; whether it is one, `received` says."""
    return unquote(urlsplit(address).path).removeprefix(_SERVED)


def received(home: Path, paths: Sequence[str | Path]) -> list[Path]:
    """Files that this server has been sent. A path that somebody else made up is refused, whatever it leads to."""
    root = uploads_dir(home).resolve()
    files = [Path(path) for path in paths]
    if not all(file.resolve().is_relative_to(root) and file.is_file() for file in files):
        raise UserInputError("That is no file that was sent here.", "Upload the pictures.")
    return files


def uploads_dir(home: Path) -> Path:
    """Where Gradio puts what it is sent."""
    return home / "web" / "uploads"


def take(drafts: Drafts, draft: Draft, files: Sequence[Path]) -> list[str]:
    """Puts what can be used into the draft; a sentence for each file that cannot."""
    texts = [file for file in files if file.suffix.lower() == _TEXT]
    refused: list[str] = []
    for file in files:
        if file not in texts and (problem := _take_picture(drafts, draft, file)):
            refused.append(f"{file.name}: {problem}")
    refused += [f"{file.name}: {problem}" for file in texts if (problem := _take_caption(draft, file))]
    return refused


def _take_picture(drafts: Drafts, draft: Draft, file: Path) -> str:
    if file.suffix.lower() not in readable_suffixes():
        return f"is no picture that can be read ({', '.join(suffix[1:] for suffix in readable_suffixes())})."
    try:
        drafts.add(draft, file, file.name)
    except StudioError as error:
        return error.what
    return ""


def _take_caption(draft: Draft, file: Path) -> str:
    """A text file is the caption of the picture with the same name."""
    stem = Path(file.name).stem
    named = [picture for picture in draft.pictures if Path(picture.name).stem == stem]
    if not named:
        return "is a text, and no picture has its name."
    try:
        text = file.read_bytes()[: 4 * MAX_CAPTION].decode("utf-8-sig")
    except UnicodeDecodeError:
        return "is no text in UTF-8."
    named[-1].caption = " ".join(text.split())[:MAX_CAPTION]
    return ""


def sample_pictures() -> list[Path]:
    """The pictures of the octopus with their captions."""
    folder = next(folder for folder in _SAMPLES if folder.is_dir())
    return sorted(path for path in folder.iterdir() if path.suffix in (".png", _TEXT))
