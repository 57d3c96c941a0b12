"""`studio train` at SDXL's real size on one GPU, through the command line: step time and memory of each setting.

`python -m benchmarks.sdxl_gpu PICTURES --work FOLDER [--steps 30]` makes the random-weights base in FOLDER first
(benchmarks.random_sdxl), runs the settings below one after another and prints a table; the last sentence of each
row's log is kept where a setting fails. Weights do not change the time of a step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

SETTINGS = {
    "LoRA r16 attention, bs 1": [],
    "DoRA r16 attention, bs 1": ["--adapter", "dora"],
    "LoRA r16 attention, bs 4": ["--set", "batch_size=4"],
    "LoRA r16 attention, bs 1, gradient checkpointing": ["--set", "gradient_checkpointing=true"],
    "LoRA r16 attention + both text encoders, bs 1": [
        "--set", "targets.text_encoder=attention", "--set", "targets.text_encoder_2=attention",
    ],
    "LoRA r16 linear + conv, bs 1": ["--set", "targets.unet=all"],
    "LoRA r16 attention, bs 1, fp16": ["--set", "precision=fp16"],
    "Spectral-R r16 attention, bs 1": ["--adapter", "spectral-r"],
    "LoKr r16 attention, bs 1": ["--adapter", "lokr"],
}  # fmt: skip


def run(name: str, arguments: list[str], options: argparse.Namespace) -> dict[str, object]:
    """One `studio train`; median step time over all but the first third, peak memory, seconds to the first step."""
    out = options.work / "runs" / str(abs(hash(name)))
    command = [
        *(sys.executable, "-m", "studio", "train", str(options.pictures), "--trigger", "sks", "--class", "dog"),
        *("--base", str(options.work / "sdxl"), "--steps", str(options.steps), "--out", str(out)),
        *("--set", "adapter.rank=16", "--set", "data.resolution=1024", "--set", "sample.count=0"),
        *("--set", "validation_levels=1", "--set", "data.crop_variants=1", *arguments),
    ]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - started
    if done.returncode:
        return {"setting": name, "failed": (done.stdout + done.stderr).strip()[-400:]}
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["kind"] == "stepped"]
    times = sorted(event["seconds_per_step"] for event in steps[len(steps) // 3 :])
    return {
        "setting": name,
        "ms_per_step": round(1000 * statistics.median(times)),
        "spread_ms": [round(1000 * times[0]), round(1000 * times[-1])],
        "peak_gib": round(max(event["memory_bytes"] for event in steps) / 2**30, 2),
        "loss": [round(steps[0]["loss"], 4), round(steps[-1]["loss"], 4)],
        "validation": [(e["step"], round(e["loss"], 4)) for e in events if e["kind"] == "validated"],
        "wall_s": round(wall, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=420, help="start no further setting after this")
    parser.add_argument("--only", nargs="+", default=[""], help="settings that have one of these texts in their name")
    parser.add_argument("--results", type=Path, help="JSON file, rewritten after each setting")
    options = parser.parse_args()
    started = time.perf_counter()
    if not (options.work / "sdxl" / "model_index.json").exists():
        subprocess.run([sys.executable, "-m", "benchmarks.random_sdxl", str(options.work / "sdxl")], check=True)
    print(f"base made in {time.perf_counter() - started:.1f} s", flush=True)
    rows: list[dict[str, object]] = []
    for name, arguments in SETTINGS.items():
        if not any(text in name for text in options.only):
            continue
        if time.perf_counter() - started > options.seconds:
            break
        rows.append(run(name, arguments, options))
        print(json.dumps(rows[-1]), flush=True)
        if options.results is not None:
            options.results.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
