"""Scores beside a job's pictures, on the embedded base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from studio import event_log, scores, scoring
from studio.library import Library
from studio.queue import Queue, Submission
from studio.store import Drawing, Job, SampleRequest, Use
from tests.jobs import submit, work
from trainers.config import TrainConfig
from trainers.events import Event, Note, Progress


@pytest.fixture
def adapter(queue: Queue, job_reference: Path) -> str:
    return f"lib:{Library(queue.home, queue.store).add(job_reference)}"


@pytest.fixture
def trained(queue: Queue, job_config: TrainConfig) -> None:
    """The training is known, and that is enough: its pictures are where they were."""
    queue.send(submit(queue, job_config), "cancel")


def drawn(queue: Queue, adapter: str, *strengths: float) -> Job:
    """A scored picture a strength, as cheap as they come."""
    uses = [(Use(adapter=adapter, strength=strength),) for strength in strengths]
    drawings = tuple(Drawing(prompt="a sks octopus on a blue background", seed=3, uses=one) for one in uses)
    request = SampleRequest(base="embedded", drawings=drawings, steps=2, scored=True)
    id = queue.submit(Submission(request=request, title="scored"))
    work(queue)
    return queue.get_job(id)


def listening(monkeypatch: pytest.MonkeyPatch, hear: Any) -> None:
    whole = event_log.append

    def append(path: Path, event: Event) -> None:
        whole(path, event)
        hear(event)

    monkeypatch.setattr(event_log, "append", append)


@pytest.mark.usefixtures("trained")
def test_pictures_are_scored_with_no_adapter_on(queue: Queue, adapter: str, monkeypatch: pytest.MonkeyPatch):
    hooks: list[int] = []
    whole = scoring.features

    def features(base: Any, latents: Any) -> Any:
        hooks.append(sum(len(module._forward_hooks) for module in base.unet.modules()))
        return whole(base, latents)

    monkeypatch.setattr(scoring, "features", features)
    job = drawn(queue, adapter, 1.0, 5.0)
    assert job.state == "done", job.failure
    found = scores.read(job.run).pictures
    assert sorted(found) == [0, 1] and found[0] != found[1]
    assert all(one.subject is not None and not one.missing for one in found.values())
    assert all(one.prompt is not None for one in found.values())
    # three of the base's own of the prompt, three of the bare class, three to learn from, two drawn
    assert len(hooks) == 3 + 3 + 3 + 2 and not any(hooks)


@pytest.mark.usefixtures("trained")
def test_a_paused_job_does_not_score_again_what_has_its_scores(
    queue: Queue, adapter: str, monkeypatch: pytest.MonkeyPatch
):
    def pause(event: Event) -> None:
        if isinstance(event, Progress) and (event.stage, event.done) == ("scores", 1):
            queue.send(queue.list_jobs(("running",))[0].id, "pause")

    with monkeypatch.context() as patch:
        listening(patch, pause)
        job = drawn(queue, adapter, 1.0, 5.0)
    marked = scores.Score(subject=12.5)
    assert job.state == "paused" and list(scores.read(job.run).pictures) == [0]
    scores.write(job.run, scores.Scores(pictures={0: marked}))
    queue.send(job.id, "resume")
    work(queue)
    found = scores.read(job.run).pictures
    assert queue.get_job(job.id).state == "done"
    assert found[0] == marked and found[1].subject not in (None, marked.subject)


def test_without_its_training_pictures_a_subject_has_no_score(queue: Queue, adapter: str):
    (found,) = scores.read(drawn(queue, adapter, 1.0).run).pictures.values()
    assert found.subject is None and "not here" in found.missing[0] and found.prompt is not None


@pytest.mark.usefixtures("trained")
def test_what_cannot_be_scored_is_a_warning_beside_the_pictures(
    queue: Queue, adapter: str, monkeypatch: pytest.MonkeyPatch
):
    said: list[str] = []
    listening(monkeypatch, lambda event: said.append(event.text) if isinstance(event, Note) else None)
    monkeypatch.setattr(scoring, "latents_of", lambda *_: 1 / 0)
    job = drawn(queue, adapter, 1.0)
    assert job.state == "done" and (job.run / "pictures" / "0000.png").exists()
    assert any(text.startswith("The pictures have no scores.") for text in said)


def test_a_trigger_is_left_out_of_a_prompt_as_a_whole_word():
    assert scoring.plain_prompt("A photo of a SKS dog, sksy", ["sks"]) == "A photo of a dog, sksy"


@pytest.mark.parametrize(
    ("prompt", "more"),
    [
        ("a photo of a dog", False),
        ("a picture of the Dog and a cat", False),
        ("a dog on a beach", True),
        ("a photo of a dog, watercolour", True),
        ("a hot dog", True),
    ],
)
def test_a_prompt_asks_for_more_than_its_subjects_if_a_word_is_left(prompt: str, more: bool):
    assert scoring.asks_more(prompt, ["dog", "cat"]) is more
