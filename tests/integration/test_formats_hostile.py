"""Broken and hostile adapter files end in a clear refusal, and what is merely strange is never used as a path."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from adapters.errors import StudioError
from adapters.safe import read_safe_header
from tests.formats import LAYER, SGM_LAYER, Components, read, written


def raw(path: Path, header: str | bytes, data: bytes = b"", length: int | None = None) -> None:
    """A safetensors file by hand."""
    text = header.encode() if isinstance(header, str) else header
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def entry(first: int, last: int, shape: tuple[int, ...] = (2, 2)) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [first, last]}


def layer(path: Path, **parts: Tensor) -> None:
    save_file({f"{SGM_LAYER}.{name.replace('__', '.')}": tensor for name, tensor in parts.items()}, path)


def a_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": 1}))


def a_renamed_zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("weights", b"\0" * 10_000_000)


def a_header_of_a_terabyte(path: Path) -> None:
    raw(path, "{}", length=1 << 40)


def a_header_of_100_mb(path: Path) -> None:
    raw(path, b'{"a": "' + b"x" * 10**8 + b'"}')


def a_truncated_file(path: Path) -> None:
    layer(path, diff=torch.zeros(128, 128))
    path.write_bytes(path.read_bytes()[:-100])


def trailing_bytes(path: Path) -> None:
    layer(path, diff=torch.zeros(128, 128))
    path.write_bytes(path.read_bytes() + b"#!/bin/sh")


def nan(path: Path) -> None:
    layer(path, diff=torch.full((128, 128), float("nan")))


def infinity(path: Path) -> None:
    layer(path, diff=torch.full((128, 128), float("inf")))


def overlapping_offsets(path: Path) -> None:
    raw(path, json.dumps({f"{SGM_LAYER}.diff": entry(0, 16), "b": entry(8, 24)}), bytes(24))


def a_hole_between_tensors(path: Path) -> None:
    raw(path, json.dumps({f"{SGM_LAYER}.diff": entry(0, 16), "b": entry(24, 40)}), bytes(40))


def a_name_twice(path: Path) -> None:
    one, two = json.dumps(entry(0, 16)), json.dumps(entry(16, 32))
    raw(path, f'{{"{SGM_LAYER}.diff": {one}, "{SGM_LAYER}.diff": {two}}}', bytes(32))


def numbers_as_metadata(path: Path) -> None:
    raw(path, json.dumps({"__metadata__": {"modelspec.title": 3}, f"{SGM_LAYER}.diff": entry(0, 16)}), bytes(16))


def a_name_that_clears_the_screen(path: Path) -> None:
    save_file({f"{SGM_LAYER}.diff": torch.zeros(128, 128), "\x1b[2J.diff": torch.zeros(1)}, path)


def wrong_shapes(path: Path) -> None:
    layer(path, lora_down__weight=torch.ones(2, 5), lora_up__weight=torch.ones(7, 2))


def half_a_pair(path: Path) -> None:
    layer(path, lora_down__weight=torch.ones(2, 128))


def ranks_that_differ(path: Path) -> None:
    layer(path, lora_down__weight=torch.ones(2, 128), lora_up__weight=torch.ones(128, 3))


def several_alphas(path: Path) -> None:
    layer(path, lora_down__weight=torch.ones(2, 128), lora_up__weight=torch.ones(128, 2), alpha=torch.ones(2))


def half_a_loha(path: Path) -> None:
    layer(path, hada_w1_a=torch.ones(128, 2))


def a_loha_of_other_ranks(path: Path) -> None:
    parts = {"hada_w1_a": (128, 2), "hada_w1_b": (3, 128), "hada_w2_a": (128, 2), "hada_w2_b": (2, 128)}
    layer(path, **{name: torch.ones(shape) for name, shape in parts.items()})


def half_a_lokr(path: Path) -> None:
    layer(path, lokr_w1=torch.ones(4, 4))


def a_lokr_that_would_take_a_terabyte(path: Path) -> None:
    layer(path, lokr_w1=torch.ones(1000, 1000), lokr_w2=torch.ones(1000, 1000))


def a_scale_of_another_layer(path: Path) -> None:
    layer(path, lora_down__weight=torch.ones(2, 128), lora_up__weight=torch.ones(128, 2), dora_scale=torch.ones(7))


def a_bias_of_another_size(path: Path) -> None:
    norm = "lora_unet_input_blocks_4_1_norm"
    save_file({f"{SGM_LAYER}.diff": torch.zeros(128, 128), f"{norm}.w_norm": torch.ones(5)}, path)


def nothing_known(path: Path) -> None:
    save_file({"weights": torch.ones(2)}, path)


def an_empty_file(path: Path) -> None:
    path.write_bytes(b"")


HOSTILE = [
    a_pickle, a_renamed_zip_bomb, a_header_of_a_terabyte, a_header_of_100_mb, a_truncated_file, trailing_bytes, nan,
    infinity, overlapping_offsets, a_hole_between_tensors, a_name_twice, numbers_as_metadata,
    a_name_that_clears_the_screen, wrong_shapes, half_a_pair, ranks_that_differ, several_alphas, half_a_loha,
    a_loha_of_other_ranks, half_a_lokr, a_lokr_that_would_take_a_terabyte, a_scale_of_another_layer,
    a_bias_of_another_size, nothing_known, an_empty_file,
]  # fmt: skip


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_broken_and_hostile_files_end_in_a_clear_refusal(
    components: Components, tmp_path: Path, make: Callable[[Path], None]
):
    path = tmp_path / "file.safetensors"
    make(path)
    with pytest.raises(StudioError) as refused:
        read(components, path)
    assert refused.value.what and refused.value.fix


IN_THE_HEADER = [overlapping_offsets, a_hole_between_tensors, a_name_twice, trailing_bytes, a_truncated_file]


@pytest.mark.parametrize("make", IN_THE_HEADER, ids=lambda make: make.__name__)
def test_a_header_that_lies_is_refused_before_a_tensor_is_read(tmp_path: Path, make: Callable[[Path], None]):
    make(tmp_path / "file.safetensors")
    with pytest.raises(StudioError):
        read_safe_header(tmp_path / "file.safetensors")


def test_names_like_paths_are_names_and_nothing_is_written_by_them(components: Components, tmp_path: Path):
    tensors = {f"{SGM_LAYER}.diff": torch.eye(128), "../../outside.diff": torch.ones(2, 2)}
    tensors |= {"/etc/passwd.lora_up.weight": torch.ones(2, 2), "bundle_emb./tmp/word.clip_l": torch.ones(2, 128)}
    path = written(tmp_path, tensors)
    before = set(tmp_path.parent.rglob("*"))
    found = read(components, path)
    assert list(found.adapters) == [f"unet.{LAYER}"] and list(found.extras.words) == ["/tmp/word"]
    assert "2 parts have no place" in (found.warning or "")
    assert set(tmp_path.parent.rglob("*")) == before and not Path("/tmp/word").exists()


def test_a_loha_of_a_great_rank_does_not_take_memory_with_the_square_of_it(components: Components, tmp_path: Path):
    """As a chain of rank r² its factors would take 128 GiB here."""
    shapes: Mapping[str, tuple[int, int]] = {"w1_a": (128, 11585), "w1_b": (11585, 128)}
    tensors = {f"{SGM_LAYER}.hada_{name}": 0.01 * torch.ones(shape) for name, shape in shapes.items()}
    tensors |= {name.replace("w1", "w2"): tensor for name, tensor in tensors.items()}
    (adapter,) = read(components, written(tmp_path, tensors)).adapters.values()
    expected = (11585 * 1e-4) ** 2
    found = adapter.delta_weight(adapter.site.weight.detach())
    assert torch.allclose(found, torch.full_like(found, expected), rtol=1e-3)
