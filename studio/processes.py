"""One run in several processes, one a GPU: `launch` starts them (studio train --gpus N), `joined` is one of them.

They are started as `accelerate launch` starts them: by torch's elastic agent, which sets the environment that
Accelerate reads, passes signals on, and ends all when one fails.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from adapters.errors import StudioError, UserInputError
from studio.failures import explain, show
from trainers.world import World, join, started_together


def to_be_started(count: int) -> bool:
    """Whether this process is to start `count` others; raises UserInputError where that is not how it was started."""
    found = started_together()
    if found not in (1, count):
        raise UserInputError(f"{found} processes were started together, and --gpus says {count}.", "Leave --gpus out.")
    return found == 1 and count > 1


def launch(count: int, command: Sequence[str]) -> int:
    """Runs Python with `command` in `count` processes that find each other; where there is no GPU they share the CPU.

    For a process that does nothing else: its environment and signal handlers become the launcher's.

    Returns:
        0, or the exit code of the run; whatever went wrong, a process has said it.

    Raises:
        UserInputError: there are fewer GPUs.
        StudioError: a process was killed.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _check_gpus(count)
    logging.disable(logging.CRITICAL)  # the agent's own account of a failure, beside the process's
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    os.environ["OMP_NUM_THREADS"] = str(max(1, threads // count))
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else it asks for the host's name, which may not resolve
    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        config.numa_options = None  # numactl may be missing, and containers may not allow it
        try:
            elastic_launch(config, sys.executable)(*command)
        except ChildFailedError as error:
            return _code({rank: failure.exitcode for rank, failure in error.failures.items()})
        except SignalException as error:
            return 128 + error.sigval
    return 0


def _check_gpus(count: int) -> None:
    import torch

    found = torch.cuda.device_count()
    if 0 < found < count:
        raise UserInputError(f"There are {found} GPUs, and --gpus says {count}.", f"Use --gpus {found}.")


def _code(codes: dict[int, int]) -> int:
    """Of processes' exit codes the one that a process gave itself; the agent ends the others by SIGTERM."""
    own = [code for code in codes.values() if code > 0]
    if own:
        return own[0]
    rank, code = next(((r, c) for r, c in codes.items() if c != -signal.SIGTERM), next(iter(codes.items())))
    raise StudioError(
        f"Process {rank} of the run was killed ({signal.Signals(-code).name}).",
        "Memory may have run out (docs/scale.md). Go on from the last checkpoint with --resume.",
    )


@contextmanager
def joined() -> Generator[World]:
    """The processes of the run that this one is part of.

    Where there are several, an error in the block ends this process at once: one says what happened, all end with its
    exit code, and none waits for a GPU that waits for another.
    """
    world = join()
    if world.size == 1:
        yield world
        return
    try:
        yield world
    except BaseException as error:
        _leave(world, error)
    world.close()


def _leave(world: World, error: BaseException) -> NoReturn:
    failure = explain(error)
    code = world.first_to_fail(failure.code)
    if code is None:
        show(failure)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(failure.code if code is None else code)


@contextmanager
def unmoved() -> Generator[None]:
    """Within, this process stops on no signal: the main one of its run does, and tells it."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
