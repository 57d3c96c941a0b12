"""How a picture was made, kept in the picture: what it takes to make it again, and to see where it came from."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, PngImagePlugin
from pydantic import BaseModel, ConfigDict

from adapters.atomic import atomic_path
from adapters.errors import FileFormatError

CHUNK = "spectral_studio"
_COMMON_CHUNK = "parameters"
"""The key under which other tools look for a recipe, as text in the form of AUTOMATIC1111's web UI."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AdapterUse(_Part):
    """An adapter file, by content, and how strongly it was applied."""

    file: str
    sha256: str
    strength: float
    part: str | None = None
    """The layers it was kept to (`studio sample --part`); all where it is None."""

    def __str__(self) -> str:
        return f"at {self.strength:g}" + (f", {self.part} alone" if self.part else "")


class Recipe(_Part):
    """Everything that decides a picture; `size` is width, height in pixels."""

    prompt: str
    negative: str
    seed: int
    size: tuple[int, int]
    steps: int
    guidance: float
    scheduler: str
    adapters: tuple[AdapterUse, ...]
    base: str
    base_hash: str
    version: str
    regions: tuple[str, ...] = ()

    def as_text(self) -> str:
        """The recipe as other tools show it: prompt, negative prompt, then name: value pairs."""
        pairs = {
            "Steps": self.steps,
            "Sampler": self.scheduler,
            "CFG scale": self.guidance,
            "Seed": self.seed,
            "Size": f"{self.size[0]}x{self.size[1]}",
            "Model hash": self.base_hash[:10],
            "Model": self.base,
        }
        if self.adapters:
            uses = [f"{Path(use.file).stem}: {use.sha256[:12]} {use}" for use in self.adapters]
            pairs["Lora hashes"] = json.dumps(", ".join(uses))
        pairs["Version"] = f"spectral-studio {self.version}"
        lines = [self.prompt]
        if self.negative:
            lines.append(f"Negative prompt: {self.negative}")
        return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in pairs.items())])


def save_png(path: Path, picture: Image.Image, recipes: tuple[Recipe, ...]) -> None:
    """The picture with its recipe in its text chunks; a grid carries the recipes of all its pictures, in order."""
    text = PngImagePlugin.PngInfo()
    whole = [recipe.model_dump(mode="json") for recipe in recipes]
    text.add_itxt(CHUNK, json.dumps(whole[0] if len(whole) == 1 else whole, ensure_ascii=False))
    if len(recipes) == 1:
        text.add_itxt(_COMMON_CHUNK, recipes[0].as_text())
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=text)


def read_recipes(path: Path) -> tuple[Recipe, ...]:
    """The recipe of a picture, or those of a grid; FileFormatError where there is none."""
    try:
        with Image.open(path) as picture:
            picture.load()
            text = picture.info.get(CHUNK)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FileFormatError(f"{path} is not a picture that can be read.", "Check the file.") from error
    if text is None:
        raise FileFormatError(
            f"{path} carries no recipe.", "Only PNG files that studio sample wrote, unchanged, have one."
        )
    try:
        whole = json.loads(str(text))
        return tuple(Recipe.model_validate(one) for one in (whole if isinstance(whole, list) else [whole]))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"The recipe in {path} cannot be read.", "It may be from a newer version.") from error
