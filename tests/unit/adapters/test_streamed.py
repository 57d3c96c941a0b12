"""A safetensors file written tensor after tensor."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from adapters.errors import FileFormatError
from adapters.safe import read_safe_header
from adapters.streamed import Streamed, save_streamed
from tests.tolerances import same_bits

KEY = "modelspec.hash_sha256"


def streamed(tensors: dict[str, Tensor]) -> dict[str, Streamed]:
    return {name: Streamed(tuple(t.shape), lambda t=t: t) for name, t in tensors.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_safetensors_reads_it_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype):
    tensors = {"b.weight": torch.randn(3, 5, 2, 2), "a": torch.randn(7), "none": torch.zeros(0), "ü": torch.ones(())}
    save_streamed(tmp_path / "m.safetensors", streamed(tensors), dtype, {"title": "é"}, KEY)
    found = load_file(tmp_path / "m.safetensors")
    assert found.keys() == tensors.keys()
    assert all(same_bits(found[name], tensors[name].to(dtype)) for name in tensors)
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert file.metadata()["title"] == "é"
    assert read_safe_header(tmp_path / "m.safetensors")[1]["b.weight"] == (3, 5, 2, 2)


def test_no_tensor_is_made_before_the_one_before_it_is_written_and_forgotten(tmp_path: Path):
    alive: list[weakref.ref[Tensor]] = []

    def make() -> Tensor:
        assert not any(reference() is not None for reference in alive)
        alive.append(weakref.ref(tensor := torch.ones(1000)))
        return tensor

    save_streamed(
        tmp_path / "m.safetensors", {str(n): Streamed((1000,), make) for n in range(5)}, torch.float32, {}, KEY
    )
    assert len(alive) == 5


def test_a_number_that_the_storage_type_cannot_hold_leaves_the_older_file_as_it_was(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"older")
    tensors = {"fine": torch.ones(2), "large": torch.full((2,), 1e6)}
    with pytest.raises(FileFormatError, match="infinity in large"):
        save_streamed(path, streamed(tensors), torch.float16, {}, KEY)
    assert path.read_bytes() == b"older" and list(tmp_path.iterdir()) == [path]
