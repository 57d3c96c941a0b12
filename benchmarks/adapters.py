"""The leaderboard of docs/adapters.md: every method on the sample subject, through what `studio train` runs.

    python -m benchmarks.adapters [--methods lora dora] [--steps 300] [--seeds 0 1 2] [--out FILE.json]

Rows already in the file are kept (a row is a method, its steps and a seed), so that it may be stopped and gone on with.
Step times are measured in one process, a few steps of LoRA and of the method by turns, so that what else the machine
does meets both alike. Rows of two machines do not compare: start another file there.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
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
    "spectral-r": 2e-2,
    "vera": 1e-2,
    "dvora": 1e-2,
    "ia3": 1e-2,
    "oft": 1e-3,
    "boft": 1e-3,
    "krona": 3e-3,
    "lokr": 3e-3,
}
"""Learning rates that differ from LoRA's on the embedded base, 1e-3."""
TURNS, TURN_STEPS = 4, 6


def configuration(method: str, steps: int, seed: int, **more: object) -> TrainConfig:
    """Attention of the UNet, as the quick preset has it, with the method's knobs and rate."""
    has_rank = "rank" in REGISTRY[method].spec_type.model_fields
    knobs = KNOBS.get(method, {"rank": 8} if has_rank else {})
    values = {
        "base": "embedded",
        "data": {"folder": str(SUBJECT), "captions": {"trigger": "sks", "class_word": "octopus"}},
        "adapter": {"method": method, **knobs},
        "optim": {"learning_rate": RATES.get(method, 1e-3)},
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
            "seconds": finished.seconds,
        }


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


def measure(methods: Sequence[str], steps: int, seeds: Sequence[int], out: Path) -> list[dict[str, Any]]:
    """All rows, those of the file first; written after each run."""
    whole: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    rows: list[dict[str, Any]] = whole.setdefault("rows", [])
    times: dict[str, float] = whole.setdefault("relative_step_time", {})
    whole |= {"torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads()}
    cache = TensorCache()
    for method in methods:
        if method not in times:
            times[method] = relative_step_time(method, cache)
            _write(out, whole)
        for seed in seeds:
            if not any((row["method"], row["steps"], row["seed"]) == (method, steps, seed) for row in rows):
                rows.append(trained(method, steps, seed, cache))
                _write(out, whole)
                print(f"{method}, seed {seed}: loss {rows[-1]['loss']:.4f}, {rows[-1]['seconds']:.0f} s", flush=True)
    return [row | {"relative_step_time": times[row["method"]]} for row in rows if row["steps"] == steps]


def _write(out: Path, whole: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as part:
        part.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def table(rows: Sequence[dict[str, Any]]) -> str:
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
            f"{first['relative_step_time']:.2f}",
            f"{statistics.mean(losses):.4f} ({spread})",
            f"{base:.4f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=sorted(REGISTRY), choices=sorted(REGISTRY), metavar="NAME")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "adapters.json")
    chosen = parser.parse_args()
    print(table(measure(chosen.methods, chosen.steps, chosen.seeds, chosen.out)))


if __name__ == "__main__":
    main()
