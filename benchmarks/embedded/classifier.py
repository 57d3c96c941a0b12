"""Stage 2: a small classifier of the training concepts. It only scores; nothing of it ships."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from benchmarks.embedded.config import PICTURE
from benchmarks.embedded.runtime import FlatGradients, StageClock, World
from benchmarks.embedded.scenes import Scenes, SceneSampler, render
from benchmarks.embedded.vae import decode, encode

_WIDTHS = (32, 64, 128, 192)


class Residual(nn.Module):
    """Two 3×3 convolutions beside their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class Classifier(nn.Module):
    """Pictures [B, 3, 128, 128] in −1…1 to logits over the training concepts."""

    def __init__(self, concepts: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in _WIDTHS:
            layers += [
                nn.Conv2d(before, width, 3, 2, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                Residual(width),
            ]
            before = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(2 * before, concepts)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))


def half(image: Tensor, right: Tensor) -> Tensor:
    """The left or right half of each picture, in the middle of a square that repeats its edge."""
    width = PICTURE // 2
    part = torch.where(right[:, None, None, None], image[..., width:], image[..., :width])
    return F.pad(part, (width // 2, width // 2, 0, 0), mode="replicate")


def views(sampler: SceneSampler, scenes: Scenes) -> tuple[Tensor, Tensor]:
    """Pictures that show one object each, halves of the pairs among them, and their concepts."""
    image, pair = render(sampler.bank, scenes), scenes.left_first >= 0
    right = sampler.chance(len(scenes), 0.5)
    image = torch.where(pair[:, None, None, None], half(image, right), image)
    second = pair & (right == (scenes.left_first == 1))
    return image, sampler.bank.concept[torch.where(second, scenes.rows[:, 1], scenes.rows[:, 0])]


def _augment(sampler: SceneSampler, vae: AutoencoderKL, image: Tensor) -> Tensor:
    """Contrast, tint and noise; a quarter of the pictures as the autoencoder gives them back."""
    count, part = len(image), len(image) // 4
    with torch.no_grad():
        image = torch.cat([decode(vae, encode(vae, image[:part])[0]).to(image.dtype), image[part:]])
    gain = sampler.uniform(count, 0.75, 1.2)[:, None, None, None]
    tint = (torch.rand(count, 3, 1, 1, device=image.device) - 0.5) * 0.2
    level = sampler.uniform(count, 0, 0.08)[:, None, None, None]
    return image * gain + tint + torch.randn_like(image) * level


def train_classifier(
    model: Classifier, vae: AutoencoderKL, sampler: SceneSampler, world: World, seconds: float, batch: int
) -> None:
    """Trains for about `seconds` with a one-cycle learning rate."""
    model.to(world.device, memory_format=torch.channels_last).train()
    world.copy_from_main(model)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.02)
    gradients, clock = FlatGradients(model.parameters()), StageClock(world, seconds)
    autocast = torch.autocast(world.device.type, torch.bfloat16)
    while clock.tick():
        progress = min(1.0, clock.fraction)
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, clock.step / 100) * (0.5 + 0.5 * math.cos(math.pi * progress))
        image, label = views(sampler, sampler.sample(batch))
        with autocast:
            logits = model(_augment(sampler, vae, image).contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), label, label_smoothing=0.05)
        loss.backward()
        gradients.settle(world, 5.0)
        optimizer.step()
        gradients.zero()
        if clock.step % 250 == 1:
            hit = (logits.argmax(1) == label).float().mean()
            world.say(
                f"classifier {clock.step} {clock.elapsed:.0f} s loss {float(loss.detach()):.3f} top-1 {float(hit):.3f}"
            )
    world.copy_from_main(model)
    for p in model.parameters():
        p.grad = None
    model.eval()


@torch.no_grad()
def accuracy(model: Classifier, sampler: SceneSampler, batches: int, batch: int) -> tuple[float, float]:
    """Top-1 and top-5 on fresh scenes: placements, turns and colours that no training saw."""
    hits = torch.zeros(2, device=sampler.bank.device)
    for _ in range(batches):
        image, label = views(sampler, sampler.sample(batch))
        best = model(image).topk(5, 1).indices == label[:, None]
        hits += torch.stack([best[:, 0].float().mean(), best.any(1).float().mean()])
    return float(hits[0] / batches), float(hits[1] / batches)
