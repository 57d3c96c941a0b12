"""Decompositions: right, bounded on disk, and never trusted when damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapters import svd
from adapters.svd import Decomposer, Unread, by_gram, exact, randomised
from tests.tolerances import FP32, FP64, relative_error


def falling(rows: int, columns: int, groups: int = 1, rate: float = 0.8) -> Tensor:
    """Random matrices with singular values rate^i."""
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(groups, rows, rows, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(groups, columns, columns, generator=generator, dtype=torch.float64)).Q
    count = min(rows, columns)
    return (left[..., :count] * rate ** torch.arange(count, dtype=torch.float64)) @ right[..., :count].mT


def product(part: svd.Svd) -> Tensor:
    return (part.u * part.s[:, None]) @ part.vt


def orthonormal(columns: Tensor) -> float:
    return (columns.mT @ columns - torch.eye(columns.shape[-1], dtype=columns.dtype)).abs().max().item()


def test_the_randomised_top_is_the_exact_one_where_values_fall():
    weight = falling(120, 90, groups=2, rate=0.5)
    found, expected = randomised(weight, 6), exact(weight)
    assert relative_error(found.s, expected.s[:, :6]) < 1e-9
    assert (
        relative_error(product(found), product(svd.Svd(*(expected.u[..., :6], expected.s[:, :6], expected.vt[:, :6]))))
        < 1e-9
    )


def test_randomised_vectors_are_orthonormal_whatever_the_spectrum():
    flat = torch.randn(1, 200, 150, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = randomised(flat, 16)
    assert max(orthonormal(found.u), orthonormal(found.vt.mT)) < FP64


def test_the_randomised_one_is_the_same_each_time():
    weight = falling(100, 80)
    assert all(torch.equal(a, b) for a, b in zip(randomised(weight, 4), randomised(weight, 4), strict=True))


def test_the_bottom_is_exact_and_descending():
    weight = falling(30, 20)
    found = Decomposer().bottom(weight, 3)
    assert relative_error(found.s, 0.8 ** torch.arange(17, 20, dtype=torch.float64)[None]) < FP64


def test_columns_are_those_of_the_whole_decomposition():
    weight, indices = falling(30, 20, groups=2), torch.tensor([1, 7, 12])
    found, whole = Decomposer().columns(weight, indices), exact(weight)
    assert torch.equal(found.s, whole.s[:, indices]) and torch.equal(found.vt, whole.vt[:, indices])


def test_a_decomposition_is_computed_once_for_the_same_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    decomposer, weight = Decomposer(tmp_path), falling(30, 20)
    first = decomposer.bottom(weight, 3)
    monkeypatch.setattr(svd, "exact", lambda _: pytest.fail("it was computed again"))
    again = decomposer.bottom(weight.clone(), 3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_another_weight_or_count_is_another_entry(tmp_path: Path):
    decomposer, weight = Decomposer(tmp_path), falling(30, 20)
    decomposer.bottom(weight, 3), decomposer.bottom(weight, 4), decomposer.bottom(weight + 1e-9, 3)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_entry_is_computed_again(tmp_path: Path):
    decomposer, weight = Decomposer(tmp_path), falling(30, 20)
    first = decomposer.bottom(weight, 3)
    (entry,) = tmp_path.iterdir()
    entry.write_bytes(entry.read_bytes()[:100])
    assert torch.equal(decomposer.bottom(weight, 3).s, first.s)
    assert entry.stat().st_size > 100


def test_the_folder_stays_within_its_limit_and_keeps_what_was_used_last(tmp_path: Path):
    one = Decomposer(tmp_path)
    one.bottom(falling(30, 20), 3)
    size = next(tmp_path.iterdir()).stat().st_size
    small = Decomposer(tmp_path / "small", limit=2 * size)
    for number in range(5):
        small.bottom(falling(30, 20) + number, 3)
    assert len(list((tmp_path / "small").iterdir())) == 2


def test_a_folder_that_cannot_be_written_costs_time_and_not_the_run(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    assert Decomposer(tmp_path / "file" / "below").bottom(falling(30, 20), 3).s.shape == (1, 3)


def test_nothing_is_decomposed_where_a_file_will_be_loaded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.linalg, "svd", lambda *_, **__: pytest.fail("it decomposed"))
    whole = Unread().top(torch.ones(2, 30, 20), 4)
    assert [tuple(t.shape) for t in whole] == [(2, 30, 4), (2, 4), (2, 4, 20)]


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
def test_the_gram_way_of_the_gpu_is_the_decomposition(shape: tuple[int, int]):
    weight = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2))
    found, expected = by_gram(weight), torch.linalg.svdvals(weight.double())
    assert found.s.dtype == torch.float32
    assert relative_error(found.s, expected) < 1e-6
    assert relative_error(product(found), weight) < FP32
    assert max(orthonormal(found.u), orthonormal(found.vt.mT)) < FP32
