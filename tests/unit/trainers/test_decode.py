from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from trainers.images import ImageChecks, Picture, find_pictures, open_rgb

ORIENTATION = 0x0112


def the_picture(folder: Path) -> Picture:
    (picture,), _ = find_pictures(folder, ImageChecks())
    return picture


def profile_with_red_and_blue_swapped() -> bytes:
    """sRGB's profile under another name, its primaries exchanged."""
    raw = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = raw.replace(b"rXYZ", b"?").replace(b"bXYZ", b"rXYZ", 1).replace(b"?", b"bXYZ", 1)
    return swapped.replace("sRGB".encode("utf-16-be"), "xRGB".encode("utf-16-be"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_exif_says(folder, orientation):
    image = Image.new("RGB", (96, 64), "white")
    image.paste("black", (0, 0, 48, 32))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(folder / "a.png", exif=exif)
    picture = the_picture(folder)
    corner = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}[orientation]
    assert (picture.width, picture.height) == ((96, 64) if orientation < 5 else (64, 96))
    at = corner[0] * (picture.width - 1), corner[1] * (picture.height - 1)
    assert open_rgb(picture).getpixel(at) == (0, 0, 0)


def test_a_colour_profile_is_converted_to_srgb(folder):
    image = Image.new("RGB", (64, 64), (200, 30, 60))
    image.save(folder / "a.png", icc_profile=profile_with_red_and_blue_swapped())
    assert open_rgb(the_picture(folder)).getpixel((0, 0)) == pytest.approx((60, 30, 200), abs=2)


def test_see_through_pictures_keep_their_alpha_through_the_colour_profile(folder):
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((200, 30, 60, 255), (0, 0, 32, 64))
    image.save(folder / "a.png", icc_profile=profile_with_red_and_blue_swapped())
    rgb = open_rgb(the_picture(folder))
    assert rgb.getpixel((5, 5)) == pytest.approx((60, 30, 200), abs=2)
    assert rgb.getpixel((60, 5)) == (255, 255, 255)


def test_a_profile_of_another_colour_model_is_ignored(folder):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    Image.new("RGB", (64, 64), (200, 30, 60)).save(folder / "a.png", icc_profile=profile.tobytes())
    assert open_rgb(the_picture(folder)).getpixel((0, 0)) == (200, 30, 60)


def test_a_picture_in_srgb_is_not_changed_by_its_profile(folder, save_picture):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = save_picture("a.png", icc_profile=profile)
    assert np.array_equal(np.asarray(open_rgb(the_picture(folder))), np.asarray(Image.open(path)))


def test_a_broken_colour_profile_is_ignored(folder, save_picture):
    path = save_picture("a.png", icc_profile=b"no profile")
    assert np.array_equal(np.asarray(open_rgb(the_picture(folder))), np.asarray(Image.open(path)))


def test_see_through_parts_become_white(folder):
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 32, 64))
    image.save(folder / "a.png")
    rgb = open_rgb(the_picture(folder))
    assert (rgb.getpixel((5, 5)), rgb.getpixel((60, 5))) == ((255, 0, 0), (255, 255, 255))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_the_same_colours(folder, mode):
    grey = Image.new("RGB", (64, 64), (255, 255, 255))
    grey.paste((0, 0, 0), (0, 0, 32, 64))
    grey.convert(mode).save(folder / ("a.tiff" if mode == "CMYK" else "a.png"))
    rgb = open_rgb(the_picture(folder))
    assert rgb.mode == "RGB"
    assert (rgb.getpixel((5, 5)), rgb.getpixel((60, 5))) == ((0, 0, 0), (255, 255, 255))


def test_sixteen_bit_greyscale_keeps_its_shades(folder):
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    Image.fromarray(ramp).save(folder / "a.png")
    shades = np.asarray(open_rgb(the_picture(folder)))[0, :, 0].astype(int)
    assert np.abs(shades - np.linspace(0, 255, 64)).max() <= 1


def test_a_palette_with_a_see_through_colour_is_put_on_white(folder):
    image = Image.new("P", (64, 64), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.paste(1, (0, 0, 32, 64))
    image.save(folder / "a.png", transparency=bytes([0, 255]))
    rgb = open_rgb(the_picture(folder))
    assert (rgb.getpixel((5, 5)), rgb.getpixel((60, 5))) == ((40, 50, 60), (255, 255, 255))
