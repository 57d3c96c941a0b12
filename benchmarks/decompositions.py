"""Singular vectors of every Linear and Conv2d of SDXL's UNet (794 layers): time and accuracy of each way.

`python -m benchmarks.decompositions [--rank 16]` needs nothing but torch; weights are random, which is the worst case
for the randomised way: their singular values hardly fall. Prints a table and writes benchmarks/results/….json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from adapters import svd

# (rows, columns of the matricised weight): how many layers; from UNet2DConditionModel on the meta device
SHAPES = {
    (320, 36): 1, (1280, 320): 1, (1280, 1280): 381, (1280, 2816): 1, (320, 2880): 8, (320, 1280): 5, (640, 640): 70,
    (640, 2048): 20, (5120, 640): 10, (640, 2560): 10, (640, 2880): 1, (640, 1280): 6, (640, 5760): 8, (640, 320): 1,
    (1280, 2048): 120, (10240, 1280): 60, (1280, 5120): 60, (1280, 5760): 1, (1280, 11520): 11, (1280, 640): 1,
    (1280, 23040): 2, (1280, 2560): 2, (1280, 17280): 1, (1280, 1920): 1, (640, 17280): 1, (640, 1920): 1,
    (640, 11520): 1, (640, 8640): 1, (640, 960): 1, (320, 8640): 1, (320, 960): 1, (320, 5760): 2, (320, 640): 2,
    (4, 2880): 1,
}  # fmt: skip


def timed(work: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Median seconds after one warm-up."""
    times: list[float] = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def by_driver(weight: Tensor, driver: str) -> object:
    return torch.linalg.svd(weight, full_matrices=False, driver=driver if weight.is_cuda else None)


def one_layer(device: torch.device, rank: int) -> dict[str, float]:
    """Milliseconds of each way on single layers of four shapes."""
    found: dict[str, float] = {}
    for shape in ((1280, 1280), (640, 640), (10240, 1280), (1280, 11520)):
        weight = torch.randn(1, *shape, device=device) / shape[1] ** 0.5
        ways: dict[str, Callable[[], object]] = {
            "top, randomised": lambda w=weight: svd.randomised(w, rank),
            "all, exact": lambda w=weight: svd.exact(w),
            "all, cuSOLVER gesvdj": lambda w=weight: by_driver(w, "gesvdj"),
        }
        for name, work in ways.items():
            found[f"{shape[0]}×{shape[1]} {name}"] = 1000 * timed(work, device)
    return found


def whole_unet(device: torch.device, rank: int) -> dict[str, float]:
    """Seconds for all layers, each decomposed as Decomposer does it, without a cache."""
    weights = [torch.randn(1, *s, device=device) / s[1] ** 0.5 for s, n in SHAPES.items() for _ in range(n)]
    decomposer = svd.Decomposer()
    ways: dict[str, Callable[[Tensor], object]] = {
        "794 layers, top": lambda w: decomposer.top(w, min(rank, *w.shape[1:])),
        "794 layers, bottom (exact)": lambda w: decomposer.bottom(w, min(rank, *w.shape[1:])),
    }
    return {name: timed(lambda way=way: [way(w) for w in weights], device, 1) for name, way in ways.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layers, unet = one_layer(device, options.rank), whole_unet(device, options.rank)
    for name, milliseconds in layers.items():
        print(f"{name}: {milliseconds:.2f} ms")
    for name, seconds in unet.items():
        print(f"{name}: {seconds:.2f} s")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    report = {"device": name, "rank": options.rank, "milliseconds": layers, "seconds": unet}
    (options.out / f"decompositions_{device.type}.json").write_text(json.dumps(report, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
