"""The same training loop on a CUDA card, in its precisions; on random weights of the embedded base's size.

Run with `pytest -m gpu`. Last run: see docs/measurements.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapters.registry import REGISTRY
from tests.support import adapter_tensors, make_pictures, quick_config
from trainers.cache import TensorCache
from trainers.config import TrainConfig
from trainers.events import Event, Started, Stepped
from trainers.loop import train
from trainers.sdxl import Base, load_base

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card here"),
]


def config(folder: Path, tmp_path: Path, **changes: object) -> TrainConfig:
    return quick_config(make_pictures(tmp_path / "pictures"), base=str(folder), steps=12, **changes)


def run(config: TrainConfig, out: Path, **options: object) -> list[Event]:
    return list(train(config, out, device="cuda", cache=TensorCache(out / "cache"), **options))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_run_works_in_each_precision(folder: Path, tmp_path: Path, precision: str, method: str):
    made = config(folder, tmp_path, precision=precision, adapter={"method": method, "rank": 4})
    started = next(event for event in run(made, tmp_path / "out") if isinstance(event, Started))
    assert started.device == "cuda:0" and started.precision == torch_name(precision)
    tensors = adapter_tensors(tmp_path / "out" / "adapter.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert any(name.endswith("up") and tensor.abs().max() > 0 for name, tensor in tensors.items())


@pytest.mark.parametrize("method", sorted(REGISTRY))
def test_every_method_trains_in_bf16(folder: Path, tmp_path: Path, method: str):
    targets = {"unet": "attention, conv", "text_encoder": "attention"}
    made = config(folder, tmp_path, precision="bf16", adapter={"method": method}, targets=targets)
    run(made.model_copy(update={"steps": 3}), tmp_path / "out")
    tensors = adapter_tensors(tmp_path / "out" / "adapter.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def torch_name(precision: str) -> str:
    return {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision]


def test_text_encoders_train_on_the_card(folder: Path, tmp_path: Path):
    targets = {"unet": "attention", "text_encoder": "attention", "text_encoder_2": "attention"}
    run(config(folder, tmp_path, targets=targets, precision="bf16"), tmp_path / "out")
    tensors = adapter_tensors(tmp_path / "out" / "adapter.safetensors")
    moved = [name for name, tensor in tensors.items() if name.endswith("up") and tensor.abs().max() > 0]
    assert any(name.startswith("text_encoder.") for name in moved)
    assert any(name.startswith("text_encoder_2.") for name in moved)


def test_losses_come_back_at_the_first_and_every_tenth_step(folder: Path, tmp_path: Path):
    steps = [e.step for e in run(config(folder, tmp_path), tmp_path / "out") if isinstance(e, Stepped)]
    assert steps == [1, 10, 12]


def test_an_interrupted_run_goes_on(folder: Path, tmp_path: Path):
    made = config(folder, tmp_path)
    asked = iter([None] * 5 + ["pause"])
    run(made, tmp_path / "out", commands=lambda: next(asked))
    resumed = run(made, tmp_path / "out", resume=True)
    assert next(event for event in resumed if isinstance(event, Started)).step == 6
    assert (tmp_path / "out" / "adapter.safetensors").is_file()


def test_the_encoders_are_on_the_card_only_while_they_are_used(folder: Path):
    base: Base = load_base(str(folder), device="cuda")
    homes = {name: tensor.data_ptr() for name, tensor in base.vae.state_dict().items()}
    with base.using("vae"):
        with base.using("vae", "text_encoder"):
            pass
        assert base.vae.device.type == "cuda"
    assert {name: tensor.data_ptr() for name, tensor in base.vae.state_dict().items()} == homes
    assert base.vae.device.type == base.pipe.text_encoder_2.device.type == "cpu"
    assert base.unet.device.type == "cuda"
