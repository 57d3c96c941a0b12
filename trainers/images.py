"""Pictures of a folder: found, decoded once, checked; opened again one at a time; their masks.

Every unusable file is named in one error; what is merely doubtful (blurry, there twice, small) is a warning.
"""

from __future__ import annotations

import hashlib
import io
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from adapters.errors import StudioError, UserInputError
from trainers.decode import (
    HEIF_SUFFIXES,
    PILLOW_LIMIT,
    SUFFIXES,
    alpha_of,
    decoding,
    eight_bits,
    on_white_srgb,
    readable_suffixes,
    see_through,
    too_large,
    upright,
)

_OTHER_PICTURES = (".svg", ".psd", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".jxl", ".jp2", ".mp4", ".mov")
_LISTED = 5  # file names in a message; beyond that only their number
_HANDS = 4  # pictures looked at together: a large one takes half a gigabyte
_SAME_COLOUR = 20  # mean difference of thumbnails, of 255
_ASPECT_TOLERANCE = 0.02  # a mask made at another size may have been rounded


class ImageChecks(BaseModel):
    """What a picture must be, and what is worth a warning. Sides and pixels are the upright picture's."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    min_side: int = Field(default=64, ge=1, description="smallest side that is accepted, in pixels")
    max_pixels: int = Field(default=150_000_000, ge=1, le=PILLOW_LIMIT, description="a larger picture is not decoded")
    blur_threshold: float = Field(
        default=0.04, ge=0, description="warn if the variance of the Laplacian, over the picture's, is less; 0: never"
    )
    near_duplicate_bits: int = Field(
        default=16, ge=-1, le=128, description="warn if the 128-bit hashes of two pictures differ in no more; -1: never"
    )
    max_upscale: float = Field(
        default=1.5, ge=1, description="warn if a picture must be enlarged by more than this factor"
    )


@dataclass(frozen=True)
class Picture:
    """A checked picture; `width` and `height` count after the EXIF turn; `has_alpha`: it is see-through."""

    path: Path
    sha256: str
    width: int
    height: int
    mask_path: Path | None
    has_alpha: bool


@dataclass(frozen=True)
class Inspected:
    """A picture with what verdicts are made of."""

    picture: Picture
    sharpness: float
    difference_hash: Bool[np.ndarray, " 128"]
    thumbnail: UInt8[np.ndarray, "8 8 3"]


def list_names(names: list[str]) -> str:
    """File names for a message; beyond a handful only their number."""
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def require_pictures(folder: Path) -> None:
    """Raises UserInputError for a folder that is not there or holds no pictures, before anything slow is done."""
    picture_paths(folder)


def find_pictures(folder: Path, checks: ImageChecks, resolution: int | None = None) -> tuple[list[Picture], list[str]]:
    """The pictures of a folder (not of its subfolders) by name, each decoded once; and warnings.

    With `resolution`, the side of the training square in pixels, much smaller pictures are warned of.
    Raises UserInputError for a folder without pictures, and one for all files together that cannot be used.
    """
    paths = picture_paths(folder)
    with ThreadPoolExecutor(_HANDS) as hands:
        looks = [hands.submit(inspect, path, checks) for path in paths]
    inspected: list[Inspected] = []
    bad: list[str] = []
    for path, look in zip(paths, looks, strict=True):
        try:
            inspected.append(look.result())
        except StudioError as error:
            bad.append(f"  {path.name}: {error.what}")
    if bad:
        raise UserInputError(
            f"{len(bad)} of {len(paths)} pictures in {folder} cannot be used:\n" + "\n".join(bad),
            "Replace these files or move them out of the folder.",
        )
    return [entry.picture for entry in inspected], [
        *_skipped_warnings(folder),
        *_orphan_mask_warnings(folder, paths),
        *_duplicate_warnings(inspected, checks),
        *_quality_warnings(inspected, checks, resolution),
    ]


def _visible_files(folder: Path) -> list[Path]:
    """Files by name; without hidden ones (among them macOS's "._IMG_1.jpg", which are no pictures)."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _is_mask(path: Path) -> bool:
    return path.name.lower().endswith(".mask.png")


def _pictures_in(folder: Path) -> list[Path]:
    readable = readable_suffixes()
    return [path for path in _visible_files(folder) if path.suffix.lower() in readable and not _is_mask(path)]


def picture_paths(folder: Path) -> list[Path]:
    """The pictures' paths; UserInputError says what was found instead if there are none."""
    if not folder.exists():
        raise UserInputError(f"There is no folder {folder}.", "Check the path of the pictures.")
    if not folder.is_dir():
        raise UserInputError(f"{folder} is a file.", "Give the folder that the pictures are in.")
    paths = _pictures_in(folder)
    if paths:
        return paths
    fix = f"Put pictures in it ({', '.join(suffix[1:] for suffix in readable_suffixes())})."
    below = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and _pictures_in(path)]
    if below:
        fix = f"Subfolders are not read; give one of them: {list_names(below)}."
    elif skipped := _skipped_warnings(folder):
        fix = " ".join(skipped)
    raise UserInputError(f"There are no pictures in {folder}.", fix)


def _skipped_warnings(folder: Path) -> list[str]:
    """Files that are pictures to people but not to us."""
    unreadable = set(SUFFIXES + HEIF_SUFFIXES) - set(readable_suffixes())
    names = [path.name for path in _visible_files(folder) if path.suffix.lower() in (*unreadable, *_OTHER_PICTURES)]
    if not names:
        return []
    heif = any(Path(name).suffix.lower() in HEIF_SUFFIXES for name in names)
    advice = 'pip install "spectral-studio[heic]" to read HEIC' if heif else "save as JPEG or PNG"
    return [f"Skipped, because this format is not read ({advice}): {list_names(names)}."]


def _mask_path(path: Path) -> Path | None:
    """`<stem>.mask.png` beside the picture, or `masks/<stem>.png`."""
    options = path.parent / f"{path.stem}.mask.png", path.parent / "masks" / f"{path.stem}.png"
    return next((option for option in options if option.is_file()), None)


def _orphan_mask_warnings(folder: Path, pictures: list[Path]) -> list[str]:
    stems = {path.stem for path in pictures}
    masks = [(path.name, path.name[: -len(".mask.png")]) for path in _visible_files(folder) if _is_mask(path)]
    if (folder / "masks").is_dir():
        masks += [(f"masks/{path.name}", path.stem) for path in _visible_files(folder / "masks")]
    orphans = [name for name, stem in masks if stem not in stems]
    return [f"Masks without a picture of the same name: {list_names(orphans)}."] if orphans else []


def inspect(path: Path, checks: ImageChecks) -> Inspected:
    """Read, decode and measure one picture; errors lack the file's name, which the caller adds."""
    raw = _read(path)
    with decoding(io.BytesIO(raw)) as image:
        if math.prod(image.size) > checks.max_pixels:
            raise too_large(checks.max_pixels)
        turned = upright(image)
        has_alpha, rgb = see_through(turned), on_white_srgb(turned)
    width, height = rgb.size
    if min(rgb.size) < checks.min_side:
        raise UserInputError(f"is only {width}×{height} pixels; the smaller side must have at least {checks.min_side}.")
    picture = Picture(path, hashlib.sha256(raw).hexdigest(), width, height, _mask_path(path), has_alpha)
    _check_mask(picture)
    grey = rgb.convert("L")
    thumbnail = np.asarray(rgb.resize((8, 8), Image.Resampling.BOX))
    return Inspected(picture, _sharpness(grey), _difference_hash(grey), thumbnail)


def _read(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserInputError(f"cannot be read ({error.strerror}).") from error
    if not raw:
        raise UserInputError("is an empty file.")
    return raw


def _check_mask(picture: Picture) -> None:
    try:
        mask = open_mask(picture)
    except UserInputError as error:
        raise UserInputError(f"its mask {error.what}") from error
    if mask is not None and mask.getextrema()[1] == 0:
        raise UserInputError("its mask (or alpha channel) is all black; white marks what is to be learnt.")


def _sharpness(grey: Image.Image) -> float:
    """Variance of the Laplacian over the picture's variance, with 256 pixels along the longer side (or fewer).

    The quotient does not depend on contrast. Real photographs are above 0.1, drawings on plain ground above 0.05;
    a Gaussian blur of 0.6 % of the side brings a photograph below 0.042.
    """
    small = grey.copy()
    small.thumbnail((256, 256), Image.Resampling.LANCZOS)
    x = np.asarray(small, np.float32)
    if min(x.shape) < 3:
        return math.inf  # a strip: nothing to judge by
    laplacian = 4 * x[1:-1, 1:-1] - x[:-2, 1:-1] - x[2:, 1:-1] - x[1:-1, :-2] - x[1:-1, 2:]
    return float(laplacian.var() / max(x.var(), 1e-3))


def _difference_hash(grey: Image.Image) -> Bool[np.ndarray, " 128"]:
    """dHash (Krawetz 2013) in both directions: is a patch (of 8×8) brighter than the one before? 128 bits."""
    across = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    down = np.asarray(grey.resize((8, 9), Image.Resampling.BOX), np.int16)
    return np.concatenate([(np.diff(across, axis=1) > 0).ravel(), (np.diff(down, axis=0) > 0).ravel()])


def nearly_same(one: Inspected, other: Inspected, bits: int) -> bool:
    """Alike in structure and, because a plain ground has none, in colour; a copy saved anew differs in 4 bits, by 1."""
    structure = int(np.count_nonzero(one.difference_hash != other.difference_hash))
    colour = float(np.abs(one.thumbnail.astype(np.int16) - other.thumbnail).mean())
    return structure <= bits and colour <= _SAME_COLOUR


def _duplicate_warnings(inspected: list[Inspected], checks: ImageChecks) -> list[str]:
    same: list[str] = []
    alike: list[str] = []
    for one, other in combinations(inspected, 2):
        names = f"{one.picture.path.name} and {other.picture.path.name}"
        if one.picture.sha256 == other.picture.sha256:
            same.append(names)
        elif nearly_same(one, other, checks.near_duplicate_bits):
            alike.append(names)
    found = (("The same file twice", same), ("Nearly the same picture", alike))
    return [f"{text}: {list_names(names)}. Such pictures count double." for text, names in found if names]


def _quality_warnings(inspected: list[Inspected], checks: ImageChecks, resolution: int | None) -> list[str]:
    blurry = [entry.picture.path.name for entry in inspected if entry.sharpness < checks.blur_threshold]
    pictures = [entry.picture for entry in inspected]
    scales = [(resolution or 0) / math.sqrt(picture.width * picture.height) for picture in pictures]
    small = [
        f"{picture.path.name} ({picture.width}×{picture.height})"
        for picture, scale in zip(pictures, scales, strict=True)
        if scale > checks.max_upscale
    ]
    texts = [f"Blurry: {list_names(blurry)}. What is learnt will look so, too."] if blurry else []
    if small:
        texts.append(f"Small for a resolution of {resolution}, to be enlarged: {list_names(small)}.")
    return texts


def open_rgb(picture: Picture) -> Image.Image:
    """The picture upright, in sRGB, on white: "RGB", of `picture.width` × `picture.height`."""
    with decoding(picture.path) as image:
        return on_white_srgb(upright(image))


def open_mask(picture: Picture) -> Image.Image | None:
    """What is to be learnt, white on black: "L" of the picture's size, from its mask file or else its alpha.

    None without either. A mask file that is itself see-through counts by its alpha. Raises
    UserInputError for a mask of another aspect ratio.
    """
    if picture.mask_path is None and not picture.has_alpha:
        return None
    with decoding(picture.mask_path or picture.path) as image:
        turned = upright(image)
        mask = alpha_of(turned) if see_through(turned) else eight_bits(turned).convert("L")
    width, height = mask.size
    if abs(math.log(width / height * picture.height / picture.width)) > _ASPECT_TOLERANCE:
        raise UserInputError(
            f"is {width}×{height} pixels, another shape than the picture's {picture.width}×{picture.height}.",
            "Make the mask of the picture's size.",
        )
    return mask.resize((picture.width, picture.height), Image.Resampling.BILINEAR)
