"""Where an adapter may sit: one face for Linear and Conv2d, and the choice of layers by name.

Throughout, a weight is seen as a matrix W of d×κ: d output channels, κ inputs of one output (a Linear's
in_features; a convolution's (c_in/g)·kh·kw). A down factor A is r×κ and an up factor B is d×(r/g), with g the
layer's groups (1 for a Linear): row i of B meets only its own group's r/g rows of A.
"""

from __future__ import annotations

import fnmatch
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from adapters.errors import UnknownNameError, UserInputError, nearest

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
        """The layer's own weight, in its own dtype."""
        return self.module.weight

    @property
    def bias(self) -> Tensor | None:
        """[d] or None."""
        return self.module.bias

    @property
    def rows(self) -> int:
        """d: output features or channels."""
        return self.weight.shape[0]

    @property
    def columns(self) -> int:
        """κ: the inputs that one output row sees."""
        return self.weight[0].numel()

    def matricise(self, weight: Tensor) -> Tensor:
        """A weight (or its delta) as d×κ; a view."""
        return weight.reshape(weight.shape[0], -1)

    def as_weight(self, matrix: Tensor) -> Tensor:
        """d×κ back to the weight's own shape; a view."""
        return matrix.reshape(self.weight.shape)

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

    def apply_weight(self, x: Tensor) -> Tensor:
        """W x: the base layer's own product, without its bias. In x's dtype, or autocast's."""
        return self.apply_down(x, self.matricise(self.weight))

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
        return self._convolve(x, down.reshape(-1, *self.module.weight.shape[1:]), self.groups)

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


def make_site(name: str, module: nn.Module) -> Site | None:
    """The face of `module`, or None when no adapter can sit on it."""
    if isinstance(module, nn.Linear):
        return LinearSite(name, module)
    if isinstance(module, nn.Conv2d):
        return ConvSite(name, module)
    return None


# --- the choice of layers ---------------------------------------------------------------------------------

_SELF = r"(^|\.)(attn1\.(to_[qkv]|to_out\.0)|self_attn\.(q|k|v|out)_proj)$"
_CROSS = r"(^|\.)attn2\.(to_[qkv]|to_out\.0)$"


def _by_name(pattern: str) -> Callable[[Site, str], bool]:
    compiled = re.compile(pattern)
    return lambda _, path: compiled.search(path) is not None


def _is_linear(site: Site, path: str) -> bool:
    # text_projection maps the pooled state of a whole prompt; other programs refuse files that adapt it
    return site.kind == "linear" and path != "text_projection"


def _is_conv(site: Site, path: str) -> bool:
    return site.kind == "conv"


GROUPS: dict[str, Callable[[Site, str], bool]] = {
    "attention": _by_name(f"{_SELF}|{_CROSS}"),
    "self-attention": _by_name(_SELF),
    "cross-attention": _by_name(_CROSS),
    "feed-forward": _by_name(r"(^|\.)(ff\.net\.(0\.proj|2)|mlp\.fc[12])$"),
    "linear": _is_linear,
    "conv": _is_conv,
    "all": lambda site, path: _is_linear(site, path) or _is_conv(site, path),
    "time-embedding": _by_name(r"^time_embedding\.|\.time_emb_proj$"),
    "add-embedding": _by_name(r"^add_embedding\."),
    "down": _by_name(r"^down_blocks\."),
    "mid": _by_name(r"^mid_block\."),
    "up": _by_name(r"^up_blocks\."),
    "resnet": _by_name(r"(^|\.)resnets\."),
    # B-LoRA (arXiv 2403.14572): the two of SDXL's transformers that decide what is drawn, and how
    "content": _by_name(r"^up_blocks\.0\.attentions\.0\."),
    "style": _by_name(r"^up_blocks\.0\.attentions\.1\."),
}


def _predicate(word: str) -> Callable[[Site, str], bool]:
    if word in GROUPS:
        return GROUPS[word]
    if block := re.fullmatch(r"(down|up)\.(\d+)", word):
        return _by_name(rf"^{block[1]}_blocks\.{block[2]}\.")
    pattern = word.removeprefix("text_model.")
    return lambda _, path: fnmatch.fnmatchcase(path, pattern)


def layer_path(path: str) -> str:
    """A module path as our files spell it: transformers 5 dropped the text encoder's `text_model.` level."""
    return path.removeprefix("text_model.")


def select_sites(model: nn.Module, component: str, target: str) -> list[Site]:
    """The layers of `model` that `target` names, in the model's order.

    Args:
        component: what the model is in the pipeline ("unet", "text_encoder", …): prefixes the names.
        target: comma list of named groups (GROUPS; "down.1", "up.0" for one block) and patterns with * and ? over
            module paths ("down_blocks.*.to_q"); "&" between them takes what is in both ("cross-attention&up.0").

    Raises:
        UserInputError: the target is empty, or a word of it matched no layer (names the nearest).
    """
    words = [word.strip() for word in target.split(",") if word.strip()]
    if not words:
        raise UserInputError(f"No layers were chosen for {component}.", f"Name some: {', '.join(GROUPS)}.")
    candidates = _candidates(model, component)
    chosen: set[str] = set()
    for word in words:
        chosen |= _matched(word, candidates, component)
    return [site for path, site in candidates.items() if path in chosen]


def _matched(word: str, candidates: dict[str, Site], component: str) -> set[str]:
    """The paths that are in every part of a word such as "attention&up.0"."""
    matched = set(candidates)
    parts = [part.strip() for part in word.split("&")]
    for part in parts:
        if not part:
            raise UserInputError(f"The target {word!r} lacks a name beside its &.", 'Write it like "conv&up.0".')
        wanted = _predicate(part)
        found = {path for path, site in candidates.items() if wanted(site, path)}
        if not found:
            raise _nothing_matched(part, component, list(candidates))
        matched &= found
    if not matched:
        raise UserInputError(
            f"No layer of {component} is in {' and in '.join(parts)} at once.", "A comma takes what is in either."
        )
    return matched


def _candidates(model: nn.Module, component: str) -> dict[str, Site]:
    found: dict[str, Site] = {}
    for name, module in model.named_modules():
        path = layer_path(name)
        if site := make_site(f"{component}.{path}", module):
            found[path] = site
    return found


def _nothing_matched(word: str, component: str, paths: list[str]) -> UserInputError:
    if word in GROUPS or any(char in word for char in "*?["):
        like = nearest(word.replace("*", ""), paths)
        hint = f"A layer with a name like it: {like}. " if like else ""
        return UserInputError(
            f"The target {word!r} matches no layer of {component}.", f"{hint}Groups: {', '.join(GROUPS)}."
        )
    options = [*GROUPS, *(path for path in paths if path == nearest(word, paths))]
    return UnknownNameError(f"layer or group of layers in {component} called", word, options)
