"""What the page of combinations asks of library, clerk and queue: subjects that fit, a fusion, pictures to compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from adapters.errors import StudioError
from studio import workers
from studio.clerk import RefusedError
from studio.paths import LIBRARY_PREFIX
from studio.queue import Submission
from studio.store import FuseRequest, Job, JobRequest, LibraryAdapter
from studio.store.states import GIVEN_UP
from trainers.places import LARGEST
from ui import combination
from ui.combination import Combination, Part, Shown, Subject
from ui.studio import Studio
from ui.subject import Problems

_LISTED = 200


class Combining:
    """Remembers what files told: an id is the hash of its file, so that it never tells anything else."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._facts: dict[str, dict[str, Any]] = {}
        self._reports: dict[str, dict[str, Any]] = {}

    # --- looking ------------------------------------------------------------------------------------------

    def listed(self, form: Combination) -> list[Subject]:
        """What may be chosen, the newest first, and whatever is chosen already."""
        entries = self.studio.library.list_adapters(limit=_LISTED)
        known = {entry.id for entry in entries}
        return self._with_facts([*entries, *(entry for entry in self._entries(form) if entry.id not in known)])

    def chosen(self, form: Combination) -> list[Subject]:
        """Those of the form, in its order. StudioError where one is not in the library."""
        return self._with_facts([self.studio.library.get_adapter(id) for id in form.ids])

    def _entries(self, form: Combination) -> list[LibraryAdapter]:
        found: list[LibraryAdapter] = []
        for id in form.ids:
            try:
                found.append(self.studio.library.get_adapter(id))
            except StudioError:
                continue
        return found

    def _with_facts(self, entries: Sequence[LibraryAdapter]) -> list[Subject]:
        wanted = [entry.id for entry in entries if entry.id not in self._facts]
        if wanted:
            told: dict[str, dict[str, Any]] = self._ask("fusion_facts", ids=wanted)
            self._facts.update({id: one for id, one in told.items() if "trouble" not in one})
        else:
            told = {}
        return [self._subject(entry, self._facts.get(entry.id) or told[entry.id]) for entry in entries]

    def _subject(self, entry: LibraryAdapter, told: dict[str, Any]) -> Subject:
        if trouble := told.get("trouble"):
            return Subject(entry, trouble=trouble)
        if entry.trashed_at is not None or not self.studio.library.has_file(entry):
            return Subject(entry, trouble="It is in the trash, or its file has vanished.")
        return Subject(entry, told["schedule"], tuple(told["triggers"]), told["fused"])

    def advice(self, form: Combination) -> dict[str, Any]:
        """The ways and what speaks against each, and what to know of these adapters together."""
        return self._ask("fusion_advice", ids=form.ids, weights=form.weights)

    def report(self, job: Job) -> dict[str, Any]:
        """What a done fusion's report says (studio.fusion_words.Told)."""
        if job.id not in self._reports:
            self._reports[job.id] = self._ask("fusion_report", job=job.id)
        return self._reports[job.id]

    def _ask(self, question: str, **details: Any) -> Any:
        return self.studio.clerk.ask(question, home=str(self.studio.home), **details)

    def job(self, form: Combination) -> Job | None:
        """The fusion that was started last."""
        try:
            found = self.studio.queue.get_job(form.job) if form.job else None
        except StudioError:
            return None
        return found if found is not None and found.kind == "fuse" else None

    def made(self, job: Job | None) -> LibraryAdapter | None:
        """What a fusion has put into the library, unless it was thrown away."""
        entry = self.studio.library.of_job(job.id) if job is not None and job.state == "done" else None
        return entry if entry is not None and entry.trashed_at is None else None

    # --- doing --------------------------------------------------------------------------------------------

    def misfits(self, form: Combination, subjects: Sequence[Subject]) -> dict[str, str]:
        """Of each chosen one that cannot be there beside those chosen before it, why."""
        bases = self.studio.bases
        told = {one.entry.id: combination.why_not(one, subjects[:place], bases) for place, one in enumerate(subjects)}
        return {id: reason for id, reason in told.items() if reason}

    def fuse(self, form: Combination, *, key: str | None = None) -> tuple[str, Problems]:
        """The fusion's job, or "" and what is wrong, by field. The same key is one job, retried where given up."""
        try:
            subjects = self.chosen(form)
            if problem := self._wrong(form, subjects):
                return "", problem
            how = form.how or _recommended(self.advice(form))
            knobs = self.knobs(form, how)
            asked = self._ask(
                "fusion_request",
                base=combination.base_of(subjects),
                ids=form.ids,
                weights=form.weights,
                how=how,
                options={key: text for key, text in form.options.items() if knobs.get(key, text) != text},
            )
            request = FuseRequest.model_validate(asked)
            return self._submit(request, combination.named(subjects), key), Problems()
        except RefusedError as error:
            return "", Problems(error.keys or {"": str(error)})
        except StudioError as error:
            return "", Problems({"": str(error)})

    def knobs(self, form: Combination, how: str) -> dict[str, str]:
        """What each knob of that way is where nobody changes it."""
        ways = {way["name"]: way for way in self.advice(form)["ways"]}
        found: list[dict[str, str]] = ways[how]["knobs"] if how in ways else []
        return {knob["key"]: knob["standing"] for knob in found}

    def draw(self, form: Combination) -> tuple[list[Shown], Problems]:
        """Pictures to compare; nothing and what is wrong, by field."""
        seed = combination.seed_of(form)
        if seed is None:
            return [], Problems({"seed": "A whole number, 0 or more."})
        try:
            subjects = self.chosen(form)
            if problem := self._wrong(form, subjects):
                return [], problem
            regions = form.regions or combination.usual_regions(subjects)
            if form.apart and (wrong := combination.wrong_regions(regions, subjects)):
                return [], Problems({"regions": wrong})
            entry = self.made(self.job(form))
            shown: list[Shown] = []
            for request, labels in combination.pictures(form, subjects, seed, "" if entry is None else entry.id):
                key = f"draw:{hashlib.sha256(request.model_dump_json().encode()).hexdigest()}"
                job = self._submit(request, f"Pictures of {combination.named(subjects)}", key)
                shown += [Shown(label=label, job=job, number=number) for number, label in enumerate(labels)]
            return shown, Problems()
        except StudioError as error:
            return [], Problems({"draw": str(error)})

    def _wrong(self, form: Combination, subjects: Sequence[Subject]) -> Problems | None:
        if len(subjects) < 2:
            return Problems({"adapters": "Choose two subjects or more."})
        if len(subjects) > LARGEST:
            return Problems({"adapters": f"{LARGEST} subjects are the most."})
        misfits = self.misfits(form, subjects)
        if misfits:
            labels = {one.entry.id: one.label for one in subjects}
            return Problems({"adapters": " ".join(f"{labels[id]}: {reason}" for id, reason in misfits.items())})
        return None

    def _submit(self, request: JobRequest, title: str, key: str | None) -> str:
        queue = self.studio.queue
        id = queue.submit(Submission(request=request, title=title[:80], key=key))
        if queue.get_job(id).state in GIVEN_UP:
            queue.retry(id)
        workers.ensure(queue)
        return id


def key_of(form: Combination) -> str:
    """Pressed twice on one form, it is one fusion; a changed form is another."""
    told = json.dumps([form.id, form.ids, form.weights, form.how, form.options])
    return f"fuse:{hashlib.sha256(told.encode()).hexdigest()}"


def _recommended(advice: dict[str, Any]) -> str:
    return next(way["name"] for way in advice["ways"] if way["recommended"])


def of_job(form: Combination, job: Job) -> None:
    """Fills a form in with what a fusion was asked for."""
    asked = job.request
    if not isinstance(asked, FuseRequest):
        return
    weights = asked.weights or (1.0,) * len(asked.adapters)
    form.parts = [
        Part(adapter=adapter.removeprefix(LIBRARY_PREFIX), weight=weight)
        for adapter, weight in zip(asked.adapters, weights, strict=True)
        if adapter.startswith(LIBRARY_PREFIX)
    ]
    form.how, form.job = asked.how, job.id
    form.options = {key: json.dumps(value) for key, value in asked.options.items()}
