"""Tensors on disk by content: latents and text states that need not be computed twice.

One safetensors file an entry, named by the hash of its key. Several processes may use one folder at once:
files appear whole (written under another name, then renamed) and vanish whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from adapters.atomic import atomic_path
from adapters.errors import StudioError
from trainers.buckets import Crop

DEFAULT_MAX_BYTES = 8 * 2**30
_SPARED = 0.9  # an eviction goes a little below the bound, so that the next write need not evict again
_ABANDONED_SECONDS = 3600
# Parts of the keys: to be raised when pictures, or texts, are prepared differently than before.
_LATENTS_FORMAT = 2
_TEXT_FORMAT = 1


def default_root() -> Path:
    """$SPECTRAL_STUDIO_CACHE, or ~/.cache/spectral-studio."""
    return Path(os.environ.get("SPECTRAL_STUDIO_CACHE") or Path.home() / ".cache" / "spectral-studio")


def latents_key(picture_sha: str, crop: Crop, vae_id: str) -> str:
    """Key of one crop's latents."""
    size = f"{crop.bucket.width}x{crop.bucket.height} of {crop.resized[0]}x{crop.resized[1]}"
    cut = f"{size} at {crop.top},{crop.left} flip {crop.flip}"
    return f"latents {_LATENTS_FORMAT}\n{picture_sha}\n{cut}\n{vae_id}"


def text_key(text: str, encoder_id: str) -> str:
    """Key of one text's states."""
    return f"text {_TEXT_FORMAT}\n{encoder_id}\n{text}"


class TensorCache:
    """A folder of entries, `max_bytes` in all; the least recently used go first.

    The cache only saves time: an entry that cannot be read counts as missing, one that cannot be written is
    left out, and `problem` then says why.
    """

    def __init__(self, root: Path | None = None, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.root = root if root is not None else default_root() / "tensors"
        self.max_bytes = max_bytes
        self.problem: str | None = None
        self._bytes: int | None = None  # our estimate; what other processes wrote since the last count is not in it

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of `key` on the CPU, or None; a damaged entry is removed."""
        path = self._path(key)
        try:
            raw = path.read_bytes()
        except OSError:
            return None
        tensors = _unpack(raw)
        with suppress(OSError):
            path.unlink() if tensors is None else os.utime(path)
        return tensors

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep `tensors`; older entries make room."""
        raw = _pack(tensors)
        if len(raw) > self.max_bytes:
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with atomic_path(self._path(key), durable=False) as temporary:  # `get` tells a damaged one
                temporary.write_bytes(raw)
        except (OSError, StudioError) as error:
            self.problem = str(error)
            return
        self._bytes = None if self._bytes is None else self._bytes + len(raw)
        if self._bytes is None or self._bytes > self.max_bytes:
            self._evict()

    def _path(self, key: str) -> Path:
        return self.root / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"

    def _evict(self) -> None:
        """Count what is there; remove the least recently used until it fits, if it does not."""
        entries: list[tuple[int, int, Path]] = []
        for path in self.root.glob("*.safetensors"):
            with suppress(OSError):
                stat = path.stat()
                entries.append((stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in entries)
        goal = total if total <= self.max_bytes else int(self.max_bytes * _SPARED)
        for _, size, path in sorted(entries)[:-1]:
            if total <= goal:
                break
            with suppress(OSError):
                path.unlink(missing_ok=True)
                total -= size
        self._bytes = total
        self._sweep()

    def _sweep(self) -> None:
        """Remove what a killed process left half written."""
        for path in self.root.glob(".*.part"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    path.unlink()


def _pack(tensors: dict[str, Tensor]) -> bytes:
    """A safetensors file whose header holds the hash of what follows the header."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _, payload = _split(save(on_cpu))
    return save(on_cpu, {"sha256": hashlib.sha256(payload).hexdigest()})


def _unpack(raw: bytes) -> dict[str, Tensor] | None:
    """The tensors of a file that `_pack` made, or None if a byte is missing or wrong."""
    try:
        header, payload = _split(raw)
        expected = json.loads(header)["__metadata__"]["sha256"]
        return load(raw) if hashlib.sha256(payload).hexdigest() == expected else None
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None


def _split(raw: bytes) -> tuple[bytes, bytes]:
    """Header (JSON) and payload of a safetensors file, which starts with the header's length in 8 bytes."""
    end = 8 + int.from_bytes(raw[:8], "little")
    return raw[8:end], raw[end:]


def encode_texts(
    texts: list[str],
    encode: Callable[[list[str]], dict[str, Tensor]],
    cache: TensorCache,
    encoder_id: str,
    *,
    batch_size: int = 1,
    within: AbstractContextManager[object] | None = None,
) -> dict[str, Tensor]:
    """States of `texts`, a row each in their order, on the CPU; only texts that the cache lacks are encoded.

    `encode` gives tensors "b …" for b texts. With the default batch of one, a text's states depend on nothing
    but the text and the encoders, bit for bit; in larger batches the neighbours may change the last bits. `within` is
    entered where something must be encoded.
    """
    found = {text: cache.get(text_key(text, encoder_id)) for text in dict.fromkeys(texts)}
    missing = [text for text, states in found.items() if states is None]
    with within if within is not None and missing else nullcontext():
        for start in range(0, len(missing), batch_size):
            chunk = missing[start : start + batch_size]
            states = {name: tensor.detach().cpu() for name, tensor in encode(chunk).items()}
            for row, text in enumerate(chunk):
                found[text] = {name: tensor[row].clone() for name, tensor in states.items()}
                cache.put(text_key(text, encoder_id), found[text] or {})
    rows = [found[text] or {} for text in texts]
    return {name: torch.stack([row[name] for row in rows]) for name in (rows[0] if rows else {})}
