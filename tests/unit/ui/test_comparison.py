"""What Compare asks for, without a browser."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: the web pages were not tested")

from studio.queue import Queue, Submission
from studio.store import Drawing, SampleRequest, TrainRequest, Use
from tests.library import made
from ui import comparison
from ui.comparison import Asked, Source
from ui.studio import Studio

TEMPLATE = "a {trigger} {class} on a beach"


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(Queue(tmp_path / "home"))


def two(studio: Studio, **second: str) -> tuple[Source, tuple[str, ...]]:
    """Two adapters of the library as rows, and their keys."""
    more = {"trigger": "zwx", "class_word": "cat", **second}
    given = studio.home / "given"
    ids = (
        studio.library.add(made(given / "a.safetensors", 1)),
        studio.library.add(made(given / "b.safetensors", 2, **more)),
    )
    return comparison.source(studio, "", ",".join(ids)), ids


def asked(studio: Studio, offered: Source, given: Asked) -> SampleRequest:
    made_of, problems = comparison.request(studio, offered, given)
    assert made_of is not None, problems
    return made_of


def run_of(studio: Studio, steps: tuple[int, ...]) -> str:
    """A training that has kept adapters of these steps."""
    captions = {"trigger": "sks", "class_word": "dog", "template": "a {trigger}"}
    config = {
        "base": "embedded", "adapter": {"method": "lora"}, "sample": {"prompts": ["a {trigger} at sea"], "count": 1},
        "data": {"folder": "nowhere", "captions": captions},
    }  # fmt: skip
    job = studio.queue.get_job(studio.queue.submit(Submission(request=TrainRequest(config=config), title="Rex")))
    for step in steps:
        made(job.run / "adapters" / f"step-{step:06d}.safetensors", step)
    return job.id


def test_each_row_has_its_own_words_and_all_have_one_seed(studio: Studio) -> None:
    offered, ids = two(studio)
    drawings = asked(studio, offered, Asked(ids, TEMPLATE, "0.5, 1", "7")).drawings
    assert [one.prompt for one in drawings] == ["a sks dog on a beach"] * 2 + ["a zwx cat on a beach"] * 2
    assert [one.uses[0].strength for one in drawings] == [0.5, 1, 0.5, 1]
    assert {one.seed for one in drawings} == {7}


def test_a_grid_is_read_back_off_what_was_asked_for(studio: Studio) -> None:
    offered, ids = two(studio)
    whole = asked(studio, offered, Asked(ids, f"{TEMPLATE}\n{{trigger}}", "1"))
    shown = comparison.grid(whole)
    assert shown is not None
    assert shown.rows == [f"lib:{id}" for id in ids] and shown.columns == ["a … on a beach", "…"]
    assert whole.drawings[shown.number(1, 1)].prompt == "zwx"


def test_prompts_come_back_as_they_were_written(studio: Studio) -> None:
    offered, ids = two(studio)
    for lines in (f"{TEMPLATE}\na house", "a house"):
        assert comparison.prompts(offered, asked(studio, offered, Asked(ids, lines))) == lines


def test_pictures_of_another_kind_are_no_grid() -> None:
    uses = (Use(adapter="lib:a"), Use(adapter="lib:b"))
    assert comparison.grid(SampleRequest(base="embedded", drawings=(Drawing(prompt="x", seed=1, uses=uses),))) is None
    mixed = tuple(Drawing(prompt="x", seed=1, uses=(Use(adapter=name),)) for name in ("a", "b", "a"))
    assert comparison.grid(SampleRequest(base="embedded", drawings=mixed)) is None


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("rows", {"chosen": ()}),
        ("rows", {"chosen": ("../../etc/passwd",)}),
        ("prompts", {"prompts": "  \n "}),
        ("strengths", {"strengths": "1, much"}),
        ("strengths", {"strengths": "nan"}),
        ("strengths", {"strengths": "1e9"}),
        ("seed", {"seed": "-1"}),
        ("steps", {"steps": 0}),
        ("steps", {"steps": None}),
        ("", {"prompts": "x\n" * 100}),
    ],
)
def test_what_will_not_do_is_said_of_its_field(studio: Studio, field: str, changes: dict[str, object]) -> None:
    offered, ids = two(studio)
    whole = {"chosen": ids, "prompts": TEMPLATE, **changes}
    made_of, problems = comparison.request(studio, offered, Asked(**whole))  # pyright: ignore[reportArgumentType]
    assert made_of is None and list(problems.fields) == [field]


def test_adapters_of_two_bases_are_not_compared(studio: Studio) -> None:
    offered, ids = two(studio, base="stabilityai/stable-diffusion-xl-base-1.0")
    _, problems = comparison.request(studio, offered, Asked(ids))
    assert "different bases" in problems.of("rows")


def test_a_run_offers_the_checkpoints_that_it_has_kept(studio: Studio) -> None:
    offered = comparison.source(studio, run_of(studio, (20, 40)), "")
    assert [one.label for one in offered.variants] == ["step 20", "step 40"]
    assert offered.prompts == "a {trigger} at sea"


def test_a_checkpoint_that_is_used_comes_into_the_library_under_its_runs_name(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    from studio.clerk_library import take

    monkeypatch.setattr(studio.clerk, "ask", lambda question, **details: take(**details))
    offered = comparison.source(studio, run_of(studio, (20, 40)), "")
    whole = asked(studio, offered, Asked(tuple(one.key for one in offered.variants)))
    drawn = studio.queue.get_job(studio.queue.submit(Submission(request=whole, title="x")))
    id = comparison.keep(studio, drawn, 1)
    assert studio.library.get_adapter(id).name == "Rex, step 40"


@pytest.mark.parametrize(
    ("prompts", "head"),
    [
        (["a sks dog in snow", "a zwx red car in snow"], "a … in snow"),
        (["a sks dog", "a sks dog"], "a sks dog"),
        (["sks", "sks sks"], "sks …"),
        (["a b", "c d"], "…"),
    ],
)
def test_a_column_is_headed_by_the_words_that_its_rows_share(prompts: list[str], head: str) -> None:
    assert comparison.in_common(prompts) == head
