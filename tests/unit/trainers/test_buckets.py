from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from adapters.errors import UserInputError
from trainers.buckets import MAX_ZOOM, Bucket, apply_crop, make_buckets, nearest_bucket, plan_crops

SDXL_SHAPES = {(1024, 1024), (1152, 896), (1216, 832), (1344, 768), (896, 1152), (832, 1216), (768, 1344)}
SIZES = [(512, 512), (640, 480), (333, 1000), (4000, 3000), (90, 70)]


def test_buckets_at_1024_pixels_contain_the_sizes_that_sdxl_was_trained_on():
    assert {(bucket.width, bucket.height) for bucket in make_buckets(1024, 64)} >= SDXL_SHAPES


@pytest.mark.parametrize(("resolution", "step"), [(1024, 64), (1024, 32), (768, 64), (128, 32), (100, 32)])
def test_every_bucket_fits_the_area_the_step_and_the_aspect_limit(resolution, step):
    for bucket in make_buckets(resolution, step, max_aspect=2.0):
        assert bucket.width * bucket.height <= resolution**2
        assert bucket.width % step == 0 and bucket.height % step == 0
        assert 0.5 <= bucket.aspect <= 2.0


@pytest.mark.parametrize(("resolution", "step"), [(1024, 64), (128, 32), (100, 32)])
def test_the_square_is_always_a_bucket(resolution, step):
    side = resolution // step * step
    assert Bucket(side, side) in make_buckets(resolution, step)


def test_buckets_come_in_upright_and_lying_pairs():
    buckets = make_buckets(1024, 64)
    assert {(bucket.height, bucket.width) for bucket in buckets} == {
        (bucket.width, bucket.height) for bucket in buckets
    }


def test_an_aspect_limit_of_one_leaves_only_the_square():
    assert make_buckets(128, 32, max_aspect=1.0) == [Bucket(128, 128)]


def test_a_resolution_below_the_step_is_refused_with_the_smallest_that_works():
    with pytest.raises(UserInputError, match="at least 64"):
        make_buckets(48, 64)


@pytest.mark.parametrize(
    ("size", "expected"), [((512, 512), (1024, 1024)), ((3000, 2000), (1216, 832)), ((9, 16), (768, 1344))]
)
def test_a_picture_goes_to_the_bucket_of_the_nearest_aspect_ratio(size, expected):
    bucket = nearest_bucket(*size, make_buckets(1024, 64))
    assert (bucket.width, bucket.height) == expected


def test_upright_and_lying_pictures_go_to_mirrored_buckets():
    buckets = make_buckets(1024, 64)
    for width in range(500, 1500, 37):
        lying, upright = nearest_bucket(width, 1000, buckets), nearest_bucket(1000, width, buckets)
        assert (lying.width, lying.height) == (upright.height, upright.width)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bucket", [Bucket(128, 128), Bucket(160, 96)])
def test_every_crop_lies_inside_the_resized_picture(size, bucket):
    for crop in plan_crops(*size, bucket, variants=20, flip=True, seed_text="a"):
        assert 0 <= crop.left <= crop.resized[0] - bucket.width
        assert 0 <= crop.top <= crop.resized[1] - bucket.height


@pytest.mark.parametrize("size", SIZES)
def test_no_crop_is_zoomed_further_than_the_limit(size):
    bucket = Bucket(128, 128)
    cover = max(bucket.width / size[0], bucket.height / size[1])
    for crop in plan_crops(*size, bucket, variants=20, flip=False, seed_text="a"):
        assert crop.resized[0] <= size[0] * cover * MAX_ZOOM + 1


def test_the_first_crop_is_the_centred_one_and_shows_as_much_as_fits():
    crop = plan_crops(400, 200, Bucket(128, 128), variants=4, flip=False, seed_text="a")[0]
    assert (crop.resized, crop.left, crop.top, crop.flip) == ((256, 128), 64, 0, False)


def test_crops_follow_from_the_seed_text_alone():
    arguments = (640, 480, Bucket(128, 96), 6, True)
    assert plan_crops(*arguments, "a") == plan_crops(*arguments, "a")
    assert plan_crops(*arguments, "a") != plan_crops(*arguments, "b")


def test_more_variants_keep_the_crops_that_were_there():
    few = plan_crops(640, 480, Bucket(128, 96), 2, False, "a")
    assert plan_crops(640, 480, Bucket(128, 96), 5, False, "a")[:2] == few


def test_flipping_doubles_the_crops_and_mirrors_the_second_half():
    crops = plan_crops(640, 480, Bucket(128, 96), 3, True, "a")
    assert [crop.flip for crop in crops] == [False] * 3 + [True] * 3


def test_time_ids_are_in_sdxls_order():
    crop = plan_crops(400, 200, Bucket(160, 96), 1, False, "a")[0]
    assert crop.time_ids == (200, 400, crop.top, crop.left, 96, 160)


def test_applying_a_crop_gives_the_buckets_size():
    bucket = Bucket(160, 96)
    for size in SIZES:
        for crop in plan_crops(*size, bucket, 3, True, "a"):
            assert apply_crop(Image.new("RGB", size), crop).size == (160, 96)


def test_a_mirrored_crop_counts_its_corner_in_the_mirrored_picture():
    ramp = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (100, 1)))
    crop = next(c for c in plan_crops(200, 100, Bucket(96, 96), 9, True, "a") if c.flip and c.left > 20)
    whole = ramp.resize(crop.resized, Image.Resampling.LANCZOS).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert apply_crop(ramp, crop).getpixel((0, 0)) == whole.getpixel((crop.left, crop.top))
