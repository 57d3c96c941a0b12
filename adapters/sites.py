"""Where an adapter may sit: one face for Linear and Conv2d, and the choice of layers by name.

Throughout, a weight is seen as a matrix W of d×κ: d output channels, κ inputs of one output (a Linear's
in_features; a convolution's (c_in/g)·kh·kw). A down factor A is r×κ and an up factor B is d×(r/g), with g the
layer's groups (1 for a Linear): row i of B meets only its own group's r/g rows of A.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.quantized import weight_shape

Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True, eq=False)
class Site(ABC):
    """One layer of a base model. `name` is "<component>.<module path>"."""

    name: str
    module: Layer

    @property
    @abstractmethod
    def kind(self) -> Literal["linear", "conv"]: ...

    @property
    @abstractmethod
    def groups(self) -> int: ...

    @property
    @abstractmethod
    def channels(self) -> int:
        """Input features or channels, of all groups together."""

    @property
    @abstractmethod
    def channel_axis(self) -> int:
        """The axis of x and of the output that holds channels, counted from the end."""

    @property
    def weight(self) -> Tensor:
        """The layer's own weight, in its own dtype; of a quantised layer, computed now."""
        return self.module.weight

    @property
    def shape(self) -> torch.Size:
        """The weight's shape; a quantised layer need not compute its weight for it."""
        return weight_shape(self.module)

    @property
    def bias(self) -> Tensor | None:
        """[d] or None."""
        return self.module.bias

    @property
    def rows(self) -> int:
        """d: output features or channels."""
        return self.shape[0]

    @property
    def columns(self) -> int:
        """κ: the inputs that one output row sees."""
        return self.shape[1:].numel()

    def matricise(self, weight: Tensor) -> Tensor:
        """A weight (or its delta) as d×κ; a view."""
        return weight.reshape(weight.shape[0], -1)

    def as_weight(self, matrix: Tensor) -> Tensor:
        """d×κ back to the weight's own shape; a view."""
        return matrix.reshape(self.shape)

    @abstractmethod
    def apply_down(self, x: Tensor, down: Tensor) -> Tensor:
        """A x: the base layer's own geometry with r×κ in the place of its weight, and no bias."""

    @abstractmethod
    def apply_up(self, z: Tensor, up: Tensor) -> Tensor:
        """B z: a pointwise layer of d×(r/g)."""

    @abstractmethod
    def windows(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """How one output's κ inputs lie in x, as F.unfold is told it.

        Returns:
            x, with its border where unfold cannot make that itself; kernel, stride, dilation and padding, two
            numbers each ([] for a Linear, whose windows are single tokens).
        """

    @abstractmethod
    def patches(self, x: Tensor) -> Tensor:
        """What each output position sees of x, nothing copied but x's border: [..., k], or [..., c, kh, kw]."""

    def apply_weight(self, x: Tensor) -> Tensor:
        """W x: the base layer's own product, without its bias. In x's dtype, or autocast's."""
        return self.apply_down(x, self.matricise(self.weight))

    def without_bias(self, y: Tensor) -> Tensor:
        """W x, of the layer's own output W x + b."""
        return y if self.bias is None else y - self.per_output(self.bias).to(y.dtype)

    @abstractmethod
    def per_output(self, vector: Tensor) -> Tensor:
        """A number for each channel, [d] or [c], in the shape that broadcasts over an output or an input."""

    def as_inputs(self, weight: Tensor) -> Tensor:
        """[d, c/g, …] as a batch of d/g inputs, [d/g, c, …]: what mixes x's channels can then mix the weight's."""
        return self.split_groups(weight).transpose(0, 1).flatten(1, 2)

    def from_inputs(self, batch: Tensor) -> Tensor:
        """`as_inputs` backwards."""
        return batch.unflatten(1, (self.groups, -1)).transpose(0, 1).flatten(0, 1)

    @abstractmethod
    def apply_core(self, z: Tensor, core: Tensor, groups: int = 1) -> Tensor:
        """A layer between narrow widths with the base's own geometry and no bias.

        Args:
            z: like the layer's input, but with q·groups channels and any leading axes.
            core: [p, q, kh, kw] for a convolution; [p, q] is pointwise, whatever the layer.
        """

    @abstractmethod
    def mix_blocks(self, blocks: Tensor, matrix: Tensor) -> Tensor:
        """Σ_j matrix[g, i, j]·blocks[g, j] over the axis before the channels; [..., g, j, channels(, h, w)]."""

    def split_groups(self, factor: Tensor) -> Tensor:
        """n×m as g×(n/g)×m: the rows of each group; a view."""
        return factor.unflatten(0, (self.groups, -1))

    def product(self, up: Tensor, down: Tensor) -> Tensor:
        """B A as d×κ, group by group. [d, r/g], [r, κ] → [d, κ]."""
        return (self.split_groups(up) @ self.split_groups(down)).flatten(0, 1)

    def project(self, down: Tensor) -> Tensor:
        """W Aᵀ group by group, [d, r/g] in A's dtype: the base layer applied to A's rows.

        Computed in the weight's dtype, so that no d×κ copy of W is made.
        """
        weight = self.split_groups(self.matricise(self.weight))
        kernels = self.split_groups(down.to(weight.dtype))
        return (weight @ kernels.mT).flatten(0, 1).to(down.dtype)

    def block_products(self, rows: Tensor) -> Tensor:
        """Row i of W in blocks of q columns, each times row i mod b of `rows`. [b, q] → [d, κ/q] in their dtype.

        d·q numbers are built on the way, in the weight's dtype: W itself is only looked at.
        """
        weight = self.matricise(self.weight).unflatten(1, (-1, rows.shape[1]))
        repeated = rows.to(weight.dtype).repeat(self.rows // rows.shape[0], 1)
        return (weight @ repeated[:, :, None]).squeeze(-1).to(rows.dtype)


@dataclass(frozen=True, eq=False)
class LinearSite(Site):
    """A Linear layer: x is [..., k], the output [..., d]."""

    module: nn.Linear

    @property
    def kind(self) -> Literal["linear"]:
        return "linear"

    @property
    def groups(self) -> int:
        return 1

    @property
    def channels(self) -> int:
        return self.module.in_features

    @property
    def channel_axis(self) -> int:
        return -1

    def apply_down(self, x: Tensor, down: Tensor) -> Tensor:
        return F.linear(x, down)

    def apply_up(self, z: Tensor, up: Tensor) -> Tensor:
        return F.linear(z, up)

    def windows(self, x: Tensor) -> tuple[Tensor, list[int]]:
        return x, []

    def patches(self, x: Tensor) -> Tensor:
        return x

    def apply_core(self, z: Tensor, core: Tensor, groups: int = 1) -> Tensor:
        return F.linear(z, core)

    def mix_blocks(self, blocks: Tensor, matrix: Tensor) -> Tensor:
        # contiguous: matmul computes other strides another way without gradients, which checkpointing would notice
        return F.linear(blocks.mT.contiguous(), matrix[0]).mT.contiguous()

    def per_output(self, vector: Tensor) -> Tensor:
        return vector


@dataclass(frozen=True, eq=False)
class ConvSite(Site):
    """A Conv2d layer: x is [n, c, h, w]. Down is r kernels run like the base's; up is a grouped 1×1."""

    module: nn.Conv2d

    @property
    def kind(self) -> Literal["conv"]:
        return "conv"

    @property
    def groups(self) -> int:
        return self.module.groups

    @property
    def channels(self) -> int:
        return self.module.in_channels

    @property
    def channel_axis(self) -> int:
        return -3

    def apply_down(self, x: Tensor, down: Tensor) -> Tensor:
        return self._convolve(x, down.reshape(-1, *self.shape[1:]), self.groups)

    def _convolve(self, x: Tensor, kernels: Tensor, groups: int) -> Tensor:
        conv = self.module
        if conv.padding_mode != "zeros":
            x = F.pad(x, _borders(conv), mode=conv.padding_mode)
            return F.conv2d(x, kernels, None, conv.stride, 0, conv.dilation, groups)
        return F.conv2d(x, kernels, None, conv.stride, conv.padding, conv.dilation, groups)

    def apply_up(self, z: Tensor, up: Tensor) -> Tensor:
        return F.conv2d(z, up[:, :, None, None], groups=self.groups)

    def windows(self, x: Tensor) -> tuple[Tensor, list[int]]:
        conv, padding = self.module, (0, 0)
        if conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
            padding = conv.padding
        else:
            x = F.pad(x, _borders(conv), mode="constant" if conv.padding_mode == "zeros" else conv.padding_mode)
        return x, [*conv.kernel_size, *conv.stride, *conv.dilation, *padding]

    def patches(self, x: Tensor) -> Tensor:
        x, (kh, kw, sh, sw, dh, dw, ph, pw) = self.windows(x)
        x = F.pad(x, (pw, pw, ph, ph))
        seen = x.unfold(-2, dh * (kh - 1) + 1, sh).unfold(-2, dw * (kw - 1) + 1, sw)  # the second -2 is w
        return seen[..., ::dh, ::dw].movedim(-5, -3)

    def apply_core(self, z: Tensor, core: Tensor, groups: int = 1) -> Tensor:
        flat = z if z.ndim <= 4 else z.flatten(0, -4)
        if core.ndim == 2:
            y = F.conv2d(flat, core[:, :, None, None], groups=groups)
        else:
            y = self._convolve(flat, core, groups)
        return y if z.ndim <= 4 else y.unflatten(0, z.shape[:-3])

    def mix_blocks(self, blocks: Tensor, matrix: Tensor) -> Tensor:
        return (matrix @ blocks.flatten(-3)).unflatten(-1, blocks.shape[-3:])

    def per_output(self, vector: Tensor) -> Tensor:
        return vector[:, None, None]


def _borders(conv: nn.Conv2d) -> list[int]:
    """Padding as F.pad wants it: last dimension first, (before, after) each."""
    borders: list[int] = []
    for axis in (1, 0):
        if conv.padding == "same":
            total = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        else:
            total = 0 if isinstance(conv.padding, str) else 2 * conv.padding[axis]
        borders += [total // 2, total - total // 2]
    return borders


def site_of(name: str, module: nn.Linear | nn.Conv2d) -> Site:
    """The face of a layer."""
    return LinearSite(name, module) if isinstance(module, nn.Linear) else ConvSite(name, module)


def make_site(name: str, module: nn.Module) -> Site | None:
    """The face of `module`, or None when no adapter can sit on it."""
    return site_of(name, module) if isinstance(module, nn.Linear | nn.Conv2d) else None
