"""The pictures of a new subject: a card each, with its verdict, its caption and a way out."""

from __future__ import annotations

from ui.components.markup import button, esc, message
from ui.drafts import Draft, DraftPicture, Drafts
from ui.subject import resolution


def pictures_markup(drafts: Drafts, draft: Draft, refused: list[str], problem: str) -> str:
    """Cards in the order of the drop; below them the files that could not be used, and why."""
    judged = drafts.judge(draft, resolution(draft))
    cards = "".join(
        _card(draft, picture, number, f"{found.picture.width} × {found.picture.height}", verdict.text, verdict.good)
        for number, (picture, (found, verdict)) in enumerate(zip(draft.pictures, judged, strict=True), 1)
    )
    left_out = message("Not taken:\n" + "\n".join(refused), "note", elem_id="refused") if refused else ""
    listed = f'<ol class="s-pictures" aria-label="Pictures">{cards}</ol>' if cards else ""
    return message(problem, elem_id="pictures-problem") + left_out + listed


def _card(draft: Draft, picture: DraftPicture, number: int, size: str, verdict: str, good: bool) -> str:
    name, kind = esc(picture.name), "good" if good else "note"
    hint = esc("caption (left empty: “a photo of a …”)")
    return (
        f'<li class="s-picture"><img src="/media/draft/{draft.id}/{picture.id}" alt="{name}">'
        f'<span class="s-badge s-{kind}">{esc(verdict)}</span>'
        f'<span class="s-name" title="{name}">{number}. {name} <span class="s-quiet">{size}</span></span>'
        f'<textarea rows="2" data-field="caption" data-picture="{picture.id}" data-key="{picture.id}" maxlength="1000"'
        f' placeholder="{hint}" aria-label="Caption of {name}">{esc(picture.caption)}</textarea>'
        + button("Remove", "remove", picture=picture.id, label=f"Remove {picture.name}")
        + "</li>"
    )
