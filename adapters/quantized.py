"""Frozen layers whose weight lies in fewer bits, under adapters of any method (QLoRA, arXiv 2305.14314).

NF4 and int8 are bitsandbytes' own, fp8 is torch's e4m3 with a scale a row. A quantised layer keeps its name, place,
bias and hooks; only its class is another, and `weight` is computed anew each time that it is read. Nothing of the
weight's size outlives one product: the backward pass, too, computes it again.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from adapters.errors import MissingError, StudioError, UnknownNameError
from adapters.svd import Decomposer

LOFTQ_ROUNDS = 5
"""How often LoftQ alternates between quantising and decomposing (arXiv 2310.08659 uses 5)."""
_NF4_BLOCK = 64
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it warns of kernels from a hub
_FP8_MAX = torch.finfo(torch.float8_e4m3fn).max


class Quantization(ABC):
    """A way to store a matrix by name: `class Nf4(Quantization, name="nf4")` registers it."""

    error: ClassVar[float]
    """‖W − W̃‖/‖W‖ of normally distributed weights, at most."""

    def __init_subclass__(cls, name: str) -> None:
        super().__init_subclass__()
        if QUANTIZATIONS.setdefault(name, cls) is not cls:
            raise TypeError(f"two quantisations are called {name!r}")

    @staticmethod
    @abstractmethod
    def quantize(matrix: Tensor) -> tuple[Tensor, Tensor]:
        """(codes, scale in fp32) of [d, κ]."""

    @staticmethod
    @abstractmethod
    def dequantize(codes: Tensor, scale: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """[d, κ] in `dtype`, a fresh tensor."""


QUANTIZATIONS: dict[str, type[Quantization]] = {}


class Nf4(Quantization, name="nf4"):
    """4-bit NormalFloat: quantiles of the normal distribution, scaled by the largest of each 64 weights."""

    error = 0.10

    @staticmethod
    def quantize(matrix: Tensor) -> tuple[Tensor, Tensor]:
        codes, state = _bitsandbytes().quantize_4bit(matrix.contiguous(), blocksize=_NF4_BLOCK, quant_type="nf4")
        return codes, state.absmax

    @staticmethod
    def dequantize(codes: Tensor, scale: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        functional = _bitsandbytes()
        state = functional.QuantState(
            scale, shape=torch.Size(shape), code=_levels(codes.device), blocksize=_NF4_BLOCK, quant_type="nf4",
            dtype=torch.float32 if dtype == torch.float64 else dtype,
        )  # fmt: skip
        return functional.dequantize_4bit(codes, state).to(dtype)


class Int8(Quantization, name="int8"):
    """8-bit integers, scaled by the largest weight of each row (LLM.int8, arXiv 2208.07339)."""

    error = 0.015

    @staticmethod
    def quantize(matrix: Tensor) -> tuple[Tensor, Tensor]:
        codes, largest, _ = _bitsandbytes().int8_vectorwise_quant(matrix.half().contiguous())
        return codes, largest[:, None] / 127

    @staticmethod
    def dequantize(codes: Tensor, scale: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        return torch.mul(codes, scale, out=torch.empty(shape, dtype=dtype, device=codes.device))


class Fp8(Quantization, name="fp8"):
    """8-bit floats (e4m3), scaled by the largest weight of each row; kept as bytes, which no `.to(dtype)` touches."""

    error = 0.04

    @staticmethod
    def quantize(matrix: Tensor) -> tuple[Tensor, Tensor]:
        scale = matrix.float().abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / _FP8_MAX
        return (matrix / scale).to(torch.float8_e4m3fn).view(torch.uint8), scale

    @staticmethod
    def dequantize(codes: Tensor, scale: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        return codes.view(torch.float8_e4m3fn).to(dtype).mul_(scale)


@cache
def _bitsandbytes() -> Any:
    try:
        import bitsandbytes.functional as functional
    except ImportError as error:
        raise MissingError(
            "nf4 and int8 bases come with bitsandbytes, which is not installed.",
            'Install it (pip install "spectral-studio[quantized]") or choose quantization=fp8.',
        ) from error
    return functional


@cache
def _levels(device: torch.device) -> Tensor:
    return _bitsandbytes().get_4bit_type("nf4", device=device)


class Quantized(nn.Module):
    """What QuantizedLinear and QuantizedConv2d share: W̃ = Q(W), and a low-rank residual where LoftQ made one."""

    kind: str
    dtype: torch.dtype
    """What `weight` is computed in."""
    weight_shape: torch.Size
    codes: Tensor
    scale: Tensor
    residual_up: Tensor | None
    """[d, r/g] or None."""
    residual_down: Tensor | None
    """[r, κ] or None."""
    probe: nn.Parameter | None
    """Zeros that a gradient of the weight is asked through (adapters.calibrate), or None."""

    @property
    def weight(self) -> Tensor:
        """W̃ in the layer's own shape, computed now; writing into it changes nothing."""
        rows = self.weight_shape[0]
        matrix = QUANTIZATIONS[self.kind].dequantize(
            self.codes, self.scale, (rows, self.weight_shape.numel() // rows), self.dtype
        )
        weight = _from_matrix(matrix, self.weight_shape)
        if self.residual_up is not None and self.residual_down is not None:
            weight += _product(self.residual_up, self.residual_down).view(self.weight_shape)
        return weight

    def watch(self) -> nn.Parameter:
        """A leaf whose gradient is the weight's, until `unwatch`."""
        self.probe = nn.Parameter(torch.zeros_like(self.weight))
        return self.probe

    def unwatch(self) -> None:
        self.probe = None


class QuantizedLinear(Quantized, nn.Linear):  # pyright: ignore[reportIncompatibleVariableOverride]
    """y = W̃ x + b."""

    def forward(self, input: Tensor) -> Tensor:
        if self.probe is not None:
            return F.linear(input, self.weight + self.probe, self.bias)
        return _FrozenLinear.apply(input, self)  # pyright: ignore[reportReturnType]


class QuantizedConv2d(Quantized, nn.Conv2d):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A convolution with W̃."""

    def forward(self, input: Tensor) -> Tensor:
        if self.probe is not None:
            return F.conv2d(input, self.weight + self.probe, self.bias, *self.geometry)
        return _FrozenConv.apply(input, self)  # pyright: ignore[reportReturnType]

    @property
    def geometry(self) -> tuple[Any, ...]:
        """Stride, padding, dilation and groups, as F.conv2d takes them."""
        return self.stride, self.padding, self.dilation, self.groups


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0] @ ctx.layer.weight, None


class _FrozenConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedConv2d) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        return F.conv2d(x, layer.weight, layer.bias, *layer.geometry)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        layer = ctx.layer
        return conv2d_input(ctx.shape, layer.weight, grad_outputs[0], *layer.geometry), None


def quantizable(module: nn.Module) -> bool:
    """Whether `quantize_` can take the layer: an ordinary frozen Linear, or a Conv2d with a border of zeros."""
    if type(module) is nn.Conv2d:
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) is nn.Linear


def weight_shape(module: nn.Linear | nn.Conv2d) -> torch.Size:
    """The shape of a layer's weight, which a quantised layer need not compute for it."""
    return module.weight_shape if isinstance(module, Quantized) else module.weight.shape


@torch.no_grad()
def quantize_(module: nn.Linear | nn.Conv2d, kind: str, device: torch.device, loftq_rank: int = 0) -> None:
    """Makes `module` a quantised layer on `device`, in place; its weight is let go.

    Args:
        module: see `quantizable`.
        kind: a name in QUANTIZATIONS.
        loftq_rank: rank of the residual that LoftQ leaves beside the codes (arXiv 2310.08659, alg. 1); 0: none.

    Raises:
        UnknownNameError, MissingError: the kind is not known, or its library not installed.
        StudioError: the layer cannot be quantised.
    """
    if kind not in QUANTIZATIONS:
        raise UnknownNameError("quantisation", kind, list(QUANTIZATIONS))
    if not quantizable(module):
        raise StudioError(f"A {type(module).__name__} of this kind cannot be quantised.", "Leave it as it is.")
    weight = module.weight.detach().to(device)
    codes, scale, residual = _encode(weight, kind, module.groups if isinstance(module, nn.Conv2d) else 1, loftq_rank)
    shape, dtype = weight.shape, weight.dtype
    layer: Any = module
    del layer.weight
    layer.__class__ = QuantizedConv2d if isinstance(module, nn.Conv2d) else QuantizedLinear
    layer.kind, layer.dtype, layer.weight_shape, layer.probe = kind, dtype, shape, None
    for name, tensor in zip(("codes", "scale", "residual_up", "residual_down"), (codes, scale, *residual), strict=True):
        layer.register_buffer(name, tensor)
    layer.to(device)


def _encode(
    weight: Tensor, kind: str, groups: int, rank: int
) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None]]:
    """Codes, scale and residual: Q = Q(W − B A), then B A = the top r of W − Q, in turn."""
    way = QUANTIZATIONS[kind]
    codes, scale = way.quantize(_to_matrix(weight))
    if rank == 0:
        return codes, scale, (None, None)
    master = weight.to(torch.promote_types(weight.dtype, torch.float32))
    up, down = master.new_zeros(len(weight), rank // groups), master.new_zeros(rank, weight[0].numel())
    shape = (len(weight), weight[0].numel())
    for number in range(LOFTQ_ROUNDS):
        if number:
            codes, scale = way.quantize(_to_matrix((master - _product(up, down).view(weight.shape)).to(weight)))
        left = master - _from_matrix(way.dequantize(codes, scale, shape, master.dtype), weight.shape)
        part = Decomposer().top(left.reshape(groups, len(weight) // groups, -1), rank // groups)
        root = part.s.sqrt()
        up, down = (part.u * root[:, None]).flatten(0, 1), (root[..., None] * part.vt).flatten(0, 1)
    return codes, scale, (up.to(weight.dtype), down.to(weight.dtype))


def _product(up: Tensor, down: Tensor) -> Tensor:
    """B A as [d, κ], group by group: [d, r/g], [r, κ]."""
    groups = len(down) // up.shape[1]
    return (up.unflatten(0, (groups, -1)) @ down.unflatten(0, (groups, -1))).flatten(0, 1)


def _to_matrix(weight: Tensor) -> Tensor:
    """[d, κ] with a convolution's channels last, as fast convolutions read them."""
    return (weight if weight.ndim == 2 else weight.permute(0, 2, 3, 1)).reshape(len(weight), -1)


def _from_matrix(matrix: Tensor, shape: torch.Size) -> Tensor:
    """`_to_matrix` backwards; a view, in channels_last for a convolution."""
    if len(shape) == 2:
        return matrix
    return matrix.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
