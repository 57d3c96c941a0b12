"""The UNet's and the VAE's ResnetBlock2D, with norms, activations and biases joined (trainers.fast.norms)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from adapters.fused import is_plain
from trainers.fast.norms import add_shift_residual, group_norm_silu


def resnet(module: Any, input_tensor: Tensor, temb: Tensor | None = None) -> Tensor:
    """Norm, SiLU, convolve, add time (the UNet), norm, SiLU, convolve, add: "n c h w" → "n d h w"."""
    hidden, bias = _convolve(module.conv1, group_norm_silu(input_tensor, module.norm1))
    shift = None if bias is None else bias.expand(len(hidden), -1)
    if temb is not None:
        time = module.time_emb_proj(F.silu(temb))
        shift = time if shift is None else time + shift
    hidden = group_norm_silu(hidden, module.norm2, shift=shift)
    hidden, bias = _convolve(module.conv2, hidden)
    shortcut = input_tensor if module.conv_shortcut is None else module.conv_shortcut(input_tensor)
    return add_shift_residual(hidden, bias, shortcut)


def _convolve(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The convolution without its bias, and the bias for whoever adds next; with it where an adapter reads y."""
    if is_plain(conv) and type(conv) is nn.Conv2d and conv.padding_mode == "zeros":
        return F.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups), conv.bias
    return conv(x), None


def is_plain_resnet(module: Any, *, with_time: bool = True) -> bool:
    """SDXL's kind: SiLU, time added before the second norm or none, no resampling, no rescaling, no dropout."""
    ways = ("default",) if with_time else ("default", "group")  # how a time would be added
    return (
        isinstance(module.nonlinearity, nn.SiLU)
        and module.time_embedding_norm in ways
        and not module.skip_time_act
        and (module.time_emb_proj is not None) == with_time
        and module.upsample is None
        and module.downsample is None
        and module.output_scale_factor == 1.0
        and module.dropout.p == 0
    )
