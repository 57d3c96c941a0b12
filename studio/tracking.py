"""A run's numbers and pictures for TensorBoard, wandb and the like, read off its events by a thread beside the steps.

Accelerate's trackers know the services. Keys and addresses come from the services' own settings (WANDB_API_KEY, a
netrc file, …), never from ours. A service that fails is warned of and left out; the run goes on.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from adapters.errors import MissingError
from studio.config import leaves
from trainers.config import TrainConfig
from trainers.events import Event, Finished, Note, Sampled, Started, Stepped, Validated

TENSORBOARD = "tensorboard"
_IN_EXTRA = (TENSORBOARD, "wandb")
_RUN_NAME = {
    "wandb": "name",
    "trackio": "name",
    "mlflow": "run_name",
    "clearml": "task_name",
    "swanlab": "experiment_name",
}
"""The argument that takes the name of a run within the project."""
_PATIENCE, _HASTE = 60.0, 5.0
"""Seconds that services have to send the rest: at the end of a run, and where it failed."""


def chosen(wanted: Sequence[str]) -> list[str]:
    """The trackers that are meant; raises MissingError for one that is not installed."""
    found: list[str] = []
    for name in dict.fromkeys(wanted):
        if name == "auto" and _installed(TENSORBOARD) and TENSORBOARD not in wanted:
            found.append(TENSORBOARD)
        if name in ("auto", "none"):
            continue
        if not _installed(name):
            package = '"spectral-studio[tracking]"' if name in _IN_EXTRA else name
            raise MissingError(
                f"Tracking with {name} needs its package, which is not installed.",
                f"Install it (pip install {package}), or leave it out of tracking.to.",
            )
        found.append(name)
    return found


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def tracked(events: Iterable[Event], config: TrainConfig, out: Path) -> Iterator[Event]:
    """Passes events on; what is a number or a picture goes to the trackers of `config.tracking`, too.

    Their warnings come among the events; the last event stays the last. TensorBoard's files lie in `out`/tensorboard.
    """
    names = chosen(config.tracking.to)
    if not names:
        yield from events
        return
    writer = _Writer(names, config, out)
    try:
        for event in events:
            if isinstance(event, Finished):
                writer.finish(_PATIENCE)
            else:
                writer.put(event)
            yield from writer.notes()
            yield event
    finally:
        writer.finish(_HASTE)


class _Writer:
    """The thread, and the trackers that live in it."""

    def __init__(self, names: Sequence[str], config: TrainConfig, out: Path) -> None:
        self._names, self._config, self._out = names, config, out
        self._events: SimpleQueue[Event | None] = SimpleQueue()
        self._notes: SimpleQueue[Note] = SimpleQueue()
        self._trackers: dict[str, Any] = {}
        self._thread = Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> None:
        self._events.put(event)

    def finish(self, seconds: float) -> None:
        """Waits until all is sent, but no longer than `seconds`; nothing more the second time."""
        if self._thread.is_alive():
            self._events.put(None)
            self._thread.join(seconds)
        if self._thread.is_alive():
            late = " and ".join(self._trackers)
            self._warn(f"Tracking with {late} did not end within {seconds:.0f} s, and what it had not sent is lost.")

    def notes(self) -> Iterator[Note]:
        while not self._notes.empty():
            yield self._notes.get()

    def _warn(self, text: str) -> None:
        self._notes.put(Note(level="warning", text=text))

    def _work(self) -> None:
        for event in iter(self._events.get, None):
            if isinstance(event, Started):
                for name in self._names:
                    self._guarded(name, lambda name=name, event=event: self._start(name, event.step))
            for name, tracker in list(self._trackers.items()):
                self._guarded(name, lambda name=name, tracker=tracker, event=event: _tell(name, tracker, event))
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, tracker.finish)

    def _guarded(self, name: str, work: Any) -> None:
        try:
            work()
        except Exception as error:  # services raise whatever they like; none of it may end a run
            self._trackers.pop(name, None)
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._warn(f"Tracking with {name} has ended: {first}")

    def _start(self, name: str, step: int) -> None:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState(cpu=True)  # trackers ask it whether this is the main process; it need not look at GPUs for that
        kind: Any = LOGGER_TYPE_TO_CLASS[name]
        if name == TENSORBOARD:  # what an interrupted run had shown beyond its checkpoint is shown no more
            tracker = kind(TENSORBOARD, self._out, purge_step=step + 1 if step else 0)
        else:
            options = {_RUN_NAME[name]: self._out.name} if name in _RUN_NAME else {}
            options |= self._wandb_options() if name == "wandb" else {}
            place = (self._out,) if kind.requires_logging_directory else ()
            tracker = kind(self._config.tracking.project, *place, **options)
        tracker.start()
        if name != TENSORBOARD:
            tracker.store_init_configuration({key: _plain(value) for key, value in leaves(self._config.decisive())})
        self._trackers[name] = tracker

    def _wandb_options(self) -> dict[str, Any]:
        """Offline where nobody is logged in or the service cannot be reached: a login would ask on the terminal."""
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb
        from wandb.errors import AuthenticationError

        options: dict[str, Any] = {"dir": str(self._out), "settings": wandb.Settings(console="off")}  # ours is our own
        if os.environ.get("WANDB_MODE"):
            return options
        try:
            if wandb.login(prompt=False, verify=True):
                return options
            why = "Nobody is logged in to wandb"
        except AuthenticationError:
            why = "wandb cannot be reached, or refuses the key"
        self._warn(f"{why}: its files stay in {self._out / 'wandb'}, and `wandb sync` sends them.")
        return {**options, "mode": "offline"}


def _tell(name: str, tracker: Any, event: Event) -> None:
    match event:
        case Stepped():
            numbers = {
                "loss": event.loss,
                "gradient_norm": event.grad_norm,
                "learning_rate": event.learning_rate,
                "seconds_per_step": event.seconds_per_step,
            }
            tracker.log(numbers, step=event.step)
        case Validated():
            numbers = {"validation/loss": event.loss, "validation/base_loss": event.base_loss}
            tracker.log(numbers, step=event.step)
        case Sampled():
            _show(name, tracker, event)
        case _:
            pass


def _show(name: str, tracker: Any, event: Sampled) -> None:
    """Sample pictures, to those whose tracker takes them as pictures."""
    import numpy as np
    from PIL import Image

    if name not in _IN_EXTRA:
        return
    layout = {"dataformats": "NHWC"} if name == TENSORBOARD else {}
    with Image.open(event.path) as picture:
        pixels = np.asarray(picture.convert("RGB"))[None]
    tracker.log_images({"samples": pixels}, step=event.step, **layout)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) else str(value)
