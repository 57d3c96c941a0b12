from __future__ import annotations

import contextlib
import os
import shutil
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, features

from adapters.errors import StudioError, UserInputError
from trainers.images import ImageChecks, Picture, find_pictures, open_mask, open_rgb

CHECKS = ImageChecks()


def the_picture(folder: Path) -> Picture:
    (picture,), _ = find_pictures(folder, CHECKS)
    return picture


def warnings_of(folder: Path, checks: ImageChecks = CHECKS, resolution: int | None = None) -> str:
    return "\n".join(find_pictures(folder, checks, resolution)[1])


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return start + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


# what is found


def test_pictures_come_sorted_by_name(folder, save_picture):
    for name in ("b.png", "C.png", "a.png"):
        save_picture(name, seed=ord(name[0]))
    assert [picture.path.name for picture in find_pictures(folder, CHECKS)[0]] == ["C.png", "a.png", "b.png"]


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "png", "webp", "bmp", "tif", "tiff", "gif", "avif"])
def test_every_supported_format_is_read(folder, save_picture, suffix):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    save_picture(f"a.{suffix}")
    assert open_rgb(the_picture(folder)).size == (96, 80)


def test_heic_is_read_where_pillow_heif_is_installed(folder, save_picture):
    pytest.importorskip("pillow_heif").register_heif_opener()
    save_picture("a.heic")
    assert open_rgb(the_picture(folder)).size == (96, 80)


def test_of_an_animation_the_first_frame_counts(folder):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:])
    assert open_rgb(the_picture(folder)).getpixel((5, 5)) == (255, 0, 0)


def test_a_file_is_read_by_its_content_whatever_its_suffix_says(folder, save_picture):
    save_picture("a.png").rename(folder / "a.jpg")
    assert the_picture(folder).width == 96


def test_hidden_files_captions_masks_and_subfolders_are_no_pictures(folder, save_picture):
    save_picture("a.png")
    (folder / "._a.png").write_bytes(b"resource fork")
    (folder / "a.txt").write_text("a dog")
    Image.new("L", (96, 80), 255).save(folder / "a.mask.png")
    (folder / "more.png").mkdir()
    assert [picture.path.name for picture in find_pictures(folder, CHECKS)[0]] == ["a.png"]


# what stops


def test_a_missing_folder_is_an_error_of_its_own(tmp_path):
    with pytest.raises(UserInputError, match="There is no folder"):
        find_pictures(tmp_path / "nope", CHECKS)


def test_a_file_in_place_of_a_folder_is_told(save_picture):
    with pytest.raises(UserInputError, match="is a file"):
        find_pictures(save_picture("a.png"), CHECKS)


def test_an_empty_folder_says_which_formats_are_read(folder):
    with pytest.raises(UserInputError, match=r"no pictures.*\n.*jpg"):
        find_pictures(folder, CHECKS)


def test_a_folder_of_folders_names_those_with_pictures(folder, save_picture):
    save_picture("a.png")
    with pytest.raises(UserInputError, match=r"Subfolders are not read.*pictures"):
        find_pictures(folder.parent, CHECKS)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp", "a.tiff"])
def test_a_picture_cut_short_is_refused_by_name(folder, save_picture, name):
    path = save_picture(name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(UserInputError, match=f"{name}: .*damaged"):
        find_pictures(folder, CHECKS)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"hello", "not a picture"), (png_header(100, 100), "damaged")],
    ids=["empty", "text", "header only"],
)
def test_a_file_that_is_no_picture_is_refused_with_the_reason(folder, content, reason):
    (folder / "a.png").write_bytes(content)
    with pytest.raises(UserInputError, match=f"a.png: .*{reason}"):
        find_pictures(folder, CHECKS)


@pytest.mark.parametrize("seed", range(3))
def test_random_damage_never_ends_in_another_error(folder, save_picture, seed):
    generator = np.random.default_rng(seed)
    for suffix in ("jpg", "png", "webp", "tiff", "gif", "avif"):
        path = save_picture(f"a.{suffix}")
        raw = np.frombuffer(path.read_bytes(), np.uint8).copy()
        raw[generator.integers(0, len(raw), 20)] = generator.integers(0, 256, 20)
        path.write_bytes(raw.tobytes())
        with contextlib.suppress(StudioError):
            find_pictures(folder, CHECKS)
        path.unlink()


def test_a_tiny_picture_is_refused_with_its_size_and_the_minimum(folder, save_picture):
    save_picture("a.png", 63, 200)
    with pytest.raises(UserInputError, match=r"a\.png: is only 63×200 pixels.*at least 64"):
        find_pictures(folder, CHECKS)


def test_a_picture_of_exactly_the_minimum_is_accepted(folder, save_picture):
    save_picture("a.png", 64, 200)
    assert the_picture(folder).width == 64


@pytest.mark.parametrize("size", [(20_000, 8_000), (60_000, 60_000)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(folder, size):
    (folder / "a.png").write_bytes(png_header(*size))
    with pytest.raises(UserInputError, match=r"a\.png: has more than .* pixels"):
        find_pictures(folder, CHECKS)


def test_a_large_photograph_raises_no_warning_of_pillows(folder, monkeypatch, save_picture):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    save_picture("a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert the_picture(folder).width == 96


def test_all_bad_files_are_told_at_once(folder, save_picture):
    save_picture("good.png")
    save_picture("tiny.png", 8, 8)
    (folder / "broken.jpg").write_bytes(b"?")
    with pytest.raises(UserInputError, match="2 of 3 pictures") as caught:
        find_pictures(folder, CHECKS)
    assert "tiny.png" in str(caught.value) and "broken.jpg" in str(caught.value)


def test_an_unreadable_file_is_refused_by_name(folder, save_picture):
    path = save_picture("a.png")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(UserInputError, match=r"a\.png: cannot be read"):
        find_pictures(folder, CHECKS)


# what is warned of


def test_good_pictures_raise_no_warning(folder, save_picture):
    for seed in range(4):
        save_picture(f"{seed}.png", 300, 300, seed)
    assert warnings_of(folder, resolution=256) == ""


def test_the_same_file_twice_is_told(folder, save_picture):
    shutil.copy(save_picture("a.png"), folder / "b.png")
    assert "same file twice: a.png and b.png" in warnings_of(folder)


@pytest.mark.parametrize(
    "change",
    [lambda image: image.resize((300, 250)), lambda image: ImageEnhance.Brightness(image).enhance(0.95)],
    ids=["smaller", "darker"],
)
def test_a_nearly_identical_picture_is_told(folder, save_picture, change):
    original = Image.open(save_picture("a.png", 480, 400))
    change(original).save(folder / "b.jpg", quality=70)
    assert "Nearly the same picture: a.png and b.jpg" in warnings_of(folder)


def test_plain_pictures_of_different_colours_are_not_called_the_same(folder):
    for name in ("red", "blue", "green"):
        Image.new("RGB", (100, 100), name).save(folder / f"{name}.png")
    assert "same" not in warnings_of(folder)


def test_a_blurred_picture_is_told_and_a_sharp_one_is_not(folder, save_picture):
    save_picture("sharp.png", 400, 400, 1)
    Image.open(save_picture("soft.png", 400, 400, 2)).filter(ImageFilter.GaussianBlur(9)).save(folder / "soft.png")
    assert "Blurry: soft.png." in warnings_of(folder)


def test_blur_is_judged_without_regard_to_contrast(folder, save_picture):
    faint = Image.blend(Image.open(save_picture("a.png", 400, 400)), Image.new("RGB", (400, 400), "grey"), 0.9)
    faint.save(folder / "a.png")
    assert "Blurry" not in warnings_of(folder)


def test_a_picture_much_smaller_than_the_resolution_is_told(folder, save_picture):
    save_picture("a.png", 96, 80)
    assert "a.png (96×80)" in warnings_of(folder, resolution=256)
    assert "96×80" not in warnings_of(folder, resolution=100)


def test_skipped_formats_are_told(folder, save_picture):
    save_picture("a.png")
    (folder / "b.svg").write_text("<svg/>")
    assert "b.svg" in warnings_of(folder)


def test_a_strip_too_narrow_to_judge_is_not_called_blurry(folder, save_picture):
    save_picture("a.png", 64, 64 * 130)
    assert "Blurry" not in warnings_of(folder)


# masks


def half_mask(width: int = 96, height: int = 80) -> Image.Image:
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (0, 0, width // 2, height))
    return mask


@pytest.mark.parametrize("place", ["a.mask.png", "masks/a.png"])
def test_a_mask_is_found_beside_the_picture_or_in_the_masks_folder(folder, save_picture, place):
    save_picture("a.jpg")
    (folder / "masks").mkdir()
    half_mask().save(folder / place)
    mask = open_mask(the_picture(folder))
    assert mask is not None and (mask.getpixel((10, 10)), mask.getpixel((80, 10))) == (255, 0)


def test_the_alpha_channel_is_the_mask_where_there_is_no_file(folder, save_picture):
    image = Image.open(save_picture("a.png"))
    image.putalpha(half_mask())
    image.save(folder / "a.png")
    mask = open_mask(the_picture(folder))
    assert mask is not None and (mask.getpixel((10, 10)), mask.getpixel((80, 10))) == (255, 0)


def test_an_opaque_alpha_channel_is_no_mask(folder, save_picture):
    image = Image.open(save_picture("a.png"))
    image.putalpha(255)
    image.save(folder / "a.png")
    assert open_mask(the_picture(folder)) is None


def test_a_mask_file_counts_more_than_the_alpha_channel(folder, save_picture):
    image = Image.open(save_picture("a.png"))
    image.putalpha(half_mask())
    image.save(folder / "a.png")
    Image.new("L", (96, 80), 255).save(folder / "a.mask.png")
    assert open_mask(the_picture(folder)).getextrema() == (255, 255)


def test_a_mask_that_is_itself_see_through_counts_by_its_alpha(folder, save_picture):
    save_picture("a.jpg")
    cutout = Image.new("RGB", (96, 80), (20, 20, 20))
    cutout.putalpha(half_mask())
    cutout.save(folder / "a.mask.png")
    assert open_mask(the_picture(folder)).getpixel((10, 10)) == 255


def test_a_mask_of_another_size_is_brought_to_the_pictures(folder, save_picture):
    save_picture("a.jpg")
    half_mask(192, 160).save(folder / "a.mask.png")
    assert open_mask(the_picture(folder)).size == (96, 80)


def test_a_mask_of_another_shape_is_refused(folder, save_picture):
    save_picture("a.jpg")
    half_mask(80, 96).save(folder / "a.mask.png")
    with pytest.raises(UserInputError, match=r"a\.jpg: its mask is 80×96 pixels"):
        find_pictures(folder, CHECKS)


def test_a_black_mask_is_refused(folder, save_picture):
    save_picture("a.jpg")
    Image.new("L", (96, 80), 0).save(folder / "a.mask.png")
    with pytest.raises(UserInputError, match="all black"):
        find_pictures(folder, CHECKS)


def test_a_damaged_mask_is_refused_by_its_pictures_name(folder, save_picture):
    save_picture("a.jpg")
    (folder / "a.mask.png").write_bytes(b"?")
    with pytest.raises(UserInputError, match=r"a\.jpg: its mask is not a picture"):
        find_pictures(folder, CHECKS)


def test_a_mask_without_a_picture_is_told(folder, save_picture):
    save_picture("a.jpg")
    half_mask().save(folder / "b.mask.png")
    assert "b.mask.png" in warnings_of(folder)


# real photographs


def test_real_photographs_are_fit_for_512_pixels_without_a_warning(photographs):
    for subject in sorted(photographs.iterdir()):
        assert warnings_of(subject, resolution=512) == "", subject.name


def test_a_blurred_photograph_is_told(photographs, folder):
    for path in sorted(photographs.glob("*/00.jpg")):
        blurred = Image.open(path).filter(ImageFilter.GaussianBlur(4))
        blurred.save(folder / f"{path.parent.name}.jpg", quality=95)
    pictures, found = find_pictures(folder, CHECKS.model_copy(update={"near_duplicate_bits": -1}))
    assert any("Blurry" in text and f"and {len(pictures) - 5} more" in text for text in found)
