"""What a batch's folder says of it: the runs that belong to it, and how each of them is."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from adapters.errors import FileFormatError, MissingError
from studio import __version__, config
from studio.batch.plan import Plan
from studio.batch.storage import Storage
from studio.failures import Failure
from studio.store.states import State

RECORD = "batch.json"
STATUS = "status.json"


class RunRecord(BaseModel):
    """One run of the batch; `name` is its folder's, and its configuration's file's."""

    model_config = ConfigDict(frozen=True)
    name: str
    label: str
    digest: str
    axes: dict[str, str]
    config: dict[str, Any]

    @property
    def folder(self) -> str:
        return f"runs/{self.name}"

    @property
    def config_file(self) -> str:
        return f"configs/{self.name}.yaml"


class BatchRecord(BaseModel):
    """batch.json."""

    model_config = ConfigDict(frozen=True)
    id: str
    name: str
    source: str
    version: str
    runs: tuple[RunRecord, ...]


class RunStatus(BaseModel):
    """How a run is: status.json of a run on a cluster, or what the queue says of its job."""

    model_config = ConfigDict(frozen=True)
    state: State
    digest: str = ""
    failure: Failure | None = None
    attempts: int = 1
    worker: str | None = None
    job: str | None = None


def write_record(storage: Storage, plan: Plan, id: str) -> BatchRecord:
    """Puts down what the batch is: batch.json, and each run's whole configuration as a file for `--config`."""
    record = BatchRecord(
        id=id,
        name=plan.name,
        source=str(plan.source),
        version=__version__,
        runs=tuple(
            RunRecord(
                name=run.name,
                label=run.label,
                digest=run.digest,
                axes=run.axes,
                config=run.config.model_dump(mode="json"),
            )
            for run in plan.runs
        ),
    )
    for run, one in zip(plan.runs, record.runs, strict=True):
        if storage.read(one.config_file) is None:  # the name tells the contents
            text = config.to_yaml(run.config, f"{plan.name}: {run.label}")
            storage.write(one.config_file, text.encode())
    storage.write(RECORD, record.model_dump_json(indent=1).encode())
    return record


def read_record(storage: Storage) -> BatchRecord:
    """MissingError where no batch has been started there."""
    content = storage.read(RECORD)
    if content is None:
        raise MissingError(f"There is no batch in {storage.url}.", "Give a batch's id, or the folder of --out.")
    try:
        return BatchRecord.model_validate_json(content)
    except ValueError as error:
        raise FileFormatError(
            f"{storage.place(RECORD)} is damaged.", "Run the batch again; what is done stays."
        ) from error


def read_status(storage: Storage, run: RunRecord) -> RunStatus | None:
    """What the cluster has put down; None where it has not, or of another configuration."""
    content = storage.read(f"{run.folder}/{STATUS}")
    if content is None:
        return None
    status = RunStatus.model_validate_json(content)
    return status if status.digest == run.digest else None
