"""What recorded steps stand on, kept from one run for the next that would record the same.

A CUDA graph reads and writes the addresses that it was recorded with. So all that the gradients of a step read lies on
a `Stage`: the UNet's packed weights, factors and their gradients, a batch, the noise's generator. A run that finds a
stage of its own key lays its values there and replays; what is not on it (data, optimizer, rates, average) is its own.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet
from adapters.registry import layer_type
from trainers.config import TrainConfig
from trainers.fast.attention import Backend
from trainers.fast.blocks import FastUnet
from trainers.fast.capture import Recorder
from trainers.fast.sampling import RecordedForward
from trainers.world import World

_NOT_RECORDED = {
    *("base", "data", "prior", "optim", "sample", "tracking", "steps", "seed", "ema_decay"),
    *("save_every", "keep_checkpoints", "validate_every", "validation_levels"),
}
"""Fields of the configuration that the gradients of a step do not depend on, but for what `stage_key` adds."""
_ROOM = 0.5
"""Share of a GPU that must be free for recordings to be kept while others need memory, too."""


class Stage:
    """The UNet's fast forwards, tensors at fixed addresses, the noise's generator and the recordings that read them."""

    def __init__(self, unet: nn.Module, attention: Backend, *, record: bool) -> None:
        device = next(unet.parameters()).device
        self.fast = FastUnet(unet, attention)
        self.draws = torch.Generator(device)
        self.recorder = Recorder(device, [self.draws], record)
        self.bare = RecordedForward(unet.forward, device, self.recorder)
        """The UNet without its adapters."""
        self.stays = False
        self._tensors: dict[Hashable, Tensor] = {}

    def lay(self, name: Hashable, value: Tensor) -> Tensor:
        """The tensor of that name, which holds the value from now on: the first value's own."""
        kept = self._tensors.setdefault(name, value)
        if kept is not value:
            assert kept.shape == value.shape and kept.dtype == value.dtype, name
            kept.copy_(value)
        return kept

    def close(self) -> None:
        """Gives the UNet its own forwards back; what is recorded goes, unless it `stays` for the next run."""
        if self.stays:
            self.fast.pause()
            return
        self.fast.remove()
        self._tensors.clear()
        self.recorder.forget()


class Stages:
    """A base's last stage. Nothing is kept where `keeps` is False: a single run has no use for it."""

    def __init__(self) -> None:
        self.keeps = False
        self._key: Hashable = None
        self._stage: Stage | None = None

    def borrow(self, key: Hashable) -> Stage | None:
        """The stage of that key, for a run that closes it; one of another key is let go of."""
        found, known, self._stage = self._stage, self._key, None
        if found is None:
            return None
        found.stays = False
        if key is None or key != known:
            found.close()
            return None
        return found

    def keep(self, key: Hashable, stage: Stage) -> None:
        """For the next run of that key, if there is room."""
        stage.stays = self.have_room(key, stage.draws.device)
        if stage.stays:
            self._key, self._stage = key, stage

    def have_room(self, key: Hashable, device: torch.device) -> bool:
        """Whether recordings of that key may stay while pictures are drawn and encoded."""
        if not self.keeps or key is None:
            return False
        if device.type != "cuda":
            return True
        free, total = torch.cuda.mem_get_info(device)
        return free >= _ROOM * total


def stage_key(config: TrainConfig, adapter: AdapterSet, dtype: torch.dtype, world: World) -> Hashable:
    """Runs of the same key on one base record the same gradients; None: these must not be replayed by another run.

    In it are all knobs but those of data, optimizer and showing, and names, shapes and dtypes of all factors. Shapes
    of batches are not: a stage has a recording for each.
    """
    if world.size > 1 or dtype == torch.float16 or _keeps_tensors_aside(adapter):  # fp16: the loss is scaled in it
        return None
    knobs = config.model_dump_json(exclude={**dict.fromkeys(_NOT_RECORDED, True), "adapter": {"slot"}})
    added = (config.data.captions.dropout, config.prior.weight, config.optim.rule)
    schedule = config.steps if layer_type(config.adapter).depends_on_steps else None
    factors = tuple(
        (name, path, tuple(tensor.shape), tensor.dtype)
        for name, layer in adapter.adapters.items()
        for path, tensor in (*layer.named_parameters(), *layer.named_buffers())
    )
    return knobs, added, schedule, dtype, factors


def _keeps_tensors_aside(adapter: AdapterSet) -> bool:
    """Whether a layer has tensors that are neither parameters nor buffers: a stage does not know of them."""
    return any(
        isinstance(value, Tensor)
        for layer in adapter.adapters.values()
        for module in layer.modules()
        for value in vars(module).values()
    )
