"""softmax(q kᵀ/√d) v by whichever library computes it, chosen by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from adapters.errors import MissingError, UserInputError

Backend = Literal["sdpa", "flash", "cudnn", "xformers"]
BACKENDS: tuple[Backend, ...] = ("sdpa", "flash", "cudnn", "xformers")
_HOPPER = (9, 0)

Queries = Float[Tensor, "b h n d"]
Keys = Float[Tensor, "b h m d"]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def attend_by(name: Backend, device: torch.device) -> Attend:
    """The function (q, k, v: "b h n d") → "b h n d" of that name.

    "sdpa" takes what torch has for the device: cuDNN's on Hopper GPUs and later (on an H100 1.6 times as fast as flash
    attention at SDXL's sizes, forward and backward), torch's own choice elsewhere.

    Raises:
        MissingError, UserInputError: this machine cannot; says why.
    """
    problem = why_not(name, device)
    if problem is not None:
        error = MissingError if "installed" in problem else UserInputError
        raise error(f"The attention backend {name} cannot be used here: {problem}", "Choose attention=sdpa.")
    if name == "xformers":
        return _xformers
    if name == "sdpa" and device.type == "cuda" and torch.cuda.get_device_capability(device) >= _HOPPER:
        return _within(SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH)
    if name == "sdpa":
        return _sdpa
    return _within(SDPBackend.FLASH_ATTENTION if name == "flash" else SDPBackend.CUDNN_ATTENTION)


def why_not(name: Backend, device: torch.device) -> str | None:
    """None where the backend works on the device (tried with a small forward and backward), else the reason."""
    if name == "sdpa":
        return None
    if name == "xformers" and importlib.util.find_spec("xformers") is None:
        return 'xformers is not installed (pip install "spectral-studio[gpu]").'
    if device.type != "cuda":
        return "it needs an NVIDIA GPU."
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    attend = _xformers if name == "xformers" else _within(backends[name])
    try:
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        q = torch.randn(1, 2, 128, 64, device=device, dtype=dtype, requires_grad=True)
        attend(q, q, q).sum().backward()
    except Exception as error:  # whatever a library says no with
        with suppress(Exception):
            torch.cuda.synchronize(device)
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None


def _sdpa(q: Queries, k: Keys, v: Keys) -> Queries:
    return F.scaled_dot_product_attention(q, k, v)


def _within(*backends: SDPBackend) -> Attend:
    def attend(q: Queries, k: Keys, v: Keys) -> Queries:
        with sdpa_kernel(list(backends), set_priority=True):
            return F.scaled_dot_product_attention(q, k, v)

    return attend


def _xformers(q: Queries, k: Keys, v: Keys) -> Queries:
    from xformers.ops import memory_efficient_attention  # pyright: ignore

    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return memory_efficient_attention(q, k, v).transpose(1, 2)
