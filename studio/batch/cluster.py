"""A batch on a Ray cluster: an actor a GPU, which keeps its base and does one run after the other.

Actors, not tasks: Ray ends the process of a task that had a GPU, and the base with it. What is to be done lies here, in
the process that started the batch, and in the batch's storage: if a node dies, its run goes to another one and on from
its last checkpoint; if this process dies, the same command goes on with what is missing.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from adapters.errors import MissingError, StudioError, UserInputError
from studio import __version__
from studio.batch import local
from studio.batch.plan import Plan
from studio.batch.record import STATUS, BatchRecord, RunRecord, RunStatus, read_status, write_record
from studio.batch.remote import send_inputs
from studio.batch.storage import Storage
from studio.failures import Failure
from studio.paths import data_dir
from studio.queue import MAX_CRASHES

_POLL_SECONDS = 1.0
_MAX_FAILED_STARTS = 3
Say = Callable[[str], None]


def prepare(plan: Plan, out: str | None) -> tuple[Storage, BatchRecord]:
    """The batch put down in its storage. UserInputError where the nodes could not see that."""
    _ray()  # before anything is written
    id = local.batch_id(plan, out)
    storage = Storage(out or str(data_dir() / "batches" / id))
    if storage.url.startswith("memory:"):
        raise UserInputError(
            "memory:// is seen by one process alone.", "Give --out a shared folder or an URL such as s3://…"
        )
    return storage, write_record(storage, plan, id)


def do(record: BatchRecord, storage: Storage, address: str, say: Say) -> dict[str, RunStatus]:
    """Does what is missing; returns how each run is at the end, by its digest.

    `address`: that of a cluster, "auto" for the one of this machine, "local" for a new one here.
    """
    found = {run.digest: status for run in record.runs if (status := read_status(storage, run)) is not None}
    missing = [run for run in record.runs if run.digest not in found or found[run.digest].state != "done"]
    if missing:
        with _cluster(_ray(), address) as ray:
            inputs = send_inputs(storage, tuple(missing))
            found |= _Board(ray, storage, inputs, missing, say).finish()
    return found


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingError(
            "Ray is not installed.", 'Install it here and on all nodes: pip install "spectral-studio[ray]"'
        ) from error
    return ray


@contextmanager
def _cluster(ray: Any, address: str) -> Generator[Any]:
    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(address=None if address == "local" else address, log_to_driver=False, logging_level="warning")
    except (ConnectionError, ValueError) as error:
        raise UserInputError(
            f"There is no Ray cluster at {address}: {error}",
            "Start one (ray start --head), give its address, or use --ray local for this machine alone.",
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


class _Board:
    """Who does what."""

    def __init__(self, ray: Any, storage: Storage, inputs: Mapping[str, str], runs: list[RunRecord], say: Say) -> None:
        self.ray, self.storage, self.inputs, self.say = ray, storage, inputs, say
        self.total, self.waiting = len(runs), deque(runs)
        self.resource = "GPU" if ray.cluster_resources().get("GPU", 0) >= 1 else "CPU"
        self.starting: dict[Any, Any] = {}
        self.idle: list[Any] = []
        self.busy: dict[Any, tuple[Any, RunRecord]] = {}
        self.deaths: Counter[str] = Counter()
        self.failed_starts = 0
        self.found: dict[str, RunStatus] = {}

    def finish(self) -> dict[str, RunStatus]:
        """Until nothing waits and nobody works."""
        try:
            while self.waiting or self.busy:
                self._hire()
                self._hand_out()
                done, _ = self.ray.wait([*self.starting, *self.busy], num_returns=1, timeout=_POLL_SECONDS)
                for answer in done:
                    self._started(answer) if answer in self.starting else self._ended(answer)
        finally:
            for actor in [*self.starting.values(), *self.idle, *(actor for actor, _ in self.busy.values())]:
                self.ray.kill(actor)
        return self.found

    def _hire(self) -> None:
        """An actor for each device that the cluster has now, but no more than there are runs."""
        devices = int(self.ray.cluster_resources().get(self.resource, 0))
        wanted = min(devices, len(self.waiting) + len(self.busy))
        for _ in range(wanted - len(self.starting) - len(self.idle) - len(self.busy)):
            amount = {"num_gpus": 1} if self.resource == "GPU" else {"num_cpus": 1}
            actor = self.ray.remote(max_restarts=0, **amount)(_Trainer).remote()
            self.starting[actor.begin.remote(self.storage.url, __version__, self.resource == "GPU")] = actor

    def _started(self, answer: Any) -> None:
        actor = self.starting.pop(answer)
        try:
            self.ray.get(answer)
        except self.ray.exceptions.RayError as error:
            self.ray.kill(actor)
            self.failed_starts += 1
            if isinstance(error, StudioError):  # what the node itself has told: another version, another folder
                raise StudioError(error.what, error.fix) from error
            if self.failed_starts == _MAX_FAILED_STARTS:
                raise StudioError(
                    f"Nodes cannot begin to work: {str(error).strip().splitlines()[-1]}",
                    "Install the same spectral-studio on all nodes, and look at Ray's logs.",
                ) from error
            return
        self.failed_starts = 0
        self.idle.append(actor)

    def _hand_out(self) -> None:
        while self.idle and self.waiting:
            actor, run = self.idle.pop(), self.waiting.popleft()
            self.busy[actor.do.remote(run, self.inputs)] = actor, run
            self.say(f"{run.label}: begun")

    def _ended(self, answer: Any) -> None:
        actor, run = self.busy.pop(answer)
        try:
            status, usable = self.ray.get(answer)
        except self.ray.exceptions.RayError as error:
            self.ray.kill(actor)
            self._died(run, error)
            return
        self._over(run, status)
        if usable:
            self.idle.append(actor)
        else:
            self.ray.kill(actor)

    def _died(self, run: RunRecord, error: Exception) -> None:
        self.deaths[run.digest] += 1
        reason = str(error).strip().splitlines()[-1]
        if self.deaths[run.digest] < MAX_CRASHES:
            self.say(f"{run.label}: its node or process has died; another one goes on with it ({reason})")
            self.waiting.appendleft(run)
            return
        failure = Failure(
            f"{MAX_CRASHES} nodes or processes died over it: {reason}", "Try less memory, and look at Ray's logs.", 1
        )
        before = read_status(self.storage, run) or RunStatus(state="failed", digest=run.digest)
        status = before.model_copy(update={"state": "failed", "failure": failure})
        self.storage.write(f"{run.folder}/{STATUS}", status.model_dump_json(indent=1).encode())
        self._over(run, status)

    def _over(self, run: RunRecord, status: RunStatus) -> None:
        self.found[run.digest] = status
        detail = f" ({status.failure.what})" if status.failure is not None else ""
        self.say(f"[{len(self.found)}/{self.total}] {run.label}: {status.state}{detail}")


class _Trainer:
    """What lives on a node."""

    def begin(self, url: str, version: str, gpu: bool) -> None:
        """Gets ready; StudioError where this node cannot take part."""
        import ray

        from studio.start import import_diffusers

        import_diffusers()
        from studio.batch.remote import RemoteTrainer

        node = ray.get_runtime_context().get_node_id()
        self.device = "cuda" if gpu else "cpu"
        self.trainer = RemoteTrainer(url, version, self.device, f"node {node}")

    def do(self, run: RunRecord, inputs: Mapping[str, str]) -> tuple[RunStatus, bool]:
        """How the run ended, and whether this process can do another one."""
        from studio.worker import answers

        status = self.trainer.do(run, inputs)
        return status, answers(self.device)
