"""A batch on a real Ray cluster of several nodes on this machine's CPU."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import UserInputError
from studio.batch import cluster
from studio.batch.plan import Plan, PlannedRun
from studio.batch.record import BatchRecord, RunRecord, RunStatus, read_status
from studio.batch.storage import Storage
from studio.event_log import course
from tests.support import adapter_tensors, quick_config
from tests.support import run as train_here
from trainers.events import Started, Stepped, parse_event

ray = pytest.importorskip("ray", reason="pip install spectral-studio[ray]")
ray_cluster = pytest.importorskip("ray.cluster_utils")
STEPS = 24
_QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}


def planned(pictures: Path, tmp_path: Path, runs: int) -> Plan:
    configs = [quick_config(pictures, steps=STEPS, save_every=2, seed=seed) for seed in range(runs)]
    return Plan(tmp_path / "x.yaml", "x", tuple(PlannedRun(f"run {c.seed}", {}, c) for c in configs))


class Nodes:
    """A head that does no work, and nodes of one CPU each."""

    def __init__(self, count: int) -> None:
        self.cluster = ray_cluster.Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "object_store_memory": 80_000_000, "_system_config": _QUICK_TO_NOTICE},
        )
        self.nodes = [self.add() for _ in range(count)]

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=80_000_000)

    def kill(self, worker: str) -> None:
        """Kills the node that a status names, with all its processes."""
        (node,) = [node for node in self.nodes if node.node_id in worker]
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Generator[Nodes]:
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    )
    made = Nodes(2)
    yield made
    ray.shutdown()
    made.cluster.shutdown()


def kill_one_in_mid_run(storage: Storage, record: BatchRecord, nodes: Nodes, killed: list[RunRecord]) -> None:
    """Waits for the first run that has saved its fourth step, and takes its node away."""
    while not killed:
        for run in record.runs:
            saved, status = storage.names(f"{run.folder}/checkpoints"), read_status(storage, run)
            if status is not None and status.state == "running" and saved and saved[-1] >= "step-000004":
                killed.append(run)
                nodes.kill(str(status.worker))
                return
        time.sleep(0.05)


def starts(storage: Storage, run: RunRecord) -> list[int]:
    lines = (storage.read(f"{run.folder}/events.jsonl") or b"").decode().splitlines()
    events = course([parse_event(line) for line in lines])
    assert [event.step for event in events if isinstance(event, Stepped)] == list(range(1, STEPS + 1))
    return [event.step for event in events if isinstance(event, Started)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_batch_completes_though_a_node_is_killed_and_its_run_goes_on_from_its_checkpoint(
    nodes: Nodes, pictures: Path, cache: Path, tmp_path: Path
):
    storage, record = cluster.prepare(planned(pictures, tmp_path, runs=3), str(tmp_path / "out"))
    killed: list[RunRecord] = []
    killer = threading.Thread(target=kill_one_in_mid_run, args=(storage, record, nodes, killed), daemon=True)
    killer.start()
    said: list[str] = []
    found = cluster.do(record, storage, nodes.cluster.address, said.append)
    killer.join()

    assert {status.state for status in found.values()} == {"done"} and len(found) == 3
    assert any("has died" in line for line in said)
    (run,) = killed
    status: RunStatus = found[run.digest]
    assert status.attempts == 2
    resumed = starts(storage, run)
    assert resumed[0] == 0 and resumed[-1] >= 4
    train_here(quick_config(pictures, steps=STEPS, seed=run.config["seed"]), tmp_path / "reference", cache)
    wanted = adapter_tensors(tmp_path / "reference" / "adapter.safetensors")
    made = adapter_tensors(Path(storage.path(f"{run.folder}/adapter.safetensors")))
    assert all(tensor.equal(wanted[name]) for name, tensor in made.items())

    assert cluster.do(record, storage, "nobody is asked", said.append) == found  # nothing is missing


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nodes_that_do_not_see_the_folder_say_so(nodes: Nodes, pictures: Path, tmp_path: Path):
    storage, record = cluster.prepare(planned(pictures, tmp_path, runs=1), str(tmp_path / "out"))
    storage.remove("batch.json")
    with pytest.raises(Exception, match="does not see"):
        cluster.do(record, storage, nodes.cluster.address, lambda _: None)


def test_memory_is_no_place_for_several_machines(pictures: Path, tmp_path: Path):
    with pytest.raises(UserInputError, match="one process alone"):
        cluster.prepare(planned(pictures, tmp_path, runs=1), "memory://x")


@pytest.mark.slow  # "auto" looks for clusters of the whole machine: another test's, or one that was killed
def test_a_cluster_that_is_not_there_is_told_so(pictures: Path, tmp_path: Path):
    storage, record = cluster.prepare(planned(pictures, tmp_path, runs=1), str(tmp_path / "out"))
    with pytest.raises(UserInputError, match="There is no Ray cluster at auto"):
        cluster.do(record, storage, "auto", lambda _: None)
