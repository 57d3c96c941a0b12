"""Whether the scores of docs/ui.md (trainers/scores.py) mean anything; on the embedded base.

    python -m benchmarks.scores WORK [--out FILE.json]

WORK is what `python -m benchmarks.fusion` has left: subjects' pictures, adapters, drawn sheets and the judge, a network
that was taught to tell designs apart. Subjects whose LoRA is there are drawn at several strengths, too. Questions:

- pairs: pictures of two things. Is a subject's score higher under its own adapter than without, and than under
  another's? Does it go with what the judge sees in its place?
- strengths: pictures of one subject, from no adapter to too much of it. Does its score go with the judge?
- prompts: pictures of one subject on four colours and beside four things, by strength. Does the prompt's own score
  stand above those of the three others of its kind?
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from adapters.atomic import atomic_path
from adapters.formats.open import attach_any, open_adapter
from benchmarks.fusion import draw
from benchmarks.fusion.metric import area_under_curve, rank_correlation
from benchmarks.fusion.score import Judge, seen
from benchmarks.fusion.subjects import SUBJECTS, Group, Member, groups
from benchmarks.fusion.train import training_of
from trainers.fast.sampling import fast_sampling
from trainers.images import picture_paths
from trainers.result import ADAPTER_NAME
from trainers.scores import Looks, Trait, features

Row = dict[str, Any]
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
COLORS = ("white", "red", "blue", "purple")
CONTEXTS = (
    *(f" on a {color} background" for color in COLORS),
    *(f" next to a {thing}" for thing in ("house", "mushroom", "guitar", "strawberry")),
)
SEEDS = 3
"""Pictures of each prompt without the adapter, as the app draws (studio/scoring.py)."""
PLAIN = 6
"""Pictures of the base alone that a scale is made of; the others are scored."""


def looked_at(pictures: Tensor) -> list[Looks]:
    """Features of pictures [N, 3, H, W] in −1…1."""
    return [features(draw.base(), draw.base().encode_pictures(one[None])[0]) for one in pictures]


def training(work: Path, name: str) -> list[Looks]:
    paths = picture_paths(work / "pictures" / name)
    return looked_at(torch.cat([draw.read_sheet(path) for path in paths]))


def subject_of(work: Path, name: str, plain: list[Looks]) -> Trait:
    found = Trait.of(training(work, name), plain)
    assert found is not None, name
    return found


# --- pairs --------------------------------------------------------------------------------------------------


def pairs(work: Path, rows: list[Row], judge: Judge) -> Row:
    """Per subject: how often its own adapter's pictures score above others, and the agreement with the judge."""
    sheets = [(group, row) for group in groups() if group.kind == "pair" for row in rows if _of(group, row)]
    looks: dict[str, list[Looks]] = {}
    places: dict[str, Tensor] = {}
    for group, row in sheets:
        pictures = draw.read_sheet(work / "drawn" / f"{row['file']}.webp")
        kept = pictures if row["what"] == "base" else pictures[:PLAIN]
        looks[row["file"]], places[row["file"]] = looked_at(kept), seen(judge, group, pictures)[: len(kept)]
    return {
        f"{member.name} in {group.name}": _pair(work, judge, sheets, looks, places, group, index)
        for group in groups()
        if group.kind == "pair"
        for index, member in enumerate(group.members)
    }


def _of(group: Group, row: Row) -> bool:
    drawn = "file" in row and row["group"] == group.name
    return drawn and (row["what"] == "base" or (row["what"] == "alone" and row["kind"] == "lora"))


def _pair(
    work: Path,
    judge: Judge,
    sheets: list[tuple[Group, Row]],
    looks: dict[str, list[Looks]],
    places: dict[str, Tensor],
    group: Group,
    index: int,
) -> Row:
    name = group.members[index].name
    base = next(row["file"] for one, row in sheets if one == group and row["what"] == "base")
    subject = subject_of(work, name, looks[base][:PLAIN])
    scored: dict[str, list[float]] = {"own": [], "other": [], "base": []}
    agree: list[tuple[float, float]] = []
    for one, row in sheets:
        first = PLAIN if row["file"] == base else 0
        found = [subject.score(look) for look in looks[row["file"]][first:]]
        if one == group:
            liked = places[row["file"]][first:, index, judge.row(name)].tolist()
            agree += zip(found, liked, strict=True)
        if row["what"] == "alone":
            own = one.members[row["member"]].name == name
            if one == group or not own:
                scored["own" if own else "other"] += found
        elif one == group:
            scored["base"] += found
    own, other, plain = (torch.tensor(scored[key]) for key in ("own", "other", "base"))
    return {
        "mean": {key: round(mean(values), 1) for key, values in scored.items()},
        "above_base": round(area_under_curve(own, plain), 3),
        "above_others": round(area_under_curve(own, other), 3),
        "judge": round(rank_correlation(*map(list, zip(*agree, strict=True))), 3),
    }


# --- strengths ----------------------------------------------------------------------------------------------


def strengths(work: Path, judge: Judge) -> Row:
    found: Row = {}
    for member in SUBJECTS:
        file = _file(work, member)
        if not file.exists():
            continue
        sheet = work / "graded" / f"{member.name}.webp"
        if not sheet.exists():
            _draw(member, file, sheet, CONTEXTS[: len(COLORS)])
        pictures = draw.read_sheet(sheet)
        looks, liked = looked_at(pictures), judge.whole(pictures) @ judge.looks[judge.row(member.thing)]
        subject = subject_of(work, member.name, looks[: len(COLORS)])
        points = torch.tensor([subject.score(look) for look in looks])
        found[member.name] = {
            "scores": [round(value, 1) for value in points.unflatten(0, (-1, len(COLORS))).mean(1).tolist()],
            "likeness": [round(value, 3) for value in liked.unflatten(0, (-1, len(COLORS))).mean(1).tolist()],
            "judge": round(rank_correlation(points.tolist(), liked.tolist()), 3),
        }
    return found


def _draw(member: Member, file: Path, sheet: Path, contexts: Sequence[str]) -> None:
    """Rows of STRENGTHS by contexts, the first without the adapter's word."""
    base = draw.base()
    adapter = attach_any(base.components, open_adapter(file), base.hash)
    adapter.to(base.device)
    pictures = []
    for strength in STRENGTHS:
        adapter.strength = strength
        word = member.phrase if strength else member.thing
        with fast_sampling(base.unet, [adapter]):
            asked = [(f"a {word}{context}", 100 + number) for number, context in enumerate(contexts)]
            pictures += draw._plain(asked)  # pyright: ignore[reportPrivateUsage]
    adapter.detach()
    draw._save(sheet, pictures)  # pyright: ignore[reportPrivateUsage]


# --- prompts ------------------------------------------------------------------------------------------------


def prompts(work: Path) -> Row:
    """Per strength and kind of context, over all subjects whose LoRA is there."""
    found = {
        name: _contexts(work, member) for member in SUBJECTS if (name := member.name) and _file(work, member).exists()
    }
    scores = torch.stack(list(found.values()))  # [subject, strength, picture, context]
    result: Row = {"subjects": list(found)}
    for kind, places in (("color", slice(0, len(COLORS))), ("thing", slice(len(COLORS), None))):
        mine = scores[:, :, places, places]
        result[kind] = {f"{strength:g}": _told_apart(mine[:, row]) for row, strength in enumerate(STRENGTHS)}
    return result


def _told_apart(scores: Tensor) -> Row:
    """Of [subject, picture, context]: the right context is the picture's own."""
    right = torch.eye(scores.shape[-1]).bool()
    own, others = scores[:, right].flatten(), scores[:, ~right].flatten()
    return {
        "own": round(float(own.mean()), 1),
        "others": round(float(others.mean()), 1),
        "own above others": round(area_under_curve(own, others), 3),
        "chosen": round(float((scores.argmax(2) == torch.arange(len(right))).float().mean()), 3),
    }


def _contexts(work: Path, member: Member) -> Tensor:
    """The score of each picture by each context, [strength, picture, context]."""
    sheet, plain = (work / "contexts" / f"{member.name}{end}.webp" for end in ("", "-plain"))
    if not sheet.exists():
        _draw(member, _file(work, member), sheet, CONTEXTS)
    if not plain.exists():
        asked = [f"a {member.thing}{context}" for context in ("", *CONTEXTS)]
        drawn = draw._plain([(text, 200 + turn) for text in asked for turn in range(SEEDS)])  # pyright: ignore
        draw._save(plain, drawn)  # pyright: ignore[reportPrivateUsage]
    looks, known = looked_at(draw.read_sheet(sheet)), looked_at(draw.read_sheet(plain))
    bare, *asked = [known[at : at + SEEDS] for at in range(0, len(known), SEEDS)]
    traits = [Trait.clearest(one, bare) for one in asked]
    scores = [[trait.score(look) if trait is not None else 0.0 for trait in traits] for look in looks]
    return torch.tensor(scores).unflatten(0, (len(STRENGTHS), len(CONTEXTS)))


def _file(work: Path, member: Member) -> Path:
    return training_of(member, "lora", 0).folder(work) / ADAPTER_NAME


def _judge(work: Path) -> Judge:
    return Judge.load(work / "judge.safetensors")


def _rows(work: Path) -> list[Row]:
    return [row for row in json.loads((work / "rows.json").read_text()) if row["what"] in ("base", "alone")]


def main() -> None:
    parser = argparse.ArgumentParser(description="Whether the scores of pictures mean anything.")
    parser.add_argument("work", type=Path)
    parser.add_argument(
        "--only", nargs="+", choices=["strengths", "prompts", "pairs"], help="what else the file holds stays"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scores.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    work: Path = asked.work
    measures = {
        "strengths": lambda: strengths(work, _judge(work)),
        "prompts": lambda: prompts(work),
        "pairs": lambda: pairs(work, _rows(work), _judge(work)),
    }
    found: Row = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out.exists() else {}
    for name in asked.only or measures:
        begin = time.monotonic()
        found[name] = measures[name]()
        print(name, f"{time.monotonic() - begin:.0f} s", json.dumps(found[name], indent=1), flush=True)
    with atomic_path(asked.out) as part:
        part.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
