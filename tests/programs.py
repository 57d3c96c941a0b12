"""How other programs find an SDXL layer by a name in an adapter file: their own rules, written out again.

Nothing here is taken from adapters/formats: the tests hold that against this. The modules are those that Stability's
UNetModel builds (generative-models, sgm/modules/diffusionmodules/openaimodel.py) and the two text encoders'.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator

Shapes = dict[str, tuple[int, ...]]
"""Module → the shape of its weight; Linear layers and convolutions only."""

_WIDTH, _LEVELS, _DEPTHS, _CONTEXT, _VECTOR = 320, (1, 2, 4), (0, 2, 10), 2048, 2816


def sgm_unet() -> Shapes:
    """SDXL's UNet as its constructor nests it."""
    return dict(_unet())


def _unet() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from {"time_embed.0": (1280, _WIDTH), "time_embed.2": (1280, 1280)}.items()
    yield from {"label_emb.0.0": (1280, _VECTOR), "label_emb.0.2": (1280, 1280)}.items()
    yield "input_blocks.0.0", (_WIDTH, 4, 3, 3)
    channels, skips, number = _WIDTH, [_WIDTH], 1
    for level, multiple in enumerate(_LEVELS):
        for _ in range(2):
            yield from _residual(f"input_blocks.{number}.0", channels, _WIDTH * multiple)
            channels = _WIDTH * multiple
            yield from _transformer(f"input_blocks.{number}.1", channels, _DEPTHS[level])
            skips.append(channels)
            number += 1
        if level < 2:
            yield f"input_blocks.{number}.0.op", (channels, channels, 3, 3)
            skips.append(channels)
            number += 1
    yield from _residual("middle_block.0", channels, channels)
    yield from _transformer("middle_block.1", channels, _DEPTHS[-1])
    yield from _residual("middle_block.2", channels, channels)
    number = 0
    for level, multiple in reversed(list(enumerate(_LEVELS))):
        for last in (False, False, True):
            yield from _residual(f"output_blocks.{number}.0", channels + skips.pop(), _WIDTH * multiple)
            channels = _WIDTH * multiple
            yield from _transformer(f"output_blocks.{number}.1", channels, _DEPTHS[level])
            if last and level:
                yield f"output_blocks.{number}.{2 if _DEPTHS[level] else 1}.conv", (channels, channels, 3, 3)
            number += 1
    yield "out.2", (4, _WIDTH, 3, 3)


def _residual(place: str, inputs: int, outputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{place}.in_layers.2", (outputs, inputs, 3, 3)
    yield f"{place}.emb_layers.1", (outputs, 1280)
    yield f"{place}.out_layers.3", (outputs, outputs, 3, 3)
    if inputs != outputs:
        yield f"{place}.skip_connection", (outputs, inputs, 1, 1)


def _transformer(place: str, width: int, depth: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    if depth:
        yield from {f"{place}.proj_in": (width, width), f"{place}.proj_out": (width, width)}.items()
    for block in (f"{place}.transformer_blocks.{n}" for n in range(depth)):
        for attention, seen in (("attn1", width), ("attn2", _CONTEXT)):
            yield f"{block}.{attention}.to_q", (width, width)
            yield from {f"{block}.{attention}.to_{letter}": (width, seen) for letter in "kv"}.items()
            yield f"{block}.{attention}.to_out.0", (width, width)
        yield from {f"{block}.ff.net.0.proj": (8 * width, width), f"{block}.ff.net.2": (width, 4 * width)}.items()


def clip(layers: int, width: int) -> Shapes:
    """A text encoder's layers in transformers' names."""
    found: Shapes = {}
    for layer in (f"text_model.encoder.layers.{n}" for n in range(layers)):
        found |= {f"{layer}.self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
        found |= {f"{layer}.mlp.fc1": (4 * width, width), f"{layer}.mlp.fc2": (width, 4 * width)}
    return found


CLIP_L, BIG_G = clip(12, 768), clip(32, 1280)


def flat(name: str) -> str:
    return name.replace(".", "_")


def comfyui() -> Shapes:
    """comfy/lora.py: model_lora_keys_unet and model_lora_keys_clip; Forge's backend/patcher/lora.py is the same."""
    unet = {f"lora_unet_{flat(name)}": shape for name, shape in sgm_unet().items()}
    one = {f"lora_te1_{flat(name)}": shape for name, shape in CLIP_L.items()}
    return unet | one | {f"lora_te2_{flat(name)}": shape for name, shape in BIG_G.items()}


def a1111(key: str) -> tuple[int, ...] | None:
    """extensions-builtin/Lora/networks.py: convert_diffusers_name_to_compvis and load_network.

    Modules go by `network_layer_mapping`: "diffusion_model_…", and "0_…" and "1_…" for the two encoders. q, k and v
    of the second are one MultiheadAttention, of which each takes a third.
    """
    modules = {f"diffusion_model_{flat(name)}": shape for name, shape in sgm_unet().items()}
    modules |= {f"0_transformer_{flat(name)}": shape for name, shape in CLIP_L.items()}
    for n in range(32):
        block = f"1_model_transformer_resblocks_{n}"
        modules |= {f"{block}_attn": (1280, 1280), f"{block}_attn_out_proj": (1280, 1280)}
        modules |= {f"{block}_mlp_c_fc": (5120, 1280), f"{block}_mlp_c_proj": (1280, 5120)}
    found = key
    if match := re.fullmatch(r"lora_te2_text_model_encoder_layers_(\d+)_(.+)", key):
        rest = match[2].replace("mlp_fc1", "mlp_c_fc").replace("mlp_fc2", "mlp_c_proj").replace("self_attn", "attn")
        found = f"1_model_transformer_resblocks_{match[1]}_{rest}"
    if found not in modules and (third := re.fullmatch(r"(.*)_([qkv]_proj)", found)):
        return modules.get(third[1]) or _a1111_replaced(key, modules)
    return modules.get(found) or _a1111_replaced(key, modules)


def _a1111_replaced(key: str, modules: Shapes) -> tuple[int, ...] | None:
    unet, one = (
        key.replace("lora_unet", "diffusion_model"),
        key.replace("lora_te1_text_model", "0_transformer_text_model"),
    )
    return modules.get(unet) or modules.get(one)


def _invokeai_map() -> dict[str, str]:
    """invokeai/backend/patches/lora_conversions/sdxl_lora_conversion_utils.py: prefixes, sgm's → diffusers'."""
    layers: dict[str, str] = {}
    for block in range(3):
        for n in range(2):
            layers[f"input_blocks.{3 * block + n + 1}.0."] = f"down_blocks.{block}.resnets.{n}."
            layers[f"input_blocks.{3 * block + n + 1}.1."] = f"down_blocks.{block}.attentions.{n}."
        for n in range(3):
            layers[f"output_blocks.{3 * block + n}.0."] = f"up_blocks.{block}.resnets.{n}."
            layers[f"output_blocks.{3 * block + n}.1."] = f"up_blocks.{block}.attentions.{n}."
        layers[f"input_blocks.{3 * (block + 1)}.0.op."] = f"down_blocks.{block}.downsamplers.0.conv."
        layers[f"output_blocks.{3 * block + 2}.2."] = f"up_blocks.{block}.upsamplers.0."
    layers["middle_block.1."] = "mid_block.attentions.0."
    layers |= {f"middle_block.{2 * n}.": f"mid_block.resnets.{n}." for n in range(2)}
    inside = {
        "in_layers.0.": "norm1.", "in_layers.2.": "conv1.", "out_layers.0.": "norm2.", "out_layers.3.": "conv2.",
        "emb_layers.1.": "time_emb_proj.", "skip_connection.": "conv_shortcut.",
    }  # fmt: skip
    whole: dict[str, str] = {}
    for sgm, diffusers in layers.items():
        parts = inside if "resnets" in diffusers else {"": ""}
        whole |= {sgm + theirs: diffusers + ours for theirs, ours in parts.items()}
    for n in range(2):
        whole[f"time_embed.{2 * n}."] = f"time_embedding.linear_{n + 1}."
        whole[f"label_emb.0.{2 * n}."] = f"add_embedding.linear_{n + 1}."
    whole |= {"input_blocks.0.0.": "conv_in.", "out.0.": "conv_norm_out.", "out.2.": "conv_out."}
    return {flat(sgm.rstrip(".")): flat(diffusers.rstrip(".")) for sgm, diffusers in whole.items()}


_INVOKEAI = _invokeai_map()
_INVOKEAI_SORTED = sorted(_INVOKEAI)


def invokeai(key: str) -> str:
    """What InvokeAI makes of a stem: the flattened path in diffusers' UNet, or in a transformers encoder.

    Raises ValueError as InvokeAI does for other prefixes and for names that it cannot convert.
    """
    for prefix in ("lora_te1_", "lora_te2_"):
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    if not key.startswith("lora_unet_"):
        raise ValueError(f"Unrecognized SDXL LoRA key prefix: {key}")
    name = key.removeprefix("lora_unet_")
    nearest = _INVOKEAI_SORTED[bisect.bisect_right(_INVOKEAI_SORTED, name) - 1]
    if not name.startswith(nearest):
        raise ValueError(f"not converted: {key}")
    return name.replace(nearest, _INVOKEAI[nearest])
