"""Reading safetensors files that may be damaged, hostile or something else altogether.

The format: 8 bytes of header length (little-endian), the header as JSON, then the tensors' bytes
(https://github.com/huggingface/safetensors#format). The header is judged before a tensor is read.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adapters.errors import FileFormatError, MissingError

MAX_HEADER = 16 * 2**20
"""Bytes. A header that names every layer of SDXL takes under 1 MiB; a thumbnail fits as well."""

_WIDTH = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
_LONGEST_NAME = 512
_FIX = "Copy or download the file again, or choose another .safetensors file."

Shapes = dict[str, tuple[int, ...]]


def read_safe_header(path: str | os.PathLike[str]) -> tuple[dict[str, str], Shapes]:
    """The metadata and every tensor's shape, without reading a tensor.

    Raises:
        MissingError: no such file.
        FileFormatError: a pickle, a zip or another kind of file; truncated; a header that contradicts itself.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"There is no file {path}.", "Check the path.")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > MAX_HEADER:
            raise FileFormatError(f"{path} is {_kind(start)}.", _FIX)
        if 8 + length > size:
            raise FileFormatError(f"{path} is cut off: it ends inside its header.", _FIX)
        header = _parse(path, file.read(length))
    metadata = cast(dict[str, str], header.pop("__metadata__", {}))
    return metadata, _checked_shapes(path, header, size - 8 - length)


def read_safe_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors, on the CPU. Raises FileFormatError for a damaged file and for NaN or infinity."""
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise FileFormatError(f"{path} is damaged: {error}.", _FIX) from error
    refuse_nonfinite(tensors, str(path))
    return tensors


def refuse_nonfinite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises FileFormatError naming the first tensor with NaN or infinity in it."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise FileFormatError(
                f"{where} holds NaN or infinity in {name}.",
                "Its training diverged: take an earlier checkpoint or a lower learning rate.",
            )


def _kind(start: bytes) -> str:
    """What a file is whose first bytes make no sensible header length."""
    if len(start) < 8:
        return "cut off: it is too short to hold anything"
    if start.startswith(b"PK"):
        return "a zip or PyTorch checkpoint, not safetensors; it was not opened, since such files can run code"
    if start[0] == 0x80 and start[1] in range(2, 6):
        return "a Python pickle, not safetensors; it was not opened, since such files can run code"
    return f"not a safetensors file: its header would be {int.from_bytes(start, 'little'):,} bytes"


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        header: object = json.loads(raw, object_pairs_hook=lambda pairs: _once(path, pairs))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not a safetensors file: its header is not JSON.", _FIX) from error
    if not isinstance(header, dict):
        raise FileFormatError(f"{path} is not a safetensors file: its header is not an object.", _FIX)
    header = cast(dict[str, Any], header)
    metadata: object = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(text, str) for text in cast(dict[str, Any], metadata).values()
    ):
        raise FileFormatError(f"{path} is damaged: its metadata are not an object of texts.", _FIX)
    return header


def _once(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, unless a name comes twice: readers would differ on which is meant."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise FileFormatError(f"{path} is damaged: its header says something twice.", _FIX)
    return found


def _checked_shapes(path: Path, header: Mapping[str, Any], data_bytes: int) -> Shapes:
    """The shapes, if each fits its own bytes and together they are the file's, none used twice."""
    shapes: Shapes = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            raise FileFormatError(f"{path} names a tensor {name[:40]!r}…, which is no name.", _FIX)
        try:
            shape = tuple(int(n) for n in entry["shape"])
            first, last = (int(n) for n in entry["data_offsets"])
            wanted = math.prod(shape) * _WIDTH[entry["dtype"]]
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path}: the entry of {name} is damaged or of a foreign dtype.", _FIX) from error
        if min(shape, default=0) < 0 or first < 0 or wanted != last - first:
            raise FileFormatError(f"{path}: the shape of {name} does not fit its bytes.", _FIX)
        if last > data_bytes:
            raise FileFormatError(f"{path} is cut off: {last - data_bytes:,} bytes of {name} are missing.", _FIX)
        shapes[name] = shape
        spans.append((first, last, name))
    end = 0
    for first, last, name in sorted(spans):
        if first != end:
            raise FileFormatError(f"{path} is damaged: the bytes of {name} do not follow the others'.", _FIX)
        end = last
    if end != data_bytes:
        raise FileFormatError(f"{path} is damaged: it has {data_bytes - end:,} bytes that no tensor owns.", _FIX)
    return shapes
