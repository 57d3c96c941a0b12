"""One adapter of the library as a page shows it."""

from __future__ import annotations

from dataclasses import dataclass

from adapters.errors import StudioError
from studio.progress import size
from studio.store import Job, LibraryAdapter
from ui.components import library_view, words
from ui.components.markup import button, esc, message
from ui.exports import FORMS, Made
from ui.studio import Studio

MORE_STEPS = 100


@dataclass(frozen=True)
class Refused:
    """What was written into a field and cannot be taken, and why."""

    field: str = ""
    text: str = ""
    why: str = ""

    def value(self, field: str, standing: str) -> str:
        return esc(self.text if field == self.field else standing)

    def note(self, field: str) -> str:
        return message(self.why, elem_id=f"{field}-problem") if field == self.field else ""


def head(studio: Studio, entry: LibraryAdapter) -> str:
    """Its picture, its name, and what is known of it."""
    there = studio.library.has_file(entry)
    bytes_ = size((studio.library.folder / entry.file).stat().st_size) if there else ""
    facts = {
        "In prompts": library_view.taught(entry),
        "Method": library_view.method(entry),
        "Base": library_view.base(studio, entry),
        "Made": words.ago(entry.created),
        "File": bytes_,
    }
    rows = "".join(f"<div><dt>{name}</dt><dd>{esc(text)}</dd></div>" for name, text in facts.items() if text)
    gone = message("Its file has vanished. Import the same file again, and it is whole.") if not there else ""
    thrown = message("It is in the trash.", "note") if entry.trashed_at is not None else ""
    return (
        f'<p><a class="s-back" href="/library">← Library</a></p><div class="s-entry">{library_view.picture(entry)}'
        f'<div><h1 class="s-title">{esc(entry.name)}</h1><dl class="s-figures">{rows}</dl>{gone}{thrown}</div></div>'
    )


def actions(entry: LibraryAdapter) -> str:
    """Where it can be drawn with, and the trash."""
    if entry.trashed_at is not None:
        return f'<div class="s-bar">{button("Take it out of the trash", "restore", kind="s-primary")}</div>'
    ways = library_view.links(entry.id) + button("Move to the trash", "trash")
    return f'<div class="s-bar">{ways}</div>'


def fields(entry: LibraryAdapter, refused: Refused) -> str:
    """Its name and its tags, kept as they are left."""
    tags = "".join(
        f'<span class="s-chip">{esc(tag)} '
        f'<button type="button" data-action="untag" data-tag="{esc(tag)}" data-key="untag-{esc(tag)}"'
        f' aria-label="Take the tag {esc(tag)} away">×</button></span>'
        for tag in entry.tags
    )
    return (
        '<section class="s-card s-fields" aria-labelledby="name-title"><h2 id="name-title">Name and tags</h2>'
        f'<label>Name<input type="text" data-field="name" data-key="name" maxlength="400" autocomplete="off"'
        f' value="{refused.value("name", entry.name)}"></label>{refused.note("name")}'
        f'<label>Add a tag<input type="text" data-field="tag" data-key="tag" maxlength="400" autocomplete="off"'
        f' placeholder="pets, or several: pets, blue" value="{refused.value("tag", "")}"></label>{refused.note("tag")}'
        + (f'<span class="s-chips">{tags}</span>' if tags else "")
        + "</section>"
    )


def training(job: Job | None, refused: Refused) -> str:
    """How its training can be gone on with, where it came of one here."""
    if job is None or not job.config:
        return ""
    further = ""
    if any((job.run / "checkpoints").glob("step-*.safetensors")):
        further = (
            '<p class="s-quiet">Its last checkpoint is still there. What comes of more steps is another adapter; this '
            "one stays.</p>"
            '<div class="s-row"><label>Steps more<input type="number" data-field="steps" data-key="steps" min="1"'
            f' step="1" value="{refused.value("steps", str(MORE_STEPS))}"></label>'
            f"{button('Train further', 'further', kind='s-primary')}</div>{refused.note('steps')}"
        )
    return (
        '<section class="s-card s-fields" aria-labelledby="training-title"><h2 id="training-title">Its training</h2>'
        f'{further}<div class="s-bar"><a class="s-button" href="/run?job={job.id}">Look at the run</a>'
        f'<a class="s-button" href="/compare?job={job.id}">Compare its checkpoints</a>'
        f'<a class="s-button" href="/new?copy={job.id}">New run with these settings</a></div></section>'
    )


def exports(studio: Studio, entry: LibraryAdapter, bases: list[tuple[str, str]], chosen: str) -> str:
    """A row a format: who reads it, and the file. `bases`: to be chosen from where the file does not tell its own."""
    rows = "".join(_export(studio, entry, form) for form in FORMS)
    choose = ""
    if bases:
        options = "".join(
            f'<option value="{esc(name)}"{" selected" if name == chosen else ""}>{esc(text)}</option>'
            for name, text in bases
        )
        choose = (
            '<label>The file does not tell its base<select data-field="base" data-key="base">'
            f"{options}</select></label>"
        )
    own = (
        '<li><div><b>As it is</b><span class="s-quiet">Spectral Studio; it keeps every method exactly.</span></div>'
        f'<a class="s-button" href="/media/library/{entry.id}/file/studio" download aria-label="Download as it is">'
        "Download</a></li>"
    )
    return (
        '<section class="s-card s-fields" aria-labelledby="export-title"><h2 id="export-title">Files</h2>'
        f'{choose}<ul class="s-exports">{own}{rows}</ul></section>'
    )


def _export(studio: Studio, entry: LibraryAdapter, form: str) -> str:
    about = FORMS[form]
    made = studio.exports.made(entry.id, form)
    told = (
        f'<b>{about.title}</b><span class="s-quiet">{esc(" ".join(filter(None, (about.note, _who(about.who)))))}</span>'
    )
    if made is not None:
        return f"<li><div>{told}{_made(made)}</div>{_download(studio, entry, form)}</li>"
    if studio.exports.is_busy(entry.id, form):
        return f'<li><div>{told}</div><span class="s-quiet" role="status">is being made…</span></li>'
    why = message(studio.exports.refusal(entry.id, form))
    return (
        f"<li><div>{told}{why}</div>{button('Make', 'export', form=form, key=form, label=f'Make: {about.title}')}</li>"
    )


def _who(programs: str) -> str:
    return f"For {programs}."


def _download(studio: Studio, entry: LibraryAdapter, form: str) -> str:
    try:
        bytes_ = size(studio.exports.file(entry.id, form).stat().st_size)
    except (StudioError, FileNotFoundError):  # cleared away this moment
        return ""
    return (
        f'<a class="s-button s-primary" href="/media/library/{entry.id}/file/{form}" download data-key="{form}"'
        f' aria-label="Download: {FORMS[form].title}">Download ({bytes_})</a>'
    )


def _made(made: Made) -> str:
    exact = "Exact, but for rounding." if not made.error else f"Up to {made.error:.1%} of a layer's change is left out."
    left = f"Without {len(made.left_out)} parts that the format has no name for." if made.left_out else ""
    rows = "".join(
        f"<tr><th scope='row'>{esc(name)}</th><td>{esc(told)}</td></tr>" for name, told in made.read_by.items()
    )
    return (
        f"<span>{esc(' '.join(filter(None, (f'{made.layers} layers.', exact, left, made.warning))))}</span>"
        f"<details><summary>Who loads it</summary><table class='s-table'>{rows}</table></details>"
    )


def family(studio: Studio, entry: LibraryAdapter) -> str:
    """What it was made of, and what was made of it."""
    parents = studio.library.parents(entry.id)
    away = len(entry.parents) - len(parents)
    rows = _relatives("Made of", parents, f"and {away} not in the library" if away else "")
    rows += _relatives("Part of", studio.library.children(entry.id), "")
    return f'<section class="s-card" aria-label="Relatives">{rows}</section>' if rows else ""


def _relatives(title: str, entries: list[LibraryAdapter], more: str) -> str:
    if not entries and not more:
        return ""
    items = "".join(
        f'<li><a class="s-result" href="/adapter?id={one.id}">{library_view.picture(one)}'
        f"<b>{esc(one.name)}</b></a></li>"
        for one in entries
    )
    listed = f'<ul class="s-grid">{items}</ul>' if items else ""
    return f'<h2>{title}</h2>{listed}<p class="s-quiet">{more}</p>'
