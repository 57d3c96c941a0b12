"""Scores of pictures by the base alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tests.support import make_pictures
from tests.tolerances import FP64
from trainers.scores import BLOCKS, Looks, Trait, features, latents_of
from trainers.sdxl import Base, load_base


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("embedded")


@pytest.fixture(scope="module")
def latents(base: Base, tmp_path_factory: pytest.TempPathFactory) -> list[Tensor]:
    folder = make_pictures(tmp_path_factory.mktemp("pictures"))
    return [latents_of(base, Image.open(path)) for path in sorted(folder.iterdir())]


def patches(seed: int, common: Tensor | None = None) -> Looks:
    """Of one picture; some of them the same in several."""
    draws = torch.Generator().manual_seed(seed)
    own = torch.randn(6, 16, generator=draws, dtype=torch.float64)
    return [own if common is None else torch.cat([own, common])]


(COMMON,) = patches(0)
TRAINING, PLAIN = [patches(seed, COMMON) for seed in (1, 2, 3)], [patches(seed) for seed in (4, 5)]


def subject() -> Trait:
    found = Trait.of(TRAINING, PLAIN)
    assert found is not None
    return found


def test_the_bases_own_pictures_have_0_on_average():
    found = [subject().score(one) for one in PLAIN]
    assert sum(found) == pytest.approx(0, abs=1e-9) and found[0] != found[1]


def test_training_pictures_have_100_of_each_other_on_average():
    """Written out patch by patch."""
    known, count = subject(), len(TRAINING)
    whole, training = 0.0, [looks for (looks,) in TRAINING]
    for at, one in enumerate(training):
        for row in range(len(one)):
            weight = known.weights[at * len(one) + row]
            patch = one[row] - known.centre
            nearest = [
                max(float(F.cosine_similarity(patch, other - known.centre, dim=0)) for other in training[i])
                for i in range(count)
                if i != at
            ]
            whole += float(weight) * sum(nearest) / len(nearest)
    assert known.hundred == pytest.approx(whole, rel=FP64)


def test_a_picture_with_what_the_training_pictures_share_is_above_one_without():
    assert subject().score(patches(9, COMMON)) > 80 > 20 > subject().score(patches(9))


def test_what_training_pictures_share_counts_most():
    weights = subject().weights.unflatten(0, (len(TRAINING), -1))
    assert float(weights[:, 6:].sum()) > 0.8 and float(weights.sum()) == pytest.approx(1)


def test_where_the_base_draws_the_same_there_is_nothing_to_measure():
    assert Trait.of([[COMMON], [COMMON]], [[COMMON]]) is None


@pytest.mark.parametrize("block", [0, 1])
def test_the_block_that_tells_the_pictures_apart_is_the_one_that_counts(block: int):
    def looks(seed: int, common: Tensor | None) -> Looks:
        blind, seeing = patches(seed), patches(seed + 100, common)
        return [*seeing, *blind] if block == 0 else [*blind, *seeing]

    having, without = [looks(seed, COMMON) for seed in (1, 2, 3)], [looks(seed, None) for seed in (4, 5)]
    found = Trait.clearest(having, without)
    assert found is not None and found.block == block
    assert found.score(looks(9, COMMON)) > 80 > 20 > found.score(looks(9, None))


def test_a_picture_is_likest_to_itself(base: Base, latents: list[Tensor]):
    first, second, third = (features(base, one) for one in latents)
    known = Trait.of([first, first], [third])
    assert known is not None
    assert known.score(first) == pytest.approx(100, abs=1e-3) and known.score(second) < 99


def test_a_picture_looks_the_same_each_time(base: Base, latents: list[Tensor]):
    first, again = features(base, latents[0]), features(base, latents[0])
    assert len(first) == len(BLOCKS) and all(map(torch.equal, first, again))


def test_looking_leaves_no_hook(base: Base, latents: list[Tensor]):
    features(base, latents[0])
    assert not any(module._forward_hooks for module in base.unet.modules())
