"""One layer of another program's file: from the tensors under its stem to factors."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adapters.errors import FileFormatError, MismatchError
from adapters.formats.rotated import Rotation, change_of
from adapters.fusion.deltas import compress
from adapters.sites import Site

SUFFIXES = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".alpha": "alpha",
    ".dora_scale": "dora_scale",
    ".lora_magnitude_vector": "dora_scale",
    ".lora_magnitude_vector.weight": "dora_scale",
    ".lora_magnitude_vector.default.weight": "dora_scale",
    **{f".lokr_{name}": name for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    **{f".hada_{name}": f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    ".diff": "diff",
    ".diff_b": "diff_b",
    ".w_norm": "w_norm",
    ".b_norm": "b_norm",
    ".oft_blocks": "oft_blocks",
    ".oft_diag": "oft_diag",
    ".rescale": "rescale",
    ".oft_R.weight": "oft_R",
    ".oft_R.default.weight": "oft_R",
    ".oft_R.scaled_oft": "scaled_oft",
    ".boft_R": "boft_R",
    ".boft_s": "boft_s",
}
"""How tensors' names end, and what they are: one list for all programs."""


_KINDS = {
    "down": "LoRA",
    "hada_w1_a": "LoHa",
    "w1": "LoKr",
    "w1_a": "LoKr",
    "diff": "whole difference",
    **dict.fromkeys(("oft_blocks", "oft_diag", "oft_R"), "OFT"),
    "boft_R": "BOFT",
    "w_norm": "norm",
    "b_norm": "norm",
    "diff_b": "bias",
}


def kind_of(parts: Set[str]) -> str:
    """What people call a layer with these tensors."""
    if "dora_scale" in parts:
        return "DoRA"
    return next((kind for part, kind in _KINDS.items() if part in parts), "unknown")


@dataclass(frozen=True)
class Told:
    """ΔW = up · down, and DoRA's m where that was kept apart."""

    up: Tensor
    down: Tensor
    magnitude: Tensor | None = None
    error: float = 0.0

    def tensors(self) -> dict[str, Tensor]:
        """As our LoRA's, or DoRA's, file has them."""
        if self.magnitude is None:
            return {"up": self.up, "down": self.down}
        return {"inner.up": self.up, "inner.down": self.down, "magnitude": self.magnitude}


def layer_of(
    site: Site,
    weight: Tensor,
    found: Mapping[str, Tensor],
    rotation: Rotation | None,
    rank: int,
    keep_magnitude: bool,
) -> Told:
    """The factors of one layer.

    Args:
        weight: W in fp32 or fp64.
        found: its tensors by the names of SUFFIXES, in W's dtype.
        rotation: what they are, where they are one.
        rank: for changes without factors.
        keep_magnitude: tell DoRA of the output by its magnitude; else by W' − W.

    Raises:
        MismatchError: they are of another layer's size.
        FileFormatError: they make no adapter.
    """
    change = _change(site, found) if rotation is None else change_of(site, weight, rotation)
    scale = found.get("dora_scale")
    if scale is None:
        return change if isinstance(change, Told) else _cut(site, change, rank)
    if keep_magnitude and isinstance(change, Told):
        return replace(change, magnitude=scale.flatten())
    before = site.matricise(weight)
    moved = before + (site.product(change.up, change.down) if isinstance(change, Told) else change)
    if per_input(site, scale):
        gain = _input_gain(site, weight, moved, scale)
    else:
        gain = (scale.flatten() / moved.norm(dim=1).clamp_min(torch.finfo(moved.dtype).tiny))[:, None]
    return _cut(site, moved * gain - before, rank)


def _cut(site: Site, matrix: Tensor, rank: int) -> Told:
    cut = compress(site, matrix, rank)
    return Told(cut.up, cut.down, error=cut.error)


def _change(site: Site, found: Mapping[str, Tensor]) -> Told | Tensor:
    """Factors where the kind has them, else W' − W as d×κ; without DoRA's magnitude."""
    if "up" in found and "down" in found:
        return _low_rank(site, found)
    if "hada_w1_a" in found:
        return _hadamard(site, found)
    if "diff" in found:
        return site.matricise(_checked(site, found["diff"]))
    if "w1" in found or "w1_a" in found:
        return site.matricise(_checked(site, _kronecker(site, found)))
    raise FileFormatError(
        f"The file's tensors for {site.name} make no adapter: {', '.join(sorted(found))}.", "Get the file again."
    )


def _low_rank(site: Site, found: Mapping[str, Tensor]) -> Told:
    up, down = found["up"].flatten(1), found["down"]
    if (mid := found.get("mid")) is not None:  # Tucker: a pointwise down, a core with the kernel
        down = torch.einsum("pqhw,qc->pchw", mid, down.flatten(1))
    down = down.flatten(1)
    if up.shape[0] != site.rows or down.shape[1] != site.columns or up.shape[1] * site.groups != len(down):
        raise _misfit(site, f"{up.shape[0]}×{up.shape[1]} and {down.shape[0]}×{down.shape[1]}")
    return Told(_scale(found, len(down)) * up, down)


def _hadamard(site: Site, found: Mapping[str, Tensor]) -> Told:
    """(B1 A1)∘(B2 A2) as a chain of rank r²; with cores (Tucker) as LyCORIS lays them."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for side in ("1", "2"):
        first, second, core = found[f"hada_w{side}_a"], found[f"hada_w{side}_b"], found.get(f"hada_t{side}")
        if core is None:
            pairs.append((first, second))
        else:
            pairs.append((first.T, torch.einsum("pqhw,qc->pchw", core, second).flatten(1)))
    (up1, down1), (up2, down2) = pairs
    if up1.shape[0] != site.rows or down1.shape[1] != site.columns:
        raise _misfit(site, f"{up1.shape[0]}×{down1.shape[1]}")
    scale, most = _scale(found, up1.shape[1]), min(site.rows, site.columns)
    if up1.shape[1] * up2.shape[1] > most:  # a chain of that rank would be larger than the layer
        return _cut(site, scale * (up1 @ down1) * (up2 @ down2), most * site.groups)
    up = (up1[:, :, None] * up2[:, None, :]).flatten(1)
    down = (down1[:, None] * down2[None]).flatten(0, 1)
    return Told(scale * up, down.repeat(site.groups, 1))


def _kronecker(site: Site, found: Mapping[str, Tensor]) -> Tensor:
    """w1 ⊗ w2 in the weight's shape; the scale counts only where a factor is of low rank (LyCORIS)."""
    ranks: list[int] = []

    def factor(side: str) -> Tensor:
        if (whole := found.get(f"w{side}")) is not None:
            return whole
        first, second = found[f"w{side}_a"], found[f"w{side}_b"]
        ranks.append(second.shape[0])
        if side == "2" and (core := found.get("t2")) is not None:
            return torch.einsum("ijkl,ip,jr->prkl", core, first, second)
        return first @ second if second.ndim == 2 else torch.einsum("ab,bchw->achw", first, second)

    one, two = factor("1"), factor("2")
    while one.ndim < two.ndim:
        one = one[..., None]
    kernel = site.shape[2:].numel()
    if two.ndim == 2 and kernel > 1:
        two = two.unflatten(1, (-1, *site.shape[2:]))
        one = one[:, :, None, None] if one.ndim == 2 else one
    if one.numel() * two.numel() != site.shape.numel():  # before it takes memory
        raise _misfit(site, f"{'×'.join(map(str, one.shape))} times {'×'.join(map(str, two.shape))}")
    return (_scale(found, ranks[0]) if ranks else 1.0) * torch.kron(one.contiguous(), two.contiguous())


def _scale(found: Mapping[str, Tensor], rank: int) -> float:
    return float(found["alpha"]) / rank if "alpha" in found else 1.0


def _checked(site: Site, dense: Tensor) -> Tensor:
    if dense.numel() != site.shape.numel() or dense.shape[0] != site.rows:
        raise _misfit(site, "×".join(map(str, dense.shape)))
    return dense.reshape(site.shape)


def _misfit(site: Site, found: str) -> MismatchError:
    wanted = "×".join(map(str, site.shape))
    return MismatchError(
        f"The file's {site.name} is {found}, but this base's layer is {wanted}.", "It was made for another base."
    )


def per_input(site: Site, scale: Tensor) -> bool:
    """Which axis a DoRA scale counts: [1, k, …] is one number an input, all else one an output row."""
    return scale.ndim >= 2 and scale.shape[0] == 1 and scale.numel() == site.shape[1] and scale.numel() > 1


def _input_gain(site: Site, weight: Tensor, moved: Tensor, scale: Tensor) -> Tensor:
    """m/‖W'‖ over all but the input axis, [1, κ]."""
    whole = moved.reshape(weight.shape).transpose(0, 1).flatten(1)
    gain = scale.flatten() / whole.norm(dim=1).clamp_min(torch.finfo(moved.dtype).tiny)
    return gain.repeat_interleave(site.columns // len(gain))[None]
