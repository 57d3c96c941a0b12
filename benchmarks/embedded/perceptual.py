"""LPIPS over the first three blocks of the VGG trunk that stlpips-pytorch 0.0.2 carries (BSD-2-Clause).

A module of our own that reads those weights: the package itself pins torchvision and IPython.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_BLOCKS = ((0, 2), (6, 8), (12, 14, 16))


class Perceptual(nn.Module):
    """Distance [B] between pictures in −1…1; pooling is shift tolerant (max at stride 1, blur, every second)."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        state = load_file(weights)
        self.register_buffer("shift", state["scaling_layer.shift"].float())
        self.register_buffer("scale", state["scaling_layer.scale"].float())
        self.convs = nn.ModuleList()
        for block, layers in enumerate(_BLOCKS, 1):
            for layer in layers:
                weight = state[f"net.slice{block}.{layer}.weight"].float()
                conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
                conv.load_state_dict({"weight": weight, "bias": state[f"net.slice{block}.{layer}.bias"].float()})
                self.convs.append(conv)
            self.register_buffer(f"weigh{block}", state[f"lin{block - 1}.model.1.weight"].float())
        self.requires_grad_(False)

    @staticmethod
    def _pool(x: Tensor) -> Tensor:
        x = F.pad(F.max_pool2d(x, 2, 1), (1, 1, 1, 1), mode="reflect")
        return F.avg_pool2d(F.avg_pool2d(x, 2, 1), 2, 2)  # together the package's [1, 2, 1] blur

    def features(self, x: Tensor) -> list[Tensor]:
        """Unit-length features of each block."""
        x, index, out = (x - self.shift) / self.scale, 0, []
        for block, layers in enumerate(_BLOCKS):
            x = self._pool(x) if block else x
            for _ in layers:
                x, index = F.relu(self.convs[index](x)), index + 1
            out.append(x * torch.rsqrt(x.square().sum(1, keepdim=True) + 1e-6))
        return out

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        total = torch.zeros(len(x), device=x.device)
        with torch.no_grad():
            wanted = self.features(target.to(self.scale.dtype))
        for block, (a, b) in enumerate(zip(self.features(x.to(self.scale.dtype)), wanted, strict=True), 1):
            total = total + F.conv2d((a - b).square(), getattr(self, f"weigh{block}")).float().mean((1, 2, 3))
        return total


def extract(package_weights: Path, target: Path) -> None:
    """Takes the few tensors that Perceptual needs out of the package's vgg_shift_tolerant.pth, in fp16."""
    state: dict[str, Tensor] = torch.load(package_weights, map_location="cpu", weights_only=True)
    wanted = ("scaling", "net.slice1", "net.slice2", "net.slice3", "lin0", "lin1", "lin2")
    save_file({k: v.half().contiguous() for k, v in state.items() if k.startswith(wanted)}, target)


if __name__ == "__main__":
    extract(Path(sys.argv[1]), Path(sys.argv[2]))
