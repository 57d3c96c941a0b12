"""A fusion as a page shows it: how far it is, what went wrong, or its report, the verdict first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studio.paths import picture_name
from studio.store import Job, LibraryAdapter
from studio.store.states import ACTIVE, GIVEN_UP, WAITING
from ui.combination import Shown
from ui.components import words
from ui.components.markup import button, esc

_LONG = 14
"""Rows of a heat map that are shown without scrolling."""
_FULL = 1.5
"""What is drawn darkest: crosstalk of LoRAs is about 1."""
_CAVEAT = (
    "Neither figure tells which way looks best: over the ways that were measured, what pictures keep goes with "
    "neither. Draw some below."
)


def going_markup(job: Job) -> str:
    """A fusion that is not done: its progress and a way out, or why there is no result and a way on."""
    head = f'<h2 id="result-title">{esc(job.title)}</h2>'
    if (failure := words.failure(job)) is not None:
        return (
            f'<section class="s-card s-failure" role="alert">{head}<p>{esc(failure.what)}</p>'
            f'<p class="s-quiet">{esc(failure.fix)}</p><div class="s-bar">{_again()}</div></section>'
        )
    total, done = job.progress.stage_total, job.progress.stage_done
    bar = f'<progress max="1" value="{done / total:.4f}" aria-label="progress"></progress>' if total else ""
    bar = bar if job.state in ACTIVE else ""
    asked = _again() if job.state == "cancelled" else ""
    asked += button("Go on", "resume", key="resume") if job.state == "paused" else ""
    asked += button("Stop", "cancel", key="cancel") if job.state in (*ACTIVE, *WAITING, "paused") else ""
    return (
        f'<section class="s-card">{head}<p class="s-phase" role="status" id="fusion-phase">{esc(words.stage(job))}</p>'
        f'{bar}<div class="s-bar">{asked}</div></section>'
    )


def _again() -> str:
    return button("Try again", "again", kind="s-primary", key="again")


def report_markup(job: Job, entry: LibraryAdapter | None, told: Mapping[str, Any]) -> str:
    """The result: verdict, what to do with it, and the figures."""
    subjects = "".join(_line(line) for line in told["subjects"])
    pairs = "".join(_line(line) for line in told["pairs"])
    others = f"<p>{esc(told['others'])}</p>" if told["others"] else ""
    return (
        f'<section class="s-card" aria-labelledby="result-title"><h2 id="result-title">{esc(job.title)}</h2>'
        f'<p class="s-verdict s-{told["level"]}" role="status" id="verdict">{esc(told["verdict"])}</p>'
        f'{_bar(job, entry)}<h3>Each subject</h3><ul class="s-told">{subjects}</ul><h3>Each pair</h3>'
        f'<ul class="s-told">{pairs}</ul>{others}<p class="s-hint">{_CAVEAT}</p>{_heat(job, told)}</section>'
    )


def _bar(job: Job, entry: LibraryAdapter | None) -> str:
    if entry is None:
        return '<p class="s-quiet">It is no longer in the library.</p>'
    return (
        f'<div class="s-bar"><a class="s-button s-primary" href="/create?adapters={entry.id}">Create with it</a>'
        '<a class="s-button" href="/library">Library</a>'
        f'<a class="s-button" href="/media/job/{job.id}/adapter" download>Download</a></div>'
    )


def _line(line: Mapping[str, str]) -> str:
    return f'<li class="s-mark-{esc(line["level"])}"><b>{esc(line["about"])}</b> {esc(line["text"])}</li>'


def _heat(job: Job, told: Mapping[str, Any]) -> str:
    """Block by pair, darker where they mix: a table, which a screen reader reads and either light shows."""
    head = "".join(f'<th scope="col">{esc(column)}</th>' for column in told["columns"])
    rows = "".join(
        f'<tr><th scope="row">{esc(row)}</th>{"".join(_cell(value) for value in cells)}</tr>'
        for row, cells in zip(told["rows"], told["cells"], strict=True)
    )
    scrolls = ' tabindex="0"' if len(told["rows"]) > _LONG or len(told["columns"]) > 1 else ""
    return (
        f'<h3>Where they meet</h3><p class="s-hint">By block of the model: {esc(told["measure"])}.</p>'
        f'<div class="s-heat" role="region" aria-label="Heat map"{scrolls}><table><thead><tr><td></td>{head}</tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
        f'<p><a href="/media/job/{job.id}/report" target="_blank">As a picture</a></p>'
    )


def _cell(value: float | None) -> str:
    if value is None:
        return "<td>–</td>"
    return f'<td class="s-hot" style="--part: {min(1.0, value / _FULL):.3f}">{value:.2f}</td>'


def pictures_markup(shown: Sequence[Shown], jobs: Mapping[str, Job]) -> str:
    """The preview, filling as it is drawn."""
    if not shown:
        return ""
    figures = "".join(_figure(one, jobs.get(one.job)) for one in shown)
    told = dict.fromkeys(_said(job) for job in jobs.values())
    said = " · ".join(filter(None, told))
    return (
        '<section aria-labelledby="pictures-title"><h3 id="pictures-title">The same seed</h3>'
        f'<p class="s-hint" role="status" id="preview-phase">{esc(said)}</p><div class="s-compare">{figures}</div>'
        "</section>"
    )


def _said(job: Job) -> str:
    if (failure := words.failure(job)) is not None:
        return f"{failure.what} {failure.fix}"
    return "" if job.state == "done" else words.stage(job)


def _figure(one: Shown, job: Job | None) -> str:
    label = esc(one.label)
    if job is None or not (job.run / picture_name(one.number)).is_file():
        waits = "not drawn" if job is None or job.state in GIVEN_UP else "being drawn"
        inner = f'<div class="s-nothing">{waits}</div>'
    else:
        url = f"/media/job/{job.id}/picture/{one.number}"
        inner = f'<a href="{url}" target="_blank"><img src="{url}" alt="{label}"></a>'
    return f"<figure>{inner}<figcaption>{label}</figcaption></figure>"
