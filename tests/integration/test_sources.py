"""Bases in every form that users have: folder, single file, hub id; and what is no SDXL base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from adapters.errors import FileFormatError, MismatchError, MissingError
from tests.sgm import save_single_file
from tests.support import BASE
from trainers import sources
from trainers.sdxl import Base, generate, load_base
from trainers.sources import EMBEDDED, VOCABULARY, clip_tokenizer, find_source
from trainers.text import split_tokens, token_count


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base(BASE)


def picture(base: Base) -> bytes:
    (made,) = generate(base, ["a photo of a dog on a red background"], seeds=[0], inference_steps=3)
    return made.tobytes()


def alike(first: Base, second: Base) -> bool:
    """Within two of 255 levels: weights mapped from a file lie elsewhere in memory, which moves the last bits."""
    return max(abs(a - b) for a, b in zip(picture(first), picture(second), strict=True)) <= 2


def test_a_single_checkpoint_file_is_the_same_base_as_its_folder(base: Base, tmp_path: Path):
    file = save_single_file(base.pipe, tmp_path / "checkpoint.safetensors")
    single = load_base(str(file))
    for name, tensor in base.unet.state_dict().items():
        assert torch.equal(tensor.half(), single.unet.state_dict()[name].half()), name
    assert alike(single, base)


def test_a_folder_elsewhere_is_the_same_base(base: Base, tmp_path: Path):
    folder = tmp_path / "copy"
    base.pipe.save_pretrained(folder)
    assert alike(load_base(str(folder)), base)


def test_a_checkpoint_that_says_so_predicts_velocity(base: Base, tmp_path: Path):
    file = save_single_file(base.pipe, tmp_path / "v.safetensors")
    save_file({**load_file(file), "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, file)
    single = load_base(str(file))
    assert single.prediction_type == "v_prediction" and single.pipe.scheduler.config["rescale_betas_zero_snr"]


def test_a_folder_without_safetensors_is_refused(base: Base, tmp_path: Path):
    base.pipe.save_pretrained(tmp_path)
    for weights in (tmp_path / "text_encoder").glob("*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(FileFormatError, match=r"lacks \.safetensors"):
        load_base(str(tmp_path))


def test_a_hub_id_is_downloaded_and_loaded_like_a_folder(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    snapshot = tmp_path / "snapshot"
    base.pipe.save_pretrained(snapshot)
    asked: list[str] = []

    def download(name: str, **_: object) -> str:
        asked.append(name)
        return str(snapshot)

    monkeypatch.setattr(StableDiffusionXLPipeline, "download", download)
    assert alike(load_base("someone/some-sdxl"), base)
    assert asked == ["someone/some-sdxl"]


def test_a_hub_without_connection_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    def offline(*_: object, **__: object) -> str:
        raise OSError("no connection")

    monkeypatch.setattr(StableDiffusionXLPipeline, "download", offline)
    with pytest.raises(MissingError, match="no connection") as caught:
        load_base("someone/some-sdxl")
    assert "local folder" in caught.value.fix


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/no/where", "nowhere.safetensors", "a/b/c"])
def test_a_base_that_is_not_there_is_missed(name: str):
    with pytest.raises(MissingError, match="no base model"):
        load_base(name)


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path):
    with pytest.raises(MissingError, match=r"model_index\.json"):
        load_base(str(tmp_path))


def test_a_folder_of_another_pipeline_is_refused_by_its_name(tmp_path: Path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(MismatchError, match="FluxPipeline, not Stable Diffusion XL"):
        load_base(str(tmp_path))


def test_a_stable_diffusion_1_checkpoint_is_refused(tmp_path: Path):
    file = tmp_path / "sd15.safetensors"
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3)}, file)
    with pytest.raises(MismatchError, match="not SDXL"):
        load_base(str(file))


def test_a_file_without_a_unet_is_refused(tmp_path: Path):
    file = tmp_path / "lora.safetensors"
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(1)}, file)
    with pytest.raises(MismatchError, match="no Stable Diffusion UNet"):
        load_base(str(file))


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_a_pickle_is_never_opened(tmp_path: Path, suffix: str):
    file = tmp_path / f"model{suffix}"
    file.write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(FileFormatError, match=r"not a \.safetensors file"):
        load_base(str(file))


def test_a_damaged_file_is_refused_in_words(tmp_path: Path):
    file = tmp_path / "broken.safetensors"
    file.write_bytes(b"\x00" * 64)
    with pytest.raises(FileFormatError, match="damaged"):
        load_base(str(file))


def test_a_folder_whose_weights_are_cut_off_is_refused_in_words(base: Base, tmp_path: Path):
    folder = tmp_path / "cut"
    base.pipe.save_pretrained(folder)
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(FileFormatError, match="could not be loaded"):
        load_base(str(folder))


def test_the_hash_of_a_base_is_that_of_its_weights_wherever_they_lie(base: Base, tmp_path: Path):
    source = EMBEDDED if BASE == "embedded" else Path(BASE)
    shutil.copytree(source, tmp_path / "moved")
    assert load_base(str(tmp_path / "moved")).hash == base.hash


def test_the_sdxl_layout_s_tokenizer_is_clip_s():
    tokenizer = clip_tokenizer(VOCABULARY, "!")
    assert len(tokenizer) == 49408
    ids = tokenizer("a photo of an astronaut riding a horse").input_ids
    assert ids == [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 49407]
    assert tokenizer("", padding="max_length", max_length=4).input_ids == [49406, 49407, 0, 0]


def test_a_trigger_is_one_token_on_sdxl_and_pieces_on_the_embedded_base(base: Base):
    assert split_tokens(clip_tokenizer(VOCABULARY, "!"), "sks") == ["sks"]
    assert "".join(split_tokens(base.pipe.tokenizer, "sks")) == "sks"
    assert token_count(base.pipe.tokenizer, "sks") == len(split_tokens(base.pipe.tokenizer, "sks"))


def test_a_half_precision_variant_is_preferred(base: Base, tmp_path: Path):
    base.pipe.save_pretrained(tmp_path, variant="fp16")
    source = find_source(str(tmp_path))
    assert source.variant == "fp16" and len(source.weight_files) == 3
    assert sources.load_pipeline(source, torch.float32).unet.dtype == torch.float32
