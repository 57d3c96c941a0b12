"""What stands at one place of a picture, and a network that knows looks: the design of a thing, not only its class."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.embedded.classifier import Residual

WINDOW = 64
"""Side in pixels of what is looked at: an object of a joint picture as it is, never scaled."""
FEATURES = 128
_FOREGROUND = 0.24
"""Difference from the background, of −1…1."""
_WIDTHS = (24, 48, 96, 160)
Box = tuple[float, float, float, float]


class Look(nn.Module):
    """Windows [B, 3, 64, 64] in −1…1 to unit vectors [B, FEATURES]; the cosine of two says how alike they look."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_convolution(3, _WIDTHS[0], 5)]
        for before, width in pairwise(_WIDTHS):
            layers += [_convolution(before, width, 3), Residual(width)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(2 * _WIDTHS[-1], FEATURES)

    def forward(self, windows: Tensor) -> Tensor:
        x = self.body(windows)
        return F.normalize(self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)), dim=1)


def _convolution(before: int, after: int, size: int) -> nn.Sequential:
    """Half as wide and high."""
    convolution = nn.Conv2d(before, after, size, 2, size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())


def window(picture: Tensor, box: Box) -> Tensor:
    """The WINDOW around what stands out in a part of a picture [3, H, W] in −1…1; what lies outside is background.

    The background is the median of the picture's border. Where nothing stands out, it is the middle of the part.
    """
    ground = _border(picture)[:, None, None]
    part = _part(picture, box)
    weight = _standing_out(part, ground)
    y, x = _middle(weight.sum(1)), _middle(weight.sum(0))
    out = ground.expand(3, 3 * WINDOW + part.shape[1], 3 * WINDOW + part.shape[2]).clone()
    out[:, WINDOW : WINDOW + part.shape[1], WINDOW : WINDOW + part.shape[2]] = part
    y, x = y + WINDOW // 2, x + WINDOW // 2
    return out[:, y : y + WINDOW, x : x + WINDOW]


def filled(picture: Tensor, box: Box) -> int:
    """How many pixels of a part of a picture [3, H, W] stand out from its background."""
    return int(_standing_out(_part(picture, box), _border(picture)[:, None, None]).sum())


def _part(picture: Tensor, box: Box) -> Tensor:
    height, width = picture.shape[1:]
    left, top, right, bottom = (round(part * side) for part, side in zip(box, (width, height) * 2, strict=True))
    return picture[:, top:bottom, left:right]


def _standing_out(part: Tensor, ground: Tensor) -> Tensor:
    return ((part - ground).abs().amax(0) > _FOREGROUND).to(part)


def _border(picture: Tensor) -> Tensor:
    frame = torch.ones(picture.shape[1:], dtype=torch.bool, device=picture.device)
    frame[4:-4, 4:-4] = False
    return picture[:, frame].median(-1).values


def _middle(weights: Tensor) -> int:
    """Halfway between the first and the last of a row of sums that are not stray pixels."""
    found = torch.nonzero(weights >= 2).flatten()
    return len(weights) // 2 if len(found) == 0 else (int(found[0]) + int(found[-1]) + 1) // 2
