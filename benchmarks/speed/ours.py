"""Our contestants: the product's own Engine over random latents and text states."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from adapters.inject import attach
from adapters.registry import REGISTRY, make_spec
from adapters.svd import Unread
from benchmarks.speed.model import Setting
from trainers.batches import BatchPlan
from trainers.buckets import Bucket
from trainers.config import TrainConfig
from trainers.dataset import BucketTensors
from trainers.engine import Engine
from trainers.quantize import quantize_unet
from trainers.text import FrozenText, LiveText, TextSource, TextStates
from trainers.world import ALONE, World

FIRST_LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
"""Of SDXL's attention layers the first that a picture meets: no gradient needs to go further back."""
_PICTURES = 4


class OurStep:
    """The Engine of one method, numbered steps and all; `close` gives the UNet back as it was."""

    def __init__(
        self,
        setting: Setting,
        method: str = "lora",
        targets: str = "attention",
        *,
        text: bool = False,
        quantization: str = "none",
        world: World = ALONE,
        **knobs: Any,
    ) -> None:
        unet = setting.unet()
        if quantization != "none":
            quantize_unet(unet, quantization, setting.device, {})
        encoders = setting.text_encoders() if text else None
        self.engine = make_engine(unet, setting, method, targets, encoders=encoders, world=world, **knobs)
        self.trainable = self.engine.adapter.num_parameters()
        self._number = 0

    def step(self) -> None:
        self.engine.step(self._number)
        self._number += 1

    def close(self) -> None:
        self.engine.close()
        self.engine.adapter.detach()

    @property
    def note(self) -> str:
        """Why a part of the step could not be recorded, if one could not."""
        return "; ".join(f"{part}: {why}" for part, why in self.engine.problems.items())


class OurFloor(OurStep):
    """The frozen UNet through our engine: a LoRA of rank 1 on the first attention layer alone.

    Loss, gradient back to that layer and the whole frame of a step are there; of the adapter next to nothing is.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, "lora", FIRST_LAYER, rank=1)


def make_engine(
    unet: nn.Module,
    setting: Setting,
    method: str = "lora",
    targets: str = "attention",
    *,
    encoders: tuple[nn.Module, nn.Module] | None = None,
    options: dict[str, Any] | None = None,
    world: World = ALONE,
    **knobs: Any,
) -> Engine:
    """The product's engine over `unet`.

    Args:
        unet: on the setting's device, frozen.
        targets: the UNet layers that learn, as `targets.unet` names them.
        encoders: both text encoders, where their attention is to learn, too.
        options: further fields of TrainConfig.
        world: the processes that share the setting's batch.
        knobs: of the method (rank is 16 where it has one).
    """
    fields = REGISTRY[method].spec_type.model_fields
    spec = make_spec(method, **{**({"rank": 16} if "rank" in fields else {}), **knobs})
    encoded = "attention" if encoders else "none"
    config = TrainConfig.model_validate(
        {
            "data": {"folder": ".", "captions": {"trigger": "sks"}},
            "adapter": spec.model_dump(),
            "targets": {"unet": targets, "text_encoder": encoded, "text_encoder_2": encoded},
            "batch_size": setting.batch_size,
            **(options or {}),
        }
    )
    components: dict[str, nn.Module] = {"unet": unet}
    if encoders:
        components |= {"text_encoder": encoders[0], "text_encoder_2": encoders[1]}
    adapter = attach(components, spec, config.targets.chosen(), decomposer=Unread(), steps=config.steps)
    plan = BatchPlan(_bucket(setting), setting.batch_size, config.seed, world)
    return Engine(unet, adapter, plan, _text(setting, encoders), setting.scheduler(), config, setting.dtype)


def _bucket(setting: Setting) -> dict[Bucket, BucketTensors]:
    latents, device = setting.latents(_PICTURES)[:, None], setting.device
    tensors = BucketTensors(
        mean=latents,
        std=torch.full_like(latents, 0.1),
        mask=None,
        time_ids=setting.time_ids(_PICTURES)[:, None],
        captions=torch.arange(_PICTURES, device=device)[:, None],
        is_prior=torch.zeros(_PICTURES, dtype=torch.bool, device=device),
    )
    return {Bucket(setting.native_side, setting.native_side): tensors}


def _text(setting: Setting, encoders: tuple[nn.Module, nn.Module] | None) -> TextSource:
    states = setting.text_states(_PICTURES + 1)
    table = TextStates(states.context[:-1], states.pooled[:-1])
    nothing = TextStates(states.context[-1:], states.pooled[-1:])
    if encoders is None:
        return FrozenText(table, nothing)
    limits = [int(encoder.config.vocab_size) for encoder in encoders]  # pyright: ignore
    ids = [torch.randint(limit, (_PICTURES, setting.tokens), device=setting.device) for limit in limits]
    return LiveText(*encoders, *ids, nothing)
