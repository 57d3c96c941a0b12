"""The fast path on a CUDA card: recorded steps give the eager steps' losses, kernels give torch's numbers.

Run with `pytest -m gpu`. Last run: see docs/speed.md.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.projections import back_projections, projections
from adapters.registry import REGISTRY
from adapters.row_gain import row_gain
from adapters.side_stream import spread
from adapters.sites import make_site
from benchmarks.speed.model import Setting
from benchmarks.speed.ours import OurStep
from tests.support import make_pictures, quick_config
from tests.tolerances import BF16, FP32, relative_error
from trainers.cache import TensorCache
from trainers.events import Stepped
from trainers.fast import norms
from trainers.fast.capture import Recorder
from trainers.loop import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card here"),
]
SAME_RUN = 2e-3
"""Losses of twelve bf16 steps, recorded and eager: only the order of atomic sums in libraries differs."""


def losses(folder: Path, tmp_path: Path, **changes: object) -> list[float]:
    changes = {"steps": 12, "precision": "bf16", **changes}
    made = quick_config(make_pictures(tmp_path / "pictures"), base=str(folder), **changes)
    out = tmp_path / str(changes["capture"])
    events = train(made, out, device="cuda", cache=TensorCache(tmp_path / "cache"))
    return [event.loss for event in events if isinstance(event, Stepped)]


@pytest.mark.parametrize("method", sorted(REGISTRY))
def test_recorded_steps_give_the_losses_of_eager_ones(folder: Path, tmp_path: Path, method: str):
    eager, recorded = (
        losses(folder, tmp_path, capture=capture, adapter={"method": method}) for capture in ("off", "auto")
    )
    assert recorded == pytest.approx(eager, rel=SAME_RUN)


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_accumulation": 2, "ema_decay": 0.9, "optim": {"schedule": "cosine"}},
        {"optim": {"name": "Prodigy", "learning_rate": 1.0}},
        {"gradient_checkpointing": True},
        {"adapter": {"method": "lora", "dropout": 0.1}},
        {"targets": {"unet": "attention", "text_encoder": "attention", "text_encoder_2": "attention"}},
        {"prior": {"weight": 1.0, "pictures": 2}},
        {"precision": "fp16"},
        {"quantization": "nf4"},
        {"quantization": "fp8", "adapter": {"method": "dora"}},
        {"quantization": "int8", "gradient_checkpointing": True},
        {"quantization": "nf4", "adapter": {"method": "lora", "init": "loftq"}},
    ],
    ids=[
        "accumulation-ema-cosine",
        "prodigy",
        "checkpointing",
        "dropout",
        "text-encoders",
        "prior",
        "fp16",
        "nf4",
        "fp8-dora",
        "int8-checkpointing",
        "nf4-loftq",
    ],
)
def test_whatever_else_a_step_does_is_recorded_or_done_beside(folder: Path, tmp_path: Path, changes: dict[str, object]):
    eager, recorded = (losses(folder, tmp_path, capture=capture, **changes) for capture in ("off", "auto"))
    assert recorded == pytest.approx(eager, rel=SAME_RUN)


@pytest.mark.parametrize("method", ["lora", "dora", "adalora", "lokr", "spectral-r", "oft"])
def test_gradients_of_these_methods_are_recorded(method: str):
    contestant = OurStep(Setting(2, torch.device("cuda"), torch.bfloat16, tiny=True), method)
    for _ in range(3):
        contestant.step()
    torch.cuda.synchronize()
    assert contestant.note == ""
    contestant.close()


def compared(ours: Callable[..., Tensor], plain: Callable[..., Tensor], *inputs: Tensor) -> float:
    """The largest relative difference of outputs and gradients in the inputs' dtype from torch's in fp32."""
    low = [value.detach().clone().requires_grad_() for value in inputs]
    high = [value.detach().float().clone().requires_grad_() for value in inputs]
    found, expected = ours(*low), plain(*high)
    gradient = torch.randn_like(expected)
    found.backward(gradient.to(found.dtype))
    expected.backward(gradient)
    pairs = [(found, expected), *((a.grad, b.grad) for a, b in zip(low, high, strict=True))]
    return max(relative_error(a.float(), b) for a, b in pairs)


TYPES = pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 10 * FP32), (torch.bfloat16, BF16)])


@TYPES
@pytest.mark.parametrize(("channels", "side"), [(320, 128), (960, 64), (2560, 32)])
def test_group_norm_with_a_shift_and_silu_is_torchs(dtype: torch.dtype, bound: float, channels: int, side: int):
    norm = nn.GroupNorm(32, channels, device="cuda", dtype=torch.float32).requires_grad_(False)
    x = torch.randn(2, channels, side, side, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
    shift = torch.randn(2, channels, device="cuda", dtype=dtype)
    error = compared(
        lambda x, s: norms.group_norm_silu(x, norm, s), lambda x, s: F.silu(norm(x + s[:, :, None, None])), x, shift
    )
    assert error < bound


@TYPES
def test_layer_norm_of_a_sum_is_torchs(dtype: torch.dtype, bound: float):
    norm = nn.LayerNorm(1280, device="cuda").requires_grad_(False)
    x, y = (torch.randn(2, 1024, 1280, device="cuda", dtype=dtype) for _ in range(2))
    assert compared(lambda a, b: norms.add_layer_norm(a, b, norm)[1], lambda a, b: norm(a + b), x, y) < bound


@TYPES
def test_geglu_is_torchs(dtype: torch.dtype, bound: float):
    h = torch.randn(2, 1024, 10240, device="cuda", dtype=dtype)
    assert compared(norms.geglu, lambda h: h.chunk(2, -1)[0] * F.gelu(h.chunk(2, -1)[1]), h) < bound


@TYPES
def test_a_gain_a_row_is_torchs(dtype: torch.dtype, bound: float):
    y, bias = torch.randn(1024, 640, device="cuda", dtype=dtype), torch.randn(640, device="cuda", dtype=dtype)
    gain = 0.1 * torch.randn(640, device="cuda")

    def ours(y: Tensor, gain: Tensor) -> Tensor:
        return row_gain(y, spread(gain[None], gain.dtype)[0], bias)

    assert compared(ours, lambda y, g: y + g * (y - bias.float()), y, gain) < bound


def test_projections_of_many_layers_are_those_of_each():
    for made in (lambda: nn.Linear(1280, 640), lambda: nn.Conv2d(64, 128, 3).to(memory_format=torch.channels_last)):
        sites = [make_site(str(n), made().cuda().bfloat16()) for n in range(3)]
        downs = torch.randn(3, 16, sites[0].columns, device="cuda")
        expected = torch.stack([s.matricise(s.weight).float() @ d.T for s, d in zip(sites, downs, strict=True)])
        assert relative_error(projections(sites, downs), expected) < BF16
        ups = torch.randn(3, sites[0].rows, 16, device="cuda")
        expected = torch.stack([u.T @ s.matricise(s.weight).float() for s, u in zip(sites, ups, strict=True)])
        assert relative_error(back_projections(sites, ups), expected) < BF16


def test_what_cannot_be_recorded_goes_on_with_the_same_numbers():
    device = torch.device("cuda")
    draws, found = torch.Generator(device), torch.zeros(4, device=device)

    def work() -> None:
        found.copy_(torch.randn(4, generator=draws, device=device))
        float(found.sum())  # waits for the device, which a recording does not allow

    recorder = Recorder(device, [draws])
    for seed in range(4):
        draws.manual_seed(seed)
        recorder.run("work", work)
        expected = torch.randn(4, generator=torch.Generator(device).manual_seed(seed), device=device)
        assert torch.equal(found, expected)
    assert "work" in recorder.problems
