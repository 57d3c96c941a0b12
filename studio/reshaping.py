"""Adapters of another rank (`studio resize`), out of a fine-tuned model (`extract`), into a model (`merge`)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet
from adapters.errors import MismatchError, UserInputError
from adapters.extras import Extras, vectors_of
from adapters.files import AdapterCard, save_adapter
from adapters.formats.open import AnyFile, attach_any, open_adapter
from adapters.fusion.deltas import LayerDelta, compress, delta_of, truncated
from adapters.fusion.fuse import lora_of
from adapters.fusion.report import root_mean_square
from adapters.layer import master
from adapters.targets import select_sites
from studio import __version__
from studio.sampling import adapter_path, common_base, for_each, warn
from trainers.result import timestamp
from trainers.sdxl import Base, load_base

_NO_CHANGE = 1e-6
"""‖W_tuned − W‖/‖W‖ below which a layer was not tuned."""


def resize(adapter: Path, rank: int, out: Path, base_name: str | None, console: Console) -> Iterator[str]:
    """The best LoRA of `rank` for an adapter of any method; yields what there is to say."""
    file = open_adapter(adapter_path(adapter))
    base = load_base(base_name or common_base([file]))
    adapters = _attached(base, file, console)
    adapters.detach()
    deltas: dict[str, LayerDelta] = {}
    for name, one in adapters.adapters.items():
        delta = delta_of(one, master(one.site.weight), rank)
        deltas[name] = truncated(one.site, delta, rank) if delta.rank > rank else delta
    card = file.card.model_copy(update={"slots": 0, "created": timestamp(), "studio_version": __version__})
    made = lora_of(base.components, adapters.targets, deltas)
    made.extras = adapters.extras
    save_adapter(out, made, card)
    yield f"{out}: rank {rank}, {_loss(deltas)}"


def extract(tuned: str, original: str, rank: int, targets: str, out: Path, trigger: str) -> Iterator[str]:
    """The difference of two models' UNets as a LoRA for the second; yields what there is to say."""
    base, other = load_base(original), load_base(tuned)
    deltas: dict[str, LayerDelta] = {}
    layers = dict(other.unet.named_modules())
    sites = select_sites(base.unet, "unet", targets)
    for site in sites:
        theirs = layers.get(site.name.split(".", 1)[1])
        if not isinstance(theirs, nn.Linear | nn.Conv2d) or theirs.weight.shape != site.shape:
            raise MismatchError(f"{site.name} is of another shape in {tuned}.", "Give two models of one architecture.")
        weight = master(site.weight)
        difference = site.matricise(master(theirs.weight) - weight)
        if float(difference.norm()) > _NO_CHANGE * float(weight.norm()):
            deltas[site.name] = compress(site, difference, rank)
    if not deltas:
        raise UserInputError(
            f"{tuned} does not differ from {original} there.", "Give other models, or other --targets."
        )
    paths = ", ".join(name.split(".", 1)[1] for name in deltas)
    card = AdapterCard(
        base=original, base_hash=base.hash, trigger=trigger, created=timestamp(), studio_version=__version__,
        resolution=base.native_resolution, prediction_type=other.prediction_type,
    )  # fmt: skip
    made = lora_of({"unet": base.unet}, {"unet": paths}, deltas)
    made.extras = Extras(_vectors(base.unet, other.unet, None if targets == "all" else {site.name for site in sites}))
    save_adapter(out, made, card)
    yield f"{out}: {len(deltas)} layers, rank {rank}, {_loss(deltas)}"
    if made.extras:
        yield f"  and {len(made.extras.vectors)} biases and norms"


def _vectors(original: nn.Module, tuned: nn.Module, layers: set[str] | None) -> dict[str, Tensor]:
    """How biases of `layers` were tuned; None: all biases, and norms."""
    theirs = dict(vectors_of(tuned))
    found: dict[str, Tensor] = {}
    for name, parameter in vectors_of(original):
        vector = master(theirs[name]) - master(parameter)
        wanted = layers is None or f"unet.{name.rpartition('.')[0]}" in layers
        if wanted and float(vector.norm()) > _NO_CHANGE * float(master(parameter).norm()):
            found[f"unet.{name}"] = vector
    return found


def merge(
    adapters: Sequence[Path], strengths: Sequence[float], out: Path, base_name: str | None, console: Console
) -> Iterator[str]:
    """A model with adapters in its weights, as a diffusers folder in fp16; yields what there is to say."""
    if out.exists():
        raise UserInputError(f"{out} exists already.", "Choose another --out: a model is not written over.")
    files = [open_adapter(adapter_path(path)) for path in adapters]
    weights = for_each("strength", list(strengths) or [1.0], len(files))
    base = load_base(base_name or common_base(files))
    words: list[str] = []
    for file, strength in zip(files, weights, strict=True):
        attached = _attached(base, file, console)
        words += attached.extras.words
        attached.strength = strength
        attached.merge()
    part = out.with_name(f"{out.name}.part")
    try:
        base.pipe.to(torch.float16).save_pretrained(part, safe_serialization=True)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    yield f"{out}: {base.name} with {len(files)} adapters in its weights. Use it with --base {out}."
    if words:
        yield f"  Left out, as a model's weights cannot hold them: the embeddings of {', '.join(words)}"


def _attached(base: Base, file: AnyFile, console: Console) -> AdapterSet:
    adapters = attach_any(base.components, file, base.hash)
    if adapters.warning:
        warn(console, adapters.warning)
    return adapters


def _loss(deltas: dict[str, LayerDelta]) -> str:
    errors = [delta.error for delta in deltas.values()]
    mean = root_mean_square(errors)
    return (
        "nothing is lost"
        if max(errors) < _NO_CHANGE
        else f"{mean:.1%} of the change is left out ({max(errors):.1%} at most)"
    )
