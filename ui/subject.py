"""What the form of a new subject means: what is wrong with it, what it would do, and its start. Knows no Gradio."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters.errors import StudioError, UserInputError
from studio import workers
from studio.clerk import RefusedError
from studio.queue import Submission
from ui import uploads
from ui.drafts import Draft
from ui.studio import Studio

KINDS = {"person": "A person", "pet": "A pet", "object": "An object", "style": "A style", "other": "Something else"}
_CLASS_OF = {"person": "person", "style": "style"}
_TRIGGERS = ("sks", "zwx", "ohwx", "olis", "hta", "phol", "vqx", "lwj")
FEW = 3
_TRIGGER, _CLASS = "data.captions.trigger", "data.captions.class_word"


@dataclass
class Problems:
    """What is wrong, by field: pictures, trigger, class_word, or a setting's dotted key; "" is nowhere else."""

    fields: dict[str, str] = field(default_factory=dict)

    def of(self, name: str) -> str:
        return self.fields.get(name, "")


def usual_class(kind: str, before: str) -> str:
    """The class word that goes with a kind, unless the person has written another."""
    return _CLASS_OF.get(kind, "") if before in ("", *_CLASS_OF.values()) else before


def free_trigger(studio: Studio) -> str:
    """A made-up word that no other subject has, so that they can share a picture some day."""
    used = {str(job.config["data"]["captions"]["trigger"]) for job in studio.queue.list_jobs(kind="train")}
    return next((word for word in _TRIGGERS if word not in used), "")


def resolution(draft: Draft) -> int:
    """Side of the training square in pixels, as far as it is known without the base."""
    chosen = draft.settings.get("data.resolution", "")
    return int(chosen) if chosen.isdigit() else 128 if draft.base == "embedded" else 1024


def missing(draft: Draft) -> Problems:
    """What has to be filled in before it can start."""
    found = Problems()
    if not draft.pictures:
        found.fields["pictures"] = "Drop at least one picture; five to twenty are usual."
    if not draft.trigger.strip():
        found.fields["trigger"] = "Give a word that will stand for it, such as sks."
    elif len(draft.trigger.split()) > 1:
        found.fields["trigger"] = "One word, without spaces."
    if not draft.class_word.strip():
        found.fields["class_word"] = "Say what it is, in a word, such as dog."
    return found


def plan(studio: Studio, draft: Draft) -> tuple[dict[str, Any] | None, Problems]:
    """The run as it would be, with stand-ins for what is not filled in yet; or what is wrong with its settings."""
    try:
        details = _details(draft) | {
            "folder": "PICTURES",
            "trigger": draft.trigger.strip() or "sks",
            "class_word": draft.class_word.strip() or "thing",
        }
        return studio.clerk.ask("plan", count=len(draft.pictures), **details), Problems()
    except StudioError as error:
        return None, _problems(error)


def _details(draft: Draft) -> dict[str, Any]:
    return {"preset": draft.preset, "base": draft.base, "settings": draft.settings}


def _problems(error: StudioError) -> Problems:
    if isinstance(error, RefusedError) and error.keys:
        names = {_TRIGGER: "trigger", _CLASS: "class_word"}
        return Problems({names.get(key, key): text for key, text in error.keys.items()})
    return Problems({"": str(error)})


def start(studio: Studio, draft: Draft) -> tuple[str, Problems]:
    """The job's id; started twice as it is, it is one job. Where something is wrong: "" and what."""
    problems = missing(draft)
    if problems.fields:
        return "", problems
    digest = hashlib.sha256(draft.model_dump_json().encode()).hexdigest()[:12]
    folder = studio.home / "pictures" / f"{draft.id}-{digest}"
    try:
        studio.drafts.freeze(draft, folder)
        asked = studio.clerk.ask(
            "submission",
            **_details(draft),
            folder=str(folder),
            trigger=draft.trigger.strip(),
            class_word=draft.class_word.strip(),
            key=folder.name,
        )
        submission = Submission.model_validate(asked)
        if name := draft.name.strip():
            submission = submission.model_copy(update={"title": name[:80]})
        id = studio.queue.submit(submission)
        workers.ensure(studio.queue)
    except StudioError as error:
        return "", _problems(error)
    return id, Problems()


def measured(studio: Studio) -> list[dict[str, Any]]:
    """How fast runs were on this machine: what estimates are made of."""
    return [
        {
            "base": job.base,
            "seconds_per_step": job.progress.seconds_per_step,
            "pictures": job.config["batch_size"] * (2 if job.config["prior"]["weight"] else 1),
        }
        for job in studio.queue.list_jobs(("done",), kind="train", limit=20)
        if job.progress.seconds_per_step
    ]


def trigger_note(studio: Studio, draft: Draft) -> str:
    """What the base's tokenizer makes of the word, where that is worth saying."""
    word = draft.trigger.strip()
    if not word or " " in word:
        return ""
    try:
        pieces: list[str] = studio.clerk.ask("trigger_pieces", word=word, base=draft.base)
    except StudioError:
        return ""
    if len(pieces) == 1:
        return "The base reads it as one word."
    seen = " · ".join(pieces)
    if len(pieces) <= FEW:
        return f"The base reads it as {seen}; that will do."
    return f"The base reads it as {len(pieces)} pieces ({seen}). A short made-up word is learnt more sharply."


def copy_of(studio: Studio, id: str, job: str) -> Draft:
    """The draft `id` filled with the pictures and the settings of a run. StudioError where there is no such run."""
    found = studio.queue.get_job(job)
    if not found.config:
        raise UserInputError(f"{found.title} has taught nothing.", "Copy the settings of a run.")
    captions = found.config["data"]["captions"]
    base = found.base if found.base in studio.bases else "embedded"
    text = json.dumps({key: value for key, value in found.config.items() if key not in ("data", "prior")})
    with studio.drafts.changing(id) as draft:
        folder = Path(str(found.config["data"]["folder"]))
        uploads.take(studio.drafts, draft, sorted(folder.iterdir()) if folder.is_dir() else [])
        draft.name, draft.class_word, draft.trigger = found.title, captions["class_word"], captions["trigger"]
        draft.base = base
        draft.settings = studio.clerk.ask("settings_of_yaml", text=text, preset=draft.preset, base=base)
    return draft
