"""The base of a run: loaded for it, or kept from the run before where that had the same; unchanged afterwards."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from adapters.errors import UserInputError
from trainers.config import Precision, TrainConfig
from trainers.placement import ready_to_visit
from trainers.quantize import loftq_ranks, quantize_unet
from trainers.sdxl import Base, load_base, tile_vae

Bases = Callable[[TrainConfig, torch.device], Base]
"""Where a run gets its base from."""


def pick_device(name: str | None) -> torch.device:
    """The asked device, or the first GPU, or the CPU."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def pick_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """fp32 on a CPU and bf16 (or fp16 on cards without it) on a GPU, unless a precision is asked for."""
    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision != "auto":
        return named[precision]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def load_for(config: TrainConfig, device: torch.device) -> Base:
    """The base as this run wants it: its precision, its bits, and on the device what it trains."""

    def compress(unet: nn.Module) -> None:
        if config.quantization != "none":
            quantize_unet(unet, config.quantization, device, loftq_ranks(unet, config))

    base = load_base(
        config.base,
        device=device,
        dtype=pick_dtype(config.precision, device),
        resident=("text_encoder", "text_encoder_2") if config.targets.text_encoders_train else (),
        compress=compress,
    )
    if config.vae_tiling:
        tile_vae(base.vae)
    return base


class BaseKeeper:
    """Keeps the last base that it loaded, with its recordings, and lends it to the next run that wants the same.

    To be told by `drop` where a run has failed (what it left behind is not known) or the memory is wanted.
    """

    def __init__(self) -> None:
        self._key: object = None
        self._base: Base | None = None

    def __call__(self, config: TrainConfig, device: torch.device) -> Base:
        key = _key(config, device)
        if self._base is None or key != self._key:
            self.drop()  # before: two may not fit
            self._base = load_for(config, device)
            self._base.stages.keeps = True
            pipe = self._base.pipe
            ready_to_visit([pipe.vae, pipe.text_encoder, pipe.text_encoder_2], device)
            self._key = key
        return self._base

    def for_drawing(self, name: str, device: torch.device) -> Base:
        """The base for pictures: the kept one where it is that, in all its bits."""
        dtype = pick_dtype("auto", device)
        key = (name, _files(Path(name).expanduser()), device, dtype)
        wanted = [(*key, text_encoders, False, "none", None) for text_encoders in (False, True)]
        if self._base is None or self._key not in wanted:
            self.drop()
            self._base = load_base(name, device=device, dtype=dtype)
            self._key = wanted[0]
        return self._base

    def drop(self) -> None:
        """Lets go of the base and of the memory that it lay in."""
        self._key = self._base = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _key(config: TrainConfig, device: torch.device) -> object:
    """Runs of the same key are given the same base by `load_for`."""
    loftq = getattr(config.adapter, "init", None) == "loftq"
    return (
        config.base,
        _files(Path(config.base).expanduser()),
        device,
        pick_dtype(config.precision, device),
        config.targets.text_encoders_train,
        config.vae_tiling,
        config.quantization,
        (config.adapter, config.targets.unet) if loftq else None,
    )


def _files(path: Path) -> list[tuple[str, int, int]]:
    """What a base on this disk is told by without reading it: a name, size and time for each of its files."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return [(str(file), stat.st_size, stat.st_mtime_ns) for file in files for stat in [file.stat()]]


@contextmanager
def as_trained(base: Base, config: TrainConfig) -> Generator[None]:
    """Within, the base predicts what this run wants it to; afterwards its pipeline is as it was.

    Raises UserInputError where it cannot.
    """
    objective, before = config.objective, base.pipe.scheduler
    try:
        base.set_schedule(objective.prediction_type, objective.zero_terminal_snr)
        if objective.zero_terminal_snr and base.prediction_type == "epsilon":
            raise UserInputError(
                "zero_terminal_snr needs v-prediction, and this base predicts epsilon: "
                "pure noise tells nothing of itself.",
                "Leave objective.zero_terminal_snr out, or set objective.prediction_type=v_prediction.",
            )
        yield
    finally:
        base.pipe.scheduler = before
        base.unet.disable_gradient_checkpointing()
