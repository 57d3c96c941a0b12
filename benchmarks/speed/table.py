"""docs/speed.md from the results: tables and bars between two markers; what is written around them stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.speed.sections import BARS, SECTIONS, Bar

PAGE = Path(__file__).parents[2] / "docs" / "speed.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def write_page(results: dict[str, Any], page: Path = PAGE) -> None:
    """Puts the tables between the page's markers. Raises ValueError where it has none."""
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page} has no markers {BEGIN} and {END}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{render(results)}\n{END}{after}")


def render(results: dict[str, Any]) -> str:
    """The bars, then a table for each section that was measured."""
    parts = [_bars(results)]
    parts += [_section(name, results[name]) for name in SECTIONS if name in results]
    return "\n".join(parts)


def judge(bar: Bar, results: dict[str, Any]) -> tuple[float, bool] | None:
    """The figure a bar is about and whether it is met; None where it was not measured."""
    rows = results.get(bar.section, {}).get("rows", {})
    own = rows.get(bar.row, {}).get(bar.field)
    other = 1.0 if bar.over is None else rows.get(bar.over, {}).get(bar.field)
    if own is None or other is None:
        return None
    figure = other / own if bar.at_least else own / other
    return figure, figure >= bar.limit if bar.at_least else figure <= bar.limit


def _bars(results: dict[str, Any]) -> str:
    lines = ["## The bars", "", "| section | what | bar | measured | |", "| --- | --- | ---: | ---: | --- |"]
    for bar in BARS:
        if bar.section not in results:
            continue
        judged = judge(bar, results)
        measured, met = (
            ("–", "not measured") if judged is None else (_number(judged[0]), "met" if judged[1] else "NOT met")
        )
        lines.append(
            f"| {bar.section} | {_what(bar)} | {'≥' if bar.at_least else '≤'} {bar.limit:g} | {measured} | {met} |"
        )
    return "\n".join([*lines, ""])


def _what(bar: Bar) -> str:
    unit = "ms" if bar.field == "ms" else "GiB at the peak"
    if bar.over is None:
        return f"{bar.row}, {unit}"
    return f"{bar.row}: times as fast as {bar.over}" if bar.at_least else f"{bar.row} ÷ {bar.over}"


def _section(name: str, found: dict[str, Any]) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    ours = found["rows"].get("ours: LoRA") or found["rows"].get("ours: lora, linear + conv") or {}
    size = " (the embedded base: no figures of SDXL)" if found["tiny"] else ""
    lines = [
        f"## {SECTIONS[name].title}{size}",
        "",
        f"{found['device']}, {found['date']} UTC; {versions}. Ceiling {found['ceiling_tflops']:.0f} TFLOP/s; "
        f"the model's own arithmetic {found['step_tflop']:.1f} TFLOP a step.",
        "",
        "| | ms | 10–90 % | rounds | × our LoRA | MFU | peak GiB | reserved | set-up s | trainable M |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(_row(title, row, ours.get("ms"), found) for title, row in found["rows"].items()),
    ]
    notes = [f"- {title}: {row['note']}" for title, row in found["rows"].items() if row.get("note")]
    return "\n".join([*lines, "", *notes, ""] if notes else [*lines, ""])


def _row(title: str, row: dict[str, Any], ours: float | None, found: dict[str, Any]) -> str:
    if "ms" not in row:
        return f"| {title} | {row.get('failed') or 'skipped: ' + row.get('skipped', '')} | | | | | | | | |"
    mfu = found["step_tflop"] / (row["ms"] / 1000) / found["ceiling_tflops"]
    cells = [
        _number(row["ms"]),
        "–".join(map(_number, row["spread"])),
        " / ".join(map(_number, row["medians"])),
        _number(row["ms"] / ours) if ours else "",
        f"{100 * mfu:.0f} %",
        f"{row['allocated_gib']:.1f}",
        f"{row['reserved_gib']:.1f}",
        " / ".join(f"{seconds:.0f}" for seconds in row["setup_s"]),
        f"{row['trainable'] / 1e6:.2f}",
    ]
    return f"| {title} | {' | '.join(cells)} |"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 20 else f"{value:.2f}"
