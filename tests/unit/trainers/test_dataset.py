from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from trainers.buckets import Bucket
from trainers.cache import TensorCache
from trainers.captions import CaptionConfig
from trainers.dataset import (
    DataConfig,
    Item,
    buckets_in_use,
    data_warnings,
    describe_change,
    manifest,
    plan_items,
    plan_prior_items,
    stack_by_bucket,
    text_table,
)
from trainers.images import ImageChecks, find_pictures
from trainers.latents import encode_items

CAPTIONS = CaptionConfig(trigger="sks", class_word="dog", shuffle_tags=True)
STEP = 32


class MeanEncoder:
    """A stand-in for the VAE: block means; remembers what it was given."""

    def __init__(self) -> None:
        self.given: list[torch.Tensor] = []

    def __call__(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.given.append(pixels)
        mean = F.avg_pool2d(pixels, 8)
        return mean, torch.full_like(mean, 0.1)


def a_config(folder: Path, **changes: object) -> DataConfig:
    return DataConfig(**{"folder": folder, "captions": CAPTIONS, "resolution": 128, "crop_variants": 3, **changes})


def planned(folder: Path, seed: int = 0, **changes: object) -> list[Item]:
    config = a_config(folder, **changes)
    return plan_items(find_pictures(folder, ImageChecks())[0], config, config.buckets(128, STEP), seed)


def encoded(items, cache, encode=None, vae_id="vae", mask_floor=None):
    texts = text_table(items)
    rows = list(encode_items(items, encode or MeanEncoder(), cache, vae_id, mask_floor))
    return stack_by_bucket(rows, texts, "cpu"), texts


@pytest.fixture
def cache(tmp_path) -> TensorCache:
    return TensorCache(tmp_path / "cache")


@pytest.fixture
def two_shapes(folder, save_picture) -> Path:
    """Two square pictures, one of them with tags, and a lying one."""
    save_picture("a.png", 100, 100, 1)
    save_picture("b.png", 300, 300, 2)
    save_picture("c.png", 200, 120, 3)
    (folder / "b.txt").write_text("sks dog, grass, sun, ball")
    return folder


def test_rows_that_show_a_picture_again_are_marked(two_shapes: Path, cache: TensorCache):
    buckets, _ = encoded(planned(two_shapes, repeats=2), cache)
    marks = [bucket.is_repeat.tolist() for bucket in buckets.values() if bucket.is_repeat is not None]
    assert sorted(marks) == [[False, True], [False, True, False, True]]


# plans


def test_pictures_fall_into_buckets_by_their_shape(two_shapes):
    assert [item.bucket for item in planned(two_shapes)] == [Bucket(128, 128)] * 2 + [Bucket(160, 96)]


def test_without_bucketing_all_are_cut_square(two_shapes):
    assert buckets_in_use(planned(two_shapes, bucketing=False)) == [Bucket(128, 128)]


def test_the_resolution_left_out_is_the_bases_own(two_shapes):
    assert a_config(two_shapes, resolution=None, bucketing=False).buckets(256, STEP) == [Bucket(256, 256)]


def test_a_plan_follows_from_the_seed(two_shapes):
    assert planned(two_shapes, seed=1) == planned(two_shapes, seed=1)
    assert planned(two_shapes, seed=1) != planned(two_shapes, seed=2)


def test_repeats_show_a_picture_again_with_crops_of_their_own(two_shapes):
    first, second = planned(two_shapes, repeats=2)[:2]
    assert first.picture == second.picture and first.crops[0] == second.crops[0]
    assert first.crops[1:] != second.crops[1:]


def test_class_pictures_are_cropped_into_every_bucket_in_use(two_shapes):
    items = planned(two_shapes)
    pictures = [item.picture for item in items]
    prior = plan_prior_items(pictures, "a dog", buckets_in_use(items))
    for bucket in buckets_in_use(items):
        assert [item.picture for item in prior if item.bucket == bucket] == pictures


def test_class_pictures_are_marked_and_have_the_class_caption(two_shapes):
    items = planned(two_shapes)
    (item,) = plan_prior_items([items[0].picture], "a dog", [Bucket(128, 128)])
    assert item.is_prior and item.captions == ("a dog",)


def test_the_text_table_holds_every_caption_once_in_order(two_shapes):
    texts = text_table(planned(two_shapes))
    assert texts == sorted(set(texts)) and "a photo of a sks dog" in texts and "" not in texts


def test_an_unknown_key_is_refused(two_shapes):
    with pytest.raises(ValueError, match="crop_variant\n"):
        a_config(two_shapes, crop_variant=3)


# encoding


def test_tensors_have_a_row_an_item_and_a_column_a_crop(two_shapes, cache):
    tensors = encoded(planned(two_shapes, flip=True), cache)[0][Bucket(160, 96)]
    assert tensors.mean.shape == tensors.std.shape == (1, 6, 3, 12, 20)
    assert tensors.time_ids.shape == (1, 6, 6)


def test_the_encoder_sees_pixels_from_minus_one_to_one(folder, cache):
    image = Image.new("RGB", (128, 128), "black")
    image.paste("white", (0, 0, 64, 128))
    image.save(folder / "a.png")
    encode = MeanEncoder()
    encoded(planned(folder, crop_variants=1), cache, encode)
    (pixels,) = encode.given
    assert pixels.shape == (1, 3, 128, 128)
    assert (pixels[0, :, 5, 5].tolist(), pixels[0, :, 5, 120].tolist()) == ([1.0] * 3, [-1.0] * 3)


def test_time_ids_are_those_of_the_crops(two_shapes, cache):
    items = planned(two_shapes)
    tensors = encoded(items, cache)[0][Bucket(128, 128)]
    assert tensors.time_ids[1].tolist() == [list(crop.time_ids) for crop in items[1].crops]


def test_caption_numbers_lead_to_the_items_captions(two_shapes, cache):
    items = planned(two_shapes)
    buckets, texts = encoded(items, cache)
    rows = buckets[Bucket(128, 128)].captions
    assert [texts[number] for number in rows[1]] == list(items[1].captions)


def test_an_item_with_fewer_captions_repeats_them(two_shapes, cache):
    buckets, texts = encoded(planned(two_shapes), cache)
    rows = buckets[Bucket(128, 128)].captions
    assert rows.shape == (2, 4)
    assert {texts[number] for number in rows[0]} == {"a photo of a sks dog"}


def test_an_item_with_fewer_crops_repeats_them(two_shapes, cache):
    items = planned(two_shapes)
    prior = plan_prior_items([items[0].picture], "a dog", [Bucket(128, 128)])
    tensors = encoded(items + prior, cache)[0][Bucket(128, 128)]
    assert tensors.is_prior.tolist() == [False, False, True]
    assert torch.equal(tensors.mean[2], tensors.mean[2, :1].expand(3, -1, -1, -1))


def test_nothing_is_encoded_twice(two_shapes, cache):
    first, second = MeanEncoder(), MeanEncoder()
    buckets = encoded(planned(two_shapes), cache, first)[0]
    again = encoded(planned(two_shapes), cache, second)[0]
    assert len(first.given) == 9 and second.given == []
    assert all(torch.equal(buckets[bucket].mean, again[bucket].mean) for bucket in buckets)


def test_another_vae_encodes_anew(two_shapes, cache):
    encode = MeanEncoder()
    for vae in ("one", "two"):
        encoded(planned(two_shapes), cache, encode, vae)
    assert len(encode.given) == 18


def test_a_picture_whose_latents_are_cached_is_not_opened(two_shapes, cache):
    items = planned(two_shapes)
    encoded(items, cache)
    for item in items:
        item.picture.path.unlink()
    assert encoded(items, cache)[0].keys() == {Bucket(128, 128), Bucket(160, 96)}


def test_latents_are_single_precision_whatever_the_encoder_gives(two_shapes, cache):
    def encode(pixels):
        mean = F.avg_pool2d(pixels, 8).half()
        return mean, mean

    tensors = encoded(planned(two_shapes), cache, encode)[0][Bucket(128, 128)]
    assert tensors.mean.dtype == tensors.std.dtype == torch.float32


# masks


@pytest.fixture
def masked(folder, save_picture) -> Path:
    """A picture whose left quarter is to be learnt, and one without a mask."""
    save_picture("a.png", 128, 128, 1)
    save_picture("b.png", 128, 128, 2)
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, (0, 0, 32, 128))
    mask.save(folder / "a.mask.png")
    return folder


def weights(folder: Path, cache: TensorCache, floor: float, **changes: object) -> torch.Tensor:
    items = planned(folder, masked_loss=True, **changes)
    return encoded(items, cache, mask_floor=floor)[0][Bucket(128, 128)].mask


def test_without_masked_loss_there_are_no_weights(masked, cache):
    assert encoded(planned(masked), cache)[0][Bucket(128, 128)].mask is None


@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0])
def test_the_mean_weight_of_every_crop_is_one(masked, cache, floor):
    mean = weights(masked, cache, floor, flip=True).mean(dim=(-1, -2))
    assert torch.allclose(mean, torch.ones_like(mean), atol=1e-6)


def test_the_floor_is_the_weight_outside_over_the_weight_inside(masked, cache):
    centre = weights(masked, cache, 0.1)[0, 0, 0]
    assert (centre[:, 12] / centre[:, 1]).tolist() == pytest.approx([0.1] * 16)


def test_a_picture_without_a_mask_counts_alike_everywhere(masked, cache):
    assert weights(masked, cache, 0.1)[1].eq(1).all()


def test_masks_are_mirrored_with_their_crops(masked, cache):
    crops = weights(masked, cache, 0.0, flip=True, crop_variants=1)[0, :, 0]
    assert torch.equal(crops[1], crops[0].flip(-1))


def test_masks_of_class_pictures_do_not_count(masked, cache):
    pictures, _ = find_pictures(masked, ImageChecks())
    prior = plan_prior_items(pictures, "a dog", [Bucket(128, 128)])
    assert encoded(prior, cache, mask_floor=0.0)[0][Bucket(128, 128)].mask.eq(1).all()


def test_pictures_without_a_mask_are_told_when_the_loss_is_masked(masked):
    pictures, _ = find_pictures(masked, ImageChecks())
    (warning,) = data_warnings(pictures, a_config(masked, masked_loss=True))
    assert "b.png" in warning and "a.png" not in warning


def test_masks_that_are_not_used_are_told(masked):
    pictures, _ = find_pictures(masked, ImageChecks())
    (warning,) = data_warnings(pictures, a_config(masked))
    assert "not used" in warning


# fingerprints


def test_the_same_pictures_have_the_same_manifest_wherever_they_lie(two_shapes, tmp_path):
    before = planned(two_shapes)
    moved = two_shapes.rename(tmp_path / "moved")
    assert describe_change(manifest(before), manifest(planned(moved))) is None


def _replace_picture(folder: Path) -> None:
    Image.new("RGB", (100, 100), "red").save(folder / "a.png")


CHANGES = {
    "added: d.png": lambda folder: Image.new("RGB", (100, 100)).save(folder / "d.png"),
    "removed: a.png": lambda folder: (folder / "a.png").unlink(),
    "other content: a.png": _replace_picture,
    "other captions: b.png": lambda folder: (folder / "b.txt").write_text("sks dog, snow"),
}


@pytest.mark.parametrize("words", CHANGES)
def test_a_change_of_the_pictures_is_told_in_words(two_shapes, words):
    before = planned(two_shapes)
    CHANGES[words](two_shapes)
    after = planned(two_shapes)
    assert words in describe_change(manifest(before), manifest(after))


def test_other_crops_are_told(two_shapes):
    before, after = manifest(planned(two_shapes)), manifest(planned(two_shapes, crop_variants=4))
    assert describe_change(before, after) == "other crops: a.png, b.png, c.png."


def test_another_mask_is_told_only_where_masks_are_used(masked):
    used, unused = manifest(planned(masked, masked_loss=True)), manifest(planned(masked))
    Image.new("L", (128, 128), 255).save(masked / "a.mask.png")
    assert describe_change(used, manifest(planned(masked, masked_loss=True))) == "other masks: a.png."
    assert describe_change(unused, manifest(planned(masked))) is None


def test_class_pictures_are_told_apart_from_the_subjects(two_shapes):
    items = planned(two_shapes)
    prior = plan_prior_items([items[0].picture], "a dog", [Bucket(128, 128)])
    assert describe_change(manifest(items), manifest(items + prior)) == "added: class/a.png."


def test_the_order_of_a_manifest_does_not_matter(two_shapes):
    whole = manifest(planned(two_shapes))
    assert describe_change(dict(reversed(whole.items())), whole) is None


# real photographs


def test_real_photographs_reconstruct_from_their_tensors(photographs, cache):
    folder = photographs / "dog3"
    items = planned(folder, crop_variants=1, captions=CAPTIONS.model_copy(update={"from_files": False}))
    tensors = encoded(items, cache, lambda pixels: (pixels, pixels), "identity")[0]
    with Image.open(items[0].picture.path) as image:
        expected = image.convert("RGB").resize((128, 128), Image.Resampling.LANCZOS)
    shown = (tensors[Bucket(128, 128)].mean[0, 0] + 1) * 127.5
    assert shown.round().permute(1, 2, 0).to(torch.uint8).numpy().tobytes() == expected.tobytes()


def test_items_cannot_be_changed(two_shapes):
    with pytest.raises(dataclasses.FrozenInstanceError):
        planned(two_shapes)[0].is_prior = True
