"""The finished adapter file and the card in its header."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from adapters.adapter_set import AdapterSet
from adapters.columns import SpectralSpec, slot_count
from adapters.files import AdapterCard, save_adapter
from trainers.concept import concept_id
from trainers.config import TrainConfig
from trainers.sdxl import Base
from trainers.thumbnail import thumbnail_of

ADAPTER_NAME = "adapter.safetensors"


def adapter_path(out: Path, step: int) -> Path:
    """Where the adapter of a checkpoint lies: as it would have been saved, had the run ended there."""
    return out / "adapters" / f"step-{step:06d}.safetensors"


def product_version() -> str:
    """The installed version, or "0" in a checkout that is not installed."""
    try:
        return version("spectral-studio")
    except PackageNotFoundError:
        return "0"


def timestamp() -> str:
    """The time now, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def save_result(
    out: Path,
    step: int,
    base: Base,
    adapter: AdapterSet,
    config: TrainConfig,
    pictures: Sequence[str],
    path: Path | None = None,
) -> Path:
    """Write `path` (`out`/adapter.safetensors) from the adapter as it stands; `pictures`: the sha256 of what it saw."""
    sites = [one.site for one in adapter.adapters.values()]
    card = AdapterCard(
        base=base.name,
        base_hash=base.hash,
        trigger=config.data.captions.trigger,
        class_word=config.data.captions.class_word,
        concept=concept_id(config.data.captions, pictures),
        slots=slot_count(sites, adapter.spec.rank) if isinstance(adapter.spec, SpectralSpec) else 0,
        steps=step,
        config_hash=config.fingerprint(),
        resolution=config.data.resolution or base.native_resolution,
        prediction_type=base.prediction_type,
        zero_terminal_snr=config.objective.zero_terminal_snr,
        created=timestamp(),
        studio_version=product_version(),
        thumbnail=thumbnail_of(out),
    )
    path = path or out / ADAPTER_NAME
    save_adapter(path, adapter, card)
    return path
