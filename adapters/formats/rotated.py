"""OFT and BOFT of other programs: which matrices turn a layer, and the angles of our own methods that do the same.

W' = diag(1 + g)·R·W in kohya's sd-scripts, LyCORIS, A1111 and ComfyUI (`oft_blocks`, `oft_diag`, `rescale`), and
diag(1 + g)·W·Rᵀ in PEFT and OneTrainer (`oft_R`, `boft_R`, `boft_s`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.adapter_set import Knobs
from adapters.errors import MismatchError
from adapters.rotations import Side, cayley, turn
from adapters.sites import Site

_TOLERANCE = 0.01
"""Relative distance of a file's matrices from rotations up to which they are told as such."""


@dataclass(frozen=True)
class Rotation:
    """What turns one layer."""

    side: Side
    levels: Tensor
    """R_i, [m, c/n, n, n]: block-diagonal factors of the butterfly R_{m−1} ⋯ R_0, laid as adapters.rotations has it."""
    gain: Tensor | None
    """g, [d]"""


@dataclass(frozen=True)
class Angles:
    """A rotation in the parameters of our OFT and BOFT."""

    side: Side
    angles: Tensor
    """Above the diagonal of Q, [m, c/n, n(n − 1)/2]."""
    size: int
    gain: Tensor | None
    rows: int
    error: float
    """‖R' − R‖/‖R − I‖: a truncated series, and what was rounded, is not quite a rotation."""

    @property
    def is_butterfly(self) -> bool:
        """Whether it takes a BOFT."""
        return len(self.angles) > 1 or self.gain is not None

    def knobs(self, butterfly: bool) -> Knobs:
        """Of a BOFT, or an OFT."""
        levels = (("factors", len(self.angles)),) if butterfly else ()
        return (("block_size", self.size), ("side", self.side), *levels)

    def tensors(self, butterfly: bool) -> dict[str, Tensor]:
        if not butterfly:
            return {"angles": self.angles}
        return {"angles": self.angles, "gain": self.angles.new_zeros(self.rows) if self.gain is None else self.gain}


def rotation_of(site: Site, found: Mapping[str, Tensor], *, series: bool, kernels_turned: bool) -> Rotation | None:
    """The rotation in a layer's tensors, if that is what they are.

    Args:
        series: `oft_R` is meant by Neumann's series in five terms (PEFT's default, OneTrainer), not by Cayley's map.
        kernels_turned: a convolution is W·R, as in OneTrainer, not W·Rᵀ.

    Raises:
        MismatchError: the blocks do not fit the layer.
    """
    found = {name: tensor.double() for name, tensor in found.items()}  # R − I of small angles would lose digits in fp32
    gain = next((found[name].flatten() - 1 for name in ("rescale", "boft_s") if name in found), None)
    if "oft_blocks" in found:
        rotation = Rotation("output", _from_blocks(site, found), gain)
    elif "oft_diag" in found:
        rotation = Rotation("output", found["oft_diag"].mT[None], gain)
    elif "boft_R" in found:
        rotation = Rotation("input", cayley(found["boft_R"]), gain)
    elif "oft_R" in found:
        levels = _from_angles(site, found, series)
        rotation = Rotation("input", levels.mT if kernels_turned and site.kind == "conv" else levels, gain)
    else:
        return None
    _check(site, rotation)
    return rotation


def change_of(site: Site, weight: Tensor, rotation: Rotation) -> Tensor:
    """W' − W as d×κ; on the input side R turns all κ inputs of an output."""
    matrix = site.matricise(weight)
    turns = (rotation.levels - torch.eye(rotation.levels.shape[-1]).to(rotation.levels)).to(matrix)
    if rotation.side == "output":
        moved = turn(matrix.mT, turns, -1, transposed=True).mT
    else:
        moved = turn(matrix, turns, -1, transposed=True)
    return moved if rotation.gain is None else moved + rotation.gain[:, None].to(matrix) * (matrix + moved)


def angles_of(site: Site, rotation: Rotation) -> Angles | None:
    """The same in our parameters; None where ours cannot: kernels of inputs, groups, or what is no rotation."""
    if site.groups > 1 or (rotation.side == "input" and site.columns != site.channels):
        return None
    levels = rotation.levels
    size = levels.shape[-1]
    eye = torch.eye(size, dtype=levels.dtype, device=levels.device)
    skew = torch.linalg.solve_ex(eye + levels, eye - levels).result  # Cayley's map is its own inverse
    skew = 0.5 * (skew - skew.mT)
    error = float((cayley(skew) - levels).norm() / (levels - eye).norm().clamp_min(torch.finfo(levels.dtype).tiny))
    if not error < _TOLERANCE:  # NaN where a block has the eigenvalue −1
        return None
    rows, columns = torch.triu_indices(size, size, 1)
    angles = skew[..., rows, columns].float()
    gain = None if rotation.gain is None else rotation.gain.float()
    return Angles(rotation.side, angles, size, gain, site.rows, error)


def _from_blocks(site: Site, found: Mapping[str, Tensor]) -> Tensor:
    """kohya's and LyCORIS's OFT (3 axes) and LyCORIS's BOFT (4): R = (I + Q)(I − Q)⁻¹, which OFT transposes.

    Q = B − Bᵀ is cut to the length alpha·d (COFT). A level of LyCORIS's butterfly lays the two halves of a block in
    turn, ours one after the other.
    """
    skew = found["oft_blocks"] - found["oft_blocks"].mT
    limit = float(found["alpha"]) * site.rows if "alpha" in found else 0.0
    if limit > 0:
        skew = skew * (limit / skew.norm().clamp_min(limit))
    if skew.ndim == 3:
        return cayley(skew)[None]
    order = torch.arange(skew.shape[-1], device=skew.device).unflatten(0, (-1, 2)).T.flatten()
    return cayley(-skew)[..., order, :][..., order]


def _from_angles(site: Site, found: Mapping[str, Tensor], series: bool) -> Tensor:
    """PEFT's: the numbers above the diagonal of Q, block by block, or of one block that all share."""
    angles = found["oft_R"]
    size = (1 + math.isqrt(1 + 8 * angles.shape[-1])) // 2
    if "scaled_oft" in found:  # OneTrainer's
        angles = angles / (2 * math.sqrt(size - 1))
    rows, columns = torch.triu_indices(size, size, 1)
    upper = angles.new_zeros(len(angles), size, size)
    upper[:, rows, columns] = angles
    q = upper - upper.mT
    eye = torch.eye(size).to(q)
    turned = eye + 2 * (q + q @ q + q @ q @ q) + q @ q @ q @ q if series else cayley(q)
    return (turned.repeat(site.columns // size, 1, 1) if len(turned) == 1 else turned)[None]


def _check(site: Site, rotation: Rotation) -> None:
    levels, wanted = rotation.levels, site.rows if rotation.side == "output" else site.columns
    count, blocks, size, width = levels.shape if levels.ndim == 4 else (0, 0, 0, 0)
    span = size * 2 ** (count - 1) if count else 0
    fits = size == width and size >= 2 and blocks * size == wanted and wanted % span == 0
    if not fits or (count > 1 and size % 2) or (rotation.gain is not None and len(rotation.gain) != site.rows):
        told = "×".join(map(str, levels.shape))
        raise MismatchError(
            f"The file's rotation of {site.name} is {told}, which does not fit {wanted} channels.",
            "It was made for another base.",
        )
