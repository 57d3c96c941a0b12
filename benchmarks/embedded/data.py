"""The emoji pictures, read from the tar (packages.py builds it from the published npm packages)."""

from __future__ import annotations

import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.embedded.config import PICTURE

STYLES = ("fluent-3d", "fluent-color", "fluent-flat", "noto", "noto-v1", "twemoji")
HELD_OUT_STYLE = "emojione"


@dataclass(frozen=True)
class Emoji:
    """One code point: its English label, tags and place in Unicode's grouping."""

    hex: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str


@dataclass(frozen=True)
class EmojiSet:
    """Pictures of every style: RGBA uint8 [N, 128, 128, 4] with (style, code point) of each row."""

    emoji: dict[str, Emoji]
    keys: list[tuple[str, str]]
    pixels: np.ndarray


def decode(content: bytes) -> np.ndarray:
    """A picture file's RGBA pixels, uint8 [128, 128, 4]."""
    image = Image.open(io.BytesIO(content)).convert("RGBA")
    if image.size != (PICTURE, PICTURE):
        image = image.resize((PICTURE, PICTURE), Image.Resampling.LANCZOS)
    return np.asarray(image)


def load_tar(path: Path, keep: set[str] | None = None) -> EmojiSet:
    """Reads `<style>/<code point>.webp` and meta.json; `keep` limits the code points."""
    with tarfile.open(path) as tar:
        contents: dict[str, bytes] = {}
        for member in tar.getmembers():
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None:
                contents[member.name.removeprefix("./")] = file.read()
    meta = json.loads(contents.pop("meta.json"))["emoji"]
    emoji = {
        e["hex"]: Emoji(e["hex"], e["label"], tuple(e["tags"]), e["group"], e["subgroup"])
        for e in meta
        if keep is None or e["hex"] in keep
    }
    names = sorted(n for n in contents if n.endswith(".webp") and Path(n).stem in emoji)
    with ThreadPoolExecutor(16) as pool:
        pixels = list(pool.map(decode, (contents[n] for n in names)))
    return EmojiSet(emoji, [(n.split("/")[-2], Path(n).stem) for n in names], np.stack(pixels))
