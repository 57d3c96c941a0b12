"""The library as cards, and what can be done with several of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from studio.library import Library
from studio.store import LibraryAdapter
from ui.components import words
from ui.components.markup import button, esc
from ui.studio import Studio

STEP = 48
"""Cards that come at a time."""
_TAGS = 30
SCRIPT = """
let picked = new Set(), round = '0';
element.addEventListener('change', event => {
  if (event.target.dataset.field !== 'pick') return;
  picked[event.target.checked ? 'add' : 'delete'](event.target.dataset.adapter);
  event.target.dataset.picked = [...picked].join(',');
}, true);
watch('value', () => {
  const drawn = element.querySelector('[data-round]')?.dataset.round ?? round;
  if (drawn !== round) { picked.clear(); round = drawn; }
  for (const box of element.querySelectorAll('[data-field=pick]')) box.checked = picked.has(box.dataset.adapter);
});
"""
"""The browser knows what is picked until the server begins another round: cards that a job redraws meanwhile may be
older than the last pick. Each pick tells all of them: two that follow each other quickly are then not one."""
_NOTHING = {
    (False, False): "<p>Nothing is here yet. What you teach comes here by itself; files of other programs can be "
    'imported.</p><p><a class="s-button s-primary" href="/new">Teach a new subject</a></p>',
    (False, True): '<p class="s-quiet">Nothing here has all of these words.</p>',
    (True, False): '<p class="s-quiet">The trash is empty.</p>',
    (True, True): '<p class="s-quiet">Nothing in the trash has all of these words.</p>',
}


@dataclass(frozen=True)
class View:
    """What of the library is looked at, and which cards are picked."""

    text: str = ""
    tag: str = ""
    trashed: bool = False
    picked: tuple[str, ...] = ()
    count: int = STEP
    round: int = 0
    """One more whenever what was picked no longer is."""

    def unpicked(self) -> View:
        return replace(self, picked=(), round=self.round + 1)


def taught(entry: LibraryAdapter) -> str:
    """What is written in a prompt for it."""
    return " ".join(filter(None, (entry.trigger, entry.class_word)))


def method(entry: LibraryAdapter) -> str:
    return {"lora": "LoRA", "dora": "DoRA"}.get(entry.method, entry.method)


def base(studio: Studio, entry: LibraryAdapter) -> str:
    """The base by what people call it, else by the end of its name."""
    return studio.bases.get(entry.base, PurePosixPath(entry.base).name or "base not told").partition(":")[0]


def picture(entry: LibraryAdapter) -> str:
    """Its thumbnail, or a square that says that it has none."""
    if entry.thumbnail is None:
        return '<span class="s-nothing">no picture</span>'
    return f'<img src="/media/library/{entry.id}/thumbnail" alt="" loading="lazy">'


def tools(library: Library, view: View) -> str:
    """The tags, and the way into the trash and out of it."""
    counted = Counter(tag for entry in library.list_adapters(trashed=view.trashed) for tag in entry.tags)
    names = sorted(dict(counted.most_common(_TAGS)) | ({view.tag: 0} if view.tag else {}))
    chips = "".join(_chip(tag, pressed=tag == view.tag) for tag in names)
    row = f'<div class="s-chips" role="group" aria-label="Tags">{chips}</div>' if chips else ""
    thrown = len(library.list_adapters(trashed=True))
    if view.trashed:
        empty = button("Empty the trash", "empty") if thrown else ""
        return f'{row}<div class="s-bar">{button("Back to the library", "trash-view", key="trash-view")}{empty}</div>'
    way = button(f"Trash ({thrown})", "trash-view", key="trash-view") if thrown else ""
    return row + (f'<div class="s-bar">{way}</div>' if way else "")


def _chip(tag: str, *, pressed: bool) -> str:
    return (
        f'<button type="button" class="s-chip" data-action="tag" data-tag="{esc(tag)}" data-key="tag-{esc(tag)}"'
        f' aria-pressed="{str(pressed).lower()}">{esc(tag)}</button>'
    )


def cards(studio: Studio, view: View) -> str:
    """A card an adapter, the newest first."""
    found = studio.library.list_adapters(view.text, tag=view.tag, trashed=view.trashed, limit=view.count + 1)
    if not found:
        return f'<div class="s-empty">{_NOTHING[view.trashed, bool(view.text or view.tag)]}</div>'
    shown = "".join(_card(studio, entry, view) for entry in found[: view.count])
    more = button("Show more", "more", key="more") if len(found) > view.count else ""
    return f'<ul class="s-adapters" aria-label="Adapters" data-round="{view.round}">{shown}</ul>{more}'


def _card(studio: Studio, entry: LibraryAdapter, view: View) -> str:
    name, checked = esc(entry.name), " checked" if entry.id in view.picked else ""
    facts = " · ".join((method(entry), base(studio, entry), words.ago(entry.created)))
    gone = "" if studio.library.has_file(entry) else '<span class="s-bad">Its file has vanished.</span>'
    tags = "".join(f'<span class="s-chip">{esc(tag)}</span>' for tag in entry.tags)
    return (
        f'<li class="s-adapter"><a href="/adapter?id={entry.id}">{picture(entry)}<b>{name}</b></a>'
        f'<input type="checkbox" class="s-pick" data-field="pick" data-adapter="{entry.id}"'
        f' data-key="pick-{entry.id}" aria-label="Pick {name}"{checked}>'
        f'<span>{esc(_teaches(entry))}</span><span class="s-quiet">{esc(facts)}</span>{gone}'
        + _family(studio.library, entry)
        + (f'<span class="s-chips">{tags}</span>' if tags else "")
        + f'<span class="s-bar">{_ways(entry)}</span></li>'
    )


def _teaches(entry: LibraryAdapter) -> str:
    return taught(entry) if taught(entry) != entry.name else ""


def _family(library: Library, entry: LibraryAdapter) -> str:
    if not entry.parents:
        return ""
    names = [parent.name for parent in library.parents(entry.id)]
    left = len(entry.parents) - len(names)
    names += [f"{left} that {'is' if left == 1 else 'are'} not here"] if left else []
    return f'<span class="s-quiet">made of {esc(" + ".join(names))}</span>'


def _ways(entry: LibraryAdapter) -> str:
    name = esc(entry.name)
    if entry.trashed_at is not None:
        return button("Take it out", "restore", ids=entry.id, label=f"Take {entry.name} out of the trash")
    return (
        f'<a class="s-button" href="/create?adapters={entry.id}" aria-label="Create with {name}">Create</a>'
        f'<a class="s-button" href="/adapter?id={entry.id}" aria-label="More on {name}">More</a>'
    )


def picked_bar(library: Library, view: View) -> str:
    """What can be done with those that are picked; nothing where none is."""
    if not view.picked:
        return ""
    ids, count = ",".join(view.picked), len(view.picked)
    told = f"<b>{count} picked</b>"
    if view.trashed:
        ways = button("Take out of the trash", "restore-picked", kind="s-primary")
    else:
        ways = links(ids) + button("Move to the trash", "trash-picked")
    return (
        f'<div class="s-picked" role="region" aria-label="What is picked">{told}'
        f'<span class="s-bar">{ways}{button("Pick none", "none")}</span></div>'
    )


def links(ids: str) -> str:
    """To the pages that draw with adapters."""
    ways = [("create", "Create", "s-primary"), ("compare", "Compare", ""), ("combine", "Combine", "")]
    return "".join(f'<a class="s-button {kind}" href="/{path}?adapters={ids}">{text}</a>' for path, text, kind in ways)


def undo(entries: Sequence[LibraryAdapter]) -> str:
    """What has just gone into the trash, and the way back."""
    what = f"“{entries[0].name}” is" if len(entries) == 1 else f"{len(entries)} adapters are"
    back = button("Undo", "restore", ids=",".join(entry.id for entry in entries))
    return f'<div class="s-message s-good s-told" role="alert"><span>{esc(what)} in the trash.</span>{back}</div>'


def sure(count: int) -> str:
    """Asked before anything is deleted for good."""
    what = "the adapter" if count == 1 else f"the {count} adapters"
    return (
        f'<div class="s-message s-note s-told" role="alert"><span>Delete {what} in the trash for good?</span>'
        f"{button('Delete for good', 'empty-yes', kind='s-danger')}{button('Keep', 'keep')}</div>"
    )
