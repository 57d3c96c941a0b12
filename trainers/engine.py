"""One optimizer step: batches by number, noise, UNet, loss, backward, clip, update.

Everything it reads lies on the training device, and every draw is seeded by the step's number, so a step is a pure
function of (weights, optimizer state, step). Nothing waits for the device: losses come back as device scalars.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from adapters.adapter_set import AdapterSet
from adapters.errors import UserInputError
from trainers import objective
from trainers.batches import Batch, BatchPlan
from trainers.config import TrainConfig
from trainers.ema import MovingAverage
from trainers.optim import build_optimizer, build_schedule, clip_gradients
from trainers.rules import RULES, Rule
from trainers.seeds import derive_seed, generator_for
from trainers.text import TextSource


@dataclass(frozen=True)
class StepResult:
    """Mean loss of the step's batches and the gradient's norm before clipping: scalars on the device."""

    loss: Tensor
    grad_norm: Tensor


class Engine:
    """The training step of a method over a base; `unet` and the adapter stay the caller's."""

    def __init__(
        self,
        unet: nn.Module,
        adapter: AdapterSet,
        plan: BatchPlan,
        text: TextSource,
        scheduler: DDPMScheduler,
        config: TrainConfig,
        dtype: torch.dtype,
    ) -> None:
        self.unet, self.adapter, self.plan, self.text = unet, adapter, plan, text
        self.scheduler, self.config, self.dtype = scheduler, config, dtype
        self.rule = RULES[config.optim.rule](adapter, config.optim.rule_ratio)  # may freeze parameters: goes first
        self.parameters = list(adapter.parameters())
        self.device = self.parameters[0].device
        self._alphas = scheduler.alphas_cumprod.to(self.device)
        scheduler.alphas_cumprod = self._alphas
        self._velocity = scheduler.config["prediction_type"] == "v_prediction"
        on_gpu = self.device.type == "cuda"
        self.optimizer = build_optimizer(config.optim, parameter_groups(adapter, config, self.rule), fused=on_gpu)
        _switch(self.optimizer, "train")
        self.schedule = build_schedule(config.optim, self.optimizer, config.steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16 and on_gpu)
        self.average = MovingAverage(self.parameters, config.ema_decay) if config.ema_decay else None

    @contextmanager
    def as_saved(self) -> Generator[None]:
        """The adapter as it is saved and shown: without dropout, and averaged where an average is kept."""
        average = nullcontext() if self.average is None else self.average.applied()
        self.adapter.eval()
        _switch(self.optimizer, "eval")
        try:
            with average:
                yield
        finally:
            _switch(self.optimizer, "train")
            self.adapter.train()

    @property
    def learning_rate(self) -> float:
        """The UNet group's present learning rate."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, number: int) -> StepResult:
        """Optimizer step `number` (from 0): `gradient_accumulation` batches, one update."""
        total = torch.zeros((), device=self.device)
        for part in range(self.config.gradient_accumulation):
            index = number * self.config.gradient_accumulation + part
            torch.manual_seed(derive_seed(self.config.seed, "global", index))  # adapters' dropout draws from it
            loss = self.batch_loss(self.plan.batch(index), index) / self.config.gradient_accumulation
            if not loss.requires_grad:
                raise UserInputError(
                    "The loss does not depend on any of the layers that should learn.",
                    "SDXL reads its first text encoder before the last layer; choose others with targets.…",
                )
            penalty = self.adapter.regulariser()
            whole = loss if penalty is None else loss + penalty / self.config.gradient_accumulation
            self.scaler.scale(whole).backward()
            total += loss.detach()
        return StepResult(total, self._update(number))

    def _update(self, number: int) -> Tensor:
        self._unscale()
        self.adapter.on_backward()
        self.rule.on_backward()
        norm = clip_gradients(self.parameters, self.config.optim.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.adapter.on_step(number + 1)
        for parameter in self.parameters:  # not only the optimizer's: some methods update gates themselves
            parameter.grad = None
        self.schedule.step()
        if self.average is not None:
            self.average.update(number + 1)
        return norm

    def _unscale(self) -> None:
        self.scaler.unscale_(self.optimizer)
        if self.scaler.is_enabled():  # gates that a method updates itself are not the optimizer's
            optimized = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
            for parameter in self.parameters:
                if id(parameter) not in optimized and parameter.grad is not None:
                    parameter.grad.div_(self.scaler.get_scale())

    def batch_loss(self, batch: Batch, index: int) -> Tensor:
        """Weighted mean loss of one batch; `index` seeds its noise, timesteps and caption dropout."""
        config = self.config.objective
        draws = generator_for(self.device, self.config.seed, "noise", index)
        noise = objective.draw_noise(batch.latents, config, draws)
        timesteps = objective.draw_timesteps(len(noise), config, draws, self.device)
        dropped = torch.rand(len(noise), generator=draws, device=self.device) < self.config.data.captions.dropout
        empty = (dropped & ~batch.is_prior) if self.config.data.captions.dropout > 0 else None
        weights = objective.snr_weight(self._alphas, timesteps, config, self._velocity)
        weights = torch.where(batch.is_prior, weights * self.config.prior.weight, weights)
        losses = self.picture_losses(batch, noise, timesteps, weights, empty)
        return losses.sum() / (~batch.is_prior).sum()

    def picture_losses(
        self, batch: Batch, noise: Tensor, timesteps: Tensor, weights: Tensor, empty: Tensor | None = None
    ) -> Tensor:
        """One loss a picture ("b") for given noise and timesteps: what training and validation share."""
        noisy = self.scheduler.add_noise(batch.latents, noise, timesteps).to(self.dtype)  # pyright: ignore
        states = self.text.states(batch.captions, empty)
        conditions = {"text_embeds": states.pooled.to(self.dtype), "time_ids": batch.time_ids}
        prediction = self.unet(
            noisy, timesteps, states.context.to(self.dtype), added_cond_kwargs=conditions, return_dict=False
        )[0]
        target = objective.prediction_target(self.scheduler, batch.latents, noise, timesteps)
        errors = objective.elementwise_loss(prediction, target, self.config.objective)
        return objective.picture_losses(errors, batch.mask, weights)


def parameter_groups(adapter: AdapterSet, config: TrainConfig, rule: Rule) -> list[dict[str, object]]:
    """One optimizer group for each component (UNet first), role of its factors and learning rate of its own."""
    groups: list[dict[str, object]] = []
    for component in config.targets.chosen():
        for group in adapter.parameter_groups(component):
            rate = group.learning_rate or config.optim.rate_for(component)
            alike: dict[float, list[nn.Parameter]] = {}
            for parameter in group.parameters:
                alike.setdefault(rule.rate_factor(group.role, parameter), []).append(parameter)
            for factor, members in alike.items():
                groups.append({"params": members, "lr": rate * factor, "name": f"{component}.{group.role}"})
    return groups


def _switch(optimizer: Optimizer, mode: Literal["train", "eval"]) -> None:
    """Schedule-free optimizers (arXiv 2405.15682) keep their average aside while they train."""
    switch = getattr(optimizer, mode, None)
    if callable(switch):
        switch()
