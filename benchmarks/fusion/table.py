"""docs/fusion.md from the results: tables between two markers; what is written around them stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.fusion import metric
from benchmarks.fusion.metric import Cell, Share
from benchmarks.fusion.subjects import Group, groups
from benchmarks.fusion.variants import BASELINES, Variant, variants

Row = dict[str, Any]
Parts = Sequence[tuple[float, float]]
PAGE = Path(__file__).parents[2] / "docs" / "fusion.md"
TITLES = {"pair": "Two subjects", "triple": "Three subjects", "style": "A subject and a style"}
TARGETS = {"pair": 0.9, "triple": 0.8}
"""Shares of their single identity that subjects are to keep by the best way."""
LEAD = 0.2
"""By how much that is to be above naive summing."""


@dataclass(frozen=True)
class Found:
    """One variant on one group and seed."""

    cell: Cell
    joint: Row
    alone: Sequence[Row]

    @property
    def name(self) -> tuple[str, int]:
        return self.joint["group"], self.joint["seed"]

    def drift(self, key: str) -> tuple[float, float]:
        return self.joint[key], sum(row[key] for row in self.alone) / len(self.alone)

    def recognised(self) -> tuple[float, float]:
        values = self.joint["recognised"]
        return sum(values), len(values)

    def recognised_alone(self) -> tuple[float, float]:
        return sum(row["recognised"][index] for index, row in enumerate(self.alone)), len(self.alone)


def found_of(rows: Sequence[Row], group: Group, variant: Variant) -> Iterator[Found]:
    """Every seed of one group that has all that its cell needs."""
    by_key = {_key(row): row for row in rows if row["group"] == group.name and "likeness" in row}
    base = by_key.get(("base",))
    for key, joint in by_key.items():
        if key[:2] != ("joint", variant.name) or base is None:
            continue
        alone = [
            by_key.get(("alone", index, variant.kind(index), joint["seed"])) for index in range(len(group.members))
        ]
        known = [row for row in alone if row is not None]
        if len(known) == len(alone):
            yield Found(_cell(joint, base, known), joint, known)


def _key(row: Row) -> tuple[Any, ...]:
    if row["what"] == "alone":
        return "alone", row["member"], row["kind"], row["seed"]
    return ("joint", row["variant"], row["seed"]) if row["what"] == "joint" else (row["what"],)


def _cell(joint: Row, base: Row, alone: Sequence[Row]) -> Cell:
    likenesses = torch.tensor([row["likeness"] for row in alone])  # [adapter, place, look]
    index = torch.arange(len(alone))
    return Cell(
        joint=torch.tensor(joint["likeness"]),
        base=torch.tensor(base["likeness"]),
        alone=likenesses[index, index],
        elsewhere=_of_each_adapter(likenesses),
    )


def _of_each_adapter(likenesses: Tensor) -> Tensor:
    """[adapter j, place i, look j] → [i, j]"""
    return likenesses.diagonal(dim1=0, dim2=2)


def render(rows: Sequence[Row], valid: Sequence[Row], about: str) -> str:
    """All tables."""
    parts = [about, ""]
    for kind, title in TITLES.items():
        found = {v.name: [f for g in groups() if g.kind == kind for f in found_of(rows, g, v)] for v in variants()}
        found = {name: cells for name, cells in found.items() if cells}
        if naive := next((name for name in BASELINES if name in found), None):
            parts += [f"### {title}", "", *_table(found, naive), "", *_verdict(kind, found, naive), ""]
    return "\n".join([*parts, *_promises(rows), "", *_validity(valid)])


def _table(found: dict[str, list[Found]], baseline: str) -> list[str]:
    lines = [
        "| | cells | identity kept | above the sum, points | recognised | leakage | drift in pixels | in looks |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    naive = found[baseline]
    lines.append(_alone_line(naive))
    order = sorted(found, key=lambda name: -_share(found[name], lambda f: metric.kept(f.cell)).value)
    return lines + [_line(name, found[name], [] if name == baseline else naive) for name in order]


def _alone_line(cells: list[Found]) -> str:
    recognised = _percent(_share(cells, lambda f: f.recognised_alone()))
    leaked = _percent(_share(cells, lambda f: metric.leaked_alone(f.cell)))
    return f"| one adapter alone | {len(cells)} | 100 | | {recognised} | {leaked} | 1 | 1 |"


def _line(name: str, cells: list[Found], naive: list[Found]) -> str:
    shared = {f.name for f in cells} & {f.name for f in naive}
    lead = metric.difference(_kept(cells, shared), _kept(naive, shared)) if shared else None
    drifts = ["–", "–"] if _regional(cells) else [
        _times(_share(cells, lambda f, key=key: f.drift(key))) for key in ("drift_pixels", "drift_look")
    ]  # fmt: skip
    cells_of = (
        name,
        str(len(cells)),
        _percent(_share(cells, lambda f: metric.kept(f.cell))),
        "" if lead is None else _percent(lead),
        _percent(_share(cells, lambda f: f.recognised())),
        _percent(_share(cells, lambda f: metric.leaked(f.cell))),
        *drifts,
    )
    return "| " + " | ".join(cells_of) + " |"


def _kept(cells: list[Found], names: set[tuple[str, int]]) -> Parts:
    return [metric.kept(f.cell) for f in sorted(cells, key=lambda f: f.name) if f.name in names]


def _share(cells: list[Found], part: Callable[[Found], tuple[float, float]]) -> Share:
    return metric.share([part(found) for found in cells])


def _percent(value: Share) -> str:
    return f"{100 * value.value:.0f} ({100 * value.low:.0f}…{100 * value.high:.0f})"


def _times(value: Share) -> str:
    return f"{value.value:.2f} ({value.low:.2f}…{value.high:.2f})"


def _verdict(kind: str, found: dict[str, list[Found]], baseline: str) -> list[str]:
    """Against the targets: the best of all, and the best that is one file."""
    if kind not in TARGETS:
        return []
    shares = {name: _share(cells, lambda f: metric.kept(f.cell)).value for name, cells in found.items()}
    best = max(shares, key=lambda name: shares[name])
    fused = max((name for name in shares if not _regional(found[name])), key=lambda name: shares[name])
    return [_judged(kind, name, shares[name], shares[baseline], found[name]) for name in dict.fromkeys((best, fused))]


def _judged(kind: str, name: str, kept: float, naive: float, cells: list[Found]) -> str:
    lead = kept - naive
    text = f"- {name}: identity kept ≥ {100 * TARGETS[kind]:.0f} %: {_met(kept >= TARGETS[kind])} ({100 * kept:.0f}); "
    text += f"{100 * LEAD:.0f} points above the sum: {_met(lead >= LEAD)} ({100 * lead:+.0f})"
    if _regional(cells):
        return f"{text}; drift is not asked of adapters that act in regions only."
    drift = _share(cells, lambda f: f.drift("drift_pixels")).value
    return f"{text}; drift no more than one adapter's: {_met(drift <= 1)} ({drift:.2f} ×)."


def _regional(cells: list[Found]) -> bool:
    return "drift_look" not in cells[0].joint


def _met(yes: bool) -> str:
    return "met" if yes else "NOT met"


FIGURES = ("overlap", "angle", "crosstalk", "lost")
"""Of the report (adapters.fusion.report)."""


def _promises(rows: Sequence[Row]) -> list[str]:
    """Whether what weights and activations promise is what pictures keep."""
    lines = [
        "### What weights and activations say of pictures",
        "",
        "The report's figures, root mean squares over pairs and subjects, then means over groups and seeds; and",
        "Spearman's rank correlation of identity kept with crosstalk and with what is lost, over the cells of one way.",
        "",
        f"| | cells | kept | {' | '.join(FIGURES)} | ρ crosstalk | ρ lost |",
        "| --- |" + " ---: |" * (4 + len(FIGURES)),
    ]
    means: list[tuple[float, list[float]]] = []
    for variant in variants():
        cells = [f for g in groups() for f in found_of(rows, g, variant) if f.joint.get("report")]
        if len(cells) > 3:
            kept = _share(cells, lambda f: metric.kept(f.cell)).value
            means.append((kept, [_mean(cells, key) for key in FIGURES]))
            figures = " | ".join(f"{value:.2f}" for value in means[-1][1])
            told = " | ".join(f"{_correlation(cells, key):+.2f}" for key in ("crosstalk", "lost"))
            lines.append(f"| {variant.name} | {len(cells)} | {100 * kept:.0f} | {figures} | {told} |")
    if len(means) > 3:
        kept_by = [kept for kept, _ in means]
        across = [metric.rank_correlation([m[n] for _, m in means], kept_by) for n in range(len(FIGURES))]
        told = ", ".join(f"{key} {value:+.2f}" for key, value in zip(FIGURES, across, strict=True))
        lines += ["", f"Over the ways, rank correlation of identity kept with: {told}."]
    return lines


def _mean(cells: list[Found], key: str) -> float:
    return sum(found.joint["report"][key] for found in cells) / len(cells)


def _correlation(cells: list[Found], key: str) -> float:
    kept = [part / whole if whole else 0.0 for part, whole in (metric.kept(f.cell) for f in cells)]
    return metric.rank_correlation([found.joint["report"][key] for found in cells], kept)


def _validity(valid: Sequence[Row]) -> list[str]:
    keys = ("alone", "base", "others", "other_designs", "auc_base", "auc_others")
    lines = [
        "### Whether the measure can be trusted",
        "",
        "Mean likeness (cosine) to a thing's emojione look: of its place under its own adapter; of the base's thing",
        "of that class; of other members under theirs; of other families' designs of the class. Then how often the",
        "first is above the second and above the third, over pictures.",
        "",
        "| | alone | base's | others | other designs | above base's | above others |",
        "| --- |" + " ---: |" * len(keys),
    ]
    return lines + [f"| {row['thing']} | " + " | ".join(f"{row[key]:.2f}" for key in keys) + " |" for row in valid]


def write_page(text: str, results: str, page: Path = PAGE) -> None:
    """Puts the tables between the page's markers of these results. Raises ValueError where it has none."""
    old, (begin, end) = page.read_text(encoding="utf-8"), (f"<!-- {results}: {side} -->" for side in ("begin", "end"))
    if begin not in old or end not in old:
        raise ValueError(f"{page} has no markers {begin} and {end}")
    before, after = old.split(begin)[0], old.split(end)[1]
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
