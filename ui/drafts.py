"""A subject before it is taught: its pictures and what has been filled in, kept on disk so that nothing is lost.

home/drafts/<id>/draft.json (ui.forms), and the pictures under names of our own.
"""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

from PIL import Image
from pydantic import BaseModel, Field

from adapters.atomic import atomic_path
from adapters.errors import MissingError, UserInputError
from studio.store.jobs import new_id
from trainers.images import ImageChecks, Inspected, inspect, open_rgb
from trainers.verdicts import Verdict, verdicts
from ui.forms import ID, Form, Forms

MAX_PICTURES = 200
MAX_BYTES = 50 * 2**20
"""Of one picture's file."""
MAX_CAPTION = 1000
_THUMB = 360


class DraftPicture(BaseModel):
    """`id` and `suffix` name its file; `name` is what the person called it, for showing alone."""

    id: str
    suffix: str
    name: str
    caption: str = ""


class Draft(Form):
    """All that the form holds. `settings` are texts by dotted key, as after --set."""

    pictures: list[DraftPicture] = Field(default_factory=list)
    name: str = ""
    kind: str = "object"
    trigger: str = ""
    class_word: str = ""
    base: str = "embedded"
    preset: str = "balanced"
    settings: dict[str, str] = Field(default_factory=dict)


class Drafts(Forms[Draft]):
    """All drafts of a data folder."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, Draft)
        self._inspected: dict[str, Inspected] = {}

    # --- pictures -----------------------------------------------------------------------------------------

    def add(self, draft: Draft, source: Path, name: str) -> DraftPicture:
        """Copies a picture in, if it is one that can be learnt from; UserInputError says why not, without its name."""
        if len(draft.pictures) >= MAX_PICTURES:
            raise UserInputError(f"there are {MAX_PICTURES} pictures already.", "Remove some first.")
        if source.stat().st_size > MAX_BYTES:
            raise UserInputError(f"is larger than {MAX_BYTES // 2**20} MiB.", "Save it smaller.")
        inspect(source, ImageChecks())
        picture = DraftPicture(id=new_id(), suffix=source.suffix.lower(), name=_shown(name))
        target = self.path(draft.id, picture)
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
        self._thumbnail(draft.id, picture)
        draft.pictures.append(picture)
        return picture

    def path(self, id: str, picture: DraftPicture) -> Path:
        return self.folder(id) / f"{picture.id}{picture.suffix}"

    def thumbnail(self, id: str, picture: str) -> Path:
        if not ID.fullmatch(picture):
            raise MissingError("That is no picture's id.", "")
        return self.folder(id) / f"{picture}.thumb.webp"

    def _thumbnail(self, id: str, picture: DraftPicture) -> None:
        small = open_rgb(self._inspect(id, picture).picture)
        small.thumbnail((_THUMB, _THUMB), Image.Resampling.LANCZOS)
        with atomic_path(self.thumbnail(id, picture.id)) as temporary:
            small.save(temporary, format="WEBP", quality=82)

    def remove(self, draft: Draft, picture: str) -> None:
        """Takes a picture away; the others keep their captions. One that is not there is away already."""
        for found in [one for one in draft.pictures if one.id == picture]:
            self.path(draft.id, found).unlink(missing_ok=True)
            self.thumbnail(draft.id, found.id).unlink(missing_ok=True)
            draft.pictures.remove(found)

    def _inspect(self, id: str, picture: DraftPicture) -> Inspected:
        if picture.id not in self._inspected:
            self._inspected[picture.id] = inspect(self.path(id, picture), ImageChecks())
        return self._inspected[picture.id]

    def judge(self, draft: Draft, resolution: int) -> list[tuple[Inspected, Verdict]]:
        """Each picture with what is to be said of it."""
        found = [self._inspect(draft.id, picture) for picture in draft.pictures]
        return list(zip(found, verdicts(found, ImageChecks(), resolution), strict=True))

    def freeze(self, draft: Draft, target: Path) -> None:
        """The pictures and captions as a folder to learn from, which later changes of the draft do not reach."""
        if target.exists():
            return
        making = target.with_name(f".{target.name}.{new_id()}.part")
        making.mkdir(parents=True)
        for number, picture in enumerate(draft.pictures, 1):
            shutil.copyfile(self.path(draft.id, picture), making / f"{number:03d}{picture.suffix}")
            if picture.caption.strip():
                (making / f"{number:03d}.txt").write_text(picture.caption, encoding="utf-8")
        try:
            making.rename(target)
        except OSError:  # another start of the same was quicker
            shutil.rmtree(making)


def _shown(name: str) -> str:
    """A file's name as it may be shown: one line, no control signs, not endless."""
    plain = "".join(sign for sign in name if unicodedata.category(sign)[0] != "C")
    return plain if len(plain) <= 60 else f"{plain[:40]}…{plain[-15:]}"
