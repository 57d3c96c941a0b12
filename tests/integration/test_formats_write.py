"""Files for other programs: nothing is lost, and stock diffusers reads them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from adapters.files import AdapterCard, FusedConcept, save_adapter
from adapters.formats.export import PROGRAMS, export, find_format
from adapters.safe import read_safe_header
from studio.cli import app
from tests.formats import CONV, LAYER, SGM_CONV, SGM_LAYER, Components, change, latents, read, trained, written
from tests.support import BASE
from tests.tolerances import FP32, relative_error
from trainers.sdxl import Base
from trainers.sources import EMBEDDED
from trainers.thumbnail import thumbnail_of


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
    path = tmp_path / "out.safetensors"
    card = AdapterCard(trigger="sks", steps=5, resolution=1024)
    export(path, trained(components, rank=4), components, card, find_format("kohya"))
    metadata, shapes = read_safe_header(path)
    assert metadata["ss_base_model_version"].startswith("sdxl_")
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    raw = path.read_bytes()
    digest = hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()
    assert metadata["modelspec.hash_sha256"] == f"0x{digest}" and metadata["sshs_model_hash"] == digest
    assert metadata["ss_resolution"] == "(1024, 1024)" and metadata["modelspec.resolution"] == "1024x1024"
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
    answers = dict(line.split(maxsplit=1) for line in result.output.splitlines() if line.startswith("    "))
    assert "Exact" in result.output and answers.keys() == set(PROGRAMS) and set(answers.values()) == {"yes"}
    assert len(load_file(out)) == 6
    for words in (["--format", "khoya"], ["--dtype", "fp8"], ["--out", str(tmp_path / "b.ckpt")]):
        refused = CliRunner().invoke(app, ["export", str(tmp_path / "a.safetensors"), "--out", str(out), *words])
        assert refused.exit_code != 0 and "Traceback" not in refused.output


def test_beside_an_export_lie_its_trigger_and_its_picture_for_programs_that_look_there(
    components: Components, base: Base, tmp_path: Path
):
    (tmp_path / "run" / "samples").mkdir(parents=True)
    for step, colour in ((5, "red"), (10, "blue")):
        Image.new("RGB", (600, 300), colour).save(tmp_path / "run" / "samples" / f"step-{step:06d}.png")
    card = AdapterCard(base=BASE, base_hash=base.hash, trigger="sks", class_word="dog")
    card = card.model_copy(update={"thumbnail": thumbnail_of(tmp_path / "run")})
    save_adapter(tmp_path / "a.safetensors", trained(components, rank=4), card)
    command = ["export", str(tmp_path / "a.safetensors"), "--out", str(tmp_path / "b.safetensors")]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert json.loads((tmp_path / "b.json").read_text())["activation text"] == "sks dog"
    with Image.open(tmp_path / "b.jpg") as picture:
        assert picture.size == (256, 128) and picture.getpixel((9, 9))[2] > 200  # the last sample is blue
    url = read_safe_header(tmp_path / "b.safetensors")[0]["modelspec.thumbnail"]
    with Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,")))) as inside:
        assert inside.size == (256, 128)
    (tmp_path / "b.json").write_text("mine")
    assert "left as it is" in CliRunner().invoke(app, command).output
    assert (tmp_path / "b.json").read_text() == "mine"


def test_a_fused_file_s_trigger_names_every_subject(components: Components, base: Base, tmp_path: Path):
    concepts = (FusedConcept(trigger="sks", class_word="dog"), FusedConcept(trigger="zwx"))
    card = AdapterCard(base=BASE, base_hash=base.hash, trigger="sks, zwx", class_word="dog", concepts=concepts)
    save_adapter(tmp_path / "a.safetensors", trained(components, rank=4), card)
    command = ["export", str(tmp_path / "a.safetensors"), "--out", str(tmp_path / "b.safetensors")]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert json.loads((tmp_path / "b.json").read_text())["activation text"] == "sks dog, zwx"
    assert not (tmp_path / "b.jpg").exists()


def test_who_loads_a_file_depends_on_what_is_beside_the_weights_and_plain_leaves_it_out(
    components: Components, tmp_path: Path
):
    tensors = {f"{SGM_LAYER}.diff": torch.eye(128), "bundle_emb.zwx.clip_l": torch.ones(1, 128)}
    path = written(tmp_path, tensors | {"lora_unet_input_blocks_4_1_norm.w_norm": torch.ones(128)})
    for words, refuses in (([], True), (["--plain"], False)):
        out = tmp_path / f"{refuses}.safetensors"
        result = CliRunner().invoke(app, ["export", str(path), "--rank", "128", "--out", str(out), *words])
        assert result.exit_code == 0, result.output
        assert ("no: it refuses embedded words" in result.output) == refuses
        assert ("as asked for: 1 biases and norms, 1 embedded words" in result.output) != refuses
        assert any(name.startswith("bundle_emb") or name.endswith("_norm") for name in load_file(out)) == refuses
