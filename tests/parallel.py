"""Several processes that train together.

On the CPU they are forks of one that has imported everything, so that each is cheap; a GPU wants new processes.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.multiprocessing.spawn import start_processes

from trainers.cache import TensorCache
from trainers.config import TrainConfig
from trainers.engine import Engine
from trainers.loop import train
from trainers.world import join

multiprocessing.set_forkserver_preload(["trainers.loop"])


def together(work: Callable[..., None], *args: Any, count: int = 2, gpus: bool = False) -> None:
    """Runs `work`, a function of an importable module, in `count` processes that `trainers.world.join` joins."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    way = "spawn" if gpus else "forkserver"
    start_processes(_enter, (count, port, gpus, work, args), nprocs=count, start_method=way)


def _enter(rank: int, count: int, port: int, gpus: bool, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
        OMP_NUM_THREADS="1",
        HF_HUB_OFFLINE="1",
    )
    torch.set_num_threads(1)
    work(*args)


def train_all(
    runs: Mapping[Path, TrainConfig], cache: Path, pause_after: int = 0, resume: bool = False, device: str = "cpu"
) -> None:
    """Trains each run into its folder; leaves events.jsonl, and every process's state at the end in rank-N.safetensors.

    Args:
        pause_after: the step after which the main process is told to pause; 0: never.
        device: of a process alone.
    """
    world, close = join(), Engine.close
    for out, config in runs.items():
        steps = iter(range(1, config.steps + 1))

        def keep(engine: Engine, out: Path = out) -> None:
            state = {name: value.contiguous().clone() for name, value in engine.adapter.state_dict().items()}
            out.mkdir(parents=True, exist_ok=True)
            problems = "; ".join(engine.problems.values())
            save_file(state, out / f"rank-{world.rank}.safetensors", {"problems": problems})
            close(engine)

        Engine.close = keep
        events = train(
            config,
            out,
            resume=resume,
            device=device,
            commands=lambda steps=steps: "pause" if next(steps) == pause_after else None,
            cache=TensorCache(cache / "tensors"),
            world=world,
        )
        lines = [event.model_dump_json() + "\n" for event in events]
        if world.is_main:
            with (out / "events.jsonl").open("a") as file:
                file.writelines(lines)
    Engine.close = close
    world.close()
