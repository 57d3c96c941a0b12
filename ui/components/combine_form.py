"""The form of a combination: subjects as cards, how strongly each acts, and how they come together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ui import combination
from ui.combination import HEAVIEST, Combination, Subject
from ui.components.knobs import knob_markup
from ui.components.markup import button, esc, message
from ui.components.regions import regions_markup

_SEARCHED = 12
"""From so many cards on there is a field to search them."""
SCRIPT = """
const open = {};
element.addEventListener('toggle', event => {
  if (event.target.dataset.keep) open[event.target.dataset.keep] = event.target.open;
}, true);
element.addEventListener('input', event => {
  const target = event.target;
  if (target.type === 'range') target.nextElementSibling.textContent = Number(target.value).toFixed(2);
  if (target.dataset.sift) element.querySelectorAll('.s-choice').forEach(card => {
    card.hidden = !card.dataset.words.includes(target.value.trim().toLowerCase());
  });
});
watch('value', () => {
  element.querySelectorAll('details[data-keep]').forEach(one => { one.open = open[one.dataset.keep] ?? one.open; });
  element.querySelectorAll('[data-field]').forEach(field => {
    if (field.type === 'checkbox' || field.type === 'radio') field.checked = field.defaultChecked;
    else if (field !== document.activeElement) field.value = field.defaultValue;
  });
});
"""
"""What was opened stays open when the markup is replaced; a slider tells its number while it moves. Gradio mends old
elements in the place of making new ones, and what a person has touched no longer follows its attribute."""
COLLECT = """(id) => {
  const told = [...document.querySelectorAll('.s-page [data-field]')]
    .filter(field => !field.disabled && field.type !== 'checkbox' && (field.type !== 'radio' || field.checked))
    .map(field => ({...field.dataset, value: field.value}));
  const prompts = [...document.querySelectorAll('.s-places input')];
  const regions = [...document.querySelectorAll('.s-box')].map(({style}, place) => {
    const [left, top, width, height] = ['left', 'top', 'width', 'height'].map(side => parseFloat(style[side]) / 100);
    const box = [left, top, left + width, top + height].map(side => +side.toFixed(3));
    return box.join(',') + ': ' + prompts[place].value;
  });
  if (document.querySelector('.s-canvas')) told.push({field: 'regions', value: JSON.stringify(regions)});
  return [id, JSON.stringify(told)];
}"""
"""What a button is pressed with: all fields as they stand, whichever of their own events are still under way."""


def empty_markup(count: int) -> str:
    """Where there are not two subjects to combine."""
    what = "Nothing to combine yet" if not count else "One subject is not enough"
    return (
        f'<section class="s-empty"><h2>{what}</h2><p>Teach two subjects or more; then they can share a picture.</p>'
        '<p><a class="s-button s-primary" href="/new">Teach a new subject</a></p></section>'
    )


def subjects_markup(subjects: Sequence[Subject], form: Combination, reasons: Mapping[str, str], problem: str) -> str:
    """Checkboxes that look like cards; those that do not fit are greyed and say why."""
    search = (
        '<p><input type="search" class="s-search" data-sift="1" placeholder="Search" aria-label="Search subjects"></p>'
        if len(subjects) >= _SEARCHED
        else ""
    )
    cards = "".join(_subject(one, one.entry.id in form.ids, reasons.get(one.entry.id, "")) for one in subjects)
    left = 2 - len(form.parts)
    hint = {2: "Choose two to five.", 1: "Choose one more, at least."}.get(left, "")
    return (
        f'<h2>1. Subjects</h2><p class="s-hint" role="status">{hint}</p>{search}'
        f"{message(problem, elem_id='adapters-problem')}"
        f'<fieldset class="s-choices"><legend class="s-hidden">Subjects</legend>{cards}</fieldset>'
    )


def _subject(one: Subject, chosen: bool, reason: str) -> str:
    id, state = one.entry.id, " checked" if chosen else " disabled" if reason else ""
    kind = "s-bad" if chosen else "s-quiet"
    why = f'<span class="{kind}" id="why-{id}">{esc(reason)}</span>' if reason else ""
    about = f' aria-describedby="why-{id}"' if reason else ""
    name = f'<span class="s-quiet">{esc(one.entry.name)}</span>' if one.entry.name != one.label else ""
    words = esc(f"{one.label} {one.entry.name} {one.entry.method}".lower())
    return (
        f'<label class="s-choice" data-words="{words}"><input type="checkbox" data-field="adapter" '
        f'data-adapter="{id}" data-key="adapter-{id}"{state}{about}>{thumbnail(one)}<b>{esc(one.label)}</b>{name}{why}'
        "</label>"
    )


def thumbnail(one: Subject) -> str:
    if one.entry.thumbnail is None:
        return f'<span class="s-face" aria-hidden="true">{esc(one.label[:1].upper())}</span>'
    return f'<img class="s-face" src="/media/library/{one.entry.id}/thumbnail" alt="" loading="lazy">'


def mix_markup(
    form: Combination, subjects: Sequence[Subject], advice: Mapping[str, Any], problems: Mapping[str, str]
) -> str:
    """Together how, how strongly, and the start; "" before two are chosen."""
    if len(form.parts) < 2:
        return ""
    warnings = "" if form.apart else message("\n".join(advice["warnings"]), "note", elem_id="combine-warnings")
    strengths = "".join(_slider(form, place, one) for place, one in enumerate(subjects))
    return (
        f"<h2>2. Together</h2>{_modes(form.apart)}{warnings}"
        f'<h3>How strongly each acts</h3><div class="s-sliders">{strengths}</div>'
        + ("" if form.apart else _how(form, advice["ways"], problems))
    )


_MODES = (
    ("file", "One file", "A new adapter with all of them in it, to use like any other, in other programs, too."),
    ("apart", "Each in its own region", "No new file: each acts in its part of the picture alone. It keeps them best: "
     "90 of 100 of two subjects and all of three, where the best single file keeps 71."),
)  # fmt: skip


def _modes(apart: bool) -> str:
    cards = "".join(
        _choice("mode", value, title, meaning, (value == "apart") == apart) for value, title, meaning in _MODES
    )
    return f'<fieldset class="s-presets"><legend class="s-hidden">Together how</legend>{cards}</fieldset>'


def _choice(field: str, value: str, title: str, meaning: str, chosen: bool, refusal: str = "", mark: str = "") -> str:
    state = (" checked" if chosen else "") + (" disabled" if refusal and not chosen else "")
    why = f'<span class="s-facts">Not here: {esc(refusal)}</span>' if refusal else ""
    return (
        f'<label class="s-preset"><input type="radio" name="{field}" value="{esc(value)}" data-field="{field}" '
        f'data-key="{field}-{esc(value)}"{state}><b>{esc(title)}{mark}</b><span class="s-quiet">{esc(meaning)}</span>'
        f"{why}</label>"
    )


def _slider(form: Combination, place: int, one: Subject) -> str:
    id, weight = one.entry.id, form.parts[place].weight
    return (
        f'<label class="s-slider">{thumbnail(one)}<span>{esc(one.label)}</span><input type="range" min="0" '
        f'max="{HEAVIEST}" step="0.05" value="{weight:g}" data-field="weight" data-adapter="{id}" '
        f'data-key="weight-{id}" aria-label="Strength of {esc(one.label)}"><output>{weight:.2f}</output></label>'
    )


def _how(form: Combination, ways: Sequence[Mapping[str, Any]], problems: Mapping[str, str]) -> str:
    """The ways, folded away under the one that is chosen."""
    chosen = next((way for way in ways if way["name"] == form.how), None)
    chosen = chosen or next(way for way in ways if way["recommended"])
    cards = "".join(
        _choice("how", way["name"], way["title"], way["meaning"], way is chosen, way["refusal"], _mark(way))
        for way in ways
    )
    problem = problems.get("how", "") or chosen["refusal"]
    wrong = any(knob["key"] in problems for knob in chosen["knobs"])
    return (
        f'<details class="s-level" data-keep="how"{" open" if problem else ""}><summary>How? {esc(chosen["title"])}'
        f'{_mark(chosen)}</summary><fieldset class="s-presets"><legend class="s-hidden">How</legend>{cards}</fieldset>'
        f"</details>{message(problem, elem_id='how-problem')}{_knobs(form, chosen, problems, wrong)}"
    )


def _mark(way: Mapping[str, Any]) -> str:
    return ' <span class="s-tag">recommended</span>' if way["recommended"] else ""


def _knobs(form: Combination, way: Mapping[str, Any], problems: Mapping[str, str], wrong: bool) -> str:
    if not way["knobs"]:
        return ""
    knobs = "".join(knob_markup(knob, _own(form, knob), problems.get(knob["key"], "")) for knob in way["knobs"])
    return (
        f'<details class="s-level" data-keep="more"{" open" if wrong else ""}><summary>More: settings of '
        f'{esc(way["title"])}</summary><div class="s-knobs">{knobs}</div></details>'
    )


def _own(form: Combination, knob: Mapping[str, Any]) -> str | None:
    text = form.options.get(knob["key"])
    return None if text is None or text == knob["standing"] else text


def start_markup(form: Combination, problem: str) -> str:
    if len(form.parts) < 2 or form.apart:
        return ""
    return (
        f"{message(problem, elem_id='combine-problem')}<p>"
        + button("Make one file of them", "fuse", kind="s-primary s-large", key="fuse")
        + "</p>"
    )


def preview_markup(form: Combination, subjects: Sequence[Subject], problems: Mapping[str, str], fused: bool) -> str:
    """A prompt, a seed, and a press that draws them by each way."""
    if len(form.parts) < 2:
        return ""
    usual = combination.usual_prompt(subjects)
    ways = ["the plain sum", "each alone"]
    ways = (["the fused file"] if fused else []) + (["regions"] if form.apart else []) + ways
    told = f"The same prompt from the same seed by {', '.join(ways[:-1])} and {ways[-1]}."
    return (
        f'<h2>3. Look at it</h2><p class="s-hint">{told}</p><div class="s-try"><label>Prompt<textarea rows="2" '
        f'maxlength="500" data-field="prompt" data-key="prompt" data-usual="{esc(usual)}">'
        f"{esc(form.prompt or usual)}</textarea></label><label>Seed"
        f'<input type="text" inputmode="numeric" data-field="seed" data-key="seed" value="{esc(form.seed)}" '
        f'autocomplete="off"></label></div>{message(problems.get("seed", ""), elem_id="seed-problem")}'
        f'{message(problems.get("draw", ""), elem_id="draw-problem")}<div class="s-bar">'
        + button("Draw them", "draw", kind="s-primary", key="draw")
        + button("Another seed", "reseed", key="reseed")
        + "</div>"
    )


def canvas_markup(form: Combination, subjects: Sequence[Subject], problem: str) -> str:
    """Where each acts, drawn on a canvas, with a prompt for each region."""
    if len(form.parts) < 2 or not form.apart:
        return ""
    placed = combination.placeable(subjects)
    usual = combination.usual_regions(subjects)
    others = [one.label for one in subjects if one not in placed]
    told = f'<p class="s-hint">{esc(", ".join(others))}: in the whole picture.</p>' if others else ""
    return (
        f"<h3>What is where</h3>{message(problem, elem_id='regions-problem')}"
        f"{regions_markup(form.regions or usual, (1, 1), [one.label for one in placed])}{told}"
    )
