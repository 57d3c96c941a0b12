"""On diffusers' and transformers' own models: no layer is called past its hook."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from adapters.adapter_set import AdapterSet
from adapters.inject import attach
from adapters.registry import make_spec
from tests.tolerances import same_bits


@pytest.fixture
def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    clip = CLIPTextConfig(
        vocab_size=99,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=8,
    )
    unet = UNet2DConditionModel(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        attention_head_dim=(2, 4),
        cross_attention_dim=32,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 6 * 4,
        use_linear_projection=True,
    )
    encoders = {"text_encoder": CLIPTextModel(clip), "text_encoder_2": CLIPTextModelWithProjection(clip)}
    return {name: model.requires_grad_(False) for name, model in {"unet": unet, **encoders}.items()}


def predict(models: dict[str, nn.Module]) -> Tensor:
    """The UNet's output for a prompt, through both text encoders as SDXL puts them together."""
    ids = torch.arange(5)[None]
    first = models["text_encoder"](ids).last_hidden_state
    second = models["text_encoder_2"](ids)
    added = {"text_embeds": second.text_embeds, "time_ids": torch.arange(6.0)[None]}
    context = torch.cat([first, second.last_hidden_state], dim=-1)
    latents = torch.linspace(-1, 1, 4 * 8 * 8).reshape(1, 4, 8, 8)
    return models["unet"](latents, 7, context, added_cond_kwargs=added).sample


def attach_everywhere(models: dict[str, nn.Module], method: str) -> AdapterSet:
    return attach(models, make_spec(method, rank=2), {"unet": "all", "text_encoder": "all", "text_encoder_2": "all"})


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_every_layer_of_every_model_is_reached(models: dict[str, nn.Module], method: str, checkpointing: bool):
    before = predict(models)
    adapter_set = attach_everywhere(models, method)
    assert same_bits(predict(models), before)
    if checkpointing:
        models["unet"].train().enable_gradient_checkpointing()
    predict(models).square().mean().backward()
    silent = [name for name, p in adapter_set.named_parameters() if name.endswith("up") and not p.grad.any()]
    assert silent == []
    adapter_set.detach()
    assert same_bits(predict(models), before)
