"""Picture files of any format, depth and colour space → upright 8-bit RGB in sRGB on white."""

from __future__ import annotations

import importlib
import importlib.util
import io
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, ImageCms, ImageOps

from adapters.errors import StudioError, UserInputError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
HEIF_SUFFIXES = (".heic", ".heif")
PILLOW_LIMIT = 178_956_970  # Pillow refuses a picture with more pixels than this, whatever we ask
_OPENING = Lock()
_WITHOUT_ALPHA = {"LA": "L", "La": "L", "1": "L", "RGBA": "RGB", "RGBa": "RGB"}


@cache
def readable_suffixes() -> tuple[str, ...]:
    """What this machine's Pillow decodes, HEIC included where pillow-heif is installed."""
    if importlib.util.find_spec("pillow_heif") is not None:
        importlib.import_module("pillow_heif").register_heif_opener()
    registered = Image.registered_extensions()
    return tuple(suffix for suffix in SUFFIXES + HEIF_SUFFIXES if suffix in registered)


def too_large(limit: int) -> UserInputError:
    return UserInputError(f"has more than {limit:,} pixels, which is the limit (checks.max_pixels).")


@contextmanager
def decoding(source: Path | io.BytesIO) -> Generator[Image.Image]:
    """The opened, not yet decoded picture; what its decoder raises becomes a UserInputError."""
    readable_suffixes()  # registers HEIC, also in a process that did not look for pictures
    try:
        with _OPENING, warnings.catch_warnings():  # which are the process's, not the thread's
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we have a limit of our own
            image = Image.open(source)
        with image:
            yield image
    except StudioError:
        raise
    except Image.DecompressionBombError as error:
        raise too_large(PILLOW_LIMIT) from error
    except Image.UnidentifiedImageError as error:
        raise UserInputError("is not a picture, or is damaged.") from error
    except Exception as error:  # decoders raise anything on damaged files: OSError, SyntaxError, struct.error…
        raise UserInputError(f"cannot be read; it is damaged or cut short ({error}).") from error


def upright(image: Image.Image) -> Image.Image:
    """The picture, decoded and turned as its EXIF orientation says."""
    return ImageOps.exif_transpose(image)


def see_through(image: Image.Image) -> bool:
    """Whether some pixel is not fully opaque."""
    image = eight_bits(image)
    return image.has_transparency_data and alpha_of(image).getextrema()[0] != 255


def alpha_of(image: Image.Image) -> Image.Image:
    """The opacity, "L"; 255 everywhere where there is none."""
    return image.convert("RGBA").getchannel("A")


def on_white_srgb(image: Image.Image) -> Image.Image:
    """Any mode → "RGB" in sRGB, what is see-through blended with white."""
    profile: bytes | None = image.info.get("icc_profile")
    image = eight_bits(image)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    rgb = _to_srgb(image.convert(_WITHOUT_ALPHA.get(image.mode, image.mode)), profile)
    if not image.has_transparency_data:
        return rgb
    return Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha_of(image))


def eight_bits(image: Image.Image) -> Image.Image:
    """16-bit greyscale scaled to 8 bits, where Pillow would cut off at 255; other pictures as they are."""
    if image.mode.startswith("I"):
        scaled = np.asarray(image, np.float64) / 257
        return Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))
    if image.mode == "F":
        raise UserInputError("has floating-point pixels; save it with 8 or 16 bits.")
    return image


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Opaque picture → "RGB", through its ICC profile if that is usable and not sRGB itself."""
    if not profile:
        return image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return image.convert("RGB")
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            image.mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        return ImageCms.applyTransform(image, transform) or image.convert("RGB")
    except (
        ImageCms.PyCMSError,
        OSError,
        ValueError,
    ):  # broken or of another colour model: viewers skip it, too
        return image.convert("RGB")
