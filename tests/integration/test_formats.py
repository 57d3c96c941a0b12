"""Other programs' files: every spelling read, and stock diffusers reading ours."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from adapters.adapter_set import AdapterSet
from adapters.base import Adapter
from adapters.errors import MismatchError, StudioError
from adapters.files import AdapterCard, save_adapter
from adapters.formats.export import export, find_format
from adapters.formats.foreign import read_foreign
from adapters.formats.open import attach_any, open_adapter
from adapters.inject import attach
from adapters.registry import make_spec
from studio.cli import app
from tests.support import BASE
from tests.tolerances import FP32, relative_error
from trainers.sdxl import Base
from trainers.sources import EMBEDDED

Components = dict[str, nn.Module]
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.1.resnets.0.conv1"
SGM_LAYER = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
SGM_CONV = "lora_unet_input_blocks_4_0_in_layers_2"


@pytest.fixture(scope="module")
def components(base: Base) -> Components:
    return dict(base.components)


def trained(components: Components, method: str = "lora", targets: dict[str, str] | None = None, **knobs) -> AdapterSet:
    adapters = attach(components, make_spec(method, **knobs), targets or {"unet": f"{LAYER}, {CONV}"})
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws))
    adapters.detach()
    return adapters.eval()


def change(adapter: Adapter) -> Tensor:
    return adapter.delta_weight(adapter.site.weight.detach()).detach()


def written(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path = folder / "foreign.safetensors"
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def read(components: Components, path: Path, rank: int = 64) -> AdapterSet:
    adapters = attach_any(components, open_adapter(path), "", rank=rank)
    adapters.detach()
    return adapters


# --- reading ----------------------------------------------------------------------------------------------------


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


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": 1}))


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("weights", b"\0" * 10_000_000)


def _huge_header(path: Path) -> None:
    path.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")


def _truncated(path: Path) -> None:
    save_file({f"{SGM_LAYER}.diff": torch.zeros(128, 128)}, path)
    path.write_bytes(path.read_bytes()[:-100])


def _nan(path: Path) -> None:
    save_file({f"{SGM_LAYER}.diff": torch.full((128, 128), float("nan"))}, path)


def _wrong_shape(path: Path) -> None:
    save_file(
        {f"{SGM_LAYER}.lora_down.weight": torch.ones(2, 5), f"{SGM_LAYER}.lora_up.weight": torch.ones(7, 2)}, path
    )


def _half(path: Path) -> None:
    save_file({f"{SGM_LAYER}.lora_down.weight": torch.ones(2, 128)}, path)


def _nothing(path: Path) -> None:
    save_file({"weights": torch.ones(2)}, path)


@pytest.mark.parametrize("make", [_pickle, _zip, _huge_header, _truncated, _nan, _wrong_shape, _half, _nothing])
def test_broken_and_hostile_files_end_in_a_clear_refusal(
    components: Components, tmp_path: Path, make: Callable[[Path], None]
):
    path = tmp_path / "file.safetensors"
    make(path)
    with pytest.raises(StudioError) as refused:
        read(components, path)
    assert refused.value.what and refused.value.fix


# --- writing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["diffusers", "kohya", "lokr"])
@pytest.mark.parametrize("method", ["lora", "spectral-a", "lora-dash", "glora"])
def test_a_round_trip_loses_nothing_where_the_method_has_factors(
    components: Components, tmp_path: Path, form: str, method: str
):
    targets = {"unet": f"{LAYER}, {CONV}", "text_encoder_2": "attention"}
    adapters = trained(components, method, targets, rank=4)
    path = tmp_path / "out.safetensors"
    done = export(path, adapters, components, AdapterCard(), find_format(form), dtype=torch.float32)
    assert done.error == 0 and not done.left_out
    found = read(components, path)
    assert set(found.adapters) == set(adapters.adapters)
    for name, adapter in adapters.adapters.items():
        assert relative_error(change(found.adapters[name]), change(adapter)) < FP32


@pytest.mark.parametrize(
    ("method", "knobs"),
    [
        ("krona", {"factor": 4, "alpha": 3.0, "rank": 2}),
        ("krona", {"factor": 4, "second": "low-rank", "rank": 2, "alpha": 3.0}),
        ("lokr", {"rank": 2, "alpha": 1.0, "decompose_both": True}),
        ("lokr", {"rank": 2, "tucker": True}),
        ("lokr", {"rank": 1000, "alpha": 500.0}),
    ],
)
def test_kronecker_products_stay_so_in_a_lokr_file(
    components: Components, tmp_path: Path, method: str, knobs: dict[str, object]
):
    adapters = trained(components, method, **knobs)
    path = tmp_path / "out.safetensors"
    done = export(path, adapters, components, AdapterCard(), find_format("lokr"), dtype=torch.float32)
    assert done.error == 0 and any("lokr_w1" in name for name in load_file(path))
    found = read(components, path, rank=1000)
    for name, adapter in adapters.adapters.items():
        assert relative_error(change(found.adapters[name]), change(adapter)) < 1e-4


def test_what_has_no_factors_is_told_by_a_rank_and_says_its_error(components: Components, tmp_path: Path):
    adapters = trained(components, "oft", {"unet": LAYER})
    path = tmp_path / "out.safetensors"
    found = [
        export(path, adapters, components, AdapterCard(), find_format("kohya"), rank=rank, dtype=torch.float32).error
        for rank in (8, 128)
    ]
    assert found[0] > 0.01 > found[1]
    (adapter,), (read_back,) = adapters.adapters.values(), read(components, path).adapters.values()
    assert relative_error(change(read_back), change(adapter)) < 1e-3


def test_the_kohya_header_is_one_that_a1111_takes_for_sdxl(components: Components, tmp_path: Path):
    from adapters.safe import read_safe_header

    path = tmp_path / "out.safetensors"
    card = AdapterCard(trigger="sks", steps=5, resolution=1024)
    export(path, trained(components, rank=4), components, card, find_format("kohya"))
    metadata, shapes = read_safe_header(path)
    assert metadata["ss_base_model_version"].startswith("sdxl_")
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert metadata["ss_network_dim"] == "4" and "sks" in metadata["ss_tag_frequency"]
    assert shapes[f"{SGM_CONV}.lora_down.weight"] == (4, 64, 3, 3)
    assert shapes[f"{SGM_CONV}.lora_up.weight"] == (128, 4, 1, 1) and shapes[f"{SGM_CONV}.alpha"] == ()


TARGETS = [
    ("kohya", {"unet": "attention", "text_encoder": "attention", "text_encoder_2": "attention"}),
    ("diffusers", {"unet": "linear, conv", "text_encoder": "attention", "text_encoder_2": "linear"}),
]


@pytest.mark.parametrize(("form", "targets"), TARGETS, ids=[form for form, _ in TARGETS])
def test_stock_diffusers_gives_our_latents_from_an_exported_file(
    base: Base, tmp_path: Path, form: str, targets: dict[str, str]
):
    """Text encoders and UNet through load_lora_weights, against our unmerged adapter, in fp32."""
    adapters = trained(dict(base.components), "spectral-a", targets, rank=4)
    path = tmp_path / "out.safetensors"
    export(path, adapters, base.components, AdapterCard(), find_format(form), dtype=torch.float32)
    adapters.attach()
    expected = latents(base.pipe)
    adapters.detach()
    bare = latents(base.pipe)
    stock = StableDiffusionXLPipeline.from_pretrained(EMBEDDED, torch_dtype=torch.float32)
    stock.load_lora_weights(tmp_path, weight_name="out.safetensors")
    assert relative_error(latents(stock), expected) < 1e-3
    assert relative_error(bare, expected) > 1e-2


def latents(pipe: StableDiffusionXLPipeline) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        return pipe(
            "a photo of a sks dog", num_inference_steps=2, generator=torch.Generator().manual_seed(0),
            output_type="latent", return_dict=False,
        )[0]  # fmt: skip


def test_info_tells_what_is_in_another_program_s_file(components: Components, tmp_path: Path):
    path = tmp_path / "out.safetensors"
    export(path, trained(components, rank=4), components, AdapterCard(trigger="sks"), find_format("kohya"))
    result = CliRunner().invoke(app, ["info", str(path)])
    assert result.exit_code == 0
    assert "another program's adapter" in result.output and "2 LoRA" in result.output and "sks" in result.output


def test_the_command_exports_and_says_who_loads_it(components: Components, base: Base, tmp_path: Path):
    card = AdapterCard(base=BASE, base_hash=base.hash, trigger="sks")
    save_adapter(tmp_path / "a.safetensors", trained(components, rank=4), card)
    out = tmp_path / "b.safetensors"
    result = CliRunner().invoke(app, ["export", str(tmp_path / "a.safetensors"), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "Exact" in result.output and "ComfyUI: yes" in result.output
    assert len(load_file(out)) == 6
    for words in (["--format", "khoya"], ["--dtype", "fp8"], ["--out", str(tmp_path / "b.ckpt")]):
        refused = CliRunner().invoke(app, ["export", str(tmp_path / "a.safetensors"), "--out", str(out), *words])
        assert refused.exit_code != 0 and "Traceback" not in refused.output
