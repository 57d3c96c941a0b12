"""Stage 3: the denoiser and both text encoders, trained together from scratch."""

from __future__ import annotations

import math
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.embedded.captions import second_padding
from benchmarks.embedded.config import (
    CONTEXT,
    END_TOKEN,
    LATENT_CHANNELS,
    LATENT_SIDE,
    START_TOKEN,
    TRAIN_TIMESTEPS,
    build_scheduler,
)
from benchmarks.embedded.runtime import Ema, Graphed, HalfCopies, StageClock, World, read, write
from benchmarks.embedded.scenes import SceneSampler, render
from benchmarks.embedded.vae import encode


@dataclass(frozen=True)
class UnetRecipe:
    """Sizes and weights of the denoiser's training."""

    batch: int = 1024  # over all ranks
    learning_rate: float = 1.0e-3
    warm_up: int = 500
    weight_decay: float = 0.01
    ema: float = 0.999
    min_snr: float = 5.0
    unconditional: float = 0.1  # captions replaced by zeros: SDXL's force_zeros_for_empty_prompt
    empty: float = 0.02  # captions replaced by the empty prompt
    pool: int = 32768  # encoded scenes that a rank keeps and draws its batches from
    uses: int = 8  # how often a scene is drawn on average before newer ones take its place


@dataclass(frozen=True)
class Networks:
    """What this stage trains."""

    unet: UNet2DConditionModel
    text_1: CLIPTextModel
    text_2: CLIPTextModelWithProjection

    def modules(self) -> list[nn.Module]:
        return [self.unet, self.text_1, self.text_2]

    def trained(self) -> list[nn.Parameter]:
        """Every parameter but those that SDXL's conditioning never reads: the first encoder's last layer and norm."""
        body = getattr(self.text_1, "text_model", self.text_1)
        unread = {id(p) for p in [*body.encoder.layers[-1].parameters(), *body.final_layer_norm.parameters()]}
        return [p for module in self.modules() for p in module.parameters() if id(p) not in unread]


def _layer(layer: nn.Module, hidden: Tensor) -> Tensor:
    """One CLIPEncoderLayer with causal attention, from its own parts: stock hooks do not compile."""
    attention, x = layer.self_attn, layer.layer_norm1(hidden)
    parts = [project(x) for project in (attention.q_proj, attention.k_proj, attention.v_proj)]
    q, k, v = (p.unflatten(-1, (-1, 32)).transpose(1, 2) for p in parts)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    hidden = hidden + attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return hidden + layer.mlp(layer.layer_norm2(hidden))


def text_states(networks: Networks, ids: Tensor, ids_2: Tensor) -> tuple[Tensor, Tensor]:
    """What the stock pipeline computes: both penultimate states [B, T, 320] and the pooled projection [B, 192]."""
    body = getattr(networks.text_1, "text_model", networks.text_1)
    hidden = body.embeddings(ids)
    for layer in body.encoder.layers[:-1]:
        hidden = _layer(layer, hidden)
    body = networks.text_2.text_model
    hidden_2 = body.embeddings(ids_2)
    for layer in body.encoder.layers[:-1]:
        hidden_2 = _layer(layer, hidden_2)
    last = body.final_layer_norm(_layer(body.encoder.layers[-1], hidden_2))
    end = ((ids_2 == END_TOKEN).int().cumsum(1) == 1) & (ids_2 == END_TOKEN)
    pooled = networks.text_2.text_projection((last * end[..., None]).sum(1))
    return torch.cat([hidden, hidden_2], -1), pooled


@torch.no_grad()
def check_text_states(networks: Networks, ids: Tensor) -> float:
    """Greatest difference between text_states and the stock forward passes, in fp32."""
    ids_2 = second_padding(ids)
    states, pooled = text_states(networks, ids, ids_2)
    first = networks.text_1(ids, output_hidden_states=True).hidden_states[-2]
    second = networks.text_2(ids_2, output_hidden_states=True)
    stock = torch.cat([first, second.hidden_states[-2]], -1)
    return float(torch.maximum((states - stock).abs().max(), (pooled - second.text_embeds).abs().max()))


def predict(networks: Networks, ids: Tensor, keep: Tensor, noisy: Tensor, times: Tensor, time_ids: Tensor) -> Tensor:
    """The predicted noise; where `keep` is 0 the condition is zeros, as guidance's unconditional half has it."""
    states, pooled = text_states(networks, ids, second_padding(ids))
    condition = {"text_embeds": pooled * keep[:, None], "time_ids": time_ids}
    states = states * keep[:, None, None]
    return networks.unet(noisy.to(states.dtype), times, states, added_cond_kwargs=condition, return_dict=False)[0]


class ScenePool:
    """A ring of encoded scenes: each step replaces a part, and batches are drawn from the whole.

    Encoding costs more than a training step on the same scene; with fresh noise a scene serves several times.
    """

    def __init__(self, vae: AutoencoderKL, sampler: SceneSampler, world: World, recipe: UnetRecipe) -> None:
        self.vae = deepcopy(vae).to(torch.bfloat16)
        self.sampler, self.world, self.empty_share = sampler, world, recipe.empty
        self.batch = recipe.batch // world.size
        self.part = max(1, self.batch // recipe.uses)
        self.size = recipe.pool // self.part * self.part
        device = world.device
        self.moments = torch.zeros(
            self.size, 2 * LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE, device=device, dtype=torch.bfloat16
        )
        self.ids = torch.full((self.size, CONTEXT), END_TOKEN, device=device)
        self.time_ids = torch.zeros(self.size, 6, device=device)
        self.empty = torch.full((CONTEXT,), END_TOKEN, device=device)
        self.empty[0] = START_TOKEN
        self.cursor = torch.arange(self.part, device=device)

    @torch.no_grad()
    def renew(self) -> tuple[Tensor, ...]:
        """Replaces the oldest part by fresh scenes."""
        scenes = self.sampler.sample(self.part)
        image = render(self.sampler.bank, scenes)
        mean, deviation = encode(self.vae, image)
        ids = torch.where(self.sampler.chance(self.part, self.empty_share)[:, None], self.empty, scenes.ids)
        self.moments.index_copy_(0, self.cursor, torch.cat([mean, deviation], 1).to(self.moments.dtype))
        self.ids.index_copy_(0, self.cursor, ids)
        self.time_ids.index_copy_(0, self.cursor, scenes.time_ids)
        self.cursor.add_(self.part).remainder_(self.size)
        return ()

    def fill(self) -> None:
        """Fills the whole ring once."""
        renew = Graphed(self.renew, self.world, [self.sampler.generator])
        for _ in range(self.size // self.part):
            renew()

    @torch.no_grad()
    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """A batch of sampled latents, caption ids and time ids."""
        chosen = self.sampler.below(self.batch, self.size)
        mean, deviation = self.moments[chosen].float().chunk(2, 1)
        return mean + deviation * torch.randn_like(mean), self.ids[chosen], self.time_ids[chosen]


class UnetTrainer:
    """Holds the networks, their optimizer and average; trains in slices and resumes from a checkpoint."""

    def __init__(
        self, networks: Networks, vae: AutoencoderKL, sampler: SceneSampler, world: World, recipe: UnetRecipe
    ) -> None:
        self.networks, self.sampler, self.world, self.recipe = networks, sampler, world, recipe
        for module in networks.modules():
            module.to(world.device)
            world.copy_from_main(module)
        parameters = networks.trained()
        fused = world.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            parameters, recipe.learning_rate, betas=(0.9, 0.99), weight_decay=recipe.weight_decay, fused=fused
        )
        self.copies, self.ema, self.step = HalfCopies(networks.modules(), parameters), Ema(parameters, recipe.ema), 0
        self.half = Networks(*self.copies.modules)  # type: ignore[arg-type]
        self.alphas = build_scheduler().alphas_cumprod.to(world.device)
        self.pool = ScenePool(vae, sampler, world, recipe)

    def forward_backward(self) -> tuple[Tensor, ...]:
        """Renews a part of the pool, draws a batch, and adds the gradients of its min-SNR weighted noise error."""
        self.pool.renew()
        latents, ids, time_ids = self.pool.draw()
        device, count = self.world.device, len(latents)
        noise, times = torch.randn_like(latents), torch.randint(0, TRAIN_TIMESTEPS, (count,), device=device)
        alpha = self.alphas[times][:, None, None, None]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        keep = (~self.sampler.chance(count, self.recipe.unconditional)).to(torch.bfloat16)
        out = predict(self.half, ids, keep, noisy, times, time_ids)
        ratio = (alpha / (1 - alpha)).flatten()
        weight = ratio.clamp(max=self.recipe.min_snr) / ratio
        loss = ((out.float() - noise).square().mean((1, 2, 3)) * weight).mean()
        loss.backward()
        return (loss.detach(),)

    def train(self, seconds: float, final: bool, checkpoint: Path) -> None:
        """Trains a slice of about `seconds`; the final slice lowers the learning rate to zero along a cosine."""
        begin = time.monotonic()
        self.pool.fill()
        step = Graphed(self.forward_backward, self.world, [self.sampler.generator])
        step()
        self.world.say(f"unet: pool filled and step captured in {time.monotonic() - begin:.0f} s")
        clock, saved, smooth = StageClock(self.world, seconds - (time.monotonic() - begin)), 0.0, 0.0
        while clock.tick():
            fall = 0.5 + 0.5 * math.cos(math.pi * min(1.0, clock.fraction)) if final else 1.0
            rate = self.recipe.learning_rate * min(1.0, (self.step + 1) / self.recipe.warm_up) * fall + 1e-6
            self.optimizer.param_groups[0]["lr"] = rate
            self.copies.refresh()
            (loss,) = step()
            self.copies.settle(self.world)
            self.optimizer.step()
            self.step += 1
            self.ema.update(self.step)
            if self.step % 100 == 0:
                now = float(loss)
                smooth = 0.7 * smooth + 0.3 * now if smooth else now
                if self.step % 500 == 0:
                    self.world.say(f"unet {self.step} {clock.elapsed:.0f} s loss {smooth:.4f} lr {rate:.1e}")
            if clock.fraction * seconds - saved > 120:
                saved = clock.fraction * seconds
                self.save(checkpoint)
        self.save(checkpoint)
        seen = self.step * self.recipe.batch / 1e6
        self.world.say(f"unet slice done: step {self.step}, {seen:.2f} M scenes seen, {clock.elapsed:.0f} s")

    def save(self, path: Path) -> None:
        """Writes weights, averages, optimizer and step, on the first rank."""
        if self.world.main:
            weights = [p.detach() for p in self.ema.parameters]
            content = {"weights": weights, "ema": self.ema.average, "step": self.step}
            write(path, content | {"optimizer": self.optimizer.state_dict()})

    def load(self, path: Path) -> None:
        """Takes up a checkpoint that `save` wrote; without an optimizer in it, moments start anew."""
        content = read(path, self.world.device)
        with torch.no_grad():
            for p, weight in zip(self.ema.parameters, cast(list[Tensor], content["weights"]), strict=True):
                p.copy_(weight)
            for a, average in zip(self.ema.average, cast(list[Tensor], content["ema"]), strict=True):
                a.copy_(average)
        if "optimizer" in content:
            self.optimizer.load_state_dict(cast(dict[str, object], content["optimizer"]))
        self.step = cast(int, content["step"])
