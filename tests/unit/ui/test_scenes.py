"""What Create's form means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed: the web pages were not tested")

import gradio as gr

from adapters.errors import FileFormatError, UserInputError
from studio.paths import picture_name
from studio.queue import Queue, Submission
from studio.recipe import AdapterUse, Recipe, save_png
from studio.store import FuseRequest, SampleRequest, Summary, jobs
from tests.library import made, picture
from tests.submissions import submission
from trainers.thumbnail import data_url
from ui import media, scene_sources, scenes
from ui.api import describe
from ui.components import jobs as job_cards
from ui.components import words
from ui.components.regions import regions_markup, take_regions
from ui.components.scene_view import chips_markup
from ui.course import Courses
from ui.forms import Forms
from ui.pages.run import drawn
from ui.scenes import Scene
from ui.studio import Studio
from ui.subject import copy_of

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Studio:
    monkeypatch.setattr("studio.workers.ensure", lambda queue: None)
    return Studio(Queue(tmp_path / "home"))


@pytest.fixture
def dog(studio: Studio, tmp_path: Path) -> str:
    return studio.library.add(made(tmp_path / "dog.safetensors", 1, base_hash="a"))


@pytest.fixture
def cat(studio: Studio, tmp_path: Path) -> str:
    path = made(tmp_path / "cat.safetensors", 2, trigger="zwx", class_word="cat", base_hash="a")
    return studio.library.add(path, name="Minka")


@pytest.fixture
def stranger(studio: Studio, tmp_path: Path) -> str:
    """Of another base."""
    return studio.library.add(made(tmp_path / "other.safetensors", 3, trigger="ohwx", base=SDXL, base_hash="b"))


def scene(**filled: object) -> Scene:
    return Scene.model_validate({"id": "aaaaaaaaaa", "seed": "7", "prompt": "a sks dog", **filled})


def recipe(*uses: AdapterUse, **more: object) -> Recipe:
    whole = {
        "prompt": "a sks dog", "negative": "", "seed": 5, "size": (160, 96), "steps": 9, "guidance": 3.0,
        "scheduler": "ddim", "adapters": uses, "base": "embedded", "base_hash": "a", "version": "1",
    }  # fmt: skip
    return Recipe.model_validate({**whole, **more})


def asked(studio: Studio, filled: Scene) -> SampleRequest:
    request, problems = scenes.request(studio, filled)
    assert request is not None, problems
    return request


def test_a_subject_that_is_used_is_said_in_the_prompt_once(studio: Studio, dog: str, cat: str):
    filled = scene(prompt="a photo of a")
    assert not scenes.toggle(studio, filled, dog) and filled.prompt == "a photo of a sks dog"
    assert not scenes.toggle(studio, filled, cat) and filled.prompt == "a photo of a sks dog and zwx cat"
    scenes.toggle(studio, filled, dog)
    assert [use.adapter for use in filled.uses] == [f"lib:{cat}"]
    scenes.toggle(studio, filled, dog)
    assert filled.prompt.count("sks") == 1


def test_subjects_of_another_base_do_not_go_together(studio: Studio, dog: str, stranger: str):
    filled = scene(prompt="")
    scenes.toggle(studio, filled, stranger)
    assert scenes.base_of(studio, filled) == SDXL
    assert "another base" in scenes.toggle(studio, filled, dog)
    assert len(filled.uses) == 1


def test_each_field_that_is_wrong_has_a_sentence(studio: Studio):
    wrong = scene(prompt=" ", count=2.5, seed="-1", size="100x100", steps=0, guidance=None, places="drawn")
    request, problems = scenes.request(studio, wrong)
    assert request is None
    assert set(problems.fields) == {"prompt", "count", "seed", "size", "steps", "guidance", "regions"}


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e300, None])
def test_no_number_breaks_the_form(studio: Studio, value: float | None):
    assert scenes.request(studio, scene(count=value, steps=value, guidance=value))[0] is None


def test_a_region_without_a_prompt_is_named(studio: Studio):
    drawn = scene(places="drawn", regions=["0,0,0.5,1: a sks dog", "0.5,0,1,1: "])
    assert scenes.request(studio, drawn)[1].of("regions") == "Say what is in region 2."


def test_the_same_pictures_asked_for_twice_are_one_job(studio: Studio):
    first, again = scene(), scene()
    scenes.start(studio, first)
    scenes.start(studio, again)
    assert first.job == again.job and first.seed == again.seed != "7"
    scenes.start(studio, first)
    assert first.job != again.job


def test_pictures_that_were_stopped_are_drawn_when_they_are_asked_for_again(studio: Studio):
    filled = scene(locked=True)
    scenes.start(studio, filled)
    studio.queue.send(filled.job, "cancel")
    scenes.start(studio, filled)
    assert studio.queue.get_job(filled.job).state == "queued"


def test_a_job_gives_back_the_form_that_made_it(studio: Studio, dog: str):
    filled = scene(count=3, size="160x96", steps=7, places="drawn", regions=["0,0,0.5,1: a sks dog"], negative="blur")
    scenes.toggle(studio, filled, dog)
    scenes.set_strength(filled, f"lib:{dog}", "0.6")
    id = scenes.draw(studio, asked(studio, filled))
    back = Scene(id="bbbbbbbbbb")
    assert scene_sources.take_job(studio, back, id) == []
    assert asked(studio, back) == asked(studio, filled)
    with pytest.raises(UserInputError):
        scene_sources.take_job(studio, back, studio.queue.submit(submission()))


def test_a_recipe_fills_the_form_and_names_what_is_missing(studio: Studio, dog: str, tmp_path: Path):
    uses = [AdapterUse(file=f"{one}.safetensors", sha256=one, strength=0.5) for one in (dog, "f" * 64)]
    path, filled = tmp_path / "picture.png", scene(prompt="")
    save_png(path, Image.new("RGB", (8, 8)), (recipe(*uses), recipe(*uses, seed=6)))
    (told,) = scene_sources.take_picture(studio, filled, path)
    assert "f" * 64 in told and dog not in told
    request = asked(studio, filled)
    assert [one.seed for one in request.drawings] == [5, 6]
    assert (request.size, request.steps, request.scheduler) == ((160, 96), 9, "ddim")
    assert [use.adapter for use in request.drawings[0].uses] == [f"lib:{dog}"]


def test_a_picture_without_a_recipe_is_refused_without_telling_where_it_lies(studio: Studio, tmp_path: Path):
    path = tmp_path / "bare.png"
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(FileFormatError, match=r"^bare\.png carries no recipe") as refused:
        scene_sources.take_picture(studio, scene(), path)
    assert str(tmp_path) not in str(refused.value)


def test_a_form_that_was_not_filled_in_is_not_kept(tmp_path: Path):
    forms = Forms(tmp_path, Scene)
    with forms.changing(forms.new().id) as form:
        pass
    assert not list(tmp_path.iterdir())
    with forms.changing(form.id) as form:
        form.prompt = "a dog"
    assert forms.get(form.id).prompt == "a dog"


def test_what_is_no_region_is_not_drawn_and_no_markup_comes_through():
    markup = regions_markup(["left half: <b>", "nan,0,1,1: a", "junk"], (160, 96))
    assert markup.count("[0.0, 0.0, 0.5, 1.0]") == 1
    assert "nan" not in markup and "<b>" not in markup


@pytest.mark.parametrize(
    ("turns", "kept"),
    [(["a:1", "a:2"], "a:2"), (["a:2", "a:1"], "a:2"), (["a:9", "a:10"], "a:10"), (["a:9", "b:1"], "b:1")],
    ids=["in order", "overtaken", "counted", "another page"],
)
def test_regions_that_a_page_told_later_stay(turns: list[str], kept: str) -> None:
    drawn = scene()
    for turn in turns:
        take_regions(drawn, gr.EventData(None, {"turn": turn, "value": json.dumps([f"0,0,1,1: {turn}"])}))
    assert drawn.regions == [f"0,0,1,1: {kept}"]


def test_a_subject_to_choose_shows_its_thumbnail_where_it_has_one(studio: Studio, cat: str, tmp_path: Path):
    url = data_url(picture(tmp_path / "picture.png"))
    dog = studio.library.add(made(tmp_path / "seen.safetensors", 4, base_hash="a", thumbnail=url))
    chips = chips_markup(studio, scene())
    assert f'<img src="/media/library/{dog}/thumbnail" alt="" loading="lazy">' in chips
    assert f"/media/library/{cat}/" not in chips and "no picture" not in chips


def test_a_fusion_is_shown_by_its_report(studio: Studio, dog: str, cat: str):
    request = FuseRequest(base="embedded", adapters=(f"lib:{dog}", f"lib:{cat}"), how="mean")
    job = studio.queue.get_job(studio.queue.submit(Submission(request=request, title="both")))
    assert "<img" not in job_cards.picture(job)
    job.run.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(job.run / media.REPORT)
    assert f'src="/media/job/{job.id}/report"' in job_cards.picture(job)


def test_a_job_of_pictures_is_shown_on_its_own_page(studio: Studio):
    filled = scene(count=8)
    scenes.start(studio, filled)
    path = studio.queue.get_job(filled.job).run / picture_name(3)
    path.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(path)
    with studio.queue.store.writing() as session:
        jobs.transition(session, filled.job, "preparing")
        jobs.transition(session, filled.job, "running")
        jobs.change(session, filled.job, progress=Summary(stage="pictures", stage_done=2, stage_total=8))
    job = studio.queue.get_job(filled.job)
    assert words.stage(job) == "drawing 3 of 8" and words.share(job) == 0.25
    assert f"/create?job={job.id}" in job_cards.job_card(job) + drawn(studio, Courses(studio.queue), job.id)[0]
    assert media.drawn_pictures(job) == [3]
    assert describe(job)["pictures"] == [f"/media/job/{job.id}/picture/3"]
    with pytest.raises(UserInputError):
        copy_of(studio, "aaaaaaaaaa", job.id)
