"""Masks of subjects from maps that are known, and maps from attentions that are."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from tests.tolerances import FP64, relative_error
from trainers.attention_maps import AttentionMaps, blurred, standardised, subject_masks, watching
from trainers.sdxl import load_base


def blob(row: float, column: float, loudness: float = 1.0, side: int = 16) -> Tensor:
    """A map [h, w] that falls off from one place."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return loudness * torch.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 8).double()


# --- masks --------------------------------------------------------------------------------------------------------


def test_each_subject_has_its_place_and_the_rest_is_nobodys():
    masks = subject_masks(torch.stack([blob(4, 4), blob(11, 12)])[None], 16, 16)[0]
    assert masks[0, 4, 4] == 1 and masks[1, 11, 12] == 1
    assert masks[:, 0, 15].sum() == 0 and masks[:, 15, 0].sum() == 0
    assert masks.sum(0).max() == 1 and set(masks.unique().tolist()) == {0, 1}


def test_words_that_are_louder_get_no_more_of_the_picture():
    quiet = subject_masks(torch.stack([blob(4, 4), blob(11, 12)])[None], 16, 16)
    loud = subject_masks(torch.stack([blob(4, 4, 50.0) + 3, blob(11, 12)])[None], 16, 16)
    assert torch.equal(quiet, loud)


def test_a_subject_that_is_nowhere_gets_nothing():
    masks = subject_masks(torch.stack([blob(4, 4), torch.full((16, 16), 0.3).double()])[None], 16, 16)[0]
    assert masks[0].any() and not masks[1].any()


def test_every_picture_of_a_batch_has_masks_of_its_own():
    first, second = torch.stack([blob(4, 4), blob(11, 12)]), torch.stack([blob(12, 3), blob(3, 12)])
    together = subject_masks(torch.stack([first, second]), 16, 16)
    assert not torch.equal(together[0], together[1])
    for found, alone in zip(together, (first, second), strict=True):
        assert torch.equal(found, subject_masks(alone[None], 16, 16)[0])


def test_masks_are_as_large_as_the_latents_in_any_shape():
    masks = subject_masks(torch.stack([blob(4, 4), blob(11, 12)])[None], 24, 40)
    assert masks.shape == (1, 2, 24, 40) and masks[0, 0, 6, 10] == 1 and masks[0, 1, 17, 30] == 1


def test_standardised_maps_have_mean_0_and_deviation_1_and_flat_ones_are_0():
    maps = torch.stack([blob(3, 3), torch.full((16, 16), 7.0).double()])[None]
    found = standardised(maps)
    assert abs(float(found[0, 0].mean())) < FP64 and abs(float(found[0, 0].std(correction=0)) - 1) < FP64
    assert not found[0, 1].any()


def test_blurring_is_a_gaussian_and_keeps_what_is_flat():
    point = torch.zeros(1, 1, 21, 21).double()
    point[0, 0, 10, 10] = 1
    found = blurred(point, 1.5)[0, 0]
    assert abs(float(found.sum()) - 1) < FP64
    assert float(found[10, 13] / found[10, 10]) == pytest.approx(torch.exp(torch.tensor(-9 / 4.5)).item())
    flat = torch.full((1, 1, 9, 9), 2.0).double()
    assert relative_error(blurred(flat, 2.0), flat) < FP64


# --- maps ---------------------------------------------------------------------------------------------------------


def test_a_map_is_the_softmax_of_a_subjects_words_mean_over_heads():
    attn = Attention(8, cross_attention_dim=6, heads=2, dim_head=4).double()
    draws = torch.Generator().manual_seed(0)
    x, context = (torch.randn(size, generator=draws).double() for size in ((2, 16, 8), (2, 5, 6)))
    q, k = attn.to_q(x), attn.to_k(context)
    words = torch.tensor([[[0.0, 0.5, 0.5, 0, 0], [0, 0, 0, 1, 0]]])
    found = AttentionMaps((8, 8), {attn: q}, {attn: k}).of(words)
    shares = attn.get_attention_scores(attn.head_to_batch_dim(q), attn.head_to_batch_dim(k))[2:].mean(0)
    expected = torch.stack([shares[:, 1:3].mean(1), shares[:, 3]])  # of the second picture: the first has no prompt
    expected = (expected - expected.mean(1, keepdim=True)) / expected.std(1, keepdim=True, correction=0)
    assert relative_error(found, expected.reshape(1, 2, 4, 4)) < 1e-5  # computed in fp32


def test_watching_leaves_no_hook_behind():
    unet = load_base("embedded").unet

    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in unet.modules() if isinstance(module, nn.Linear))

    with watching(unet, 16, 16):
        assert hooks() == 6
    assert hooks() == 0
