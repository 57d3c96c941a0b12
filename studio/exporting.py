"""`studio export`: an adapter as other programs read it, and who will."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from adapters.atomic import atomic_path
from adapters.errors import UserInputError
from adapters.extras import Extras
from adapters.files import AdapterCard
from adapters.formats.export import Exported, export, find_format
from adapters.formats.open import attach_any, attach_whole, open_adapter
from studio.sampling import adapter_path, common_base, warn
from trainers.sdxl import load_base
from trainers.thumbnail import jpeg_of

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
EXACT = 1e-6
"""Relative error below which nothing is said of it."""


@dataclass(frozen=True)
class Request:
    """What to write, and how; `rank` tells changes without factors."""

    adapter: Path
    form: str
    out: Path
    rank: int = 64
    dtype: str = "fp16"
    base: str | None = None
    plain: bool = False
    """Without biases, norms and embedded words, which some programs refuse."""


@dataclass(frozen=True)
class Written:
    """What became of an adapter in another program's format."""

    done: Exported
    card: AdapterCard
    read_by: dict[str, str]
    """Program → "yes", or what to know."""
    warning: str | None
    plain: Extras
    """What was left out, as asked for."""


def export_adapter(request: Request, console: Console) -> Iterator[str]:
    """Writes the file, and beside it what A1111 and InvokeAI show of it; yields what there is to say."""
    written = write(request)
    if written.warning:
        warn(console, written.warning)
    yield from _told(request, written)
    yield from _sidecars(request.out, written.card)


def write(request: Request) -> Written:
    """Writes the file alone. Raises UserInputError for a format, a type or an ending that there is not."""
    form = find_format(request.form)
    if request.dtype not in DTYPES:
        raise UserInputError(f"{request.dtype} is no storage type.", f"Choose {', '.join(DTYPES)}.")
    if request.out.suffix != ".safetensors":
        raise UserInputError(f"{request.out} does not end in .safetensors.", "Other programs go by that ending.")
    file, dtype = open_adapter(adapter_path(request.adapter)), DTYPES[request.dtype]
    base = load_base(request.base or common_base([file]), dtype=dtype if form.whole_model else torch.float32)
    if form.whole_model:
        adapters = attach_whole(base.components, file, base.hash)
    else:
        adapters = attach_any(base.components, file, base.hash, rank=request.rank)
    adapters.detach()
    given = adapters.extras
    if request.plain:
        adapters.extras = Extras()
    parts: dict[str, nn.Module] = {**base.components, "vae": base.vae}
    done = export(request.out, adapters, parts, file.card, form, rank=request.rank, dtype=dtype)
    left = given if request.plain else Extras()
    return Written(done, file.card, form.read_by(adapters.extras), adapters.warning, left)


def _told(request: Request, written: Written) -> Iterator[str]:
    done, answers = written.done, written.read_by
    yield f"{request.out}: {done.layers} layers, {request.form}, {request.dtype}"
    if done.error > EXACT:
        yield f"  This method has no exact form there: up to {done.error:.1%} of a layer's change is left out."
        yield "  A larger --rank leaves out less."
    else:
        yield f"  Exact, up to the rounding of {request.dtype}."
    if done.left_out:
        yield f"  Left out, as the format has no name for them: {', '.join(done.left_out)}"
    yield "  Loads in:"
    width = max(map(len, answers))
    yield from (f"    {program:{width}}  {answer}" for program, answer in answers.items())
    if left := written.plain:
        yield f"  Left out, as asked for: {len(left.vectors)} biases and norms, {len(left.words)} embedded words"


def _sidecars(out: Path, card: AdapterCard) -> Iterator[str]:
    """The trigger as A1111 and InvokeAI look for it, and a picture; files that are there already stay as they are."""
    words = ", ".join(f"{trigger} {class_word}".strip() for trigger, class_word in card.subjects)
    notes = {"description": words, "sd version": "SDXL", "activation text": words, "notes": "Spectral Studio"}
    picture = jpeg_of(card.thumbnail)
    written = {".json": json.dumps(notes, indent=1, ensure_ascii=False).encode() if words else None, ".jpg": picture}
    for ending, content in written.items():
        path = out.with_suffix(ending)
        if content is None:
            continue
        if path.exists():
            yield f"  {path} is there already and was left as it is."
            continue
        with atomic_path(path) as part:
            part.write_bytes(content)
        yield f"  {path}: {'the trigger' if ending == '.json' else 'a preview'}, for A1111, Forge and InvokeAI"
