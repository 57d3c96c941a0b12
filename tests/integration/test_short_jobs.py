"""Pictures and fusions from the queue, on the embedded base."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from studio import event_log
from studio.library import Library
from studio.queue import Queue, Submission
from studio.recipe import read_recipes
from studio.sampling import Request, sample
from studio.store import Drawing, FuseRequest, Job, JobRequest, SampleRequest, Use
from tests.jobs import same, submit, work
from tests.support import run
from trainers import bases
from trainers.config import TrainConfig
from trainers.events import Event, Progress

PROMPT = "a sks octopus"


@pytest.fixture
def adapter(queue: Queue, job_reference: Path) -> str:
    return f"lib:{Library(queue.home, queue.store).add(job_reference)}"


@pytest.fixture(scope="module")
def other_lora(job_config: TrainConfig, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another subject's adapter."""
    out = tmp_path_factory.mktemp("other")
    run(job_config.model_copy(update={"seed": 5}), out, cache)
    return out / "adapter.safetensors"


def pictures_of(*strengths: float, adapter: str) -> SampleRequest:
    """A picture a strength, as cheap as they come."""
    uses = [(Use(adapter=adapter, strength=strength),) for strength in strengths]
    drawings = tuple(Drawing(prompt=PROMPT, seed=3, uses=one) for one in uses)
    return SampleRequest(base="embedded", drawings=drawings, steps=2)


def done(queue: Queue, request: JobRequest) -> Job:
    id = queue.submit(Submission(request=request, title="a short one"))
    work(queue)
    return queue.get_job(id)


def pixels(path: Path) -> bytes:
    with Image.open(path) as picture:
        return picture.tobytes()


def asking(queue: Queue, monkeypatch: pytest.MonkeyPatch, ask: str) -> None:
    """Asks for it as soon as the first picture is there."""
    whole = event_log.append

    def append(path: Path, event: Event) -> None:
        whole(path, event)
        if isinstance(event, Progress) and event.stage == "pictures" and event.done == 1:
            queue.send(queue.list_jobs(("running",))[0].id, ask)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(event_log, "append", append)


def test_a_job_of_pictures_draws_what_the_command_line_draws(queue: Queue, adapter: str, tmp_path: Path):
    job = done(queue, pictures_of(1.0, adapter=adapter))
    assert (job.state, job.progress.stage_done, job.progress.stage_total) == ("done", 1, 1), job.failure
    file = Library(queue.home, queue.store).path_of(adapter)
    sample(Request([file], [PROMPT], count=1, seed=3, steps=2, out=tmp_path), Console(file=StringIO()))
    drawn, beside = job.run / "pictures" / "0000.png", tmp_path / "a-sks-octopus-3.png"
    assert pixels(drawn) == pixels(beside)
    assert read_recipes(drawn) == read_recipes(beside)


def test_each_picture_has_its_own_strength_and_keeps_its_number(queue: Queue, adapter: str):
    job = done(queue, pictures_of(0.0, 5.0, 0.0, adapter=adapter))
    paths = [job.run / "pictures" / f"000{number}.png" for number in range(3)]
    assert [read_recipes(path)[0].adapters[0].strength for path in paths] == [0.0, 5.0, 0.0]
    assert pixels(paths[0]) == pixels(paths[2]) != pixels(paths[1])


def test_a_paused_job_of_pictures_goes_on_with_those_that_are_missing(
    queue: Queue, adapter: str, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        asking(queue, patch, "pause")
        job = done(queue, pictures_of(1.0, 0.5, adapter=adapter))
    first = job.run / "pictures" / "0000.png"
    assert job.state == "paused" and [path.name for path in first.parent.iterdir()] == [first.name]
    before = first.stat().st_mtime_ns
    queue.send(job.id, "resume")
    work(queue)
    assert queue.get_job(job.id).state == "done"
    assert (first.parent / "0001.png").exists() and first.stat().st_mtime_ns == before


def test_a_job_of_pictures_is_cancelled_between_two_of_them(
    queue: Queue, adapter: str, monkeypatch: pytest.MonkeyPatch
):
    asking(queue, monkeypatch, "cancel")
    assert done(queue, pictures_of(1.0, 0.5, adapter=adapter)).state == "cancelled"


def test_pictures_and_trainings_share_one_base_and_leave_it_as_it_was(
    queue: Queue, adapter: str, job_config: TrainConfig, job_reference: Path, monkeypatch: pytest.MonkeyPatch
):
    loaded: list[str] = []
    whole = bases.load_base
    monkeypatch.setattr(bases, "load_base", lambda name, **more: loaded.append(name) or whole(name, **more))
    queue.submit(Submission(request=pictures_of(1.0, adapter=adapter), title="before"))
    training = submit(queue, job_config)
    queue.submit(Submission(request=pictures_of(0.5, adapter=adapter), title="after"))
    work(queue)
    assert [job.state for job in queue.list_jobs()] == ["done"] * 3
    assert same(queue.get_job(training), job_reference)
    assert len(loaded) == 1


def test_a_fused_adapter_is_in_the_library_with_its_parents(queue: Queue, adapter: str, other_lora: Path):
    other = f"lib:{Library(queue.home, queue.store).add(other_lora)}"
    job = done(queue, FuseRequest(base="embedded", adapters=(adapter, other), how="sum", weights=(1.0, 0.5)))
    assert job.state == "done", job.failure
    (entry,) = [one for one in Library(queue.home).list_adapters() if one.job == job.id]
    assert [f"lib:{parent}" for parent in entry.parents] == [adapter, other]
    made = {path.name for path in job.run.iterdir()}
    assert {"adapter.safetensors", "adapter.report.json", "adapter.report.txt", "adapter.report.png"} <= made


def test_a_knob_that_no_way_has_fails_in_a_sentence(queue: Queue, adapter: str):
    job = done(queue, FuseRequest(base="embedded", adapters=(adapter, adapter), how="sum", options={"randk": 3}))
    assert job.state == "failed" and job.failure is not None
    assert "randk" in job.failure.what and "rank" in job.failure.fix


def test_an_adapter_that_has_gone_fails_in_a_sentence(queue: Queue):
    job = done(queue, pictures_of(1.0, adapter="lib:" + "0" * 64))
    assert job.state == "failed" and job.failure is not None and "no adapter" in job.failure.what
