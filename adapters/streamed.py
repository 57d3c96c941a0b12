"""A safetensors file written tensor after tensor, so that it never lies in memory as a whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from adapters.atomic import atomic_path
from adapters.safe import refuse_nonfinite

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_LETTERS = 64
"""Of a sha256."""


@dataclass(frozen=True)
class Streamed:
    """A tensor that is made when its turn has come."""

    shape: tuple[int, ...]
    make: Callable[[], Tensor]


def save_streamed(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Streamed],
    dtype: torch.dtype,
    metadata: Mapping[str, str],
    digest_key: str,
) -> None:
    """Writes the file at once or not at all.

    Args:
        dtype: fp32, fp16 or bf16, for all.
        digest_key: under which name the metadata have the sha256 of all bytes after the header, with 0x before it.

    Raises:
        FileFormatError: a number is NaN, or infinite in `dtype`; nothing is written.
        DiskFullError: no room; an older file at `path` is untouched.
    """
    header = _header(tensors, dtype, {**metadata, digest_key: f"0x{'0' * _LETTERS}"})
    digest = hashlib.sha256()
    with atomic_path(path) as part, Path(part).open("r+b") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name, tensor in tensors.items():
            _append(file, digest, name, tensor, dtype)
        file.seek(8)
        file.write(_header(tensors, dtype, {**metadata, digest_key: f"0x{digest.hexdigest()}"}))


def _append(file: BinaryIO, digest: Any, name: str, tensor: Streamed, dtype: torch.dtype) -> None:
    """One tensor; when this returns nothing holds it."""
    ready = tensor.make().to("cpu", dtype).contiguous()
    if tuple(ready.shape) != tensor.shape:
        raise ValueError(f"{name} is {tuple(ready.shape)}, not {tensor.shape}")
    refuse_nonfinite({name: ready}, "This model")
    raw = ready.flatten().view(torch.uint8).numpy().data
    digest.update(raw)
    file.write(raw)


def _header(tensors: Mapping[str, Streamed], dtype: torch.dtype, metadata: Mapping[str, str]) -> bytes:
    """The header, filled up with spaces to a multiple of 8 as the format asks for."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + torch.Size(tensor.shape).numel() * dtype.itemsize
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)
