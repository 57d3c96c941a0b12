"""Whether the scores of docs/ui.md (trainers/scores.py) mean anything, and why prompts have none; on the embedded base.

    python -m benchmarks.scores WORK [--out FILE.json]

WORK is what `python -m benchmarks.fusion` has left: subjects' pictures, adapters, drawn sheets and the judge, a network
that was taught to tell designs apart. Subjects whose LoRA is there are drawn at several strengths, too. Questions:

- pairs: pictures of two things. Is a subject's score higher under its own adapter than without, and than under
  another's? Does it go with what the judge sees in its place?
- strengths: pictures of one subject, from no adapter to too much of it. Does its score go with the judge?
- prompts: pictures of other things, with and without an adapter. Which of eight prompts, and which of two that differ
  in one word, explains a picture best?
- learnt: the same of pictures of a learnt subject on four colours, by the strength of its adapter.

Prompts are scored as the diffusion classifier does (arXiv 2303.16203): by how much smaller the base's error is when it
is told the prompt, from the same noises; 100 is as much as for the base's own picture.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from adapters.atomic import atomic_path
from adapters.formats.open import attach_any, open_adapter
from benchmarks.fusion import draw
from benchmarks.fusion.metric import area_under_curve, rank_correlation
from benchmarks.fusion.scenes import NEUTRAL
from benchmarks.fusion.score import Judge, seen
from benchmarks.fusion.subjects import SUBJECTS, Group, Member, groups
from benchmarks.fusion.train import training_of
from trainers.fast.sampling import fast_sampling
from trainers.images import picture_paths
from trainers.objective import ObjectiveConfig, training_scheduler
from trainers.result import ADAPTER_NAME
from trainers.scores import Subject, features
from trainers.sdxl import Base
from trainers.text import TextStates

Row = dict[str, Any]
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
COLORS = ("white", "red", "blue", "purple")
LEVELS = (350, 550, 750)
"""Timesteps at which a prompt is judged."""
PLAIN = 6
"""Pictures of the base alone that a scale is made of; the others are scored."""


def looked_at(pictures: Tensor) -> list[Tensor]:
    """Features of pictures [N, 3, H, W] in −1…1."""
    return [features(draw.base(), draw.base().encode_pictures(one[None])[0]) for one in pictures]


def training(work: Path, name: str) -> list[Tensor]:
    paths = picture_paths(work / "pictures" / name)
    return looked_at(torch.cat([draw.read_sheet(path) for path in paths]))


def subject_of(work: Path, name: str, plain: list[Tensor]) -> Subject:
    found = Subject.of(training(work, name), plain)
    assert found is not None, name
    return found


# --- pairs --------------------------------------------------------------------------------------------------


def pairs(work: Path, rows: list[Row], judge: Judge) -> Row:
    """Per subject: how often its own adapter's pictures score above others, and the agreement with the judge."""
    sheets = [(group, row) for group in groups() if group.kind == "pair" for row in rows if _of(group, row)]
    looks: dict[str, list[Tensor]] = {}
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
    looks: dict[str, list[Tensor]],
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
        file = training_of(member, "lora", 0).folder(work) / ADAPTER_NAME
        if not file.exists():
            continue
        sheet = work / "graded" / f"{member.name}.webp"
        if not sheet.exists():
            _draw(member, file, sheet)
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


def _draw(member: Member, file: Path, sheet: Path) -> None:
    """Rows of STRENGTHS by COLORS, the first without the adapter's word."""
    base = draw.base()
    adapter = attach_any(base.components, open_adapter(file), base.hash)
    adapter.to(base.device)
    pictures = []
    for strength in STRENGTHS:
        adapter.strength = strength
        word = member.phrase if strength else member.thing
        with fast_sampling(base.unet, [adapter]):
            asked = [(f"a {word} on a {color} background", 100 + number) for number, color in enumerate(COLORS)]
            pictures += draw._plain(asked)  # pyright: ignore[reportPrivateUsage]
    adapter.detach()
    draw._save(sheet, pictures)  # pyright: ignore[reportPrivateUsage]


# --- prompts ------------------------------------------------------------------------------------------------


def prompts(work: Path, rows: list[Row]) -> Row:
    """Which prompt explains a picture best: of all eight, and of two that differ in the thing or in the colour."""
    states = {text: draw.base().encode_texts([text]) for text in {*NEUTRAL, *_others("thing"), *_others("color")}}
    base = next(row for row in rows if row["what"] == "base" and "file" in row)
    alone = {(row["group"], row["member"]): row for row in rows if row["what"] == "alone" and row["kind"] == "lora"}
    first = {row["group"]: row for row in reversed(alone.values()) if row["member"] == 0}.values()
    right: dict[str, list[bool]] = {"of eight": [], "thing": [], "color": []}
    own, scored = list[float](), {"right": list[float](), "wrong": list[float]()}
    for row in [base, *first]:
        for number, picture in enumerate(draw.read_sheet(work / "drawn" / f"{row['file']}-neutral.webp")):
            latents = draw.base().encode_pictures(picture[None])[0]
            gains = [prompt_gain(draw.base(), latents, states[text]) for text in NEUTRAL]
            right["of eight"].append(max(gains) == gains[number])
            for what in ("thing", "color"):
                other = prompt_gain(draw.base(), latents, states[_others(what)[number]])
                right[what].append(gains[number] > other)
            if row is base:
                own.append(gains[number])
                continue
            for text, gain in enumerate(gains):
                scored["right" if text == number else "wrong"].append(100 * gain / own[number])
    return {
        "pictures": len(right["of eight"]),
        **{f"right, {key}": round(mean(values), 3) for key, values in right.items()},
        "mean score": {key: round(mean(values), 1) for key, values in scored.items()},
        "right above wrong": round(area_under_curve(*map(torch.tensor, scored.values())), 4),
    }


@torch.no_grad()
def prompt_gain(base: Base, latents: Tensor, told: TextStates) -> float:
    """By which part the base's error is smaller for being told this, the mean over LEVELS."""
    shape, count, side = (len(LEVELS), *latents.shape[1:]), len(LEVELS), base.native_resolution
    noise, times = torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.tensor(LEVELS)
    scheduler = training_scheduler(base.pipe.scheduler, ObjectiveConfig())
    noisy = scheduler.add_noise(latents.expand(shape), noise, times)  # pyright: ignore
    sizes = torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float32).expand(count, -1)
    errors: list[Tensor] = []
    for states in (told, base.encode_nothing()):
        conditions = {"text_embeds": states.pooled.expand(count, -1), "time_ids": sizes}
        context = states.context.expand(count, -1, -1)
        found = base.unet(noisy, times, context, added_cond_kwargs=conditions, return_dict=False)[0]
        errors.append((found - noise).square().mean((1, 2, 3)))
    return float((1 - errors[0] / errors[1]).mean())


def learnt(work: Path) -> Row:
    """By strength: how often the right one of four colours explains a picture best, and the right prompt's score."""
    base, found = draw.base(), Row()
    for member in SUBJECTS:
        sheet = work / "graded" / f"{member.name}.webp"
        if not sheet.exists():
            continue
        states = [base.encode_texts([f"a {member.thing} on a {color} background"]) for color in COLORS]
        seen = [base.encode_pictures(one[None])[0] for one in draw.read_sheet(sheet)]
        gains = torch.tensor([[prompt_gain(base, one, told) for told in states] for one in seen])
        gains = gains.unflatten(0, (-1, len(COLORS)))
        own = gains.diagonal(dim1=1, dim2=2)
        right = (gains.argmax(2) == torch.arange(len(COLORS))).float().mean(1)
        scores = (100 * own / own[0]).mean(1)
        found[member.name] = {
            "right": [round(value, 2) for value in right.tolist()],
            "scores": [round(value, 1) for value in scores.tolist()],
        }
    return found


def _others(what: str) -> list[str]:
    """Each prompt with the next one's thing, or colour."""
    words = [text.split() for text in NEUTRAL]
    place = 1 if what == "thing" else 4
    return [
        " ".join(other[place] if at == place else word for at, word in enumerate(mine))
        for mine, other in zip(words, [*words[1:], words[0]], strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Whether the scores of pictures mean anything.")
    parser.add_argument("work", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scores.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for row in json.loads((asked.work / "rows.json").read_text()) if row["what"] in ("base", "alone")]
    judge = Judge.load(asked.work / "judge.safetensors")
    found: Row = {}
    for name, measure in (
        ("strengths", lambda: strengths(asked.work, judge)),
        ("learnt", lambda: learnt(asked.work)),
        ("prompts", lambda: prompts(asked.work, rows)),
        ("pairs", lambda: pairs(asked.work, rows, judge)),
    ):
        begin = time.monotonic()
        found[name] = measure()
        print(name, f"{time.monotonic() - begin:.0f} s", json.dumps(found[name], indent=1), flush=True)
    with atomic_path(asked.out) as part:
        part.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
