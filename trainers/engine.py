"""One optimizer step: batches by number, noise, UNet, loss, backward, clip, update.

Everything it reads lies on the training device, and every draw is seeded by the step's number, so a step is a pure
function of (weights, optimizer state, step). Nothing waits for the device: losses come back as device scalars. On a
GPU the work is recorded once for each shape of batch and replayed (trainers.fast.capture); the numbers are the same.
Processes that share a batch (trainers.world) add their gradients up before anything looks at them, so that all that
comes after is the same in each.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from adapters.adapter_set import AdapterSet
from adapters.bank import FactorBank, Lay, where_it_is
from adapters.base import Adapter
from adapters.errors import UserInputError
from trainers import objective
from trainers.batches import Batch, BatchPlan
from trainers.config import TrainConfig
from trainers.ema import MovingAverage
from trainers.fast.capture import Recorder
from trainers.optim import Rates, build_optimizer, build_schedule, clip_gradients, is_capturable, is_elementwise
from trainers.rules import RULES, Rule
from trainers.seeds import derive_seed
from trainers.stage import Stage
from trainers.text import TextSource, TextStates, Words, emptied

_ALIGNED = 64
"""Numbers between the starts of two gradients: kernels read 16 bytes at a time only where these are whole."""


@dataclass(frozen=True)
class StepResult:
    """Mean loss of the step's batches and the gradient's norm before clipping: scalars on the device."""

    loss: Tensor
    grad_norm: Tensor


class Engine:
    """The training step of a method over a base; `unet` and the adapter stay the caller's (`close` gives them back).

    While it lives, the adapter's tensors are rows of stacks (adapters.bank) and the UNet's blocks run our own forwards
    (trainers.fast.blocks): neither may be moved to another device.

    Args:
        stage: a run's before this one, of the same key and UNet (trainers.stage); left out: a new one.
    """

    def __init__(
        self,
        unet: nn.Module,
        adapter: AdapterSet,
        plan: BatchPlan,
        text: TextSource,
        scheduler: DDPMScheduler,
        config: TrainConfig,
        dtype: torch.dtype,
        stage: Stage | None = None,
    ) -> None:
        self.unet, self.adapter, self.plan, self.text, self.world = unet, adapter, plan, text, plan.world
        self.scheduler, self.config, self.dtype = scheduler, config, dtype
        self.rule = RULES[config.optim.rule](adapter, config.optim.rule_ratio)  # may freeze parameters: goes first
        self.stage = stage or Stage(unet, config.attention, record=config.capture == "auto")
        self.stage.fast.resume()
        self.bank = FactorBank(adapter, dtype, self.stage.lay)
        self.parameters = self.bank.leaves(list(adapter.parameters()))
        self.device = self.parameters[0].device
        self._sums = shared_gradients(self.parameters, self.stage.lay)
        self.bank.connect_gradients()
        self._alphas = self.stage.lay("alphas", scheduler.alphas_cumprod.to(self.device))
        context, pooled = text.nothing.context, text.nothing.pooled
        self._nothing = TextStates(self.stage.lay("no context", context), self.stage.lay("no pooled", pooled))
        scheduler.alphas_cumprod = self._alphas
        self._velocity = scheduler.config["prediction_type"] == "v_prediction"
        self._build_optimizer()
        self._build_state()

    def _build_optimizer(self) -> None:
        config, on_gpu = self.config.optim, self.device.type == "cuda"
        groups = parameter_groups(self.adapter, self.config, self.rule)
        if is_elementwise(config.name):  # then stacks of many layers are updated at once
            for group in groups:
                group["params"] = self.bank.leaves(group["params"])  # pyright: ignore[reportArgumentType]
        recorded = on_gpu and self.config.capture == "auto" and is_capturable(config.name)
        self.optimizer = build_optimizer(config, groups, capturable=recorded)
        _switch(self.optimizer, "train")
        self.rates = Rates(self.optimizer, on_device=recorded)
        self.schedule = build_schedule(config, self.rates.host, self.config.steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16 and on_gpu)
        one_kernel = getattr(self.optimizer, "_step_supports_amp_scaling", False)
        self._update_recorded = (
            recorded and _leaves_gradients(self.adapter, self.rule) and (one_kernel or not self.scaler.is_enabled())
        )

    def _build_state(self) -> None:
        config, device = self.config, self.device
        self.average = MovingAverage(self.parameters, config.ema_decay) if config.ema_decay else None
        self._updates = Recorder(device, enabled=config.capture == "auto")
        self._loss = self._sums[-1]
        self._result = StepResult(torch.zeros((), device=device), torch.zeros((), device=device))

    def close(self) -> None:
        """Gives the UNet its own forwards back."""
        self.stage.close()
        self._updates.forget()

    def forget(self) -> None:
        """Gives back the memory of what is recorded; making it anew takes 2 s."""
        self.recorder.forget()
        self._updates.forget()

    @property
    def recorder(self) -> Recorder:
        """Of batches' gradients."""
        return self.stage.recorder

    @property
    def problems(self) -> dict[Hashable, str]:
        """Parts of a step that could not be recorded, and why."""
        return {**self.recorder.problems, **self._updates.problems}

    @contextmanager
    def as_saved(self) -> Generator[None]:
        """The adapter as it is saved and shown: without dropout, and averaged where an average is kept."""
        average = nullcontext() if self.average is None else self.average.applied()
        self.adapter.eval()
        _switch(self.optimizer, "eval")
        try:
            with average, torch.no_grad(), self.bank.staged():
                yield
        finally:
            _switch(self.optimizer, "train")
            self.adapter.train()

    @property
    def learning_rate(self) -> float:
        """The UNet group's present learning rate."""
        return float(self.rates.host.param_groups[0]["lr"])

    def step(self, number: int) -> StepResult:
        """Optimizer step `number` (from 0): `gradient_accumulation` batches, one update."""
        for part in range(self.config.gradient_accumulation):
            self._learn_from(number * self.config.gradient_accumulation + part)
        phase = self.adapter.phase(number + 1)
        if self._update_recorded:
            self._updates.run(("update", phase), lambda: self._update(phase))
        else:
            self._update(phase)
        self.adapter.advance(number + 1)
        if self.average is not None:
            self.average.schedule(number + 1)
            self._updates.run("average", self.average.update)
        self.rates.advance(self.schedule)
        return StepResult(self._result.loss.clone(), self._result.grad_norm.clone())

    def _learn_from(self, index: int) -> None:
        """Adds batch `index`'s gradients to what is there."""
        batch = self.plan.batch(index)
        shape = (*batch.latents.shape, batch.mask is not None)
        batch, words = self._laid(shape, batch), self.text.choose(batch.captions)
        words = self.stage.lay((shape, "first"), words[0]), self.stage.lay((shape, "second"), words[1])
        rank = (self.world.rank,) if self.world.rank else ()
        torch.manual_seed(derive_seed(self.config.seed, "global", index, *rank))  # adapters' dropout draws from it
        self.stage.draws.manual_seed(derive_seed(self.config.seed, "noise", index))
        self.recorder.run(("step", shape), lambda: self._gradients(batch, words))

    def _laid(self, shape: Hashable, batch: Batch) -> Batch:
        """The batch on the stage, where the recording of its shape reads it."""
        values: dict[str, Any] = {field.name: getattr(batch, field.name) for field in fields(batch)}
        laid: dict[str, Any] = {k: v if v is None else self.stage.lay((shape, k), v) for k, v in values.items()}
        return Batch(**laid)

    def _gradients(self, batch: Batch, words: Words) -> None:
        with self.bank.staged():  # backward, too: gradient checkpointing runs blocks again
            loss = self._batch_loss(batch, words) / self.config.gradient_accumulation
            penalty = self.bank.regulariser()
            if not loss.requires_grad:
                raise UserInputError(
                    "The loss does not depend on any of the layers that should learn.",
                    "SDXL reads its first text encoder before the last layer; choose others with targets.…",
                )
            parts = self.config.gradient_accumulation * self.world.size  # in each of which the penalty is the same
            whole = loss if penalty is None else loss + penalty / parts
            self.scaler.scale(whole).backward()
        self._loss += loss.detach()
        self.stage.fast.forget()

    def _update(self, phase: str) -> None:
        self.world.add_up(self._sums)
        self._unscale()
        self.adapter.on_backward()
        self.rule.on_backward()
        self._result.grad_norm.copy_(clip_gradients(self.parameters, self.config.optim.max_grad_norm))
        self._result.loss.copy_(self._loss)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.bank.settle(phase)
        self._sums.zero_()

    def _unscale(self) -> None:
        self.scaler.unscale_(self.optimizer)
        if self.scaler.is_enabled():  # gates that a method updates itself are not the optimizer's
            optimized = {id(self.bank.leaf(p)) for group in self.optimizer.param_groups for p in group["params"]}
            for parameter in self.parameters:
                if id(parameter) not in optimized and parameter.grad is not None:
                    parameter.grad.div_(self.scaler.get_scale())

    def batch_loss(self, batch: Batch, index: int) -> Tensor:
        """This process's part of a batch's weighted mean loss; `index` seeds noise, timesteps and caption dropout."""
        self.stage.draws.manual_seed(derive_seed(self.config.seed, "noise", index))
        return self._batch_loss(batch, self.text.choose(batch.captions))

    def _batch_loss(self, batch: Batch, words: Words) -> Tensor:
        config, own, draws = self.config.objective, self.plan.own, self.stage.draws
        whole = objective.draw_noise(self.plan.whole(batch.latents), config, draws)
        timesteps = own(objective.draw_timesteps(len(whole), config, draws, self.device))
        dropped = own(torch.rand(len(whole), generator=draws, device=self.device) < self.config.data.captions.dropout)
        empty = (dropped & ~batch.is_prior) if self.config.data.captions.dropout > 0 else None
        weights = objective.snr_weight(self._alphas, timesteps, config, self._velocity)
        weights = torch.where(batch.is_prior, weights * self.config.prior.weight, weights)
        losses = self.picture_losses(batch, words, own(whole), timesteps, weights, empty)
        return losses.sum() / ((~batch.is_prior).sum() * self.world.size)

    def picture_losses(
        self,
        batch: Batch,
        words: Words,
        noise: Tensor,
        timesteps: Tensor,
        weights: Tensor,
        empty: Tensor | None = None,
    ) -> Tensor:
        """One loss a picture ("b") for given noise and timesteps: what training and validation share."""
        noisy = self.scheduler.add_noise(batch.latents, noise, timesteps).to(self.dtype)  # pyright: ignore
        states = self.text.states(words)
        if empty is not None:
            states = emptied(states, self._nothing, empty)
        conditions = {"text_embeds": states.pooled.to(self.dtype), "time_ids": batch.time_ids}
        prediction = self.unet(
            noisy, timesteps, states.context.to(self.dtype), added_cond_kwargs=conditions, return_dict=False
        )[0]
        target = objective.prediction_target(self.scheduler, batch.latents, noise, timesteps)
        errors = objective.elementwise_loss(prediction, target, self.config.objective)
        return objective.picture_losses(errors, batch.mask, weights)


def shared_gradients(parameters: list[nn.Parameter], lay: Lay = where_it_is) -> Tensor:
    """Gives each parameter a gradient of zeros in one buffer: cleared, and added up over processes, by one kernel each.

    Returns:
        The buffer, with one number more at its end: for the loss, which is added up with them.
    """
    starts = [0]
    for parameter in parameters:
        starts.append(starts[-1] + -(-parameter.numel() // _ALIGNED) * _ALIGNED)
    like = parameters[0]
    buffer = lay("gradients", torch.zeros(starts[-1] + 1, dtype=like.dtype, device=like.device))
    for parameter, start in zip(parameters, starts, strict=False):
        strides = torch.empty_like(parameter, device="meta").stride()  # the parameter's own, or those of a dense copy
        parameter.grad = buffer[start:].as_strided(parameter.shape, strides)
    return buffer


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


def _leaves_gradients(adapter: AdapterSet, rule: Rule) -> bool:
    """Whether neither the method nor the rule does anything of its own to the gradients."""
    kinds = {type(layer) for layer in adapter.adapters.values()}
    untouched = all(getattr(kind, "inner_type", kind).on_backward is Adapter.on_backward for kind in kinds)
    return untouched and type(rule).on_backward is Rule.on_backward


def _switch(optimizer: Optimizer, mode: Literal["train", "eval"]) -> None:
    """Schedule-free optimizers (arXiv 2405.15682) keep their average aside while they train."""
    switch = getattr(optimizer, mode, None)
    if callable(switch):
        switch()
