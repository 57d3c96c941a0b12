"""Pictures to look at: one sheet a kind of group, a row a way, a column a group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from adapters.atomic import atomic_path
from benchmarks.fusion.subjects import Group, groups
from benchmarks.fusion.variants import BASELINE, variants

Row = dict[str, Any]
_SIDE, _LABEL, _SHOWN, _COLORS = 72, 150, 2, 192


def write_grids(rows: Sequence[Row], work: Path, out: Path, seed: int = 0) -> list[Path]:
    """`out`/fusion-pair.png and so on: the first pictures of the base, of each member alone, and of every way."""
    written: list[Path] = []
    for kind in dict.fromkeys(group.kind for group in groups()):
        chosen = [group for group in groups() if group.kind == kind]
        lines = {name: [_file(rows, group, about) for group in chosen] for name, about in _lines(chosen, seed).items()}
        lines = {name: files for name, files in lines.items() if any(files)}
        if lines:
            path = out / f"fusion-{kind}.png"
            with atomic_path(path) as part:
                _sheet(lines, work).save(part, "PNG", optimize=True)
            written.append(path)
    return written


def _lines(chosen: Sequence[Group], seed: int) -> dict[str, Row]:
    """What each line of a sheet shows."""
    alone = {
        f"LoRA {number + 1} alone": {"what": "alone", "member": number, "kind": "lora", "seed": seed}
        for number in range(len(chosen[0].members))
    }
    ways = {variant.name: {"what": "joint", "variant": variant.name, "seed": seed} for variant in variants()}
    return {"base": {"what": "base"}, **alone, BASELINE: ways[BASELINE], **ways}


def _file(rows: Sequence[Row], group: Group, about: Row) -> str | None:
    wanted = about | {"group": group.name}
    return next((row["file"] for row in rows if "file" in row and wanted.items() <= row.items()), None)


def _sheet(lines: dict[str, list[str | None]], work: Path) -> Image.Image:
    columns = max(map(len, lines.values()))
    sheet = Image.new("RGB", (_LABEL + columns * (_SHOWN * _SIDE + 6), len(lines) * (_SIDE + 2)), "white")
    pen = ImageDraw.Draw(sheet)
    for y, (name, files) in enumerate(lines.items()):
        pen.text((4, y * (_SIDE + 2) + _SIDE // 2 - 6), name, fill="black")
        for x, file in enumerate(files):
            if file is not None:
                place = (_LABEL + x * (_SHOWN * _SIDE + 6), y * (_SIDE + 2))
                sheet.paste(_first(work / "drawn" / f"{file}.webp"), place)
    return sheet.quantize(_COLORS)


def _first(path: Path) -> Image.Image:
    drawn = Image.open(path).convert("RGB")
    part = drawn.crop((0, 0, _SHOWN * drawn.height, drawn.height))
    return part.resize((_SHOWN * _SIDE, _SIDE), Image.Resampling.LANCZOS)
