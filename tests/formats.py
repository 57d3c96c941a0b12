"""What the tests of other programs' files share."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet
from adapters.base import Adapter
from adapters.formats.open import attach_any, open_adapter
from adapters.inject import attach
from adapters.registry import make_spec

Components = dict[str, nn.Module]
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.1.resnets.0.conv1"
SGM_LAYER = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
SGM_CONV = "lora_unet_input_blocks_4_0_in_layers_2"


def trained(
    components: Components, method: str = "lora", targets: dict[str, str] | None = None, **knobs: object
) -> AdapterSet:
    """An adapter off its start, not attached."""
    adapters = attach(components, make_spec(method, **knobs), targets or {"unet": f"{LAYER}, {CONV}"})
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws))
    adapters.detach()
    return adapters.eval()


def change(adapter: Adapter) -> Tensor:
    return adapter.delta_weight(adapter.site.weight.detach()).detach()


def weight_of(components: Components, layer: str) -> Tensor:
    return components["unet"].get_submodule(layer).get_parameter("weight").detach()


def written(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path = folder / "foreign.safetensors"
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def read(components: Components, path: Path, rank: int = 64) -> AdapterSet:
    """What a file holds, not attached."""
    adapters = attach_any(components, open_adapter(path), "", rank=rank)
    adapters.detach()
    return adapters


def latents(pipe: StableDiffusionXLPipeline) -> Tensor:
    """Two steps of one picture."""
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        return pipe(
            "a photo of a sks dog", num_inference_steps=2, generator=torch.Generator().manual_seed(0),
            output_type="latent", return_dict=False,
        )[0]  # fmt: skip
