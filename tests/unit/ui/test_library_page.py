"""The library's pages without a browser."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: the web pages were not tested")

from adapters.errors import MissingError, UserInputError
from studio.library import Library
from studio.queue import Queue, Submission
from studio.store import TrainRequest
from tests.library import made
from ui import adding
from ui.components import library_view
from ui.components.library_view import View
from ui.pages.adapter import train_further, write
from ui.pages.library import act, pick
from ui.studio import Studio


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(Queue(tmp_path / "home"))


def entered(studio: Studio, number: float = 0, **card: object) -> str:
    return studio.library.add(made(studio.home / "given" / f"{number}.safetensors", number, **card))


def test_a_name_from_outside_is_text_on_the_page(studio: Studio) -> None:
    studio.library.rename(entered(studio), "<script>alert(1)</script>")
    assert "<script>" not in library_view.cards(studio, View())


def test_what_is_picked_is_nothing_but_whole_ids(studio: Studio) -> None:
    id = entered(studio)
    assert pick(View(), {"picked": f'{id},"><b>,../x'}).picked == (id,)


def test_the_trash_can_be_undone(studio: Studio) -> None:
    id = entered(studio)
    view, told = act(studio, View(picked=(id,)), {"action": "trash-picked"})
    assert not studio.library.list_adapters() and view.picked == () and f'data-ids="{id}"' in told
    act(studio, view, {"action": "restore", "ids": id})
    assert [entry.id for entry in studio.library.list_adapters()] == [id]


def test_an_emptied_trash_takes_what_was_made_for_other_programs_along(studio: Studio) -> None:
    id = entered(studio)
    left = studio.exports.folder / f"{id}.kohya.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x")
    studio.library.trash(id)
    act(studio, View(trashed=True), {"action": "empty-yes"})
    assert not left.exists() and not studio.library.list_adapters(trashed=True)


def test_a_fused_one_names_its_parents_and_counts_those_that_are_away(studio: Studio) -> None:
    parent = entered(studio)
    concepts = [{"sha256": parent, "trigger": "sks"}, {"sha256": "f" * 64, "trigger": "zwx"}]
    entered(studio, 1, concepts=concepts)
    assert "made of sks dog + 1 that is not here" in library_view.cards(studio, View())


@pytest.mark.parametrize(("field", "text"), [("name", "   "), ("tag", "x" * 300)])
def test_a_text_that_is_refused_stays_in_its_field(studio: Studio, field: str, text: str) -> None:
    page = "".join(write(studio, entered(studio), "embedded", field, text))
    assert f'value="{text}"' in page and f'id="{field}-problem"' in page


@pytest.mark.parametrize("text", ["many", "0", "-3", "1e9", "²"])
def test_steps_that_are_none_are_refused_beside_the_field(studio: Studio, text: str) -> None:
    job = studio.queue.submit(
        Submission(request=TrainRequest(config={"adapter": {"method": "lora"}, "base": "embedded"}), title="x")
    )
    checkpoint = studio.queue.get_job(job).run / "checkpoints" / "step-000010.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"")
    id = studio.library.add(made(studio.home / "given.safetensors"), job=job)
    new, *page = train_further(studio, id, "embedded", text)
    assert new == "" and f'value="{text}"' in "".join(page) and 'id="steps-problem"' in "".join(page)


def test_a_format_that_is_none_is_refused(studio: Studio) -> None:
    id = entered(studio)
    with pytest.raises(UserInputError, match="no format"):
        studio.exports.begin(id, "../../etc/passwd")
    with pytest.raises(MissingError, match="has not been made"):
        studio.exports.file(id, "kohya")


def test_an_export_half_written_is_none(studio: Studio) -> None:
    id = entered(studio)
    studio.exports.folder.mkdir(parents=True)
    (studio.exports.folder / f"{id}.kohya.safetensors").write_bytes(b"half")
    assert studio.exports.made(id, "kohya") is None


def test_a_file_that_was_not_sent_is_not_taken(studio: Studio, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="no file that was sent"):
        adding.add(studio, [made(tmp_path / "mine.safetensors")])


def test_each_file_that_was_sent_is_judged_alone(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    from studio.clerk_library import take

    monkeypatch.setattr(studio.clerk, "ask", lambda question, **details: take(**details))
    sent = studio.home / "web" / "uploads"
    good, bad = made(sent / "good.safetensors"), sent / "bad.safetensors"
    bad.write_bytes(b"no adapter")
    ids, refused = adding.add(studio, [bad, good])
    assert [entry.id for entry in Library(studio.home).list_adapters()] == ids and len(ids) == 1
    assert refused[0].startswith("bad.safetensors: ") and str(studio.home) not in refused[0]
    assert not good.exists() and not bad.exists()
