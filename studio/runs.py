"""A run's folder: config.yaml, events.jsonl, the lock, and whether it may be written to.

OUT/config.yaml · events.jsonl · adapter.safetensors · checkpoints/ · adapters/ · samples/
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapters.atomic import atomic_path
from adapters.errors import MissingError, UserInputError
from studio import event_log, locks
from studio.config import to_yaml
from studio.paths import next_free, numbered, slug
from trainers.checkpoint import newest
from trainers.config import TrainConfig
from trainers.events import Event
from trainers.result import ADAPTER_NAME

RUNS = Path("runs")
_LEFTOVERS = (
    f".{ADAPTER_NAME}.*.part",
    ".config.yaml.*.part",
    ".*.report.*.part",
    ".scores.json.*.part",
    "checkpoints/.step-*.part",
    "adapters/.step-*.part",
    "samples/.step-*.part",
    "pictures/.*.part",
)


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def adapter(self) -> Path:
        return self.path / ADAPTER_NAME

    def write_config(self, config: TrainConfig, heading: str) -> None:
        with atomic_path(self.config) as temporary:
            temporary.write_text(to_yaml(config, heading), encoding="utf-8")

    def remove_leftovers(self) -> None:
        """Deletes what a killed process has left half-written; to be called under the lock."""
        for pattern in _LEFTOVERS:
            for part in self.path.glob(pattern):
                part.unlink(missing_ok=True)

    def read_events(self) -> Iterator[Event]:
        """Events so far; a last line that is cut off (the machine stopped) is left out."""
        yield from event_log.read(self.events).events

    def record(self, events: Iterable[Event]) -> Iterator[Event]:
        """Pass events on, each appended to events.jsonl first."""
        return event_log.record(self.events, events)


def default_out(trigger: str, class_word: str) -> Path:
    """runs/<trigger>-<class>-<n>, n being free."""
    return next_free(RUNS, _stem(trigger, class_word))


def latest_out(trigger: str, class_word: str) -> Path:
    """The newest folder that `default_out` gave; MissingError where there is none."""
    stem = _stem(trigger, class_word)
    numbers = numbered(RUNS, stem)
    if not numbers:
        raise MissingError(
            f"There is no run of {stem} in {RUNS}/ to resume.", "Name its folder with --out, or start without --resume."
        )
    return RUNS / f"{stem}-{numbers[-1]}"


def _stem(trigger: str, class_word: str) -> str:
    return slug(f"{trigger} {class_word}")


@contextmanager
def open_run(out: Path, config: TrainConfig, *, resume: bool) -> Generator[RunFolder]:
    """The folder, locked against other processes; a new run starts a new events.jsonl.

    Raises UserInputError where another process is at work in it, where it holds a run and `resume` is not set, or
    where it is the folder of the pictures.
    """
    run = RunFolder(out)
    _refuse_pictures(out, config)
    lock = locks.hold(locks.run_lock(out))
    if lock is None:
        raise UserInputError(
            f"Another process is training in {out}.", "Wait for it, or choose another folder with --out."
        )
    try:
        run.remove_leftovers()
        if not resume:
            _refuse_old_run(run)
            run.events.unlink(missing_ok=True)
        yield run
    finally:
        lock.release()


def check_folder(out: Path, config: TrainConfig, *, resume: bool) -> None:
    """What `open_run` would refuse but for another process, without touching the folder."""
    _refuse_pictures(out, config)
    if not resume:
        _refuse_old_run(RunFolder(out))


def _refuse_pictures(out: Path, config: TrainConfig) -> None:
    if out.resolve() == Path(config.data.folder).resolve():
        raise UserInputError(f"{out} is the folder of the pictures.", "Choose another folder with --out.")


def _refuse_old_run(run: RunFolder) -> None:
    if run.adapter.exists():
        raise UserInputError(
            f"{run.path} holds a finished run.",
            "Choose another --out, or train it further with --resume and more --steps.",
        )
    checkpoint = newest(run.path)
    if checkpoint is not None:
        raise UserInputError(
            f"{run.path} holds an unfinished run (saved at {checkpoint.stem.replace('-', ' ')}).",
            "Go on with --resume, or choose another --out.",
        )
