"""`studio resize`, `extract` and `merge`, each against what it says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from adapters.adapter_set import AdapterSet
from adapters.files import AdapterCard, attach_file, read_header, save_adapter
from adapters.inject import attach
from adapters.registry import make_spec
from studio.cli import app
from tests.support import BASE
from tests.tolerances import relative_error
from trainers.sdxl import Base, generate, load_base

LAYERS = "down_blocks.1.attentions.0.proj_in, down_blocks.1.resnets.0.conv1"


@pytest.fixture
def adapter(base: Base, tmp_path: Path) -> Path:
    adapters = attach(base.components, make_spec("lora", rank=8), {"unet": LAYERS})
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    adapters.detach()
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, adapters, AdapterCard(base=BASE, base_hash=base.hash, trigger="sks"))
    return path


def invoke(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.output


def changes(base: Base, path: Path) -> dict[str, torch.Tensor]:
    adapters: AdapterSet = attach_file(base.components, path, base.hash)
    adapters.detach()
    return {name: a.delta_weight(a.site.weight.detach()).detach() for name, a in adapters.adapters.items()}


def picture(base: Base) -> bytes:
    (made,) = generate(base, ["a photo of a sks dog"], seeds=[0], inference_steps=2)
    return made.tobytes()


def test_resizing_keeps_the_largest_singular_values_and_says_what_is_lost(base: Base, adapter: Path, tmp_path: Path):
    code, said = invoke("resize", adapter, "--rank", 3, "--out", tmp_path / "small.safetensors")
    assert code == 0 and "is left out" in said, said
    assert read_header(tmp_path / "small.safetensors").card.trigger == "sks"
    whole, small = changes(base, adapter), changes(base, tmp_path / "small.safetensors")
    for name, change in whole.items():
        u, s, vt = torch.linalg.svd(change.flatten(1), full_matrices=False)
        assert relative_error(small[name].flatten(1), (u[:, :3] * s[:3]) @ vt[:3]) < 1e-4


def test_resizing_to_more_loses_nothing(base: Base, adapter: Path, tmp_path: Path):
    code, said = invoke("resize", adapter, "--rank", 16, "--out", tmp_path / "same.safetensors")
    assert code == 0 and "nothing is lost" in said
    whole, same = changes(base, adapter), changes(base, tmp_path / "same.safetensors")
    assert all(relative_error(same[name], change) < 1e-6 for name, change in whole.items())


def test_what_is_merged_draws_the_same_and_is_extracted_again(base: Base, adapter: Path, tmp_path: Path):
    model, back = tmp_path / "model", tmp_path / "back.safetensors"
    code, said = invoke("merge", adapter, "--strength", 0.5, "--out", model)
    assert code == 0, said
    attached = attach_file(base.components, adapter, base.hash)
    attached.strength = 0.5
    expected = picture(base)
    attached.detach()
    found = picture(load_base(str(model)))
    assert sum(abs(a - b) > 8 for a, b in zip(found, expected, strict=True)) < 0.01 * len(found)  # weights are fp16
    assert invoke("merge", adapter, "--out", model)[0] != 0  # a model is not written over

    code, said = invoke("extract", model, BASE, "--rank", 8, "--targets", LAYERS, "--out", back)
    assert code == 0, said
    for name, change in changes(base, back).items():
        assert relative_error(change, 0.5 * changes(base, adapter)[name]) < 0.05
    code, said = invoke("extract", BASE, BASE, "--out", tmp_path / "nothing.safetensors")
    assert code != 0 and "does not differ" in said


def test_biases_and_norms_are_extracted_and_survive_resizing(base: Base, tmp_path: Path):
    tuned = tmp_path / "tuned"
    other = load_base(BASE)
    with torch.no_grad():
        other.unet.get_submodule("conv_norm_out").get_parameter("weight").add_(0.25)
        other.unet.get_submodule("conv_in").get_parameter("bias").add_(0.5)
        other.unet.get_submodule("conv_in").get_parameter("weight").add_(0.01)
    other.pipe.save_pretrained(tuned)
    code, said = invoke("extract", tuned, BASE, "--out", tmp_path / "a.safetensors")
    assert code == 0 and "1 layers" in said and "2 biases and norms" in said, said
    assert invoke("resize", tmp_path / "a.safetensors", "--rank", 1, "--out", tmp_path / "b.safetensors")[0] == 0
    for path in (tmp_path / "a.safetensors", tmp_path / "b.safetensors"):
        adapters = attach_file(base.components, path, base.hash)
        assert torch.allclose(base.unet.conv_norm_out.weight, other.unet.conv_norm_out.weight, atol=1e-6)
        assert torch.allclose(base.unet.conv_in.bias, other.unet.conv_in.bias, atol=1e-6)
        adapters.detach()
    code, said = invoke("extract", tuned, BASE, "--targets", "conv_in", "--out", tmp_path / "c.safetensors")
    assert "1 biases and norms" in said, said
