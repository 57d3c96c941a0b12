"""Validation loss: the same noise and timesteps every time, on noise that training never draws."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from trainers.engine import Engine
from trainers.fast.sampling import RecordedForward, recorded
from trainers.seeds import derive_seed, generator_for


@torch.no_grad()
def validation_loss(engine: Engine, seed: int, levels: int, forward: RecordedForward | None = None) -> float:
    """Mean unweighted loss over every subject picture at `levels` evenly spread timesteps.

    Masks count, loss weights and dropout do not. The draw depends on `seed` only, not on the step. Processes share the
    pictures as they share a batch. `forward`: what has recorded such calls already.
    """
    last = engine.scheduler.config["num_train_timesteps"]
    found: list[Tensor] = []
    plan = engine.plan.for_validation(derive_seed(seed, "validation"))
    with recorded(engine.unet, forward) if engine.recorder.enabled else nullcontext():
        for number in range(plan.batches_per_epoch):
            batch = plan.batch(number).subject_only()
            rows, words = len(batch.latents), engine.text.choose(batch.captions)
            for level in range(levels):
                timestep = int((level + 0.5) / levels * last)
                draws = generator_for(engine.device, seed, "validation", number, level)
                whole = torch.randn(plan.whole(batch.latents).shape, generator=draws, device=engine.device)
                timesteps = torch.full((rows,), timestep, device=engine.device)
                ones = torch.ones(rows, device=engine.device)
                found.append(engine.picture_losses(batch, words, plan.own(whole), timesteps, ones))
    return float(plan.world.mean(torch.cat(found).double().mean()))


@torch.no_grad()
def base_validation_loss(engine: Engine, seed: int, levels: int) -> float:
    """The same with the adapter at strength 0: the bare base."""
    strength, engine.adapter.strength = engine.adapter.strength, 0.0
    try:
        return validation_loss(engine, seed, levels, engine.stage.bare)
    finally:
        engine.adapter.strength = strength
