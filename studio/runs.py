"""A run's folder: config.yaml, events.jsonl, the lock, and whether it may be written to.

OUT/config.yaml · events.jsonl · adapter.safetensors · checkpoints/ · samples/
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from adapters.atomic import atomic_path
from adapters.errors import MissingError, UserInputError
from studio.config import to_yaml
from studio.paths import next_free, numbered, slug
from trainers.checkpoint import newest
from trainers.config import TrainConfig
from trainers.events import Event, parse_event
from trainers.result import ADAPTER_NAME

RUNS = Path("runs")


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

    def read_events(self) -> Iterator[Event]:
        """Events so far; a last line that is cut off (the machine stopped) is left out."""
        if not self.events.exists():
            return
        for line in self.events.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                yield parse_event(line)

    def record(self, events: Iterable[Event]) -> Iterator[Event]:
        """Pass events on, each appended to events.jsonl first; a cut-off last line is taken away before."""
        _drop_partial_line(self.events)
        with self.events.open("a", encoding="utf-8", buffering=1) as file:
            for event in events:
                file.write(event.model_dump_json() + "\n")
                yield event


def _drop_partial_line(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)


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
    if out.resolve() == Path(config.data.folder).resolve():
        raise UserInputError(f"{out} is the folder of the pictures.", "Choose another folder with --out.")
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            if not resume:
                _refuse_old_run(run)
                run.events.unlink(missing_ok=True)
            yield run
    except Timeout as error:
        raise UserInputError(
            f"Another process is training in {out}.", "Wait for it, or choose another folder with --out."
        ) from error


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
