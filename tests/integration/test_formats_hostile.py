"""Broken and hostile adapter files end in a clear refusal."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapters.errors import StudioError
from tests.formats import SGM_LAYER, Components, read


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": 1}))


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("weights", b"\0" * 10_000_000)


def _huge_header(path: Path) -> None:
    path.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")


def _truncated(path: Path) -> None:
    save_file({f"{SGM_LAYER}.diff": torch.zeros(128, 128)}, path)
    path.write_bytes(path.read_bytes()[:-100])


def _nan(path: Path) -> None:
    save_file({f"{SGM_LAYER}.diff": torch.full((128, 128), float("nan"))}, path)


def _wrong_shape(path: Path) -> None:
    save_file(
        {f"{SGM_LAYER}.lora_down.weight": torch.ones(2, 5), f"{SGM_LAYER}.lora_up.weight": torch.ones(7, 2)}, path
    )


def _half(path: Path) -> None:
    save_file({f"{SGM_LAYER}.lora_down.weight": torch.ones(2, 128)}, path)


def _nothing(path: Path) -> None:
    save_file({"weights": torch.ones(2)}, path)


@pytest.mark.parametrize("make", [_pickle, _zip, _huge_header, _truncated, _nan, _wrong_shape, _half, _nothing])
def test_broken_and_hostile_files_end_in_a_clear_refusal(
    components: Components, tmp_path: Path, make: Callable[[Path], None]
):
    path = tmp_path / "file.safetensors"
    make(path)
    with pytest.raises(StudioError) as refused:
        read(components, path)
    assert refused.value.what and refused.value.fix
