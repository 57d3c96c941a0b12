"""What the tests of the library share: small adapter files, and what a library holds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from adapters.files import FORMAT, AdapterCard
from studio.library import Library


def made(path: Path, number: float = 0, method: str = "lora", **card: Any) -> Path:
    """An adapter file of ours; another number, other bytes."""
    metadata = {
        "format": FORMAT,
        "spec": json.dumps({"method": method, "rank": 2}),
        "targets": "{}",
        "card": AdapterCard(**{"trigger": "sks", "class_word": "dog", "base": "embedded", **card}).model_dump_json(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"layer.factor": torch.full((2, 3), number)}, path, metadata)
    return path


def foreign(path: Path, metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("unet.x.lora_A.weight", "unet.x.lora_B.weight")
    save_file({name: torch.ones(2, 2) for name in names}, path, metadata)
    return path


def picture(path: Path, side: int = 512) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), "teal").save(path)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files(library: Library) -> set[str]:
    return {path.name for path in library.folder.iterdir()} - {".lock"}


def names(library: Library, text: str = "", **more: Any) -> list[str]:
    return [entry.name for entry in library.list_adapters(text, **more)]
