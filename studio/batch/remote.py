"""One run of a batch on any machine: its pictures and its last checkpoint come from the batch's storage, all it makes
goes there. Knows nothing of Ray: `studio.batch.cluster` calls it on the cluster's nodes.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from adapters.digest import file_sha256
from adapters.errors import MismatchError, UserInputError
from studio import __version__, config
from studio.batch.record import RECORD, STATUS, RunRecord, RunStatus, read_status
from studio.batch.storage import Storage
from studio.failures import explain
from studio.runs import RunFolder
from studio.store.states import State
from trainers import events
from trainers.bases import BaseKeeper
from trainers.cache import default_root
from trainers.config import TrainConfig
from trainers.dreambooth import CLASS_PICTURES
from trainers.events import Event
from trainers.loop import train

Inputs = Mapping[str, str]
"""Folders of pictures, as the configurations name them, and where in the storage they lie."""
_CHECKPOINTS = "checkpoints"


def send_inputs(storage: Storage, runs: tuple[RunRecord, ...]) -> dict[str, str]:
    """Puts every folder of pictures that the runs name into the storage, once for each content."""
    folders = {str(run.config[group]["folder"]) for run in runs for group in ("data", "prior")} - {"None"}
    return {folder: _send(storage, Path(folder)) for folder in sorted(folders)}


def _send(storage: Storage, folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\n{file_sha256(file)}\n".encode())
    name = f"inputs/{digest.hexdigest()[:16]}"
    there = set(storage.names(name))
    for file in files:
        if file.name not in there:
            storage.upload(file, f"{name}/{file.name}")
    return name


class RemoteTrainer:
    """Does runs one after the other on this process's device; keeps the base for the next one."""

    def __init__(self, url: str, version: str, device: str | None, worker: str) -> None:
        if version != __version__:
            raise UserInputError(
                f"{worker} has Spectral Studio {__version__}, the batch was started by {version}.",
                "Install the same version everywhere.",
            )
        self.storage = Storage(url)
        if self.storage.read(RECORD) is None:
            raise UserInputError(
                f"{worker} does not see {url}.", "Give --out a folder that all nodes share, or an URL such as s3://…"
            )
        self.device, self.worker = device, worker
        self.keeper = BaseKeeper()

    def do(self, run: RunRecord, inputs: Inputs) -> RunStatus:
        """Trains it to its end, from its last checkpoint on; says how it ended, in the storage too."""
        before = read_status(self.storage, run)
        attempts = 1 + (before.attempts if before is not None else 0)
        self._put_down(run, "running", attempts)
        try:
            with tempfile.TemporaryDirectory(prefix="studio-run-") as work:
                self._train(run, inputs, Path(work))
        except Exception as error:
            self.keeper.drop()  # what a failed run has left of the base, nobody knows
            return self._put_down(run, "failed", attempts, error)
        return self._put_down(run, "done", attempts)

    def _put_down(self, run: RunRecord, state: State, attempts: int, error: Exception | None = None) -> RunStatus:
        status = RunStatus(
            state=state,
            digest=run.digest,
            failure=None if error is None else explain(error),
            attempts=attempts,
            worker=self.worker,
        )
        self.storage.write(f"{run.folder}/{STATUS}", status.model_dump_json(indent=1).encode())
        return status

    def _train(self, run: RunRecord, inputs: Inputs, work: Path) -> None:
        place = self.storage.within(run.folder)
        whole = _with_inputs(run, inputs, self.storage, work / "inputs")
        _fetch_class_pictures(self.storage)
        folder = RunFolder(work / "run")
        folder.path.mkdir()
        resume = _fetch_state(place, folder)
        try:
            self._steps(run, whole, folder, place, resume=resume)
        except MismatchError:
            if not resume:
                raise
            shutil.rmtree(folder.path / _CHECKPOINTS)  # other class pictures on this node: begin anew
            folder.events.unlink(missing_ok=True)
            self._steps(run, whole, folder, place, resume=False)

    def _steps(self, run: RunRecord, whole: TrainConfig, folder: RunFolder, place: Storage, *, resume: bool) -> None:
        source = train(whole, folder.path, resume=resume, device=self.device, bases=self.keeper)
        named = config.compose([config.Layer("batch", run.config)])
        before = _class_folders()
        with closing(source):
            for event in folder.record(source):
                if isinstance(event, events.Started):
                    folder.write_config(named, f"spectral-studio {__version__}")
                    place.upload(folder.config, folder.config.name)
                    _send_class_pictures(self.storage, _class_folders() - before)
                _send_made(place, folder, event, whole.steps)


def _with_inputs(run: RunRecord, inputs: Inputs, storage: Storage, work: Path) -> TrainConfig:
    """The run's configuration with its pictures on this disk."""
    values = {**run.config, "data": dict(run.config["data"]), "prior": dict(run.config["prior"])}
    for group in ("data", "prior"):
        if (folder := values[group]["folder"]) is not None:
            name = inputs[str(folder)]
            for file in storage.names(name):
                storage.download(f"{name}/{file}", work / name / file)
            values[group]["folder"] = str(work / name)
    return config.compose([config.Layer(f"batch, {run.label}", values)])


def _fetch_state(place: Storage, folder: RunFolder) -> bool:
    """The newest checkpoint and the events so far; whether there is a checkpoint."""
    names = place.names(_CHECKPOINTS)
    if not names:
        return False
    place.download(f"{_CHECKPOINTS}/{names[-1]}", folder.path / _CHECKPOINTS / names[-1])
    if (told := place.read(folder.events.name)) is not None:
        folder.events.write_bytes(told)
    return True


def _send_made(place: Storage, folder: RunFolder, event: Event, steps: int) -> None:
    """What the event tells of goes to the storage; older checkpoints leave it, and all of them at the end.

    The last step's checkpoint is not sent: the adapter follows in seconds, and a million of them are 280 TB.
    """
    match event:
        case events.Saved(final=False):
            if event.step == steps:
                return
            place.upload(event.path, f"{_CHECKPOINTS}/{event.path.name}")
            _leave_one_checkpoint(place, event.path.name)
        case events.Saved() | events.Sampled():
            place.upload(event.path, event.path.relative_to(folder.path).as_posix())
        case events.Finished():
            _leave_one_checkpoint(place, None)
        case _:
            return
    place.upload(folder.events, folder.events.name)


def _leave_one_checkpoint(place: Storage, kept: str | None) -> None:
    for name in place.names(_CHECKPOINTS):
        if name != kept:
            place.remove(f"{_CHECKPOINTS}/{name}")


# --- class pictures: made by one node, used by all --------------------------------------------------------


def _local_class_pictures() -> Path:
    return default_root() / CLASS_PICTURES


def _class_folders() -> set[Path]:
    return set(_local_class_pictures().glob("*/"))


def _fetch_class_pictures(storage: Storage) -> None:
    """Those that this node lacks: each is made once, and a run that changes nodes finds the same ones."""
    for name in storage.folders(CLASS_PICTURES):
        folder = _local_class_pictures() / name
        for file in storage.names(f"{CLASS_PICTURES}/{name}"):
            if not (folder / file).exists():
                storage.download(f"{CLASS_PICTURES}/{name}/{file}", folder / file)


def _send_class_pictures(storage: Storage, folders: set[Path]) -> None:
    for folder in folders:
        for file in sorted(folder.glob("*.png")):
            storage.upload(file, f"{CLASS_PICTURES}/{folder.name}/{file.name}")
