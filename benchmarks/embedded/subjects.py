"""Composes a new subject for the base: a few pictures of one emojione design, each with a caption.

The base knows the class (five or six other designs of it) but not this look: emojione is in no training.
`python -m benchmarks.embedded.subjects OUT --tar emoji_rgba128.tar --point 1f419 --class octopus`
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from PIL import Image

from benchmarks.embedded.captions import COLORS
from benchmarks.embedded.config import PICTURE
from benchmarks.embedded.data import HELD_OUT_STYLE, load_tar

BACKGROUNDS = ("white", "blue", "yellow", "green", "pink", "gray", "orange", "purple", "cyan", "red")


def subject_picture(tar: Path, point: str, style: str = HELD_OUT_STYLE) -> Image.Image:
    """One emoji's RGBA picture out of the tar."""
    emoji = load_tar(tar, {point})
    return Image.fromarray(emoji.pixels[emoji.keys.index((style, point))])


def compose_subject(
    subject: Image.Image, count: int, side: int = PICTURE, seed: int = 0, name: str = "sks octopus"
) -> list[tuple[Image.Image, str]]:
    """`count` RGB pictures of `side` px: the subject at slightly different sizes, places and turns, on its own colours.

    Returns each picture with its caption, "a <name> on a <colour> background".
    """
    dice, scenes = random.Random(seed), []
    for number in range(count):
        color = BACKGROUNDS[number % len(BACKGROUNDS)]
        size = round(side * dice.uniform(0.72, 0.94))
        turned = subject.resize((4 * side, 4 * side), Image.Resampling.LANCZOS)
        turned = turned.rotate(dice.uniform(-9, 9), Image.Resampling.BICUBIC)
        turned = turned.resize((size, size), Image.Resampling.LANCZOS)
        room = side - size
        place = tuple(round(room / 2 + room * dice.uniform(-0.4, 0.4)) for _ in range(2))
        scene = Image.new("RGB", (side, side), COLORS[color])
        scene.paste(turned, (place[0], place[1]), turned)
        scenes.append((scene, f"a {name} on a {color} background"))
    return scenes


def write_subject(folder: Path, scenes: list[tuple[Image.Image, str]]) -> None:
    """Writes 01.png and 01.txt, 02.png and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (picture, caption) in enumerate(scenes, 1):
        picture.save(folder / f"{number:02d}.png", optimize=True)
        (folder / f"{number:02d}.txt").write_text(caption + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tar", type=Path, help="emoji_rgba128.tar")
    parser.add_argument("--picture", type=Path, help="an RGBA picture instead of one from the tar")
    parser.add_argument("--point", default="1f419", help="code point of the emoji (1f419 is the octopus)")
    parser.add_argument("--class", dest="class_word", default="octopus")
    parser.add_argument("--trigger", default="sks")
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--side", type=int, default=PICTURE)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    subject = Image.open(args.picture).convert("RGBA") if args.picture else subject_picture(args.tar, args.point)
    name = f"{args.trigger} {args.class_word}"
    write_subject(args.out, compose_subject(subject, args.count, args.side, args.seed, name))


if __name__ == "__main__":
    main()
