"""A fusion's report as a page shows it: sentences on each subject and each pair, and the heat map's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict

from adapters.fusion.report import WEAK, ConceptReport, FusionReport, PairReport
from studio.heat_map import blocks, measure

Level = Literal["good", "note", "bad"]


class Line(BaseModel):
    """A sentence, whom it is about, and how much it should worry."""

    model_config = ConfigDict(frozen=True)
    about: str
    text: str
    level: Level = "note"


class Told(BaseModel):
    """Everything that is shown; `cells` are rows of the heat map, None where a pair shares no layer of a block."""

    model_config = ConfigDict(frozen=True)
    verdict: str
    level: Level
    subjects: list[Line]
    pairs: list[Line]
    others: str
    measure: str
    columns: list[str]
    rows: list[str]
    cells: list[list[float | None]]


def told(report: FusionReport) -> Told:
    pairs = [(pair.first, pair.second) for pair in report.pairs]
    heat = blocks(report)
    subjects = [_subject(concept) for concept in report.concepts]
    return Told(
        verdict=report.verdict,
        level=_worst(report, subjects),
        subjects=subjects,
        pairs=[Line(about=f"{one.first} and {one.second}", text=" ".join(_pair(one))) for one in report.pairs],
        others=_others(report.drift),
        measure=measure(report),
        columns=[f"{first} / {second}" for first, second in pairs],
        rows=[in_words(block) for block in heat],
        cells=[[values.get(pair) for pair in pairs] for values in heat.values()],
    )


def _level(lost: float | None) -> Level:
    if lost is None:
        return "note"
    return "good" if lost < WEAK else "note"  # a large loss is usual, and does not tell what pictures keep


def _worst(report: FusionReport, subjects: list[Line]) -> Level:
    if any(pair.shared_columns for pair in report.pairs):
        return "bad"
    return "good" if all(line.level == "good" for line in subjects) else "note"


def _subject(concept: ConceptReport) -> Line:
    if concept.lost is None or concept.drift is None:
        return Line(about=concept.name, text="What happens on its prompts was not measured.")
    text = (
        f"{concept.lost:.0%} of what it does on its own prompts is changed by the others. Where nobody asks for it, it "
        f"acts {concept.drift:.0%} as strongly as where it is asked for."
    )
    if concept.error > WEAK / 10:
        text += f" {concept.error:.0%} of it does not fit into the file."
    return Line(about=concept.name, text=text, level=_level(concept.lost))


def _pair(pair: PairReport) -> Iterator[str]:
    if pair.shared_columns:
        yield f"They learnt on the same columns ({pair.shared_columns} in all layers) and will mix."
    if pair.crosstalk is None or pair.crosstalk_back is None:
        yield f"Their weights overlap by {pair.overlap:.0%}."
        return
    yield (
        f"Where {pair.first} is asked for, {pair.second} acts {pair.crosstalk:.0%} as strongly as {pair.first} itself; "
        f"the other way round {pair.crosstalk_back:.0%}."
    )


def _others(drift: float | None) -> str:
    if drift is None:
        return ""
    return f"Pictures of other things move {drift:.1f} times as far as with the strongest of them alone."


def in_words(block: str) -> str:
    """unet.down_blocks.1.attentions.0 → down 1, attention 0"""
    model, _, rest = block.partition(".")
    words = rest.replace("_blocks", "").replace("mid_block", "middle").replace("attentions", "attention")
    parts = words.replace("resnets", "convolution").split(".")
    pairs = [" ".join(parts[at : at + 2]) for at in range(0, len(parts), 2)]
    if parts[0] == "middle":
        pairs = ["middle", " ".join(parts[1:])]
    return ", ".join(pairs if model == "unet" else [model.replace("_", " "), *pairs])
