"""report.html and report.csv of a batch: what came of each run, curves, samples, what failed, how to repeat one."""

from __future__ import annotations

import base64
import csv
import io
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import Any, TypeVar

from jinja2 import Environment, StrictUndefined
from PIL import Image

from studio import __version__
from studio.batch import charts
from studio.batch.figures import Figures, figures_of
from studio.batch.record import BatchRecord, RunStatus
from studio.batch.storage import Storage
from studio.job_texts import prompts
from studio.progress import duration, size
from studio.store.states import STATES

HTML, CSV = "report.html", "report.csv"
_SIDE = 768
"""Sample grids are shown in at most so many pixels a side; the files themselves lie in the runs' folders."""
_MANY = 60
_SIDE_OF_MANY = 320
_TOO_MANY = 300
"""From so many runs on, samples are shown from their files beside the page."""
_QUALITY = 85
Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Section:
    """Runs of one subject: a chart or several, and samples by the noise that they share."""

    title: str
    charts: list[tuple[str, list[tuple[str, str]]]]
    """SVG and the (colour, label) of its lines."""
    samples: list[tuple[str, list[tuple[str, Figures, str]]]]
    """What rows have in common, and each run's name among them, the run, its picture's URL."""


def write_report(storage: Storage, record: BatchRecord, statuses: Mapping[str, RunStatus]) -> str:
    """Writes both files; returns the page's place."""
    runs = figures_of(storage, record, statuses)
    storage.write(CSV, as_csv(runs).encode("utf-8"))
    storage.write(HTML, as_html(storage, record, runs).encode("utf-8"))
    return storage.place(HTML)


def as_csv(runs: Sequence[Figures]) -> str:
    """A line a run."""
    rows = [_row(run, _axes(runs)) for run in runs]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(run: Figures, axes: Sequence[str]) -> dict[str, Any]:
    status, failure = run.status, run.status.failure
    return {
        "run": run.run.label,
        **{axis: run.run.axes.get(axis, "") for axis in axes},
        "state": status.state,
        "steps": run.steps,
        "loss": run.loss,
        "held_out_loss": run.validation_loss,
        "held_out_loss_of_base": run.base_loss,
        "seconds_per_step": run.seconds_per_step,
        "memory_bytes": run.memory_bytes,
        "parameters": run.parameters,
        "seconds": run.seconds,
        "attempts": status.attempts,
        "worker": status.worker,
        "adapter": run.adapter,
        "failure": None if failure is None else failure.what,
        "command": run.command,
    }


def as_html(storage: Storage, record: BatchRecord, runs: Sequence[Figures]) -> str:
    """One page that asks no other host for anything."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"duration": duration, "size": size}
    template = resources.files("studio.batch").joinpath("report.html.j2").read_text(encoding="utf-8")
    counts = Counter(run.status.state for run in runs)
    picture = _pictures(storage, len(runs))
    return environment.from_string(template).render(
        record=record,
        runs=runs,
        axes=_axes(runs),
        counts=[(state, counts[state]) for state in STATES if counts[state]],
        best=_best(runs),
        failures=_grouped((run for run in runs if run.status.failure is not None), lambda run: run.status.failure),
        sections=[_section(title, members, picture) for title, members in _by_subject(runs)],
        place=storage.url,
        local=storage.local,
        bases=sorted({str(run.run.config["base"]) for run in runs}),
        work=sum(run.seconds or 0 for run in runs),
        now=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        version=__version__,
    )


def _axes(runs: Iterable[Figures]) -> list[str]:
    """The axes on which the runs differ, in the order of their appearance."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for axis, value in run.run.axes.items():
            found.setdefault(axis, set()).add(value)
    return [axis for axis, values in found.items() if len(values) > 1]


def _grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _by_subject(runs: Iterable[Figures]) -> list[tuple[str, list[Figures]]]:
    groups = _grouped(runs, lambda run: (run.subject, run.words))
    return [(words, members) for (_, words), members in groups.items()]


def _best(runs: Sequence[Figures]) -> set[str]:
    """Of each subject with several runs, the digest of the one that predicts held-out noise best."""
    best: set[str] = set()
    for _, members in _by_subject(runs):
        judged = [run for run in members if run.validation_loss is not None]
        if len(judged) > 1:
            best.add(min(judged, key=lambda run: run.validation_loss or 0).run.digest)
    return best


def _section(title: str, runs: Sequence[Figures], picture: Callable[[str], str | None]) -> Section:
    axes = _axes(runs)
    drawn: list[tuple[str, list[tuple[str, str]]]] = []
    learning = [run for run in runs if len(run.curve) > 1]
    for begin in range(0, len(learning), len(charts.COLOURS)):
        some = learning[begin : begin + len(charts.COLOURS)]
        lines = [charts.Line(_short(run, axes), run.curve) for run in some]
        legend = [(colour, line.label) for line, colour in zip(lines, charts.COLOURS, strict=False)]
        drawn.append((charts.chart(lines, "step", "loss"), legend))
    samples: list[tuple[str, list[tuple[str, Figures, str]]]] = []
    for members in _grouped(runs, lambda run: run.noise).values():
        shown = [(_short(run, axes), run, url) for run in members if run.sample and (url := picture(run.sample))]
        if shown:
            samples.append((_noise_text(shown[0][1]), shown))
    return Section(title, drawn, samples)


def _short(run: Figures, axes: Sequence[str]) -> str:
    return " · ".join(f"{axis} {run.run.axes[axis]}" for axis in axes if axis in run.run.axes) or run.run.label


def _noise_text(run: Figures) -> str:
    """ "a sks dog on a beach", seeds 0 to 3."""
    whole = run.run.config
    words = prompts(whole)
    first, count = int(whole["seed"]), int(whole["sample"]["count"])
    seeds = f"seed {first}" if count == 1 else f"seeds {first} to {first + count - 1}"
    return f"{' / '.join(f'“{text}”' for text in words)}, {seeds}"


def _pictures(storage: Storage, runs: int) -> Callable[[str], str | None]:
    """Gives a picture of the storage as a small data: URL, or as its own; None where it is not there."""
    if runs >= _TOO_MANY:
        return lambda name: name
    side = _SIDE if runs <= _MANY else _SIDE_OF_MANY

    def url(name: str) -> str | None:
        content = storage.read(name)
        if content is None:
            return None
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        picture.thumbnail((side, side))
        small = io.BytesIO()
        picture.save(small, format="WEBP", quality=_QUALITY)
        return f"data:image/webp;base64,{base64.b64encode(small.getvalue()).decode()}"

    return url
