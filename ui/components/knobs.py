"""Every setting of a run as a control: searchable, by how often it is changed, with what differs from the preset."""

from __future__ import annotations

from typing import Any

from ui.components.markup import button, esc, message

_LEVELS = {"often": "Often changed", "sometimes": "Sometimes", "rarely": "Rarely"}

SCRIPT = """
const state = {word: '', changed: false, open: {}};
const sift = () => {
  const word = state.word.trim().toLowerCase();
  element.querySelectorAll('[data-level]').forEach(level => {
    let shown = 0;
    level.querySelectorAll('.s-knob').forEach(knob => {
      const fits = (!word || knob.dataset.words.includes(word)) && (!state.changed || knob.dataset.changed);
      knob.hidden = !fits; shown += fits;
    });
    level.hidden = !shown;
    level.open = (word || state.changed) ? true : (state.open[level.dataset.level] ?? level.dataset.level === 'often');
  });
};
const restore = () => {
  const search = element.querySelector('#knob-search'), changed = element.querySelector('#knob-changed');
  if (search) { search.value = state.word; changed.checked = state.changed; sift(); }
};
element.addEventListener('input', event => {
  if (event.target.id === 'knob-search') { state.word = event.target.value; sift(); }
});
element.addEventListener('change', event => {
  if (event.target.id === 'knob-changed') { state.changed = event.target.checked; sift(); }
});
element.addEventListener('click', event => {
  const summary = event.target.closest('summary');
  if (summary) { const level = summary.parentElement; state.open[level.dataset.level] = !level.open; }
});
watch('value', restore);
restore();
"""


def knobs_markup(knobs: list[dict[str, Any]], settings: dict[str, str], problems: dict[str, str]) -> str:
    levels = "".join(
        f'<details class="s-level" data-level="{level}"{" open" if level == "often" else ""}><summary>{title}</summary>'
        f'<div class="s-knobs">{_all(knobs, level, settings, problems)}</div></details>'
        for level, title in _LEVELS.items()
    )
    known = {knob["key"] for knob in knobs}
    strays = "".join(_stray(key, text, problems.get(key, "")) for key, text in settings.items() if key not in known)
    count = len(settings)
    return (
        '<div class="s-sift"><input id="knob-search" type="search" placeholder="Search the settings" '
        'aria-label="Search the settings"><label><input id="knob-changed" type="checkbox"> '
        f"Only what I changed ({count})</label></div>{strays}{levels}"
    )


def _all(knobs: list[dict[str, Any]], level: str, settings: dict[str, str], problems: dict[str, str]) -> str:
    return "".join(
        knob_markup(knob, settings.get(knob["key"]), problems.get(knob["key"], ""))
        for knob in knobs
        if knob["level"] == level
    )


def knob_markup(knob: dict[str, Any], own: str | None, problem: str) -> str:
    """One setting (studio.form.Knob), with what the person has made of it."""
    key, changed = esc(knob["key"]), own is not None
    words = esc(f"{knob['key']} {knob['meaning']}".lower())
    value = own if own is not None else knob["standing"]
    reset = button("Undo", "reset", key=knob["key"], label=f"Set {knob['key']} back") if changed else ""
    was = f'<span class="s-mark-changed">changed, was {esc(knob["standing"])}</span>{reset}' if changed else ""
    return (
        f'<div class="s-knob" data-words="{words}"{" data-changed=1" if changed else ""}>'
        f'<label for="knob-{key}">{key}</label>{_control(knob, value)}'
        f'<span class="s-quiet" id="about-{key}">{esc(_sentence(knob))}</span>{was}{message(problem)}</div>'
    )


def _sentence(knob: dict[str, Any]) -> str:
    takes = "" if knob["control"] in ("choice", "switch") else f" ({knob['takes']})"
    return f"{knob['meaning'][:1].upper()}{knob['meaning'][1:]}{takes}."


def _control(knob: dict[str, Any], value: str) -> str:
    key = esc(knob["key"])
    common = f'id="knob-{key}" data-field="knob" data-key="{key}" aria-describedby="about-{key}"'
    if knob["control"] == "switch":
        return f'<input type="checkbox" {common}{" checked" if value == "true" else ""}>'
    if knob["control"] == "choice":
        options = "".join(
            f"<option{' selected' if choice == value else ''}>{esc(choice)}</option>" for choice in knob["choices"]
        )
        return f"<select {common}>{options}</select>"
    mode = ' inputmode="decimal"' if knob["control"] == "number" else ""
    return f'<input type="text" {common}{mode} value="{esc(value)}" autocomplete="off" spellcheck="false">'


def _stray(key: str, text: str, problem: str) -> str:
    """A setting that the chosen method does not have."""
    said = problem or f"{key}={text} is not a setting of the chosen method."
    return message(said) + button(f"Remove {key}", "reset", key=key)
