"""One run on several GPUs: pictures a second against one GPU's, each GPU with a batch of the same size.

`compare` measures one process and `gpus` processes by turns, each time in new ones. In every process the step that it
would do alone is timed first, all at the same time, so that what the sum costs is told from what the GPUs' heat does.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.speed.measure import measure
from benchmarks.speed.model import Setting
from benchmarks.speed.ours import OurStep
from benchmarks.speed.run import versions
from studio.processes import launch
from trainers.world import ALONE, World, join, started_together

RESULTS = Path(__file__).parents[1] / "results" / "scale.json"
BARS = {2: 1.9, 4: 3.6}
"""GPUs → how many times as many pictures a second as on one."""


class SharedStep(OurStep):
    """A step as the training loop does it: the main process is asked for commands after each."""

    def __init__(self, setting: Setting, world: World) -> None:
        super().__init__(setting, world=world)
        self.world = world
        world.spread(self.engine.adapter.state_dict().values())

    def step(self) -> None:
        super().step()
        self.world.from_main(lambda: None)


def compare(gpus: int, batch_size: int, steps: int, rounds: int, *, tiny: bool = False) -> dict[str, Any]:
    """All rounds, and the ratio from their medians.

    Args:
        batch_size: of each GPU.
        steps: timed in each round.
    """
    found: dict[str, Any] = {
        "gpus": gpus,
        "batch_size_each": batch_size,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "tiny": tiny,
        "versions": versions(),
        "one": [],
        "many": [],
    }
    for _ in range(rounds):
        for name, count in (("one", 1), ("many", gpus)):
            found[name].append(_in_new_processes(count, batch_size, steps, tiny))
            print(json.dumps({"processes": count, **found[name][-1]}), flush=True)
    alone = statistics.median(taken["alone_ms"][0] for taken in found["one"])
    shared = statistics.median(max(taken["shared_ms"]) for taken in found["many"])
    return {**found, "one_ms": alone, "many_ms": shared, "ratio": gpus * alone / shared}


def keep(found: dict[str, Any], path: Path = RESULTS) -> None:
    """Prints the ratio beside its bar, and writes all into the file under the number and kind of GPUs."""
    bar = BARS.get(found["gpus"])
    judged = "" if bar is None else f" (the bar is {bar}: {'met' if found['ratio'] >= bar else 'NOT met'})"
    print(
        f"{found['gpus']} GPUs at batch {found['batch_size_each']} each: {found['many_ms']:.1f} ms a step, one GPU "
        f"{found['one_ms']:.1f} ms: {found['ratio']:.2f} times as many pictures a second{judged}"
    )
    whole = json.loads(path.read_text()) if path.exists() else {}
    whole[f"{found['gpus']} × {found['one'][0]['device'][0]}"] = found
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False))


def _in_new_processes(count: int, batch_size: int, steps: int, tiny: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "found.json")
        command = [sys.executable, "-m", "benchmarks.speed.scale"]
        numbers = [str(count), str(batch_size), str(steps), str(int(tiny))]
        subprocess.run([*command, *numbers, str(out)], check=True)
        return json.loads(out.read_text())


def _measure(world: World, batch_size: int, steps: int, tiny: bool) -> dict[str, Any]:
    """In each of the processes: medians of the step alone and, where there are others, of the shared one."""
    on_gpu = torch.cuda.is_available()
    device = world.device or torch.device("cuda" if on_gpu else "cpu")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    name = torch.cuda.get_device_name(device) if on_gpu else "CPU"
    own: dict[str, Any] = {"device": name}
    for key, those in (("alone", ALONE), ("shared", world)) if world.size > 1 else (("alone", world),):
        setting = Setting(batch_size * those.size, device, dtype, tiny)
        taken = measure(lambda setting=setting, those=those: SharedStep(setting, those), device, steps=steps)
        own |= {f"{key}_ms": statistics.median(taken.ms), f"{key}_gib": taken.allocated_gib, f"{key}_note": taken.note}
        world.wait()
    gathered: list[dict[str, Any]] = [own] * world.size
    if world.size > 1:
        dist.all_gather_object(gathered, own, world.words)
    return {key: [each[key] for each in gathered] for key in own}


def main() -> None:
    count, batch_size, steps, tiny, out = sys.argv[1:]
    if int(count) > started_together():
        sys.exit(launch(int(count), ["-m", "benchmarks.speed.scale", *sys.argv[1:]]))
    world = join()
    found = _measure(world, int(batch_size), int(steps), tiny == "1")
    if world.is_main:
        Path(out).write_text(json.dumps(found))
    world.close()


if __name__ == "__main__":
    main()
