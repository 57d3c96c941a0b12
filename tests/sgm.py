"""A diffusers pipeline written as one file in the original (sgm) layout, as SDXL checkpoints are shared.

Built from the layout's own rules, independently of diffusers' converter, which reads the result back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_STEM = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}


def unet_key(name: str, layers: int = 2) -> str:
    """diffusers' UNet parameter name → sgm's, for `layers` resnets a down block (one more in an up block)."""
    down = re.fullmatch(r"down_blocks\.(\d)\.(resnets|attentions|downsamplers)\.(\d)\.(.+)", name)
    up = re.fullmatch(r"up_blocks\.(\d)\.(resnets|attentions|upsamplers)\.(\d)\.(.+)", name)
    if down:
        block, kind, index, rest = int(down[1]), down[2], int(down[3]), down[4]
        if kind == "downsamplers":
            return f"input_blocks.{(layers + 1) * (block + 1)}.0.{rest.replace('conv', 'op')}"
        place = f"input_blocks.{(layers + 1) * block + index + 1}"
        return f"{place}.0.{_resnet(rest)}" if kind == "resnets" else f"{place}.1.{rest}"
    if up:
        block, kind, index, rest = int(up[1]), up[2], int(up[3]), up[4]
        place = f"output_blocks.{(layers + 1) * block + (layers if kind == 'upsamplers' else index)}"
        if kind == "upsamplers":
            return f"{place}.2.{rest}"
        return f"{place}.0.{_resnet(rest)}" if kind == "resnets" else f"{place}.1.{rest}"
    stem = next(stem for stem in _STEM if name.startswith(f"{stem}."))
    rest = name.removeprefix(f"{stem}.")
    return f"{_STEM[stem]}.{_resnet(rest) if 'resnets' in stem else rest}"


def _resnet(rest: str) -> str:
    part, _, end = rest.partition(".")
    return f"{_RESNET[part]}.{end}"


def vae_key(name: str, blocks: int = 4) -> str:
    """diffusers' AutoencoderKL parameter name → sgm's."""
    name = name.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_shortcut", "nin_shortcut")
    name = name.replace("conv_norm_out", "norm_out")
    for new, old in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
        name = name.replace(f"attn_1.{new}.", f"attn_1.{old}.")
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{blocks - 1 - int(m[1])}.block.{m[2]}", name)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)


def open_clip_tensors(encoder: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The second text encoder in OpenCLIP's names: q, k and v as one matrix, the projection transposed."""
    state = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    yield "token_embedding.weight", state["embeddings.token_embedding.weight"]
    yield "positional_embedding", state["embeddings.position_embedding.weight"]
    yield "text_projection", state["text_projection.weight"].T
    renames = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    for end in ("weight", "bias"):
        yield f"ln_final.{end}", state[f"final_layer_norm.{end}"]
        for layer in sorted({name.split(".")[2] for name in state if name.startswith("encoder.layers.")}):
            source, target = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
            for old, new in renames.items():
                yield f"{target}.{new}.{end}", state[f"{source}.{old}.{end}"]
            three = [state[f"{source}.self_attn.{part}_proj.{end}"] for part in "qkv"]
            yield f"{target}.attn.in_proj_{end}", torch.cat(three)


def save_single_file(pipeline: StableDiffusionXLPipeline, path: Path) -> Path:
    """The whole pipeline as one SDXL checkpoint in fp16."""
    tensors = {f"model.diffusion_model.{unet_key(n)}": t for n, t in pipeline.unet.state_dict().items()}
    for name, tensor in pipeline.vae.state_dict().items():
        key = vae_key(name)
        is_attention = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", key)
        tensors[f"first_stage_model.{key}"] = tensor[:, :, None, None] if is_attention else tensor
    for name, tensor in pipeline.text_encoder.state_dict().items():
        key = name.removeprefix("text_model.")
        tensors[f"conditioner.embedders.0.transformer.text_model.{key}"] = tensor
    for name, tensor in open_clip_tensors(pipeline.text_encoder_2):
        tensors[f"conditioner.embedders.1.model.{name}"] = tensor
    save_file({name: tensor.half().contiguous().clone() for name, tensor in tensors.items()}, path)
    return path
