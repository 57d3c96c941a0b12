from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from adapters.errors import DiskFullError
from trainers import cache as cache_module
from trainers.buckets import Bucket, plan_crops
from trainers.cache import TensorCache, default_root, encode_texts, latents_key, text_key


def entries(cache: TensorCache) -> list[Path]:
    return sorted(cache.root.glob("*.safetensors"))


@pytest.fixture
def cache(tmp_path) -> TensorCache:
    return TensorCache(tmp_path / "cache")


def test_what_was_put_comes_back_bit_for_bit(cache):
    tensors = {"mean": torch.randn(4, 3), "std": torch.rand(2).half(), "ids": torch.arange(5)}
    cache.put("a", tensors)
    found = cache.get("a")
    assert found is not None and found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_views_are_stored_as_what_they_show(cache):
    cache.put("a", {"x": torch.arange(6).reshape(2, 3).T})
    assert cache.get("a")["x"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_an_unknown_key_is_missing(cache):
    assert cache.get("a") is None


def test_the_last_value_put_counts(cache):
    cache.put("a", {"x": torch.zeros(2)})
    cache.put("a", {"x": torch.ones(2)})
    assert cache.get("a")["x"].tolist() == [1, 1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:5],
        lambda raw: raw[:-1],
        lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
        lambda raw: b"not a safetensors file",
        lambda raw: raw[:8] + b"}" + raw[9:],
    ],
    ids=["empty", "cut in the length", "one byte short", "one bit flipped", "text", "broken header"],
)
def test_a_damaged_entry_counts_as_missing_and_is_removed(cache, damage):
    cache.put("a", {"x": torch.randn(100)})
    (path,) = entries(cache)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get("a") is None
    assert not path.exists()


def test_the_least_recently_used_entries_make_room(tmp_path):
    cache = TensorCache(tmp_path, max_bytes=5000)
    for index, key in enumerate("abc"):
        cache.put(key, {"x": torch.zeros(300)})
        os.utime(cache._path(key), (index, index))
    cache.get("a")
    cache.put("d", {"x": torch.zeros(300)})
    assert [key for key in "abcd" if cache.get(key)] == ["a", "c", "d"]


def test_the_folder_stays_below_its_bound(tmp_path):
    cache = TensorCache(tmp_path, max_bytes=20_000)
    for index in range(50):
        cache.put(str(index), {"x": torch.zeros(200)})
        assert sum(path.stat().st_size for path in entries(cache)) <= 20_000


def test_an_entry_larger_than_the_bound_is_not_kept(tmp_path):
    cache = TensorCache(tmp_path, max_bytes=100)
    cache.put("a", {"x": torch.zeros(1000)})
    assert entries(cache) == []


def test_a_cache_that_cannot_be_written_says_why_and_does_not_stop_the_run(tmp_path, monkeypatch):
    def full(path, *, durable):
        raise DiskFullError("The disk is full.")

    monkeypatch.setattr(cache_module, "atomic_path", full)
    cache = TensorCache(tmp_path)
    cache.put("a", {"x": torch.zeros(2)})
    assert cache.get("a") is None
    assert cache.problem == "The disk is full."


def test_what_a_killed_process_left_half_written_is_swept_away(tmp_path):
    old, new = tmp_path / ".a.safetensors.1.part", tmp_path / ".b.safetensors.2.part"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    TensorCache(tmp_path).put("a", {"x": torch.zeros(2)})
    assert not old.exists() and new.exists()


def _put_and_get(root: Path, worker: int) -> int:
    cache, found = TensorCache(root, max_bytes=8000), 0
    for index in range(60):
        key = str(index % 7)
        cache.put(key, {"x": torch.full((200,), float(index % 7))})
        entry = cache.get(str((index + worker) % 7))
        if entry is not None:
            assert entry["x"].eq((index + worker) % 7).all()
            found += 1
    return found


def test_two_processes_share_a_folder_without_reading_halves(tmp_path):
    with ProcessPoolExecutor(2) as pool:
        found = list(pool.map(_put_and_get, [tmp_path] * 2, range(2)))
    assert all(count > 0 for count in found)


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("SPECTRAL_STUDIO_CACHE", str(tmp_path))
    assert default_root() == tmp_path
    assert TensorCache().root.is_relative_to(tmp_path)


def test_latents_of_another_crop_picture_or_vae_have_another_key():
    crops = plan_crops(2000, 1500, Bucket(1152, 896), 3, True, "a")
    keys = {latents_key(sha, crop, vae) for sha in ("p", "q") for crop in crops for vae in ("v", "w")}
    assert len(keys) == 2 * 6 * 2


def test_texts_of_another_encoder_have_another_key():
    assert text_key("a dog", "one") != text_key("a dog", "two")


class CountingEncoder:
    """Gives a text's length and its first letter; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, texts: list[str]) -> dict[str, torch.Tensor]:
        self.asked.append(texts)
        return {"n": torch.tensor([[len(t)] * 3 for t in texts]), "c": torch.tensor([ord(t[0]) for t in texts])}


def test_text_states_come_in_the_texts_order(cache):
    states = encode_texts(["bb", "a", "bb"], CountingEncoder(), cache, "e")
    assert states["n"].tolist() == [[2] * 3, [1] * 3, [2] * 3]
    assert states["c"].tolist() == [98, 97, 98]


def test_only_texts_that_the_cache_lacks_are_encoded(cache):
    encode = CountingEncoder()
    encode_texts(["a", "b"], encode, cache, "e")
    encode_texts(["a", "c", "b", "c"], encode, cache, "e")
    assert encode.asked == [["a"], ["b"], ["c"]]


def test_batches_give_the_same_states(cache, tmp_path):
    encode = CountingEncoder()
    texts = ["a", "bb", "ccc"]
    batched = encode_texts(texts, encode, cache, "e", batch_size=2)
    single = encode_texts(texts, encode, TensorCache(tmp_path / "other"), "e")
    assert encode.asked[:2] == [["a", "bb"], ["ccc"]]
    assert all(torch.equal(batched[name], single[name]) for name in single)


def test_texts_are_encoded_even_if_nothing_can_be_kept(tmp_path):
    states = encode_texts(["a", "bb"], CountingEncoder(), TensorCache(tmp_path, max_bytes=0), "e")
    assert states["n"].shape == (2, 3)
