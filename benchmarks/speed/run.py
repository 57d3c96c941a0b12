"""Measures sections: each contestant alone on the device, all in order and then in reverse; JSON after every row."""

from __future__ import annotations

import importlib.metadata
import json
import statistics
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.measure import ceiling, measure, release, step_flops
from benchmarks.speed.model import Setting
from benchmarks.speed.sections import SECTIONS, Row

RESULTS = Path(__file__).parents[1] / "results" / "speed.json"
_PACKAGES = ("torch", "triton", "diffusers", "transformers", "peft", "lycoris_lora")
_FIRST_ROUND = 0.6
"""Share of the time in which rows may begin for the first time: the second round finds compiled code on disk."""


def versions() -> dict[str, str]:
    """Of everything that decides the figures."""
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def load(path: Path = RESULTS) -> dict[str, Any]:
    """Section name → what was measured; empty where nothing was yet."""
    return json.loads(path.read_text()) if path.exists() else {}


@dataclass
class Session:
    """One call of the command: a time limit over all its sections, and the file that keeps them."""

    setting: Setting
    seconds: float
    path: Path
    only: list[str] = field(default_factory=list[str])
    warm: int = 4
    steps: int = 20
    started: float = field(default_factory=time.perf_counter)

    def section(self, name: str) -> None:
        """Measures section `name` anew; its earlier figures are replaced."""
        plan = SECTIONS[name]
        setting = replace(self.setting, batch_size=plan.batch_size)
        rows = [row for row in plan.rows if not self.only or any(text in row.name for text in self.only)]
        limit = time.perf_counter() + max(0.0, self.seconds - (time.perf_counter() - self.started))
        found: dict[str, Any] = {"rows": {}, **self._circumstances(setting)}
        first_limit = time.perf_counter() + _FIRST_ROUND * (limit - time.perf_counter())
        for number, (order, until) in enumerate(((rows, first_limit), (rows[::-1], limit))):
            for row in order:
                record = found["rows"].setdefault(row.name, {"rounds": []})
                if number and not record["rounds"]:
                    continue
                if time.perf_counter() > until:
                    record.setdefault("skipped", "the time was up")
                else:
                    self._measure(row, setting, record)
                self._keep(name, found)
                print(name, row.name, json.dumps({k: v for k, v in record.items() if k != "rounds"}), flush=True)

    def _circumstances(self, setting: Setting) -> dict[str, Any]:
        on_gpu = setting.device.type == "cuda"
        return {
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
            "device": torch.cuda.get_device_name(setting.device) if on_gpu else "CPU",
            "tiny": setting.tiny,
            "versions": versions(),
            "ceiling_tflops": ceiling(setting.device, setting.dtype, 8192 if on_gpu else 512),
            "step_tflop": step_flops(setting) / 1e12,
        }

    def _measure(self, row: Row, setting: Setting, record: dict[str, Any]) -> None:
        steps = max(self.steps // 2, 1) if row.slow else self.steps
        try:
            taken = measure(lambda: row.build(setting), setting.device, warm=self.warm, steps=steps)
        except Exception as error:  # a peer that fails is a row of the table; the others are still wanted
            record["failed"] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
            release(setting.device)
            return
        record["rounds"].append(taken.as_dict())
        record.update(summary(record["rounds"]))

    def _keep(self, name: str, found: dict[str, Any]) -> None:
        whole = load(self.path)
        whole[name] = found
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(whole, indent=1))


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Over all steps of all rounds: median and spread (10th to 90th of 100); the rounds' own medians; peaks.

    Peaks are those of the round before which other contestants left least in the process.
    """
    steps = sorted(ms for taken in rounds for ms in taken["ms"])
    return {
        "ms": statistics.median(steps),
        "spread": [steps[len(steps) // 10], steps[-1 - len(steps) // 10]],
        "medians": [statistics.median(taken["ms"]) for taken in rounds],
        "setup_s": [taken["setup_s"] for taken in rounds],
        "allocated_gib": min(taken["allocated_gib"] for taken in rounds),
        "reserved_gib": min(taken["reserved_gib"] for taken in rounds),
        "trainable": rounds[0]["trainable"],
        "note": rounds[0]["note"],
    }
