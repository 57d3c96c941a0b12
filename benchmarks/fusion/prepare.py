"""Everything that needs the shared pictures, done beforehand: training folders and the judge; a few megabytes."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image

from benchmarks.embedded.captions import COLORS
from benchmarks.embedded.concepts import name_of
from benchmarks.embedded.config import PICTURE
from benchmarks.embedded.data import HELD_OUT_STYLE, EmojiSet, load_tar
from benchmarks.embedded.subjects import BACKGROUNDS, compose_subject, write_subject
from benchmarks.fusion.designs import designs_of, load_designs, save_designs
from benchmarks.fusion.judge import mean_look, save_judge, train_judge
from benchmarks.fusion.subjects import STYLE, STYLE_THINGS, STYLE_TRIGGER, SUBJECTS, reference_things
from trainers.bases import pick_device
from trainers.sdxl import load_base

PICTURES = 6
"""Of each subject."""
THINGS = 230
"""That the judge is taught."""


def write_pictures(tar: Path, folder: Path) -> None:
    """`folder`/<subject>/01.png, 01.txt, …, the style's, and `folder`/references/<thing>.png."""
    emoji_set = load_tar(tar)
    for number, subject in enumerate(SUBJECTS):
        scenes = compose_subject(_design(emoji_set, subject.thing), PICTURES, seed=number, name=subject.phrase)
        write_subject(folder / subject.name, scenes)
    write_subject(folder / STYLE, [_styled(emoji_set, n, thing) for n, thing in enumerate(STYLE_THINGS)])
    (folder / "references").mkdir(exist_ok=True)
    for thing in reference_things():
        design = _design(emoji_set, thing)
        page = Image.new("RGB", design.size, "white")
        page.paste(design, (0, 0), design)
        page.save(folder / "references" / f"{thing}.png", optimize=True)


def _design(emoji_set: EmojiSet, thing: str) -> Image.Image:
    points = [point for point, emoji in emoji_set.emoji.items() if name_of(emoji.label) == thing]
    rows = [emoji_set.keys.index((HELD_OUT_STYLE, point)) for point in points]
    return Image.fromarray(emoji_set.pixels[rows[0]])


def _styled(emoji_set: EmojiSet, number: int, thing: str) -> tuple[Image.Image, str]:
    """One thing in the style, smaller or larger, on a ground of its own."""
    color, dice = BACKGROUNDS[number % len(BACKGROUNDS)], random.Random(number)
    size = round(PICTURE * dice.uniform(0.6, 0.94))
    design = _design(emoji_set, thing).resize((size, size), Image.Resampling.LANCZOS)
    scene = Image.new("RGB", (PICTURE, PICTURE), COLORS[color])
    scene.paste(design, ((PICTURE - size) // 2, (PICTURE - size) // 2), design)
    return scene, f"a {thing} in {STYLE_TRIGGER} style on a {color} background"


def write_designs(tar: Path, folder: Path) -> None:
    """What the judge is taught."""
    save_designs(designs_of(tar, THINGS), folder)


def write_judge(work: Path, steps: int) -> Path:
    """Teaches the judge and keeps it with the look of every reference thing's designs."""
    device = pick_device(None)
    designs, vae = load_designs(work / "designs").to(device), load_base("embedded").vae.to(device)
    model = train_judge(designs, vae, steps)
    wanted = [(thing, family) for thing, family in designs.names if thing in reference_things()]
    path = work / "judge.safetensors"
    save_judge(path, model, {name: mean_look(model, designs, vae, *name) for name in wanted})
    return path
