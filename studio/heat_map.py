"""A fusion's report as a picture: a row a block of the model, a column a pair of subjects, darker where they mix."""

from __future__ import annotations

import re

from PIL import Image, ImageDraw

from adapters.fusion.report import FusionReport, PairReport, root_mean_square

_CELL, _ROW, _LABEL, _TOP, _EDGE = 110, 22, 210, 64, 12
_LIGHT, _DARK = (247, 244, 236), (160, 30, 40)
_FULL = 1.0
"""The crosstalk that is drawn darkest."""


def heat_map(report: FusionReport) -> Image.Image:
    """Crosstalk of each pair in each block (what the others do on a subject's prompts); overlap where it is unknown."""
    rows = blocks(report)
    columns = [(pair.first, pair.second) for pair in report.pairs]
    width = _LABEL + _CELL * len(columns) + _EDGE
    picture = Image.new("RGB", (width, _TOP + _ROW * len(rows) + _EDGE), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((_EDGE, _EDGE), f"{report.way}: {measure(report)} by block", fill="black")
    for number, (first, second) in enumerate(columns):
        draw.text((_LABEL + _CELL * number, _TOP - 26), _short(f"{first} / {second}"), fill="black")
    for line, (block, values) in enumerate(rows.items()):
        top = _TOP + _ROW * line
        draw.text((_EDGE, top + 4), block, fill="black")
        for number, pair in enumerate(columns):
            if pair not in values:
                continue
            value, left = values[pair], _LABEL + _CELL * number
            draw.rectangle((left, top, left + _CELL - 3, top + _ROW - 3), fill=_colour(value))
            draw.text((left + 6, top + 4), f"{value:.2f}", fill="black" if value < _FULL / 2 else "white")
    return picture


def measure(report: FusionReport) -> str:
    """What the cells tell."""
    known = any(pair.crosstalk is not None for pair in report.pairs)
    return "crosstalk (the other's change over its own)" if known else "overlap of the weights"


def blocks(report: FusionReport) -> dict[str, dict[tuple[str, str], float]]:
    """Block → pair → root mean square over the block's layers."""
    gathered: dict[str, dict[tuple[str, str], list[float]]] = {}
    for layer in report.layers:
        for pair in layer.pairs:
            gathered.setdefault(_block(layer.layer), {}).setdefault((pair.first, pair.second), []).append(_value(pair))
    return {
        block: {pair: root_mean_square(values) for pair, values in pairs.items()} for block, pairs in gathered.items()
    }


def _value(pair: PairReport) -> float:
    both = [value for value in (pair.crosstalk, pair.crosstalk_back) if value is not None]
    return max(both) if both else abs(pair.overlap)


def _block(layer: str) -> str:
    """unet.down_blocks.1.attentions.0.… → unet.down_blocks.1.attentions.0"""
    found = re.match(r"(\w+\.(?:(?:down|up)_blocks\.\d+|mid_block)\.\w+\.\d+|\w+\.\w+(?:\.\w+)?\.layers\.\d+)", layer)
    return found[0] if found else ".".join(layer.split(".")[:2])


def _colour(value: float) -> tuple[int, int, int]:
    part = min(1.0, value / _FULL)
    red, green, blue = (round(light + part * (dark - light)) for light, dark in zip(_LIGHT, _DARK, strict=True))
    return red, green, blue


def _short(text: str, limit: int = 17) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
