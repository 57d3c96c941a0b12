"""What the pages are made of, without a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed: the web pages were not tested")

from adapters.errors import MissingError, UserInputError
from studio.clerk_answers import QUESTIONS
from studio.clerk_process import answer
from studio.failures import Failure
from studio.queue import Queue, Submission
from studio.store import TrainRequest, jobs
from trainers.events import Note, Sampled, Started, Stepped
from ui import uploads
from ui.components import run_view
from ui.components.knobs import knobs_markup
from ui.course import POINTS, Course
from ui.drafts import Drafts
from ui.pages.home import act

PLAN: dict[str, Any] = {
    "question": "plan", "preset": "quick", "base": "embedded", "folder": "PICTURES", "trigger": "sks",
    "class_word": "dog", "count": 3,
}  # fmt: skip


def ask(**details: Any) -> dict[str, Any]:
    import json

    return answer(QUESTIONS, json.dumps(details))


def job_of(queue: Queue, title: str) -> str:
    config = {
        "base": "embedded", "adapter": {"method": "lora"}, "sample": {"prompts": [], "count": 4},
        "data": {"folder": "nowhere", "captions": {"trigger": "sks", "class_word": "dog", "template": "a {trigger}"}},
    }  # fmt: skip
    return queue.submit(Submission(request=TrainRequest(config=config), title=title))


def stepped(step: int, loss: float) -> Stepped:
    return Stepped(
        step=step, steps=9999, loss=loss, learning_rate=1e-4, grad_norm=1, seconds_per_step=1, memory_bytes=1
    )


def picture(path: Path, seed: int = 0, size: int = 96) -> Path:
    noise = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def test_a_loss_of_any_length_is_drawn_in_no_more_points_than_a_page_bears() -> None:
    course = Course()
    for step in range(1, 5001):
        course.see(stepped(step, 0.5))
    drawn = course.smoothed()
    assert len(drawn) == POINTS
    assert (drawn[0][0], drawn[-1][0]) == (1, 5000)
    assert all(abs(loss - 0.5) < 1e-9 for _, loss in drawn)


def test_steps_that_are_done_again_are_drawn_once() -> None:
    course = Course()
    for step in range(1, 11):
        course.see(stepped(step, 1.0))
    course.see(
        Started(step=6, steps=20, trainable_parameters=1, pictures=1, base="embedded", device="cpu", precision="fp32")
    )
    course.see(stepped(7, 2.0))
    assert [step for step, _ in course.losses] == [1, 2, 3, 4, 5, 6, 7]


def test_a_sample_and_a_warning_are_kept_once() -> None:
    course = Course()
    for _ in range(2):
        course.see(Sampled(step=3, path=Path("samples/step-000003.png")))
        course.see(Note(level="warning", text="Blurry."))
    assert course.samples == [(3, "step-000003.png")]
    assert course.notes == ["Blurry."]


def test_removing_a_picture_keeps_the_others_and_their_captions(tmp_path: Path) -> None:
    drafts = Drafts(tmp_path / "drafts")
    files = [picture(tmp_path / f"{number}.png", number) for number in range(3)]
    for file in files:
        file.with_suffix(".txt").write_text(f"caption {file.stem}")
    with drafts.changing(drafts.new().id) as draft:
        assert uploads.take(drafts, draft, [*files, *(file.with_suffix(".txt") for file in files)]) == []
        drafts.remove(draft, draft.pictures[1].id)
    kept = drafts.get(draft.id)
    assert [(one.name, one.caption) for one in kept.pictures] == [("0.png", "caption 0"), ("2.png", "caption 2")]


def test_pictures_that_a_run_learns_from_do_not_change_with_the_draft(tmp_path: Path) -> None:
    drafts = Drafts(tmp_path / "drafts")
    with drafts.changing(drafts.new().id) as draft:
        uploads.take(drafts, draft, [picture(tmp_path / "a.png")])
        draft.pictures[0].caption = "a sks dog"
    drafts.freeze(draft, tmp_path / "frozen")
    with drafts.changing(draft.id) as draft:
        drafts.remove(draft, draft.pictures[0].id)
    assert sorted(path.name for path in (tmp_path / "frozen").iterdir()) == ["001.png", "001.txt"]


@pytest.mark.parametrize("id", ["../../../etc", "AAAAAAAAAA", "", "abc/def/gh", "aaaaaaaaaaa"])
def test_an_id_that_is_none_never_becomes_a_path(tmp_path: Path, id: str) -> None:
    with pytest.raises(MissingError):
        Drafts(tmp_path).get(id)


def test_what_is_wrong_with_a_setting_is_said_by_its_key() -> None:
    refused = ask(**PLAN, settings={"steps": "many", "adapter.rank": "8"})["refused"]
    assert refused["keys"] == {"steps": "steps is 'many': it must be a whole number."}


def test_a_setting_that_names_a_place_on_the_server_is_refused() -> None:
    for key in ("data.folder", "prior.folder", "base"):
        assert "not set here" in ask(**PLAN, settings={key: "/etc"})["refused"]["what"]


def test_yaml_gives_back_the_settings_that_made_it() -> None:
    settings = {"steps": "7", "adapter.method": "dora", "sample.prompts": "[a, b]", "targets.unet": "linear"}
    text = ask(**PLAN, settings=settings)["answer"]["yaml"]
    given = ask(question="settings_of_yaml", text=text, preset="quick", base="embedded")["answer"]
    assert given == settings


def test_the_form_has_the_chosen_methods_knobs_and_no_other() -> None:
    def keys(method: str) -> set[str]:
        knobs = ask(question="form", preset="quick", base="embedded", method=method)["answer"]
        return {knob["key"] for knob in knobs}

    assert "adapter.factor" in keys("lokr") - keys("lora")
    assert "adapter.init" in keys("lora") - keys("lokr")


def test_presets_that_cannot_work_here_say_why() -> None:
    cards = ask(question="presets", base="stabilityai/stable-diffusion-xl-base-1.0", measured=[])["answer"]
    for card in cards:
        assert card["fits"] == (card["reason"] == "")


def test_a_changed_setting_is_marked_with_what_it_was() -> None:
    knobs = ask(question="form", preset="quick", base="embedded", method="lora")["answer"]
    markup = knobs_markup(knobs, {"steps": "7"}, {"steps": "<b>"})
    assert markup.count("changed, was") == 1
    assert "changed, was 150" in markup
    assert "&lt;b&gt;" in markup


def test_waiting_jobs_are_moved_and_cancelled(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    first, second = job_of(queue, "one"), job_of(queue, "two")
    act(queue, "down", first)
    assert [job.id for job in queue.list_jobs()] == [second, first]
    act(queue, "up", first)
    act(queue, "cancel", second)
    assert [job.state for job in queue.list_jobs()] == ["queued", "cancelled"]
    act(queue, "unheard of", first)
    with pytest.raises(UserInputError):
        act(queue, "cancel", second)


def test_a_failure_offers_what_helps_and_hides_no_markup(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    id = job_of(queue, "<script>alert(1)</script>")
    with queue.store.writing() as session:
        jobs.transition(session, id, "preparing")
        jobs.transition(session, id, "failed", failure=Failure("The GPU ran out of <memory>.", "", 1, "low-memory"))
    job = queue.get_job(id)
    assert "Try again with low memory" in run_view.failure(job)
    whole = run_view.failure(job) + run_view.head(job) + run_view.samples(job, Course())
    assert "<script>" not in whole
    assert "<memory>" not in whole
