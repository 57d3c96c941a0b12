"""Several subjects in one picture, measured.

    python -m benchmarks.fusion prepare EMOJI.tar     # pictures to learn from, pictures to teach the judge
    python -m benchmarks.fusion run --jobs 12 --seconds 500   # trains and draws; train and draw do a half of it each
    python -m benchmarks.fusion judge | score | table | grids

Everything lies in `--work` (runs/fusion); what is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from adapters.atomic import atomic_path
from benchmarks.fusion.grids import write_grids
from benchmarks.fusion.prepare import write_designs, write_judge, write_pictures
from benchmarks.fusion.score import Judge, score, validity
from benchmarks.fusion.subjects import groups
from benchmarks.fusion.table import PAGE, render, write_page
from benchmarks.fusion.tasks import Plan, Record, work_through
from benchmarks.fusion.variants import variants

RESULTS = Path(__file__).parents[1] / "results" / "fusion.json"
JUDGE_STEPS = 4000
STAGES = {"run": ("train", "draw"), "train": ("train",), "draw": ("draw",)}


def plan_of(chosen: argparse.Namespace) -> Plan:
    """All groups and variants, or those whose names contain what was asked for, in the order in which it was."""
    picked = dict.fromkeys(g for w in chosen.groups or [""] for g in groups() if w in f"{g.kind}: {g.name}")
    ways = [v for v in variants() if not chosen.variants or v.name in chosen.variants]
    return Plan(
        chosen.work, tuple(picked), tuple(ways), tuple(chosen.seeds), chosen.pictures, chosen.tries, chosen.steps
    )


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole.add_argument("stage", choices=["prepare", "judge", *STAGES, "score", "table", "grids"])
    whole.add_argument("tar", nargs="?", type=Path, help="prepare: emoji_rgba128.tar")
    whole.add_argument("--work", type=Path, default=Path("runs/fusion"))
    whole.add_argument("--results", type=Path, default=RESULTS)
    whole.add_argument("--groups", nargs="+", metavar="TEXT", help="only groups with this in their kind or name")
    whole.add_argument("--variants", nargs="+", metavar="NAME", help="only these rows of the table")
    whole.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    whole.add_argument("--pictures", type=int, default=12, help="of each cell")
    whole.add_argument("--tries", type=int, default=64, help="noises from which those of triples are chosen")
    whole.add_argument("--steps", type=int, help="of training and of the judge; left out: their own")
    whole.add_argument("--jobs", type=int, default=1, help="processes")
    whole.add_argument("--seconds", type=float, help="no new tasks after these")
    return whole


def score_all(work: Path) -> dict[str, Any]:
    """What the judge sees in everything that was drawn; kept for the table."""
    judge, rows = Judge.load(work / "judge.safetensors"), Record(work).rows
    seconds = [row for row in rows if row["what"] == "training"]
    refused = [row for row in rows if "refused" in row]
    return {
        "about": about(rows),
        "rows": score(judge, rows, work),
        "validity": validity(judge, rows, work),
        "refused": refused,
        "training": seconds,
    }


def about(rows: list[dict[str, Any]]) -> str:
    """A sentence on what was measured, and where."""
    pictures = max(row["pictures"] for row in rows if "pictures" in row)
    seeds = sorted({row["seed"] for row in rows if row["what"] == "joint"})
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"
    trained, today = ", ".join(map(str, seeds)), f"{datetime.now(UTC):%Y-%m-%d}"
    return f"{pictures} pictures a cell, training seeds {trained}, {today}, scored on {where}."


def main() -> None:
    chosen = parser().parse_args()
    work: Path = chosen.work
    os.environ.setdefault("SPECTRAL_STUDIO_CACHE", str(work.absolute() / "cache"))
    if chosen.stage in STAGES:
        work_through(plan_of(chosen), STAGES[chosen.stage], chosen.jobs, chosen.seconds)
    elif chosen.stage == "prepare":
        if chosen.tar is None:
            raise SystemExit("prepare needs the path of emoji_rgba128.tar")
        write_pictures(chosen.tar, work / "pictures")
        write_designs(chosen.tar, work / "designs")
    elif chosen.stage == "judge":
        print(write_judge(work, chosen.steps or JUDGE_STEPS))
    elif chosen.stage == "score":
        with atomic_path(chosen.results) as part:
            part.write_text(json.dumps(score_all(work), ensure_ascii=False) + "\n", encoding="utf-8")
    elif chosen.stage == "table":
        found = json.loads(chosen.results.read_text(encoding="utf-8"))
        write_page(render(found["rows"], found["validity"], found["about"]), chosen.results.stem)
    else:
        print(*write_grids(Record(work).rows, work, PAGE.parent / "images"), sep="\n")


if __name__ == "__main__":
    main()
