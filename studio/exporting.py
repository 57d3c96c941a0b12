"""`studio export`: an adapter as other programs read it, and who will."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from adapters.errors import UserInputError
from adapters.formats.export import Exported, Format, export, find_format
from adapters.formats.open import attach_any, open_adapter
from studio.sampling import adapter_path, common_base, warn
from trainers.sdxl import load_base

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Request:
    """What to write, and how; `rank` tells changes without factors."""

    adapter: Path
    form: str
    out: Path
    rank: int = 64
    dtype: str = "fp16"
    base: str | None = None


def export_adapter(request: Request, console: Console) -> Iterator[str]:
    """Writes the file; yields what there is to say of it."""
    form = find_format(request.form)
    if request.dtype not in DTYPES:
        raise UserInputError(f"{request.dtype} is no storage type.", f"Choose {', '.join(DTYPES)}.")
    if request.out.suffix != ".safetensors":
        raise UserInputError(f"{request.out} does not end in .safetensors.", "Other programs go by that ending.")
    file = open_adapter(adapter_path(request.adapter))
    base = load_base(request.base or common_base([file]))
    adapters = attach_any(base.components, file, base.hash, rank=request.rank)
    adapters.detach()
    if adapters.warning:
        warn(console, adapters.warning)
    dtype = DTYPES[request.dtype]
    done = export(request.out, adapters, base.components, file.card, form, rank=request.rank, dtype=dtype)
    yield from _told(request, form, done)


def _told(request: Request, form: Format, done: Exported) -> Iterator[str]:
    yield f"{request.out}: {done.layers} layers, {request.form}, {request.dtype}"
    if done.error > 1e-6:
        yield f"  This method has no exact LoRA form: up to {done.error:.1%} of a layer's change is left out."
        yield "  A larger --rank leaves out less."
    else:
        yield f"  Exact, up to the rounding of {request.dtype}."
    if done.left_out:
        yield f"  Left out, as the format has no name for them: {', '.join(done.left_out)}"
    yield "  Loads in:"
    yield from (f"    {program}: {answer}" for program, answer in form.read_by.items())
