from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import TensorBoardTracker
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adapters.errors import MissingError, UserInputError
from studio.config import compose, flags_layer, set_layer
from studio.tracking import chosen, tracked
from trainers.config import TrainConfig
from trainers.events import Event, Finished, Note, Sampled, Started, Stepped, Validated

FINISHED = Finished(reason="done", step=3, seconds=1.0, adapter=None)


def config(*to: str) -> TrainConfig:
    flags = flags_layer({"data.folder": "pictures", "data.captions.trigger": "sks"})
    return compose([flags, set_layer([f"tracking.to=[{', '.join(to)}]"] if to else [])])


def run(*steps: int, begun: int = 0, factor: float = 1.0) -> Iterator[Event]:
    yield Note(text="Loading.")
    yield Started(step=begun, steps=3, trainable_parameters=1, pictures=1, base="b", device="cpu", precision="float32")
    for step in steps:
        yield Stepped(
            step=step, steps=3, loss=factor / step, learning_rate=1e-3, grad_norm=2.0 * step,
            seconds_per_step=0.1, memory_bytes=1,
        )  # fmt: skip


def read(out: Path) -> EventAccumulator:
    found = EventAccumulator(str(out / "tensorboard"))
    found.Reload()
    return found


def scalars(out: Path, name: str) -> dict[int, float]:
    return {event.step: pytest.approx(event.value) for event in read(out).Scalars(name)}


def test_tensorboard_is_told_numbers_by_default(tmp_path: Path):
    validated = Validated(step=3, loss=0.25, base_loss=0.5)
    events = [*run(1, 2, 3), validated, FINISHED]
    assert list(tracked(events, config(), tmp_path)) == events
    assert scalars(tmp_path, "loss") == {1: 1.0, 2: 0.5, 3: 1 / 3}
    assert scalars(tmp_path, "gradient_norm") == {1: 2.0, 2: 4.0, 3: 6.0}
    assert scalars(tmp_path, "learning_rate") == dict.fromkeys((1, 2, 3), 1e-3)
    assert scalars(tmp_path, "validation/loss") == {3: 0.25}
    assert scalars(tmp_path, "validation/base_loss") == {3: 0.5}


def test_tensorboard_is_shown_sample_pictures(tmp_path: Path):
    Image.new("RGB", (48, 32), "red").save(tmp_path / "a.png")
    list(tracked([*run(1), Sampled(step=1, path=tmp_path / "a.png"), FINISHED], config("tensorboard"), tmp_path))
    (shown,) = read(tmp_path).Images("samples")
    assert (shown.step, shown.width, shown.height) == (1, 48, 32)


def test_a_resumed_run_is_shown_in_the_place_of_what_went_beyond_its_checkpoint(tmp_path: Path):
    list(tracked(run(1, 2, 3), config(), tmp_path))  # it died after step 3, and its checkpoint is of step 1
    time.sleep(1.1)  # files are named by the second, and read in the order of their names
    list(tracked([*run(2, begun=1, factor=9.0), FINISHED], config(), tmp_path))
    assert scalars(tmp_path, "loss") == {1: 1.0, 2: 4.5}


def test_without_tensorboard_a_run_keeps_its_own_events_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    events = [*run(1), FINISHED]
    assert list(tracked(events, config(), tmp_path)) == events
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wanted", "found"),
    [(("auto",), ["tensorboard"]), (("none",), []), (("auto", "tensorboard"), ["tensorboard"]), ((), [])],
)
def test_trackers_are_chosen_by_name(wanted: tuple[str, ...], found: list[str]):
    assert chosen(wanted) == found


@pytest.mark.parametrize(
    ("name", "install"), [("wandb", 'pip install "spectral-studio[tracking]"'), ("mlflow", "pip install mlflow")]
)
def test_a_tracker_that_is_not_installed_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, name: str, install: str
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match=f"Tracking with {name} needs its package") as refused:
        chosen([name])
    assert install in refused.value.fix


def test_a_tracker_that_fails_is_warned_of_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*given: Any, **named: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(TensorBoardTracker, "log", refuse)
    *before, note, last = tracked([*run(1, 2), FINISHED], config(), tmp_path)
    assert before == list(run(1, 2)) and last == FINISHED
    assert note == Note(level="warning", text="Tracking with tensorboard has ended: No space left on device")


def test_no_step_waits_for_a_slow_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    start, reached = TensorBoardTracker.start, threading.Event()

    def start_late(self: TensorBoardTracker) -> None:
        assert reached.wait(60)
        start(self)

    monkeypatch.setattr(TensorBoardTracker, "start", start_late)
    stream = tracked([*run(1, 2, 3), FINISHED], config(), tmp_path)
    passed = list(islice(stream, 5))
    assert passed == list(run(1, 2, 3)) and not (tmp_path / "tensorboard").exists()
    reached.set()
    assert list(stream) == [FINISHED]
    assert scalars(tmp_path, "loss") == {1: 1.0, 2: 0.5, 3: 1 / 3}


@pytest.mark.slow  # wandb's service writes when it comes to it: on a busy machine after the test has looked
def test_wandb_keeps_a_run_in_its_folder_where_nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    *_, note, last = tracked([*run(1, 2), FINISHED], config("wandb"), tmp_path)
    assert last == FINISHED and isinstance(note, Note) and note.text.startswith("Nobody is logged in to wandb")
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    wanted, until = (b"gradient_norm", b"optim.learning_rate"), time.monotonic() + 20
    while not all(word in file.read_bytes() for word in wanted):  # wandb's own process may still be writing
        assert time.monotonic() < until
        time.sleep(0.05)


def test_what_services_are_told_changes_nothing_of_what_a_run_learns():
    assert config("wandb").fingerprint() == config().fingerprint()


def test_an_unknown_tracker_is_refused_with_the_nearest():
    with pytest.raises(UserInputError, match="you may mean wandb"):
        config("wandbb")
