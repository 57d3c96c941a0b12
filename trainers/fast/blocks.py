"""SDXL's UNet with the forward passes of its blocks replaced by faster ones that compute the same.

diffusers' modules, their weights, names and hooks stay: only `forward` of single instances is another, until `remove`.
Faster are: keys and values of all cross-attentions in one product (the text is the same for all), queries, keys and
values of a self-attention in one, residual additions joined with the norm that follows, biases of convolutions and the
time embedding joined with group norm and SiLU, and convolutions in channels_last, for which GPUs have their kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from adapters.fused import pack, project, unpack
from trainers.fast.attention import Attend, Backend, attend_by
from trainers.fast.norms import add_layer_norm, geglu, group_norm_silu, layer_norm
from trainers.fast.resnets import is_plain_resnet, resnet

_Module = Any
"""diffusers' blocks: their attributes are untyped."""


class FastUnet:
    """The fast forwards of one UNet, from construction to `remove`. Weights are frozen but for adapters on layers.

    While it is paused the UNet runs diffusers' own forwards, on weights that stay where recordings read them.
    """

    def __init__(self, unet: nn.Module, attention: Backend = "sdpa") -> None:
        device = next(unet.parameters()).device
        self.unet = unet
        self.attend: Attend = attend_by(attention, device)
        self._replaced: dict[nn.Module, Callable[..., Any]] = {}
        self._packed: dict[Sequence[nn.Linear], Tensor] = {}
        self._keys_values: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        if device.type == "cuda":
            cast(Any, unet).to(memory_format=torch.channels_last)
        self._crosses = self._replace()
        self._set(unet, partial(_unet, self, unet.forward))

    def pause(self) -> None:
        """diffusers' own forwards again, until `resume`."""
        for module in self._replaced:
            vars(module).pop("forward", None)
        self.forget()

    def resume(self) -> None:
        for module, forward in self._replaced.items():
            module.forward = forward

    def remove(self) -> None:
        """diffusers' own forwards again; weights are tensors of their own again."""
        self.pause()
        for layers in self._packed:
            unpack(layers)
        self._packed.clear()
        self._replaced.clear()

    def forget(self) -> None:
        """Lets go of the last text's keys and values, and with them of its graph."""
        self._keys_values.clear()

    def _replace(self) -> list[tuple[nn.Module, ...]]:
        """Puts the forwards in place; returns the cross-attentions whose keys and values are computed at once."""
        crosses: dict[object, list[_Module]] = {}
        for module in list(self.unet.modules()):
            if isinstance(module, ResnetBlock2D) and is_plain_resnet(module):
                self._set(module, resnet)
            elif isinstance(module, Transformer2DModel) and _is_plain_transformer(module):
                self._set(module, partial(_transformer, self))
                for block in cast("list[_Module]", list(module.transformer_blocks)):
                    self._pack((block.attn1.to_q, block.attn1.to_k, block.attn1.to_v))
                    crosses.setdefault(block.attn2.to_k.weight.shape, []).append(block.attn2)
        return [tuple(alike) for alike in crosses.values() if self._pack(_keys_and_values(alike))]

    def _set(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        module.forward = self._replaced[module] = partial(forward, module)

    def _pack(self, layers: Sequence[nn.Linear]) -> bool:
        packed = pack(layers)
        if packed is not None:
            self._packed[tuple(layers)] = packed
        return packed is not None

    def look_ahead(self, context: Tensor) -> None:
        """Before the UNet runs: keys and values of every cross-attention from the text it is given."""
        self._keys_values.clear()
        for alike in self._crosses:
            if not _reads_text_plainly(alike[0]):
                continue
            layers = _keys_and_values(alike)
            found = project(context, layers, self._packed[layers])
            for attention, keys, values in zip(alike, found[0::2], found[1::2], strict=True):
                self._keys_values[attention] = keys, values

    def self_attention(self, attn: _Module, x: Tensor) -> Tensor:
        layers = (attn.to_q, attn.to_k, attn.to_v)
        q, k, v = project(x, layers, self._packed.get(layers))
        return self._attention(attn, q, k, v)

    def cross_attention(self, attn: _Module, x: Tensor, context: Tensor) -> Tensor:
        if not _reads_text_plainly(attn):
            return attn(x, encoder_hidden_states=context)
        keys_values = self._keys_values.get(attn)
        if keys_values is None:
            keys_values = attn.to_k(context), attn.to_v(context)
        (q,) = project(x, (attn.to_q,))
        return self._attention(attn, q, *keys_values)

    def _attention(self, attn: _Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = [part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (q, k, v)]
        mixed = self.attend(*heads).transpose(1, 2).flatten(2)
        return project(mixed, (attn.to_out[0],))[0]

    def block(self, block: _Module, x: Tensor, pending: Tensor | None, context: Tensor) -> tuple[Tensor, Tensor]:
        """One BasicTransformerBlock; the stream is x + pending, which is added where the next norm reads it."""
        if pending is None:
            normed = layer_norm(x, block.norm1)
        else:
            x, normed = add_layer_norm(x, pending, block.norm1)
        x, normed = add_layer_norm(x, self.self_attention(block.attn1, normed), block.norm2)
        x, normed = add_layer_norm(x, self.cross_attention(block.attn2, normed, context), block.norm3)
        wide = project(normed, (block.ff.net[0].proj,))[0]
        return x, project(geglu(wide), (block.ff.net[2],))[0]


def _reads_text_plainly(attn: _Module) -> bool:
    """Not where something else looks at the text in its own way (trainers.regions)."""
    return isinstance(attn.processor, AttnProcessor2_0)


def _keys_and_values(attentions: Sequence[_Module]) -> tuple[nn.Linear, ...]:
    return tuple(layer for attention in attentions for layer in (attention.to_k, attention.to_v))


def _unet(
    fast: FastUnet, forward: Callable[..., Any], _: nn.Module, sample: Tensor, timestep: Any,
    encoder_hidden_states: Tensor, *args: Any, **kwargs: Any,
) -> Any:  # fmt: skip
    fast.look_ahead(encoder_hidden_states)
    return forward(sample, timestep, encoder_hidden_states, *args, **kwargs)


def _transformer(
    fast: FastUnet, module: _Module, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any
) -> tuple[Tensor]:
    """Transformer2DModel: norm, project in, blocks, project out, add; pixels are tokens without a copy."""
    height, width = hidden_states.shape[-2:]
    tokens = group_norm_silu(hidden_states, module.norm, silu=False).permute(0, 2, 3, 1).flatten(1, 2)
    x, pending = project(tokens, (module.proj_in,))[0], None
    for block in module.transformer_blocks:
        if torch.is_grad_enabled() and module.gradient_checkpointing:
            x, pending = module._gradient_checkpointing_func(fast.block, block, x, pending, encoder_hidden_states)
        else:
            x, pending = fast.block(block, x, pending, encoder_hidden_states)
    out = project(x + cast(Tensor, pending), (module.proj_out,))[0]
    return (hidden_states + out.unflatten(1, (height, width)).permute(0, 3, 1, 2),)  # in the layout of the first


def _is_plain_transformer(module: _Module) -> bool:
    """SDXL's kind: linear projections, and blocks of self-attention, cross-attention and GEGLU with layer norms."""
    return (
        bool(module.use_linear_projection)
        and module.is_input_continuous
        and all(_is_plain_block(block) for block in module.transformer_blocks)
    )


def _is_plain_block(block: _Module) -> bool:
    attentions = [part for part in (block.attn1, block.attn2) if isinstance(part, Attention)]
    return (
        isinstance(block, BasicTransformerBlock)
        and block.norm_type == "layer_norm"
        and block.pos_embed is None
        and not block.only_cross_attention
        and len(attentions) == 2
        and all(_is_plain_attention(attention) for attention in cast("list[_Module]", attentions))
        and type(block.ff.net[0]).__name__ == "GEGLU"
        and all(part.p == 0 for part in block.ff.modules() if isinstance(part, nn.Dropout))
    )


def _is_plain_attention(attn: _Module) -> bool:
    extras = (attn.spatial_norm, attn.group_norm, attn.norm_cross, attn.norm_q, attn.norm_k)
    return (
        all(extra is None for extra in extras)
        and not attn.residual_connection
        and attn.rescale_output_factor == 1.0
        and attn.to_out[1].p == 0
    )
