"""The recipe in a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from adapters.errors import FileFormatError
from studio.recipe import AdapterUse, Recipe, read_recipes, save_png

RECIPE = Recipe(
    prompt="a „sks“ dog, 犬",
    negative="rain",
    seed=7,
    size=(64, 32),
    steps=25,
    guidance=5.0,
    scheduler="euler",
    adapters=(AdapterUse(file="runs/a/adapter.safetensors", sha256="ab" * 32, strength=0.5),),
    base="embedded",
    base_hash="cd" * 32,
    version="0.1.0",
)
PICTURE = Image.new("RGB", (64, 32), "red")


def test_a_recipe_comes_back_as_it_went_in(tmp_path: Path):
    save_png(tmp_path / "a.png", PICTURE, (RECIPE,))
    assert read_recipes(tmp_path / "a.png") == (RECIPE,)


def test_a_grid_carries_the_recipes_of_all_its_pictures(tmp_path: Path):
    other = RECIPE.model_copy(update={"seed": 8})
    save_png(tmp_path / "a.png", PICTURE, (RECIPE, other))
    assert read_recipes(tmp_path / "a.png") == (RECIPE, other)


def test_other_tools_find_the_recipe_under_their_key(tmp_path: Path):
    save_png(tmp_path / "a.png", PICTURE, (RECIPE,))
    text = Image.open(tmp_path / "a.png").info["parameters"]
    assert text.splitlines()[:2] == [RECIPE.prompt, "Negative prompt: rain"]
    assert "Steps: 25, Sampler: euler, CFG scale: 5.0, Seed: 7, Size: 64x32" in text


def test_the_pixels_are_untouched(tmp_path: Path):
    save_png(tmp_path / "a.png", PICTURE, (RECIPE,))
    assert Image.open(tmp_path / "a.png").tobytes() == PICTURE.tobytes()


def test_a_picture_without_a_recipe_is_said_to_have_none(tmp_path: Path):
    PICTURE.save(tmp_path / "a.png")
    with pytest.raises(FileFormatError, match="no recipe"):
        read_recipes(tmp_path / "a.png")


@pytest.mark.parametrize("text", ["{", '{"prompt": 1}', "[]x"])
def test_a_damaged_recipe_is_said_to_be_damaged(tmp_path: Path, text: str):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("spectral_studio", text)
    PICTURE.save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_recipes(tmp_path / "a.png")


def test_a_damaged_picture_is_said_to_be_no_picture(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(FileFormatError, match="not a picture"):
        read_recipes(tmp_path / "a.png")
