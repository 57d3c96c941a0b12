"""The finished adapter file and the card in its header."""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from adapters.files import AdapterCard, save_adapter
from adapters.inject import AdapterSet
from trainers.config import TrainConfig
from trainers.sdxl import Base

ADAPTER_NAME = "adapter.safetensors"


def product_version() -> str:
    """The installed version, or "0" in a checkout that is not installed."""
    try:
        return version("spectral-studio")
    except PackageNotFoundError:
        return "0"


def save_result(
    out: Path,
    step: int,
    base: Base,
    adapter: AdapterSet,
    config: TrainConfig,
    averaged: AbstractContextManager[None],
) -> Path:
    """Write `out`/adapter.safetensors, with the moving average where one is kept."""
    card = AdapterCard(
        base=base.name,
        base_hash=base.hash,
        trigger=config.data.captions.trigger,
        class_word=config.data.captions.class_word,
        steps=step,
        config_hash=config.fingerprint(),
        resolution=config.data.resolution or base.native_resolution,
        prediction_type=base.prediction_type,
        zero_terminal_snr=config.objective.zero_terminal_snr,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        studio_version=product_version(),
    )
    path = out / ADAPTER_NAME
    with averaged:
        save_adapter(path, adapter, card)
    return path
