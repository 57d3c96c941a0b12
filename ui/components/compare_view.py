"""A comparison as a table of pictures, and two of them under a slider."""

from __future__ import annotations

from studio import scores
from studio.scores import Scores
from studio.store import Job, SampleRequest
from studio.store.states import ACTIVE, GIVEN_UP, WAITING
from ui.comparison import Grid, grid, labels
from ui.components import words
from ui.components.bars import bar, mean_bar
from ui.components.markup import button, esc, message
from ui.media import drawn_pictures
from ui.studio import Studio

SCRIPT = """
let ticked = [];
const show = () => {
  const boxes = [...element.querySelectorAll('[data-cell]')], slider = document.querySelector('.s-wipe');
  for (const box of boxes) box.checked = ticked.includes(box.dataset.key);
  const pair = boxes.filter(box => box.checked);
  if (!slider || (slider.hidden = pair.length < 2)) return;
  pair.map(box => box.closest('td').querySelector('.s-cell')).forEach((cell, place) => {
    const picture = slider.querySelector('.s-over').children[1 - place], text = cell.querySelector('img').alt;
    if (picture.src !== cell.href) picture.src = cell.href;
    picture.alt = slider.querySelector('p').children[place].textContent = text;
  });
};
element.addEventListener('change', event => {
  const {cell, key} = event.target.dataset;
  if (cell === undefined) return;
  ticked = [...ticked.filter(one => one !== key), ...(event.target.checked ? [key] : [])].slice(-2);
  show();
});
watch('value', show);
"""
"""At most two cells are ticked and lie under the slider, and stay so while pictures come: it is the browser's alone."""
SLIDER = (
    '<section class="s-card s-wipe" aria-label="Slider for two" hidden>'
    '<div class="s-over"><img alt=""><img alt=""></div>'
    '<input type="range" min="0" max="100" value="50" aria-label="How much of the left picture">'
    "<p><span></span><span></span></p></section>"
)
SLIDE = """
element.addEventListener('input', event => {
  event.target.closest('.s-wipe')?.style.setProperty('--s-at', event.target.value + '%');
});
"""
SCORED = (
    "The bars are the base model’s view. Subject: from 0, as it draws it without the adapter, to 100, as like the "
    "training pictures as they are to each other. Prompt: how much of what else it asks for is there, from 0, as in "
    "pictures of such a thing alone, to 100, as in those that it draws of the prompt. Your eye decides."
)
CHOOSE = (
    '<section class="s-empty"><h1>Compare</h1><p>See adapters, or the checkpoints of a run, side by side: the same '
    "prompts from the same seed.</p><p>Pick several in the library, or open a run.</p>"
    '<p><a class="s-button s-primary" href="/library">Library</a></p></section>'
)


def runs(jobs: list[Job]) -> str:
    """Runs whose checkpoints can be compared."""
    rows = "".join(
        f'<li><a href="/compare?job={job.id}"><b>{esc(job.title)}</b></a>'
        f'<span class="s-quiet">{esc(words.state(job))}, {words.ago(job.finished)}</span></li>'
        for job in jobs
    )
    return f'<h2>Checkpoints of a run</h2><ul class="s-list">{rows}</ul>' if rows else ""


def progress(job: Job) -> str:
    """How far the pictures are; what went wrong, if so."""
    if job.state in GIVEN_UP:
        why = job.failure
        return message(
            f"{why.what}\n{why.fix}" if why is not None else "It was stopped. Draw it again, and it goes on."
        )
    if job.state not in (*ACTIVE, *WAITING):
        return ""
    share = words.share(job)
    bar = f'<progress max="1" value="{share or 0:.4f}" aria-label="progress"></progress>'
    told = f'<span role="status">{esc(words.stage(job))}</span>'
    return f'<div class="s-matrix-state">{told}{bar}{button("Stop", "cancel")}</div>'


def table(studio: Studio, job: Job) -> str:
    """A row an adapter, a column a prompt or a strength; pictures as they come."""
    assert isinstance(job.request, SampleRequest)
    shown, there = grid(job.request), set(drawn_pictures(job))
    if shown is None:
        return message("The pictures of that job are no comparison.", "note")
    heads = "".join(f'<th scope="col">{esc(text)}</th>' for text in shown.columns)
    found = scores.read(job.run) if job.request.scored else Scores()
    rows = "".join(_row(job, shown, row, name, there, found) for row, name in enumerate(labels(studio, shown)))
    explained = f'<p class="s-quiet">{SCORED}</p>' if job.request.scored else ""
    return (
        '<section aria-labelledby="grid-title"><h2 id="grid-title">Side by side</h2>'
        f'<p class="s-quiet">Seed {job.request.drawings[0].seed}. A picture opens large; tick two for a slider.</p>'
        f"{explained}{_unscored(job, found)}"
        f'<div class="s-scroll" tabindex="0" role="region" aria-label="Pictures"><table class="s-matrix">'
        f"<thead><tr><td></td>{heads}</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _unscored(job: Job, found: Scores) -> str:
    """Says so where scores were asked for and are not there, though the pictures are."""
    assert isinstance(job.request, SampleRequest)
    if job.state != "done" or not job.request.scored or len(found.pictures) == len(job.request.drawings):
        return ""
    return message("Not every picture could be scored. The job's log says why.", "note")


def _row(job: Job, shown: Grid, row: int, name: str, there: set[int], found: Scores) -> str:
    use = button("Use this one", "use", row=str(row), key=f"use-{row}", label=f"Use {name}")
    numbers = {shown.number(row, column): f"{name}: {text}" for column, text in enumerate(shown.columns)}
    cells = "".join(_cell(job, number, text, there, found) for number, text in numbers.items())
    known = [found.pictures[number] for number in numbers if number in found.pictures]
    return f'<tr><th scope="row"><span>{esc(name)}</span>{use}{mean_bar(known)}</th>{cells}</tr>'


def _cell(job: Job, number: int, text: str, there: set[int], found: Scores) -> str:
    if number not in there:
        return '<td><span class="s-nothing">…</span></td>'
    url = f"/media/job/{job.id}/picture/{number}"
    score = found.pictures.get(number)
    return (
        f'<td><a class="s-cell" href="{url}" target="_blank">'
        f'<img src="{url}/small" alt="{esc(text)}" loading="lazy"></a>'
        f'<input type="checkbox" class="s-pick" data-cell data-key="{job.id}-{number}"'
        f' aria-label="For the slider: {esc(text)}">{bar(score) if score is not None else ""}</td>'
    )
