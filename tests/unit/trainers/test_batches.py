from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from trainers.batches import BatchPlan
from trainers.buckets import Bucket
from trainers.dataset import BucketTensors
from trainers.world import World


def tensors(subject: int, prior: int = 0, side: int = 4) -> BucketTensors:
    """Latents whose value is their row, so that a batch tells which rows it holds."""
    rows = subject + prior
    mean = torch.arange(rows).float()[:, None, None, None, None].expand(rows, 2, 1, side, side).clone()
    return BucketTensors(
        mean=mean,
        std=torch.zeros_like(mean),
        mask=None,
        time_ids=torch.zeros(rows, 2, 6),
        captions=torch.arange(rows)[:, None].expand(rows, 3).clone(),
        is_prior=torch.arange(rows) >= subject,
    )


def epoch(plan: BatchPlan, number: int = 0) -> list[tuple[int, list[int]]]:
    first = number * plan.batches_per_epoch
    return [plan.rows(first + n) for n in range(plan.batches_per_epoch)]


def test_an_epoch_shows_every_picture_once_when_batches_come_out_even():
    plan = BatchPlan({Bucket(32, 32): tensors(4), Bucket(64, 32): tensors(2)}, batch_size=2, seed=0)
    shown = Counter((bucket, row) for bucket, rows in epoch(plan) for row in rows)
    assert set(shown.values()) == {1} and len(shown) == 6


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7])
def test_every_batch_is_full_and_every_picture_seen(batch_size: int):
    plan = BatchPlan({Bucket(32, 32): tensors(5)}, batch_size, seed=0)
    batches = epoch(plan)
    assert all(len(rows) == batch_size for _, rows in batches)
    assert {row for _, rows in batches for row in rows} == set(range(5))


def test_validation_shows_every_picture_once_however_often_training_repeats_it():
    repeated = replace(tensors(6), is_repeat=torch.tensor([False, True, True, False, True, False]))
    plan = BatchPlan({Bucket(32, 32): repeated, Bucket(64, 32): tensors(2)}, batch_size=1, seed=0)
    shown = sorted((bucket, row) for bucket, rows in epoch(plan.for_validation(1)) for row in rows)
    assert shown == [(0, 0), (0, 3), (0, 5), (1, 0), (1, 1)]
    assert plan.batches_per_epoch == 8


def test_batches_depend_on_their_number_alone():
    plan, other = (BatchPlan({Bucket(32, 32): tensors(5)}, 2, seed=3) for _ in range(2))
    wanted = [plan.rows(n) for n in range(20)]
    assert [other.rows(n) for n in reversed(range(20))][::-1] == wanted


def test_another_seed_gives_another_order():
    first, second = ([BatchPlan({Bucket(32, 32): tensors(9)}, 3, seed).rows(n) for n in range(9)] for seed in (0, 1))
    assert first != second


def test_each_subject_picture_comes_with_a_class_picture_of_its_own_shape():
    plan = BatchPlan({Bucket(32, 32): tensors(3, prior=4), Bucket(64, 32): tensors(1, prior=4)}, 2, seed=0)
    for number in range(plan.batches_per_epoch):
        assert plan.batch(number).is_prior.tolist() == [False, False, True, True]


def test_class_pictures_take_turns():
    plan = BatchPlan({Bucket(32, 32): tensors(2, prior=6)}, 2, seed=0)
    shown = Counter(row for n in range(6) for row in plan.rows(n)[1] if row >= 2)
    assert set(shown.values()) == {2} and len(shown) == 6


def test_latents_are_drawn_from_the_vae_s_distribution():
    made = tensors(1)
    spread = BucketTensors(
        made.mean, torch.full_like(made.mean, 2.0), None, made.time_ids, made.captions, made.is_prior
    )
    plan = BatchPlan({Bucket(32, 32): spread}, 1, seed=0)
    values = torch.cat([plan.batch(n).latents.flatten() for n in range(200)])
    assert values.std().item() == pytest.approx(2.0, rel=0.1)


def test_the_same_batch_number_draws_the_same_latents():
    made = tensors(3)
    spread = BucketTensors(made.mean, torch.ones_like(made.mean), None, made.time_ids, made.captions, made.is_prior)
    first, second = (BatchPlan({Bucket(32, 32): spread}, 2, seed=5).batch(11).latents for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("prior", [0, 5])
def test_processes_share_a_batch_as_one_process_draws_it(prior: int):
    made = tensors(6, prior)
    spread = BucketTensors(made.mean, torch.ones_like(made.mean), None, made.time_ids, made.captions, made.is_prior)
    buckets = {Bucket(32, 32): spread}
    alone = BatchPlan(buckets, 4, seed=1).batch(3)
    shares = [BatchPlan(buckets, 4, 1, World(rank, 2)).batch(3) for rank in (0, 1)]
    for share in shares:
        assert share.is_prior.tolist() == [False, False] + ([True, True] if prior else [])
    subject, prior_rows = (torch.cat([part.latents.split(2)[n] for part in shares]) for n in (0, -1))
    assert torch.equal(subject, alone.latents[:4]) and torch.equal(prior_rows, alone.latents[-4:])
    assert torch.equal(torch.cat([share.captions[:2] for share in shares]), alone.captions[:4])


def test_validation_leaves_the_class_pictures_out():
    batch = BatchPlan({Bucket(32, 32): tensors(2, prior=2)}, 2, seed=0).batch(0).subject_only()
    assert batch.is_prior.tolist() == [False, False] and len(batch.latents) == 2
