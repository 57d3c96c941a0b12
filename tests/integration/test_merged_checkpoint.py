"""`studio export --format merged-checkpoint`: one file in Stability's layout, with the adapter in its weights."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
    infer_diffusers_model_type,
)
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from typer.testing import CliRunner

from adapters.adapter_set import AdapterSet
from adapters.errors import FileFormatError
from adapters.files import AdapterCard, save_adapter
from adapters.formats.export import Source, export, find_format
from adapters.formats.open import attach_any, open_adapter
from adapters.formats.sgm import checkpoint_pieces
from adapters.formats.writers.checkpoint import MergedModel
from adapters.inject import attach, base_hash
from adapters.registry import make_spec
from adapters.safe import read_safe_header
from studio.cli import app
from tests.formats import LAYER, SGM_LAYER, Components, latents, trained, written
from tests.sgm import save_single_file
from tests.support import BASE
from tests.tolerances import relative_error, same_bits
from trainers.outline import networks_at
from trainers.sdxl import Base, load_base
from trainers.sources import SDXL_LAYOUT

TARGETS = {"unet": "linear, conv", "text_encoder": "all", "text_encoder_2": "all"}
FORM = "merged-checkpoint"


@pytest.fixture(scope="module")
def parts(base: Base) -> Components:
    return {**base.components, "vae": base.vae}


def save(
    path: Path, adapters: AdapterSet, parts: Components, card: AdapterCard, dtype: torch.dtype = torch.float32
) -> Path:
    done = export(path, adapters, parts, card, find_format(FORM), dtype=dtype)
    assert done.error == 0
    return path


@pytest.mark.parametrize("method", ["lora", "oft", "dora"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 5e-3)], ids=["fp32", "fp16"])
def test_loaded_back_it_gives_the_unmerged_adapter_s_latents(
    base: Base, parts: Components, tmp_path: Path, method: str, dtype: torch.dtype, tolerance: float
):
    """UNet and both text encoders; relative to the largest. fp16 rounds every weight once."""
    adapters = trained(dict(base.components), method, TARGETS)
    path = save(tmp_path / "model.safetensors", adapters, parts, AdapterCard(), dtype)
    adapters.attach()
    expected = latents(base.pipe)
    adapters.detach()
    assert relative_error(latents(load_base(str(path)).pipe), expected) < tolerance
    assert relative_error(latents(base.pipe), expected) > 0.1


def test_without_a_change_it_is_the_file_that_the_layout_s_rules_make(base: Base, parts: Components, tmp_path: Path):
    """tests/sgm.py writes the same layout by rules of its own."""
    nothing = attach(base.components, make_spec("lora", rank=1), {"unet": LAYER})
    nothing.detach()
    path = save(tmp_path / "ours.safetensors", nothing, parts, AdapterCard(), torch.float16)
    ours, theirs = load_file(path), load_file(save_single_file(base.pipe, tmp_path / "theirs.safetensors"))
    assert ours.keys() == theirs.keys()
    assert all(same_bits(ours[name], theirs[name]) for name in theirs)


def test_exporting_changes_nothing_of_the_base(base: Base, parts: Components, tmp_path: Path):
    digest = base_hash(parts)
    save(tmp_path / "m.safetensors", trained(dict(base.components), "lora", rank=2), parts, AdapterCard())
    assert base_hash(parts) == digest


def test_it_is_a_safetensors_file_that_says_what_it_is(base: Base, parts: Components, tmp_path: Path):
    card = AdapterCard(trigger="sks", prediction_type="v_prediction", zero_terminal_snr=True)
    path = save(tmp_path / "m.safetensors", trained(dict(base.components), "lora", rank=2), parts, card, torch.bfloat16)
    metadata, shapes = read_safe_header(path)
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    assert start % 8 == 0 and metadata["modelspec.hash_sha256"] == f"0x{hashlib.sha256(raw[start:]).hexdigest()}"
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert metadata["modelspec.prediction_type"] == "v" and {"v_pred", "ztsnr"} <= shapes.keys()
    with safe_open(path, "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_biases_and_norms_of_another_program_s_file_go_in_and_its_words_are_said_to_be_left_out(
    base: Base, parts: Components, tmp_path: Path
):
    norm = {"lora_unet_out_0.w_norm": torch.full((64,), 0.5), "lora_unet_out_0.b_norm": torch.zeros(64)}
    words = {"bundle_emb.zwx.clip_l": torch.ones(1, 128)}
    source = written(tmp_path, {f"{SGM_LAYER}.diff": torch.zeros(128, 128), **norm, **words})
    adapters = attach_any(base.components, open_adapter(source), "")
    adapters.detach()
    done = export(tmp_path / "m.safetensors", adapters, parts, AdapterCard(), find_format(FORM), dtype=torch.float32)
    assert done.left_out == ("zwx",)
    found = load_file(tmp_path / "m.safetensors")["model.diffusion_model.out.0.weight"]
    assert torch.equal(found, base.unet.conv_norm_out.weight + 0.5)


@pytest.mark.parametrize("kind", ["diff", "lokr", "oft", "dora"])
def test_another_program_s_change_goes_in_whole_whatever_its_rank(base: Base, tmp_path: Path, kind: str):
    """Where sampling with the file keeps 64 singular values, a merged model keeps all."""
    weight, pair = (
        base.unet.get_submodule(LAYER).get_parameter("weight").detach(),
        (torch.randn(128, 2), torch.randn(2, 128)),
    )
    found: dict[str, Tensor] = {
        "diff": {"diff": torch.randn(128, 128)},
        "lokr": {"lokr_w1": torch.randn(8, 8), "lokr_w2": torch.randn(16, 16)},
        "oft": {"oft_blocks": torch.randn(4, 32, 32)},
        "dora": {"lora_up.weight": pair[0], "lora_down.weight": pair[1], "dora_scale": 1 + torch.rand(1, 128)},
    }[kind]
    path = written(tmp_path, {f"{SGM_LAYER}.{name}": tensor for name, tensor in found.items()})
    adapters = attach_any(base.components, open_adapter(path), "", rank=128)
    expected = weight + adapters.adapters[f"unet.{LAYER}"].delta_weight(weight)
    adapters.detach()
    out, folder = tmp_path / "m.safetensors", tmp_path / "folder"
    words = ["export", str(path), "--format", FORM, "--dtype", "fp32", "--base", BASE, "--out", str(out)]
    assert CliRunner().invoke(app, words).exit_code == 0
    name = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"
    assert relative_error(load_file(out)[name], expected) < 1e-4
    assert CliRunner().invoke(app, ["merge", str(path), "--base", BASE, "--out", str(folder)]).exit_code == 0
    merged = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")[f"{LAYER}.weight"]
    assert relative_error(merged, expected) < 2e-3  # fp16


def test_what_overflows_the_storage_type_is_refused_and_no_file_is_left(base: Base, parts: Components, tmp_path: Path):
    adapters = trained(dict(base.components), "lora", rank=2)
    with torch.no_grad():
        adapters.parameters()[0].fill_(1e5)
        adapters.parameters()[1].fill_(1e5)
    with pytest.raises(FileFormatError, match="infinity"):
        save(tmp_path / "m.safetensors", adapters, parts, AdapterCard(), torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_it_and_says_who_loads_it(base: Base, tmp_path: Path):
    card = AdapterCard(base=BASE, base_hash=base.hash, trigger="sks")
    save_adapter(tmp_path / "a.safetensors", trained(dict(base.components), "lora", rank=4), card)
    out = tmp_path / "model.safetensors"
    result = CliRunner().invoke(
        app, ["export", str(tmp_path / "a.safetensors"), "--format", FORM, "--out", str(out), "--dtype", "bf16"]
    )
    assert result.exit_code == 0, result.output
    assert "Exact" in result.output and "by from_single_file" in result.output
    assert "model.diffusion_model.out.2.weight" in read_safe_header(out)[1]


# --- SDXL itself, on the meta device ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sdxl() -> dict[str, nn.Module]:
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(SDXL_LAYOUT / "vae"))
    return {**networks_at(SDXL_LAYOUT), "vae": vae}


@pytest.fixture(scope="module")
def checkpoint(sdxl: dict[str, nn.Module]) -> dict[str, Tensor]:
    """An SDXL checkpoint with a LoRA on every layer, without numbers."""
    targets = dict.fromkeys(("unet", "text_encoder", "text_encoder_2"), "all")
    adapters = attach(sdxl, make_spec("lora", rank=4), targets)
    adapters.detach()
    merged = MergedModel(Source(adapters, sdxl, AdapterCard()))
    made = {name: merged.streamed(piece) for name, piece in checkpoint_pieces(merged.names()).items()}
    for streamed in made.values():
        assert streamed.make().shape == streamed.shape
    return {name: torch.empty(streamed.shape, device="meta") for name, streamed in made.items()}


def shapes(tensors: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def stripped(tensors: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix("text_model."): shape for name, shape in shapes(tensors).items()}


def test_diffusers_converts_every_tensor_of_an_sdxl_checkpoint_to_the_right_name_and_shape(
    sdxl: dict[str, Any], checkpoint: dict[str, Tensor]
):
    unet = convert_ldm_unet_checkpoint(dict(checkpoint), dict(sdxl["unet"].config))
    assert shapes(unet) == shapes(sdxl["unet"].state_dict())
    vae = convert_ldm_vae_checkpoint(dict(checkpoint), dict(sdxl["vae"].config))
    own = {n: s[:2] if "attentions.0.to_" in n else s for n, s in shapes(sdxl["vae"].state_dict()).items()}
    assert {n: s[:2] if "attentions.0.to_" in n else s for n, s in shapes(vae).items()} == own
    one = convert_ldm_clip_checkpoint(dict(checkpoint))
    assert stripped(one) == stripped(sdxl["text_encoder"].state_dict())
    two = convert_open_clip_checkpoint(sdxl["text_encoder_2"], dict(checkpoint), "conditioner.embedders.1.model.")
    assert stripped(two) == stripped(sdxl["text_encoder_2"].state_dict())


def test_an_sdxl_checkpoint_has_the_tensors_of_stability_s_own_but_for_two_that_no_one_reads(
    checkpoint: dict[str, Tensor],
):
    """Left out are position_ids of the first encoder and logit_scale of the second."""
    parts = Counter(
        name.split(".", 3)[2] if name.startswith("conditioner") else name.split(".")[0] for name in checkpoint
    )
    assert parts == {"model": 1680, "first_stage_model": 248, "0": 196, "1": 389}
    odd = {
        "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_weight": (3840, 1280),
        "conditioner.embedders.1.model.text_projection": (1280, 1280),
        "first_stage_model.encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "model.diffusion_model.middle_block.1.transformer_blocks.9.attn2.to_k.weight": (1280, 2048),
    }
    assert {name: tuple(checkpoint[name].shape) for name in odd} == odd


def test_diffusers_takes_it_for_an_sdxl_base(checkpoint: dict[str, Tensor]):
    assert infer_diffusers_model_type(checkpoint) == "xl_base"
