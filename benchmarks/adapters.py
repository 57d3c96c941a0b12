"""The leaderboard of docs/adapters.md: every method on the sample subject, through what `studio train` runs.

    python -m benchmarks.adapters [--methods lora dora] [--steps 200] [--seeds 0 1 2] [--out FILE.json]

Rows already in the file are kept (a row is a method, its steps and a seed), so that it may be stopped and gone on with.
Step times are measured in one process, a few steps of LoRA and of the method by turns, so that what else the machine
does meets both alike. Rows of two machines do not compare: start another file there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from adapters.atomic import atomic_path
from adapters.base import REGISTRY
from studio import config as studio_config
from trainers.cache import TensorCache
from trainers.config import TrainConfig
from trainers.events import Finished, Started, Validated
from trainers.loop import train

Results = dict[str, Any]
SUBJECT = Path(__file__).parents[1] / "examples" / "octopus"
KNOBS: dict[str, dict[str, Any]] = {
    "adalora": {"rank": 12, "target_rank": 8},
    "spectral-a": {"rank": 8},
    "spectral-r": {"rank": 16},
    "krona": {"factor": 16},
    "vera": {"rank": 64},
    "dvora": {"rank": 64},
    "lokr": {"rank": 16},
}
"""Knobs that differ from `rank: 8` (or, where a method has no rank, from its defaults)."""
RATES = {
    "adalora": 3e-2,
    "bat": 1e-3,
    "boft": 3e-3,
    "bone": 1e-3,
    "dvora": 1e-2,
    "flora": 3e-3,
    "glora": 1e-3,
    "ia3": 3e-2,
    "krona": 1e-2,
    "loha": 1e-3,
    "lokr": 1e-2,
    "lotr": 3e-4,
    "mora": 1e-2,
    "oft": 1e-3,
    "spectral-a": 1e-3,
    "spectral-r": 2e-3,
    "vera": 3e-2,
}
"""The best of three to five rates, half a decade apart, on seed 0 after 200 steps, where it was not LoRA's."""
LORA_RATE = 3e-3
TURNS, TURN_STEPS = 4, 6


def configuration(method: str, steps: int, seed: int, **more: object) -> TrainConfig:
    """Attention of the UNet, as the quick preset has it, with the method's knobs and rate."""
    has_rank = "rank" in REGISTRY[method].spec_type.model_fields
    knobs = KNOBS.get(method, {"rank": 8} if has_rank else {})
    values = {
        "base": "embedded",
        "data": {"folder": str(SUBJECT), "captions": {"trigger": "sks", "class_word": "octopus"}},
        "adapter": {"method": method, **knobs},
        "optim": {"learning_rate": RATES.get(method, LORA_RATE)},
        "sample": {"count": 0},
        "batch_size": 2,
        "save_every": 0,
        "steps": steps,
        "seed": seed,
        **more,
    }
    preset = studio_config.preset_layers("quick", "embedded")
    return studio_config.compose([*preset, studio_config.Layer("the benchmark", values)])


def trained(method: str, steps: int, seed: int, cache: TensorCache) -> dict[str, Any]:
    """One run: what it learnt with, how large its file is, and the validation losses."""
    with tempfile.TemporaryDirectory() as folder:
        events = list(train(configuration(method, steps, seed), Path(folder), device="cpu", cache=cache))
        started = next(event for event in events if isinstance(event, Started))
        validated = [event for event in events if isinstance(event, Validated)][-1]
        finished = events[-1]
        assert isinstance(finished, Finished) and finished.adapter is not None
        return {
            "method": method,
            "steps": steps,
            "seed": seed,
            "trainable_parameters": started.trainable_parameters,
            "file_bytes": finished.adapter.stat().st_size,
            "loss": validated.loss,
            "base_loss": validated.base_loss,
            "learning_rate": configuration(method, steps, seed).optim.learning_rate,
            "seconds": finished.seconds,
        }


def _trained_alone(job: tuple[str, int, int]) -> dict[str, Any]:
    torch.set_num_threads(1)
    return trained(*job, TensorCache())


def relative_step_time(method: str, cache: TensorCache) -> float:
    """Median step time over LoRA's, the two running by turns; each turn's first two steps are warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        streams = {name: _stepping(name, Path(folder) / str(n), cache) for n, name in enumerate(("lora", method))}
        if method == "lora":
            return 1.0
        times: dict[str, list[float]] = {name: [] for name in streams}
        for _ in range(TURNS):
            for name, stream in streams.items():
                times[name] += [next(stream) for _ in range(TURN_STEPS)][2:]
        for stream in streams.values():
            stream.close()
    return statistics.median(times[method]) / statistics.median(times["lora"])


def _stepping(method: str, out: Path, cache: TensorCache) -> Any:
    """Seconds of each step of a run, a step at a time."""
    config = configuration(method, TURNS * TURN_STEPS + 1, 0, validation_levels=0)
    before = [0.0]

    def now() -> None:
        before[0] = time.perf_counter()

    for event in train(config, out, device="cpu", cache=cache):
        if event.kind == "stepped":
            yield time.perf_counter() - before[0]
        now()


def measure(methods: Sequence[str], steps: int, seeds: Sequence[int], jobs: int, whole: Results, out: Path) -> None:
    """Trains what `whole` has no row of, in `jobs` processes; written after each run."""
    known = {(row["method"], row["steps"], row["seed"]) for row in whole["rows"]}
    missing = [job for method in methods for seed in seeds if (job := (method, steps, seed)) not in known]
    with ProcessPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(_trained_alone, job) for job in missing]):
            row = done.result()
            whole["rows"].append(row)
            _write(out, whole)
            print(f"{row['method']}, seed {row['seed']}: loss {row['loss']:.4f}, {row['seconds']:.0f} s", flush=True)


def measure_times(methods: Sequence[str], whole: Results, out: Path) -> None:
    """Step times that `whole` has not, one method after another: nothing else should run."""
    cache = TensorCache()
    for method in methods:
        if method not in whole["relative_step_time"]:
            whole["relative_step_time"][method] = relative_step_time(method, cache)
            _write(out, whole)
            print(f"{method}: {whole['relative_step_time'][method]:.2f} × LoRA's step", flush=True)


def _write(out: Path, whole: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as part:
        part.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def table(rows: Sequence[dict[str, Any]], times: dict[str, float]) -> str:
    """A markdown table, the lowest mean validation loss first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["method"], []).append(row)
    lines = [
        "| method | trainable | file | step time (LoRA 1) | validation loss (spread) | base's |",
        "|" + " --- |" * 6,
    ]
    for method, same in sorted(groups.items(), key=lambda item: statistics.mean(row["loss"] for row in item[1])):
        losses, first = [row["loss"] for row in same], same[0]
        spread = f"{min(losses):.4f}–{max(losses):.4f}"
        base = statistics.mean(row["base_loss"] for row in same)
        cells = (
            method,
            f"{first['trainable_parameters']:,}",
            f"{first['file_bytes'] / 1024:.0f} KiB",
            f"{times[method]:.2f}" if method in times else "–",
            f"{statistics.mean(losses):.4f} ({spread})",
            f"{base:.4f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=sorted(REGISTRY), choices=sorted(REGISTRY), metavar="NAME")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "adapters.json")
    parser.add_argument("--jobs", type=int, default=1, help="training runs side by side")
    parser.add_argument("--only", choices=["losses", "times", "table"], help="a part of the work; left out: all of it")
    chosen = parser.parse_args()
    whole: Results = {"rows": [], "relative_step_time": {}}
    if chosen.out.exists():
        whole |= json.loads(chosen.out.read_text(encoding="utf-8"))
    if chosen.only in (None, "losses"):
        measure(chosen.methods, chosen.steps, chosen.seeds, chosen.jobs, whole, chosen.out)
    if chosen.only in (None, "times"):
        measure_times(chosen.methods, whole, chosen.out)
    rows = [row for row in whole["rows"] if row["steps"] == chosen.steps and row["method"] in chosen.methods]
    print(table(rows, whole["relative_step_time"]))


if __name__ == "__main__":
    main()
