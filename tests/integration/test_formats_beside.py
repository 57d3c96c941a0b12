"""What other programs' files hold beside weights: biases, norms and embedded words act, travel and leave no trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from typer.testing import CliRunner

from adapters.adapter_set import AdapterSet
from adapters.errors import MismatchError
from adapters.files import AdapterCard, attach_file, load_adapter, save_adapter
from adapters.formats.export import export, find_format
from adapters.formats.open import attach_any, open_adapter
from adapters.inject import base_hash
from studio.cli import app
from tests.formats import SGM_LAYER, Components, written
from tests.tolerances import FP32, relative_error, same_bits
from trainers.sdxl import Base, generate

PROJECTION = "down_blocks.1.attentions.0.proj_in"
SGM_PROJECTION = "lora_unet_input_blocks_4_1_proj_in"
GROUP_NORM = "down_blocks.1.attentions.0.norm"
SGM_GROUP_NORM = "lora_unet_input_blocks_4_1_norm"
TEXT_NORM = "lora_te1_text_model_encoder_layers_0_layer_norm1"
PAIR = {f"{SGM_LAYER}.lora_down.weight": torch.zeros(1, 128), f"{SGM_LAYER}.lora_up.weight": torch.zeros(128, 1)}
VECTORS = {
    f"{SGM_PROJECTION}.diff": torch.zeros(128, 128),
    f"{SGM_PROJECTION}.diff_b": torch.linspace(-1, 1, 128),
    f"{SGM_GROUP_NORM}.w_norm": torch.linspace(0, 1, 128),
    f"{SGM_GROUP_NORM}.b_norm": torch.linspace(1, 0, 128),
    f"{TEXT_NORM}.diff": torch.full((128,), 0.5),
}
WORDS = {
    "bundle_emb.zwx.clip_l": torch.linspace(-0.1, 0.1, 256).reshape(2, 128),
    "bundle_emb.zwx.clip_g": torch.linspace(0.1, -0.1, 384).reshape(2, 192),
}


def attached(components: Components, path: Path) -> AdapterSet:
    return attach_any(components, open_adapter(path), "")


def parameters(components: Components) -> dict[str, Tensor]:
    unet, text = components["unet"], components["text_encoder"]
    return {
        "bias": unet.get_submodule(PROJECTION).get_parameter("bias"),
        "scale": unet.get_submodule(GROUP_NORM).get_parameter("weight"),
        "shift": unet.get_submodule(GROUP_NORM).get_parameter("bias"),
        "text": text.get_submodule("encoder.layers.0.layer_norm1").get_parameter("weight"),
    }


def test_biases_and_norms_move_by_what_the_file_says_times_the_strength(components: Components, tmp_path: Path):
    before = {name: tensor.detach().clone() for name, tensor in parameters(components).items()}
    found = attached(components, written(tmp_path, VECTORS))
    moved = {
        "bias": VECTORS[f"{SGM_PROJECTION}.diff_b"],
        "scale": VECTORS[f"{SGM_GROUP_NORM}.w_norm"],
        "shift": VECTORS[f"{SGM_GROUP_NORM}.b_norm"],
        "text": VECTORS[f"{TEXT_NORM}.diff"],
    }
    for strength in (1.0, 0.25, -2.0):
        found.strength = strength
        for name, tensor in parameters(components).items():
            assert relative_error(tensor, before[name] + strength * moved[name]) < FP32, name
    found.detach()


def test_after_detaching_no_trace_of_them_is_left(components: Components, tmp_path: Path):
    digest = base_hash(components)
    first, second = attached(components, written(tmp_path, VECTORS)), attached(components, written(tmp_path, VECTORS))
    both = {name: tensor.detach().clone() for name, tensor in parameters(components).items()}
    first.detach()
    assert all(not torch.equal(both[name], tensor) for name, tensor in parameters(components).items())
    second.strength = 0.0
    assert base_hash(components) == digest
    second.detach()
    assert base_hash(components) == digest
    assert not any("_vector_patch" in vars(tensor) for tensor in parameters(components).values())


def test_a_bias_acts_as_the_same_bias_of_a_tuned_model_does(components: Components, tmp_path: Path):
    layer = components["unet"].get_submodule(PROJECTION)
    x = torch.randn(2, 128)
    expected = nn.functional.linear(
        x, layer.get_parameter("weight"), layer.get_parameter("bias") + VECTORS[f"{SGM_PROJECTION}.diff_b"]
    )
    found = attached(components, written(tmp_path, VECTORS))
    assert relative_error(layer(x), expected) < FP32
    found.detach()


def test_what_has_no_place_is_said(components: Components, tmp_path: Path):
    homeless = {f"{SGM_LAYER}.diff_b": torch.ones(128)}  # to_q has no bias
    strange = {f"{SGM_LAYER}.set_weight": torch.ones(2), "bundle_emb.zwx.clip_l_out": torch.ones(1, 128)}
    found = attached(components, written(tmp_path, {**PAIR, **homeless, **strange}))
    found.detach()
    assert "3 parts have no place in this base" in (found.warning or "")


def test_norms_of_another_base_are_refused(components: Components, tmp_path: Path):
    with pytest.raises(MismatchError, match="5 numbers"):
        attached(components, written(tmp_path, {**PAIR, f"{SGM_GROUP_NORM}.w_norm": torch.ones(5)}))


def extras(adapters: AdapterSet) -> dict[str, Tensor]:
    return adapters.extras.tensors()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(same_bits(first[name], second[name]) for name in first)


def test_they_travel_through_our_file_and_kohya_s_without_a_loss(components: Components, tmp_path: Path):
    found = attached(components, written(tmp_path, {**PAIR, **VECTORS, **WORDS}))
    found.detach()
    assert len(extras(found)) == 6
    save_adapter(tmp_path / "ours.safetensors", found, AdapterCard())
    told = CliRunner().invoke(app, ["info", str(tmp_path / "ours.safetensors")]).output
    assert "biases and norms: 4" in told and "words with embeddings: zwx" in told
    ours = attach_file(components, load_adapter(tmp_path / "ours.safetensors"))
    ours.detach()
    assert same(extras(ours), extras(found))
    done = export(
        tmp_path / "k.safetensors", ours, components, AdapterCard(), find_format("kohya"), dtype=torch.float32
    )
    assert not done.left_out
    again = attached(components, tmp_path / "k.safetensors")
    again.detach()
    shift = {"extra.vector.text_encoder.encoder.layers.0.layer_norm1.bias": torch.zeros(128)}
    assert same({**extras(found), **shift}, extras(again))  # A1111 wants both of a norm's vectors
    names = load_file(tmp_path / "k.safetensors").keys()
    assert {*WORDS, f"{SGM_PROJECTION}.diff_b", f"{SGM_GROUP_NORM}.w_norm"} <= names


def test_diffusers_format_says_that_it_leaves_them_out(components: Components, tmp_path: Path):
    found = attached(components, written(tmp_path, {**PAIR, **VECTORS, **WORDS}))
    found.detach()
    done = export(tmp_path / "d.safetensors", found, components, AdapterCard(), find_format("diffusers"))
    assert "zwx" in done.left_out and f"unet.{PROJECTION}.bias" in done.left_out


def ids(base: Base, encoder: str, text: str) -> list[int]:
    first, second = base.tokenize([text])
    return (first if encoder == "text_encoder" else second)[0].tolist()


@pytest.mark.parametrize(("encoder", "key"), [("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")])
def test_a_bundled_word_becomes_as_many_tokens_as_it_has_embeddings(base: Base, encoder: str, key: str):
    given = WORDS[f"bundle_emb.zwx.{key}"]
    dog, cat = ids(base, encoder, "dog")[1], ids(base, encoder, "cat")[1]
    with base.speaking({"zwx": {encoder: given}}):
        one, two, three, four = ids(base, encoder, "dog ZWX cat")[1:5]
        found = base.components[encoder].get_input_embeddings()(torch.tensor([two, three]))
        assert (one, four) == (dog, cat) and relative_error(found, given) < FP32
        assert two not in ids(base, encoder, "zwxy")


def test_the_encoders_see_the_word_s_embeddings_in_the_place_of_its_tokens(base: Base):
    """With the embeddings of "dog" under another name, the encoders say the same as of "dog"."""
    dogs = {
        name: base.components[name].get_input_embeddings().weight[ids(base, name, "dog")[1]][None]
        for name in ("text_encoder", "text_encoder_2")
    }
    expected = base.encode_texts(["a photo of a dog on a red background"])
    with base.speaking({"zwx": dogs}):
        found = base.encode_texts(["a photo of a zwx on a red background"])
    other = base.encode_texts(["a photo of a zwx on a red background"])
    assert relative_error(found.context, expected.context) < FP32
    assert relative_error(found.pooled, expected.pooled) < FP32
    assert relative_error(other.pooled, expected.pooled) > 1e-2


def test_the_end_is_found_where_the_configuration_takes_the_highest_token_for_it(base: Base):
    """SDXL's encoders say eos_token_id 2; the tokens of bundled words are higher than the end's."""
    pooler = base.pipe.text_encoder_2.text_model
    said, pooler.eos_token_id = pooler.eos_token_id, 2
    dog = base.components["text_encoder_2"].get_input_embeddings().weight[ids(base, "text_encoder_2", "dog")[1]][None]
    expected = base.encode_texts(["a dog on a red background"]).pooled
    with base.speaking({"zwx": {"text_encoder_2": dog}}):
        found = base.encode_texts(["a zwx on a red background"]).pooled
    assert pooler.eos_token_id == 2
    pooler.eos_token_id = said
    assert relative_error(found, expected) < FP32


def test_words_leave_no_trace(base: Base):
    digest, before = base_hash(base.components), dict(base.pipe.components)
    embedding = base.pipe.text_encoder.get_input_embeddings()
    with base.speaking({"zwx": {"text_encoder": torch.ones(1, 128)}}), base.speaking({"a b": {}}):
        pass
    assert base.pipe.components == before and base.pipe.text_encoder.get_input_embeddings() is embedding
    assert base_hash(base.components) == digest and base.vocabulary.spell("text_encoder", ["zwx"]) == ["zwx"]


def test_embeddings_of_another_width_are_refused(base: Base):
    with pytest.raises(MismatchError, match="128 numbers"), base.speaking({"zwx": {"text_encoder": torch.ones(1, 7)}}):
        pass


def test_the_sample_command_draws_with_them(base: Base, tmp_path: Path):
    """Embeddings of "dog" make it the dog that the bare base draws."""
    dogs = {
        f"bundle_emb.zwx.{key}": base.components[name].get_input_embeddings().weight[ids(base, name, "dog")[1]][None]
        for name, key in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g"))
    }
    path = written(tmp_path, {**PAIR, **{name: tensor.detach() for name, tensor in dogs.items()}})
    words = ["sample", str(path), "--prompt", "a photo of a zwx", "-n", "1", "--steps", "2", "--base", "embedded"]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    (expected,) = generate(base, ["a photo of a dog"], seeds=[0], inference_steps=2)
    from PIL import Image

    with Image.open(tmp_path / "out" / "a-photo-of-a-zwx-0.png") as found:
        near = [abs(a - b) <= 2 for a, b in zip(found.tobytes(), expected.tobytes(), strict=True)]
    assert all(near)
