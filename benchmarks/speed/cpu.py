"""On a CPU with the embedded base: our step against PEFT's on the same layers, turn by turn in one process."""

from __future__ import annotations

import statistics

import torch

from benchmarks.speed.measure import Contestant, time_on_cpu
from benchmarks.speed.model import Setting
from benchmarks.speed.ours import OurStep
from benchmarks.speed.peers import PeerStep


def compare(rank: int, batch_size: int = 1, rounds: int = 8, steps: int = 4) -> dict[str, float]:
    """Medians in ms of both, and how many times as fast ours is; order turns from round to round."""
    setting = Setting(batch_size, torch.device("cpu"), torch.float32, tiny=True)
    both: dict[str, Contestant] = {
        "ours": OurStep(setting, rank=rank),
        "PEFT": PeerStep(setting, "peft-lora", rank=rank),
    }
    taken: dict[str, list[float]] = {name: [] for name in both}
    for number in range(rounds + 1):
        for name in list(both)[:: 1 if number % 2 else -1]:
            found = time_on_cpu(both[name], steps)
            if number:  # the first is to warm up
                taken[name] += found
    medians = {name: statistics.median(ms) for name, ms in taken.items()}
    for contestant in both.values():
        contestant.close()
    return {**medians, "ratio": medians["PEFT"] / medians["ours"]}
