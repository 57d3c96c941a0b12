"""Other programs' files: every spelling read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from adapters.errors import MismatchError
from adapters.formats.foreign import read_foreign
from adapters.formats.names import kohya_names
from adapters.formats.open import attach_any, open_adapter
from tests.formats import CONV, LAYER, SGM_CONV, SGM_LAYER, Components, change, read, trained, written
from tests.tolerances import FP32, relative_error


@pytest.mark.parametrize(
    ("stem", "down", "up"),
    [
        (SGM_LAYER, "lora_down.weight", "lora_up.weight"),
        ("lora_unet_" + LAYER.replace(".", "_"), "lora_down.weight", "lora_up.weight"),
        (f"unet.{LAYER}", "lora_A.weight", "lora_B.weight"),
        (f"unet.{LAYER}", "lora.down.weight", "lora.up.weight"),
        (f"base_model.model.{LAYER}", "lora_A.default.weight", "lora_B.default.weight"),
        ("diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q", "lora_down.weight", "lora_up.weight"),
    ],
)
def test_a_lora_is_read_in_every_spelling(components: Components, tmp_path: Path, stem: str, down: str, up: str):
    a, b = torch.randn(3, 128), torch.randn(128, 3)
    tensors = {f"{stem}.{down}": a, f"{stem}.{up}": b, f"{stem}.alpha": torch.tensor(6.0)}
    (adapter,) = read(components, written(tmp_path, tensors)).adapters.values()
    assert adapter.site.name == f"unet.{LAYER}"
    assert relative_error(change(adapter), 2 * b @ a) < FP32


def test_without_an_alpha_it_is_the_rank(components: Components, tmp_path: Path):
    a, b = torch.randn(3, 128), torch.randn(128, 3)
    tensors = {f"{SGM_LAYER}.lora_down.weight": a, f"{SGM_LAYER}.lora_up.weight": b}
    (adapter,) = read(components, written(tmp_path, tensors)).adapters.values()
    assert relative_error(change(adapter), b @ a) < FP32


def test_a_tucker_core_of_a_convolution_is_folded_in(components: Components, tmp_path: Path):
    down, mid, up = torch.randn(4, 64, 1, 1), torch.randn(4, 4, 3, 3), torch.randn(128, 4, 1, 1)
    parts = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up}
    path = written(tmp_path, {f"{SGM_CONV}.{name}": tensor for name, tensor in parts.items()})
    (adapter,) = read(components, path).adapters.values()
    expected = torch.einsum("dp,pqhw,qc->dchw", up.flatten(1), mid, down.flatten(1))
    assert relative_error(change(adapter), expected) < FP32


@pytest.mark.parametrize("shape", [(128,), (128, 1)])
def test_a_dora_of_the_output_stays_a_dora(components: Components, tmp_path: Path, shape: tuple[int, ...]):
    adapters = trained(components, "dora", {"unet": LAYER}, rank=4)
    (adapter,) = adapters.adapters.values()
    parts = {
        "lora_down.weight": adapter.get_parameter("inner.down"),
        "lora_up.weight": adapter.get_parameter("inner.up"),
        "dora_scale": adapter.get_parameter("magnitude").reshape(shape),
    }
    path = written(tmp_path, {f"{SGM_LAYER}.{name}": tensor.detach() for name, tensor in parts.items()})
    found = read(components, path)
    assert found.spec.method == "dora"
    assert relative_error(change(found.adapters[f"unet.{LAYER}"]), change(adapter)) < FP32


def test_a_dora_of_the_input_is_told_by_its_difference(components: Components, tmp_path: Path):
    weight = components["unet"].get_submodule(LAYER).get_parameter("weight").detach()
    a, b, scale = 0.1 * torch.randn(3, 128), 0.1 * torch.randn(128, 3), 1 + torch.rand(1, 128)
    parts = {"lora_down.weight": a, "lora_up.weight": b, "dora_scale": scale}
    path = written(tmp_path, {f"{SGM_LAYER}.{name}": tensor for name, tensor in parts.items()})
    (adapter,) = read(components, path, rank=128).adapters.values()
    moved = weight + b @ a
    assert relative_error(change(adapter), moved * scale / moved.norm(dim=0, keepdim=True) - weight) < 1e-4


@pytest.mark.parametrize(("method", "knobs"), [("lokr", {"rank": 64}), ("lokr", {"rank": 2}), ("loha", {"rank": 2})])
@pytest.mark.parametrize(("layer", "stem"), [(LAYER, SGM_LAYER), (CONV, SGM_CONV)])
def test_lokr_and_loha_files_are_read(
    components: Components, tmp_path: Path, method: str, knobs: dict[str, int], layer: str, stem: str
):
    (adapter,) = trained(components, method, {"unet": layer}, **knobs).adapters.values()
    prefix = "lokr_" if method == "lokr" else "hada_"
    tensors = {f"{stem}.{prefix}{name}": tensor.detach() for name, tensor in adapter.named_parameters()}
    tensors[f"{stem}.alpha"] = torch.tensor(float(knobs["rank"]))
    (found,) = read(components, written(tmp_path, tensors), rank=1000).adapters.values()
    assert relative_error(change(found), change(adapter)) < 1e-4


def test_a_whole_difference_is_read_and_its_loss_told(components: Components, tmp_path: Path):
    difference = torch.randn(128, 128)
    path = written(tmp_path, {f"{SGM_LAYER}.diff": difference})
    (whole,) = read(components, path, rank=128).adapters.values()
    assert relative_error(change(whole), difference) < 1e-4
    assert "leaves out" in (read(components, path, rank=8).warning or "")


def test_layers_that_the_base_lacks_are_counted_and_a_file_of_another_model_is_refused(
    components: Components, tmp_path: Path
):
    pair = {"lora_down.weight": torch.randn(2, 128), "lora_up.weight": torch.randn(128, 2)}
    strange = "lora_unet_input_blocks_77_1_proj_in"
    tensors = {f"{stem}.{name}": t for stem in (SGM_LAYER, strange) for name, t in pair.items()}
    assert strange in (read(components, written(tmp_path, tensors)).warning or "")
    with pytest.raises(MismatchError, match="another kind of model"):
        read(components, written(tmp_path, {f"{strange}.{name}": t for name, t in pair.items()}))


def test_what_kohya_s_header_says_is_kept(tmp_path: Path):
    tags = json.dumps({"10_sks": {"sks dog": 12, "grass": 3}})
    path = written(tmp_path, {f"{SGM_LAYER}.diff": torch.zeros(2, 2)}, {"ss_tag_frequency": tags})
    assert read_foreign(path).card.trigger == "sks dog"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"unet.lora_alpha": 12}, 4.0),
        ({"unet.lora_alpha": 12, "unet.use_rslora": True}, 12 / 3**0.5),
        ({"unet.lora_alpha": 12, "unet.alpha_pattern": {"transformer_blocks.0.attn1.to_q": 6}}, 2.0),
        ({"text_encoder.lora_alpha": 12}, 1.0),
        ({"unet.lora_alpha": "many"}, 1.0),
    ],
    ids=["alpha", "rslora", "pattern", "another part's", "no number"],
)
def test_diffusers_says_alpha_in_the_header(
    components: Components, tmp_path: Path, options: dict[str, object], expected: float
):
    a, b = torch.randn(3, 128), torch.randn(128, 3)
    tensors = {f"unet.{LAYER}.lora_A.weight": a, f"unet.{LAYER}.lora_B.weight": b}
    path = written(tmp_path, tensors, {"lora_adapter_metadata": json.dumps(options)})
    (adapter,) = read(components, path).adapters.values()
    assert relative_error(change(adapter), expected * b @ a) < FP32


def test_peft_says_alpha_in_a_file_beside(components: Components, tmp_path: Path):
    """The same that peft's own model computes."""
    a, b = torch.randn(3, 128), torch.randn(128, 3)
    tensors = {f"base_model.model.{LAYER}.lora_A.weight": a, f"base_model.model.{LAYER}.lora_B.weight": b}
    path = written(tmp_path, tensors).rename(tmp_path / "adapter_model.safetensors")
    for config, expected in ((LoraConfig(r=3, lora_alpha=6), 2.0), (None, 1.0)):
        (tmp_path / "adapter_config.json").write_text("broken") if config is None else config.save_pretrained(tmp_path)
        (adapter,) = read(components, path).adapters.values()
        assert relative_error(change(adapter), expected * b @ a) < FP32


B_LORA = {
    "the paper's script": ("unet.{}", ".lora.down.weight", ".lora.up.weight"),
    "diffusers": ("unet.{}", ".lora_A.weight", ".lora_B.weight"),
    "kohya": ("lora_unet_{}", ".lora_down.weight", ".lora_up.weight"),
}


@pytest.mark.parametrize(("stem", "down", "up"), B_LORA.values(), ids=B_LORA)
def test_b_lora_files_are_read_and_their_parts_chosen(
    components: Components, tmp_path: Path, stem: str, down: str, up: str
):
    """B-LoRA (arXiv 2403.14572) trains the attentions of the first two transformers of up_blocks.0."""
    paths = [
        f"up_blocks.0.attentions.{n}.transformer_blocks.0.attn{k}.to_{x}" for n in (0, 1) for k in (1, 2) for x in "qkv"
    ]
    sgm = kohya_names("unet", components["unet"])
    tensors: dict[str, Tensor] = {}
    for path in paths:
        rows, columns = components["unet"].get_submodule(path).get_parameter("weight").shape
        name = sgm[path] if stem.startswith("lora") else stem.format(path)
        tensors |= {f"{name}{down}": torch.randn(2, columns), f"{name}{up}": torch.randn(rows, 2)}
    file = open_adapter(written(tmp_path, tensors))
    for part, number in (("content", 0), ("style", 1)):
        adapters = attach_any(components, file, "", part)
        hooked = {name for name, a in adapters.adapters.items() if a.site.module._forward_hooks}
        adapters.detach()
        assert adapters.warning is None and len(adapters.adapters) == 12
        assert hooked == {f"unet.{path}" for path in paths if f"attentions.{number}." in path}
