"""Our adapter file, and every file that is not one."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from adapters.errors import FileFormatError, MismatchError, MissingError
from adapters.files import AdapterCard, attach_file, load_adapter, read_header, save_adapter
from adapters.inject import attach, base_hash
from adapters.registry import make_spec
from tests.tolerances import same_bits


class Base(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(width, 4)


CARD = AdapterCard(base="embedded", trigger="sks", class_word="dog", steps=7, thumbnail="data:,é")


@pytest.fixture
def base() -> Base:
    return Base()


@pytest.fixture
def path(base: Base, tmp_path: Path) -> Path:
    adapter_set = attach({"unet": base}, make_spec("lora", rank=2, alpha=3.0), {"unet": "linear"})
    with torch.no_grad():
        adapter_set.parameters()[1].add_(0.5)
    card = CARD.model_copy(update={"base_hash": base_hash({"unet": base})})
    save_adapter(tmp_path / "adapter.safetensors", adapter_set, card)
    adapter_set.detach()
    return tmp_path / "adapter.safetensors"


def refused(path: Path) -> str:
    with pytest.raises(FileFormatError) as caught:
        load_adapter(path)
    assert caught.value.fix
    return caught.value.what


def with_metadata(path: Path, **changes: str) -> Path:
    with safe_open(path, "pt") as file:
        metadata = {**file.metadata(), **changes}
    save_file(load_file(path), path, metadata)
    return path


def test_the_header_tells_spec_targets_card_and_shapes_without_the_tensors(path: Path):
    header = read_header(path)
    assert header.spec == make_spec("lora", rank=2, alpha=3.0)
    assert header.targets == {"unet": "linear"}
    assert header.card.model_copy(update={"base_hash": ""}) == CARD
    assert header.shapes == {"unet.a.down": (2, 6), "unet.a.up": (4, 2)}


def test_attaching_the_file_gives_the_output_it_was_saved_with(base: Base, path: Path):
    x = torch.randn(3, 6)
    before = base.a(x)
    adapter_set = attach_file({"unet": base}, path)
    assert not torch.equal(base.a(x), before)
    assert adapter_set.warning is None
    assert not adapter_set.adapters["unet.a"].training
    adapter_set.detach()
    again = attach_file({"unet": base}, load_adapter(path))
    assert same_bits(again.state_dict()["unet.a.up"], adapter_set.state_dict()["unet.a.up"])


def test_half_precision_halves_the_file_and_loads_as_fp32_factors(base: Base, path: Path, tmp_path: Path):
    adapter_set = attach_file({"unet": base}, path)
    save_adapter(tmp_path / "half.safetensors", adapter_set, CARD, dtype="bfloat16")
    assert {t.dtype for t in load_adapter(tmp_path / "half.safetensors").tensors.values()} == {torch.bfloat16}
    adapter_set.detach()
    loaded = attach_file({"unet": base}, tmp_path / "half.safetensors")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_another_base_of_the_same_shapes_is_accepted_with_a_warning(path: Path):
    other = Base()
    with torch.no_grad():
        other.a.weight.add_(1)
    warning = attach_file({"unet": other}, path).warning
    assert warning is not None and "another base" in warning


def test_a_known_hash_spares_hashing_the_base(base: Base, path: Path):
    assert attach_file({"unet": base}, path, known_hash=base_hash({"unet": base})).warning is None
    assert attach_file({"unet": base}, path, known_hash="f" * 64).warning is not None


def test_a_base_of_another_shape_is_refused_by_the_layers_name_and_stays_untouched(path: Path):
    wider = Base(width=8)
    with pytest.raises(MismatchError, match=r"unet\.a\.down is 2×6 in the adapter, but this base's layer needs 2×8"):
        attach_file({"unet": wider}, path)
    assert not wider.a._forward_hooks


def test_a_missing_file_is_missing_not_damaged(tmp_path: Path):
    with pytest.raises(MissingError, match=r"no file .*gone\.safetensors"):
        read_header(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 40, -3])
def test_a_truncated_file_is_cut_off(path: Path, keep: int):
    path.write_bytes(path.read_bytes()[:keep])
    assert "cut off" in refused(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_under_our_name_is_never_opened(tmp_path: Path, protocol: int):
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(pickle.dumps({"weights": list(range(99))}, protocol))
    assert "pickle" in refused(path)


def test_a_torch_checkpoint_under_our_name_is_never_opened(tmp_path: Path):
    torch.save({"a": torch.ones(3)}, tmp_path / "adapter.safetensors")
    assert "zip or PyTorch" in refused(tmp_path / "adapter.safetensors")
    with zipfile.ZipFile(tmp_path / "b.safetensors", "w") as archive:
        archive.writestr("x", "y")
    assert "zip" in refused(tmp_path / "b.safetensors")


def test_a_header_whose_length_looks_like_a_pickle_is_still_read(tmp_path: Path):
    """640 is 0x280: such a file starts with pickle's first two bytes."""
    header = json.dumps({"__metadata__": {"format": "other"}}).encode().ljust(640)
    (tmp_path / "a.safetensors").write_bytes((640).to_bytes(8, "little") + header)
    assert "not an adapter of Spectral Studio" in refused(tmp_path / "a.safetensors")


def test_a_huge_header_is_refused_before_it_is_read(path: Path):
    path.write_bytes((2**40).to_bytes(8, "little") + path.read_bytes()[8:])
    assert "1,099,511,627,776 bytes" in refused(path)


@pytest.mark.parametrize("header", [b"[1, 2]  ", b"not json", b"[" * 100_000, b'{"__metadata__": 3}'])
def test_a_header_that_is_no_object_is_refused(tmp_path: Path, header: bytes):
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    refused(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {"dtype": "F32", "shape": [2, 2]},
        {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]},
        {"dtype": "C64", "shape": [2], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]},
        {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 16]},
    ],
    ids=str,
)
def test_an_entry_that_contradicts_itself_is_refused(tmp_path: Path, entry: object):
    header = json.dumps({"unet.a.up": entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    assert "unet.a.up" in refused(tmp_path / "a.safetensors")


def test_anothers_safetensors_file_is_not_ours(tmp_path: Path):
    save_file({"lora_unet_x.lora_up.weight": torch.ones(2)}, tmp_path / "kohya.safetensors")
    assert "not an adapter of Spectral Studio" in refused(tmp_path / "kohya.safetensors")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("spec", '{"method": "lorra"}', "lorra"),
        ("spec", '{"method": "lora", "rankk": 3}', "rankk"),
        ("spec", "[]", "damaged"),
        ("spec", "{", "damaged"),
        ("targets", "3", "damaged"),
        ("card", '{"steps": "many"}', "damaged"),
    ],
)
def test_metadata_that_make_no_sense_are_refused(path: Path, key: str, value: str, said: str):
    assert said in refused(with_metadata(path, **{key: value}))


def test_a_card_of_a_later_version_is_read(path: Path):
    card = json.loads(CARD.model_dump_json())
    with_metadata(path, card=json.dumps({**card, "mood": "good"}))
    assert read_header(path).card == CARD


def test_nan_is_refused_on_reading_and_on_writing(base: Base, path: Path):
    tensors = load_file(path)
    tensors["unet.a.up"][1, 1] = float("nan")
    with safe_open(path, "pt") as file:
        save_file(tensors, path.with_name("nan.safetensors"), file.metadata())
    assert "NaN or infinity in unet.a.up" in refused(path.with_name("nan.safetensors"))
    adapter_set = attach_file({"unet": base}, path)
    with torch.no_grad():
        adapter_set.parameters()[0].fill_(float("inf"))
    before = path.read_bytes()
    with pytest.raises(FileFormatError, match=r"infinity in unet\.a\.down"):
        save_adapter(path, adapter_set, CARD)
    assert path.read_bytes() == before
