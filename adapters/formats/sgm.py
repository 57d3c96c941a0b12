"""Stability's own code (sgm): what it calls SDXL's layers, and how a checkpoint file of one piece lays its tensors.

UNet blocks are counted through instead of being nested, the VAE's attention is of 1×1 convolutions, and the second text
encoder is OpenCLIP's, with q, k and v in one matrix. The rules are those of diffusers' conversion of checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_SINGLE = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_VAE = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_VAE_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)")
_VAE_PARTS = {"downsamplers": "downsample", "upsamplers": "upsample"}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OPEN_CLIP_SINGLE = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_Q = ".self_attn.q_proj."


@dataclass(frozen=True)
class Piece:
    """One tensor of a checkpoint file: the tensors of our pipeline that it is made of, in rows, and how it lies."""

    component: str
    names: tuple[str, ...]
    transposed: bool = False
    pointwise: bool = False
    """A Linear as a 1×1 convolution."""

    def laid(self, parts: Iterable[Tensor]) -> Tensor:
        """The parts as the file has them."""
        whole = torch.cat(list(parts))
        if self.transposed:
            return whole.T
        return whole[:, :, None, None] if self.pointwise else whole


def checkpoint_pieces(names: Mapping[str, Iterable[str]]) -> dict[str, Piece]:
    """Name in the file → piece.

    Args:
        names: component ("unet", "vae", "text_encoder", "text_encoder_2") → its tensors' names, without the
            "text_model." that some text encoders have.
    """
    unet = list(names["unet"])
    sgm = sgm_names({name.rpartition(".")[0] for name in unet})
    found: dict[str, Piece] = {}
    for name in unet:
        path, _, end = name.rpartition(".")
        found[f"model.diffusion_model.{sgm[path]}.{end}"] = Piece("unet", (name,))
    for name in names["text_encoder"]:
        found[f"conditioner.embedders.0.transformer.text_model.{name}"] = Piece("text_encoder", (name,))
    for key, piece in _open_clip(names["text_encoder_2"]):
        found[f"conditioner.embedders.1.model.{key}"] = piece
    vae = list(names["vae"])
    blocks = len({match[2] for name in vae if (match := _VAE_BLOCK.search(name))})
    for name in vae:
        is_attention = re.search(r"attentions\.0\.to_.+\.weight", name) is not None
        found[f"first_stage_model.{_vae_name(name, blocks)}"] = Piece("vae", (name,), pointwise=is_attention)
    return found


def _vae_name(name: str, blocks: int) -> str:
    for ours, theirs in _VAE.items():
        name = re.sub(rf"(?<![^.]){re.escape(ours)}(?![^.])", theirs, name)

    def block(match: re.Match[str]) -> str:
        number = int(match[2]) if match[1] == "down" else blocks - 1 - int(match[2])  # up blocks count backwards
        part = f"block.{match[4]}" if match[3] == "resnets" else _VAE_PARTS[match[3]]
        return f"{match[1]}.{number}.{part}"

    return _VAE_BLOCK.sub(block, name)


def _open_clip(names: Iterable[str]) -> Iterator[tuple[str, Piece]]:
    for name in names:
        if name in _OPEN_CLIP_SINGLE:
            yield _OPEN_CLIP_SINGLE[name], Piece("text_encoder_2", (name,))
        elif name == "text_projection.weight":
            yield "text_projection", Piece("text_encoder_2", (name,), transposed=True)
        elif _Q in name:
            layer, _, end = name.partition(_Q)
            three = tuple(f"{layer}.self_attn.{letter}_proj.{end}" for letter in "qkv")
            yield f"{_resblock(layer)}.attn.in_proj_{end}", Piece("text_encoder_2", three)
        elif name.startswith("encoder.layers.") and not re.search(r"\.[kv]_proj\.", name):  # these came with q
            _, _, number, rest = name.split(".", 3)
            part, _, end = rest.rpartition(".")
            yield f"transformer.resblocks.{number}.{_OPEN_CLIP[part]}.{end}", Piece("text_encoder_2", (name,))


def _resblock(layer: str) -> str:
    return f"transformer.resblocks.{layer.rpartition('.')[2]}"


def sgm_names(paths: Iterable[str]) -> dict[str, str]:
    """diffusers' path of every layer of one UNet → its name in Stability's code."""
    paths = list(paths)
    numbers = _numbers(paths)
    found: dict[str, str] = {}
    for path in paths:
        name = _SINGLE.get(path) or _in_middle(path) or _in_block(path, numbers)
        if name is not None:
            found[path] = name
    return found


def _numbers(paths: Iterable[str]) -> dict[tuple[str, int, int], tuple[int, int]]:
    """(down or up, block, resnet) → (number of sgm's block, parts in it before a sampler)."""
    met: dict[tuple[str, int], dict[str, set[int]]] = {}
    for path in paths:
        if match := _BLOCK.match(path):
            side, block, part, index = match[1], int(match[2]), match[3], int(match[4])
            met.setdefault((side, block), {}).setdefault(part, set()).add(index)
    numbers: dict[tuple[str, int, int], tuple[int, int]] = {}
    for side, number in (("down", 1), ("up", 0)):
        for (_, block), parts in sorted(item for item in met.items() if item[0][0] == side):
            held = 2 if parts.get("attentions") else 1
            for resnet in sorted(parts.get("resnets", ())):
                numbers[side, block, resnet] = number, held
                number += 1
            if side == "down" and parts.get("downsamplers"):
                numbers[side, block, -1] = number, 0
                number += 1
    return numbers


def _in_middle(path: str) -> str | None:
    match = _MIDDLE.match(path)
    if match is None:
        return None
    part, index, rest = match[1], int(match[2]), match[3]
    return f"middle_block.1.{rest}" if part == "attentions" else f"middle_block.{2 * index}.{_RESNET.get(rest, rest)}"


def _in_block(path: str, numbers: Mapping[tuple[str, int, int], tuple[int, int]]) -> str | None:
    match = _BLOCK.match(path)
    if match is None:
        return None
    side, block, part, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if part == "downsamplers":
        return f"input_blocks.{numbers[side, block, -1][0]}.0.op"
    outer = "input_blocks" if side == "down" else "output_blocks"
    if part == "upsamplers":
        last = max(resnet for (s, b, resnet) in numbers if (s, b) == (side, block))
        number, held = numbers[side, block, last]
        return f"{outer}.{number}.{held}.conv"
    number, _ = numbers[side, block, index]
    return f"{outer}.{number}.0.{_RESNET.get(rest, rest)}" if part == "resnets" else f"{outer}.{number}.1.{rest}"
