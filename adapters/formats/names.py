"""What other programs call SDXL's layers.

kohya's sd-scripts, and with them A1111, Forge, ComfyUI and InvokeAI, go by the names of Stability's own code (sgm):
blocks are counted through instead of being nested. The rules are those of diffusers' conversion of checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from torch import nn

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
KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_text_model_", "text_encoder_2": "lora_te2_text_model_"}
DIFFUSERS = {
    "unet": "unet.",
    "text_encoder": "text_encoder.text_model.",
    "text_encoder_2": "text_encoder_2.text_model.",
}


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


def layers_of(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Every Linear and Conv2d of a model by our path: text encoders' without the "text_model." that some have."""
    return {path: module for path, module in _by_path(model) if isinstance(module, nn.Linear | nn.Conv2d)}


def _by_path(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm | nn.GroupNorm):
            yield path.removeprefix("text_model."), module


def kohya_names(component: str, model: nn.Module) -> dict[str, str]:
    """Layer's or norm's path → kohya's stem, "lora_unet_input_blocks_4_1_…"; what kohya does not know is left out."""
    paths = [path for path, _ in _by_path(model)]
    if component == "unet":
        return {path: KOHYA["unet"] + name.replace(".", "_") for path, name in sgm_names(paths).items()}
    return {path: KOHYA[component] + path.replace(".", "_") for path in paths if path.startswith("encoder.layers.")}


def diffusers_names(component: str, model: nn.Module) -> dict[str, str]:
    """Layer's path → its stem in a file of diffusers' (PEFT's)."""
    return {path: DIFFUSERS[component] + path for path in layers_of(model)}


def known_modules(components: Mapping[str, nn.Module]) -> dict[str, tuple[str, nn.Module]]:
    """Every stem by which some program names a layer or norm → our name of it, "unet.down_blocks.…", and itself."""
    found: dict[str, tuple[str, nn.Module]] = {}
    for component, model in components.items():
        modules = dict(_by_path(model))
        sgm = sgm_names(modules) if component == "unet" else {}
        for path, module in modules.items():
            for stem in _stems(component, path, sgm.get(path)):
                found.setdefault(stem, (f"{component}.{path}", module))
    return found


def _stems(component: str, path: str, sgm: str | None) -> Iterator[str]:
    flat = path.replace(".", "_")
    if component == "unet":
        if sgm is not None:
            yield from (f"{prefix}_{sgm.replace('.', '_')}" for prefix in ("lora_unet", "oft_unet"))
            yield from (f"diffusion_model.{sgm}", f"model.diffusion_model.{sgm}")
        yield from (f"unet.{path}", f"lora_unet_{flat}", f"base_model.model.{path}", f"lycoris_{flat}", path)
        return
    yield from (f"{KOHYA[component]}{flat}", f"{component}.text_model.{path}", f"{component}.{path}")
    if component == "text_encoder":
        yield f"lora_te_text_model_{flat}"
