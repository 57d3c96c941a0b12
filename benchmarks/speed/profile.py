"""One step under torch's profiler: kernels by kind, and those that cost most."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.measure import Contestant

KINDS = {
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "convolutions": ("conv", "wgrad", "dgrad", "fprop", "implicit"),
    "optimizer": ("adam", "multi_tensor", "foreach", "lpnorm"),
    "matrix products": ("gemm", "cutlass", "nvjet", "matmul", "mm", "cublas", "splitk"),
    "norms": ("norm", "welford", "moments"),
    "copies": ("memcpy", "memset", "copy", "cat", "transpose", "nchw", "nhwc"),
}
"""Kind → pieces of kernels' names; the first kind that fits takes a kernel."""


def kind_of(kernel: str) -> str:
    """The kind of a kernel by its name."""
    low = kernel.lower()
    return next((kind for kind, pieces in KINDS.items() if any(p in low for p in pieces)), "element-wise and the rest")


def profile_step(contestant: Contestant, device: torch.device, *, warm: int = 4, top: int = 25) -> str:
    """Two tables of one step after `warm` others: time by kind of kernel, and the `top` kernels."""
    for _ in range(warm):
        contestant.step()
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as taken:
        contestant.step()
        if on_gpu:
            torch.cuda.synchronize(device)
    wanted = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    rows: list[tuple[float, int, str]] = []
    for event in taken.key_averages():
        if event.device_type == wanted:
            spent: Any = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            rows.append((float(spent) / 1000, int(event.count), str(event.key)))
    return _tables(sorted(rows, reverse=True), top)


def _tables(rows: list[tuple[float, int, str]], top: int) -> str:
    whole = sum(ms for ms, _, _ in rows)
    kinds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for ms, count, name in rows:
        kinds[kind_of(name)][0] += ms
        kinds[kind_of(name)][1] += count
    lines = [f"{whole:.1f} ms in {sum(count for _, count, _ in rows)} kernels", ""]
    for kind, (ms, count) in sorted(kinds.items(), key=lambda item: -item[1][0]):
        lines.append(f"{ms:9.2f} ms {100 * ms / whole:5.1f} % {count:6.0f}  {kind}")
    lines += [
        "",
        *(f"{ms:9.2f} ms {100 * ms / whole:5.1f} % {count:6d}  {name[:110]}" for ms, count, name in rows[:top]),
    ]
    return "\n".join(lines)
