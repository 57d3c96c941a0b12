"""From pictures to likenesses: what the judge sees in every place of every cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.embedded.data import HELD_OUT_STYLE
from benchmarks.fusion.draw import read_sheet
from benchmarks.fusion.judge import load_judge
from benchmarks.fusion.look import WINDOW, Look, window
from benchmarks.fusion.metric import area_under_curve
from benchmarks.fusion.scenes import scenes
from benchmarks.fusion.subjects import Group, groups

Row = dict[str, Any]


@dataclass(frozen=True)
class Judge:
    """The network, every reference look [R, d], and their names (thing, family)."""

    model: Look
    looks: Tensor
    names: tuple[tuple[str, str], ...]

    @classmethod
    def load(cls, path: Path) -> Judge:
        model, looks = load_judge(path)
        return cls(model, torch.stack(list(looks.values())), tuple(looks))

    def row(self, thing: str) -> int:
        """Of the emojione look of a thing."""
        return self.names.index((thing, HELD_OUT_STYLE))

    @torch.no_grad()
    def likenesses(self, windows: Sequence[Tensor]) -> Tensor:
        """Of windows to every reference, [N, R]."""
        return torch.cat([self.model(part) for part in torch.stack(list(windows)).split(256)]) @ self.looks.mT

    @torch.no_grad()
    def whole(self, pictures: Tensor) -> Tensor:
        """The looks of whole pictures, [N, d]."""
        return self.model(F.interpolate(pictures, size=(WINDOW, WINDOW), mode="area"))


def seen(judge: Judge, group: Group, pictures: Tensor) -> Tensor:
    """What stands in each member's place, [pictures, members, R]."""
    every = scenes(group, (), len(pictures))  # places alone: whatever the noise
    windows = [window(picture, box) for picture, scene in zip(pictures, every, strict=True) for box in scene.boxes]
    return judge.likenesses(windows).unflatten(0, (len(pictures), -1))


def scored(judge: Judge, row: Row, work: Path, neutral: tuple[Tensor, Tensor] | None) -> Row:
    """A drawn row with its likenesses [members, members], the share recognised, and its drift from the base's.

    Args:
        neutral: the base's neutral pictures and their looks. Adapters that act in regions have none.
    """
    group = _by_name()[row["group"]]
    found = seen(judge, group, read_sheet(work / "drawn" / f"{row['file']}.webp"))
    own = torch.tensor([judge.row(member.thing) for member in group.members])
    result = {key: value for key, value in row.items() if key not in ("file", "seconds")}
    result["likeness"] = _rounded(found[..., own].mean(0))
    result["recognised"] = _rounded((found.argmax(2) == own).float().mean(0))
    path = work / "drawn" / f"{row['file']}-neutral.webp"
    if neutral is not None and path.exists():
        pictures = read_sheet(path)
        squares = (pictures - neutral[0]).div(2).square().mean((1, 2, 3))
        result["drift_pixels"] = _rounded(squares.sqrt().mean())
        result["drift_look"] = _rounded((1 - (judge.whole(pictures) * neutral[1]).sum(1)).mean())
    return result


def score(judge: Judge, rows: Sequence[Row], work: Path) -> list[Row]:
    """Every drawn row, those of groups that are no more left out."""
    drawn = [row for row in rows if "file" in row and row["group"] in _by_name()]
    base = next(row for row in drawn if row["what"] == "base")
    pictures = read_sheet(work / "drawn" / f"{base['file']}-neutral.webp")
    neutral = pictures, judge.whole(pictures)
    found: list[Row] = []
    for number, row in enumerate(drawn, 1):
        found.append(scored(judge, row, work, None if row["what"] == "base" else neutral))
        if number % 100 == 0:
            print(f"scored {number} of {len(drawn)}", flush=True)
    return found


def validity(judge: Judge, rows: Sequence[Row], work: Path) -> list[Row]:
    """How surely a likeness tells a look: single adapters' pictures against others that must not be taken for it.

    One row a subject: mean likeness of its own place under its own adapter, of the base's thing of that class, of the
    other members under theirs; and how often the first is above the second and the third (area under the curve).
    """
    own: dict[str, list[Tensor]] = {}
    plain: dict[str, list[Tensor]] = {}
    by_name = _by_name()
    kinds = {row["kind"] for row in rows if row["what"] == "alone"}
    kind = "lora" if "lora" in kinds else min(kinds, default="")
    for row in rows:
        if row.get("what") not in ("alone", "base") or "file" not in row or row["group"] not in by_name:
            continue
        group = by_name[row["group"]]
        found = seen(judge, group, read_sheet(work / "drawn" / f"{row['file']}.webp"))
        for index, member in enumerate(group.members):
            if row["what"] == "base":
                plain.setdefault(member.thing, []).append(found[:, index])
            elif row["member"] == index and row["kind"] == kind:
                own.setdefault(member.thing, []).append(found[:, index])
    return [_valid(judge, thing, own, plain) for thing in own]


def _valid(judge: Judge, thing: str, own: dict[str, list[Tensor]], plain: dict[str, list[Tensor]]) -> Row:
    column = judge.row(thing)
    right, wrong = torch.cat(own[thing])[:, column], torch.cat(plain[thing])[:, column]
    others = torch.cat([torch.cat(parts)[:, column] for name, parts in own.items() if name != thing] or [wrong])
    families = [
        looks
        for (name, family), looks in zip(judge.names, judge.looks, strict=True)
        if name == thing and family != HELD_OUT_STYLE
    ]
    return {
        "thing": thing,
        "alone": _rounded(right.mean()),
        "base": _rounded(wrong.mean()),
        "others": _rounded(others.mean()),
        "other_designs": _rounded((torch.stack(families) @ judge.looks[column]).mean()),
        "auc_base": _rounded(torch.tensor(area_under_curve(right, wrong))),
        "auc_others": _rounded(torch.tensor(area_under_curve(right, others))),
    }


def _by_name() -> dict[str, Group]:
    return {group.name: group for group in groups()}


def _rounded(value: Tensor) -> Any:
    return (value.double() * 10_000).round().div(10_000).tolist()
