"""Teaches the judge (look.Look): views of one design close together, all other designs away, its own class's first."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapters.atomic import atomic_path
from benchmarks.embedded.vae import decode, encode
from benchmarks.fusion.designs import Designs, views
from benchmarks.fusion.look import FEATURES, Look

RATE = 2e-3
SCALE, MARGIN = 16.0, 0.15
"""Of the cosine softmax (CosFace, arXiv 1801.09414)."""
REFERENCES = "references"
"""Tensors of the file whose names begin so: the mean look of each reference design."""


def blurred(windows: Tensor, vae: AutoencoderKL, share: float, generator: torch.Generator) -> Tensor:
    """As generated pictures are: through the autoencoder (a share of them), softer, in other light, noisy."""
    count, device = len(windows), windows.device
    part = round(share * count)
    with torch.no_grad():
        windows = torch.cat([decode(vae, encode(vae, windows[:part])[0]).to(windows.dtype), windows[part:]])
    soft = torch.rand(count, 1, 1, 1, device=device, generator=generator)
    windows = windows + soft * (F.avg_pool2d(F.pad(windows, (1, 1, 1, 1), mode="replicate"), 3, 1) - windows)
    gain = 0.8 + 0.35 * torch.rand(count, 1, 1, 1, device=device, generator=generator)
    tint = (torch.rand(count, 3, 1, 1, device=device, generator=generator) - 0.5) * 0.25
    noise = torch.randn(windows.shape, device=device, generator=generator)
    return windows * gain + tint + 0.05 * torch.rand(count, 1, 1, 1, device=device, generator=generator) * noise


def train_judge(designs: Designs, vae: AutoencoderKL, steps: int, batch: int = 128) -> Look:
    """The network after so many steps of AdamW at a falling rate, on the designs' device."""
    torch.manual_seed(0)
    device = designs.look.device
    model, weights = Look().to(device).train(), nn.Parameter(torch.randn(len(designs.names), FEATURES, device=device))
    optimizer = torch.optim.AdamW([*model.parameters(), weights], RATE, weight_decay=0.02)
    draws, begin = torch.Generator(device).manual_seed(0), time.monotonic()
    for step in range(steps):
        rows = torch.randint(0, len(designs.look), (batch,), device=device, generator=draws)
        cosine = model(blurred(views(designs, rows, draws), vae, 0.15, draws)) @ F.normalize(weights, dim=1).mT
        target = F.one_hot(designs.look[rows], len(designs.names)).to(cosine)
        loss = F.cross_entropy(SCALE * (cosine - MARGIN * target), designs.look[rows])
        optimizer.zero_grad()
        loss.backward()
        falling = 0.5 + 0.5 * math.cos(math.pi * step / steps)
        optimizer.param_groups[0]["lr"] = RATE * min(1, step / 100) * falling
        optimizer.step()
        if step % 100 == 0:
            hit, now = (cosine.argmax(1) == designs.look[rows]).float().mean(), time.monotonic() - begin
            print(f"judge {step}, {now:.0f} s: loss {float(loss.detach()):.2f}, right {float(hit):.2f}", flush=True)
    return model.eval()


@torch.no_grad()
def mean_look(model: Look, designs: Designs, vae: AutoencoderKL, thing: str, family: str, count: int = 24) -> Tensor:
    """What the views of one design have in common, a unit vector [FEATURES]."""
    draws = torch.Generator(designs.look.device).manual_seed(1)
    rows = designs.rows_of(thing, family)
    rows = rows[torch.randint(0, len(rows), (count,), generator=draws, device=rows.device)]
    return F.normalize(model(blurred(views(designs, rows, draws), vae, 1.0, draws)).mean(0), dim=0)


def save_judge(path: Path, model: Look, references: dict[tuple[str, str], Tensor]) -> None:
    """The network in fp16 with the references; keys "references.<thing>.<family>"."""
    tensors = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    tensors |= {f"{REFERENCES}.{thing}.{family}": look.float() for (thing, family), look in references.items()}
    with atomic_path(path) as part:
        save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, part)


def load_judge(path: Path) -> tuple[Look, dict[tuple[str, str], Tensor]]:
    """The network and each reference design's look by (thing, family)."""
    tensors = load_file(path)
    model = Look()
    model.load_state_dict({name: value for name, value in tensors.items() if not name.startswith(REFERENCES)})
    looks: dict[tuple[str, str], Tensor] = {}
    for name, value in tensors.items():
        if name.startswith(REFERENCES):
            _, thing, family = name.split(".")
            looks[thing, family] = value
    return model.float().eval(), looks
