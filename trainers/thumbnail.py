"""A small picture of what was learnt, as a text that fits into a file's header."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from typing import BinaryIO

from PIL import Image

_SIDE = 256
"""Pixels: what InvokeAI and A1111 show."""
_QUALITY = 85
_PREFIX = "data:image/jpeg;base64,"


def thumbnail_of(out: Path) -> str:
    """The last sample that a run left in `out`, as a data: URL of a JPEG; "" without any."""
    samples = sorted((out / "samples").glob("step-*.png"))
    return data_url(samples[-1]) if samples else ""


def data_url(picture: Path) -> str:
    """A picture file, made small; "" where it cannot be read."""
    small = small_jpeg(picture)
    return "" if small is None else _PREFIX + base64.b64encode(small).decode("ascii")


def small_jpeg(picture: Path | BinaryIO) -> bytes | None:
    """A picture of at most 256 pixels a side; None where it cannot be read."""
    try:
        with Image.open(picture) as opened:
            small = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    raw = io.BytesIO()
    small.save(raw, format="JPEG", quality=_QUALITY)
    return raw.getvalue()


def jpeg_of(url: str) -> bytes | None:
    """`data_url` backwards; None where it is no JPEG."""
    try:
        raw = base64.b64decode(url.removeprefix(_PREFIX), validate=True) if url.startswith(_PREFIX) else b""
    except binascii.Error:
        return None
    return raw if raw.startswith(b"\xff\xd8\xff") else None
