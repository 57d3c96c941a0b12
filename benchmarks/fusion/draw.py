"""One cell of the table: a group's pictures by the base, by one adapter alone, or by all adapters joined."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from adapters.adapter_set import AdapterSet
from adapters.atomic import atomic_path
from adapters.errors import UserInputError
from adapters.formats.open import AnyFile, attach_any, open_adapter
from benchmarks.fusion.fusing import Fusing
from benchmarks.fusion.look import filled
from benchmarks.fusion.scenes import GUIDANCE, NEUTRAL, STEPS, Scene, scenes
from benchmarks.fusion.subjects import Group
from benchmarks.fusion.train import training_of
from benchmarks.fusion.variants import Variant
from studio.auto_regions import FoundRegions
from studio.regions import drawing_regions
from trainers.bases import pick_device, pick_dtype
from trainers.fast.sampling import fast_sampling
from trainers.result import ADAPTER_NAME
from trainers.sdxl import Base, generate, load_base

Row = dict[str, Any]
BATCH = 24
NEUTRAL_SEED = 500


@lru_cache(1)
def base() -> Base:
    """This process's, with everything on its device."""
    device = pick_device(None)
    resident = ("vae", "text_encoder", "text_encoder_2")
    return load_base("embedded", device=device, dtype=pick_dtype("auto", device), resident=resident)


@lru_cache(1)
def base_on_cpu() -> Base:
    """The same there."""
    return base() if base().device.type == "cpu" else load_base("embedded")


def choose_noises(group: Group, work: Path, count: int, tries: int) -> None:
    """Keeps the seeds, for each order of places, from which the base's emptiest place is fullest."""
    size = len(group.members)
    tried = scenes(group, (), size * tries)
    with fast_sampling(base().unet, []):
        drawn = _tensors(_regional(tried, {}))
    emptiest = [min(filled(picture, box) for box in scene.boxes) for picture, scene in zip(drawn, tried, strict=True)]
    best: list[list[int]] = []
    for order in range(size):
        numbers = sorted(range(order, len(tried), size), key=lambda number: -emptiest[number])
        best.append([tried[number].seed for number in numbers[: -(-count // size)]])
    with atomic_path(noises_path(group, work)) as part:
        part.write_text(json.dumps(best) + "\n", encoding="utf-8")


def noises(group: Group, work: Path) -> list[list[int]]:
    """The chosen ones; none where any will do."""
    path = noises_path(group, work)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def noises_path(group: Group, work: Path) -> Path:
    return work / "noises" / f"{group.name}.json"


def draw_base(group: Group, work: Path, count: int) -> Row:
    """Plain things, no adapter: what 0 % of an identity looks like."""
    return _cell(work, {"group": group.name, "what": "base"}, scenes(group, (), count, noises(group, work)), [], {})


def draw_alone(group: Group, index: int, kind: str, seed: int, work: Path, count: int) -> Row:
    """One member by its own adapter beside plain things: what 100 % looks like."""
    about = {"group": group.name, "what": "alone", "member": index, "kind": kind, "seed": seed}
    attached = attach_any(base().components, _file(group, index, kind, seed, work), base().hash)
    attached.to(base().device)
    try:
        return _cell(work, about, scenes(group, (index,), count, noises(group, work)), [attached], {})
    finally:
        attached.detach()


def draw_joint(group: Group, variants: Sequence[Variant], seed: int, work: Path, count: int) -> list[Row]:
    """All members in one picture, by several ways on the same adapters."""
    members = range(len(group.members))
    files = [_file(group, index, variants[0].kind(index), seed, work) for index in members]
    fusing = Fusing.of(base(), base_on_cpu(), files) if any(variant.way for variant in variants) else None
    return [_joint(group, variant, seed, fusing, files, work, count) for variant in variants]


def _joint(
    group: Group, variant: Variant, seed: int, fusing: Fusing | None, files: Sequence[AnyFile], work: Path, count: int
) -> Row:
    about: Row = {"group": group.name, "what": "joint", "variant": variant.name, "seed": seed}
    wanted = scenes(group, range(len(group.members)), count, noises(group, work))
    begin, sets = time.monotonic(), list[AdapterSet]()
    try:
        if variant.way is None:
            for file in files:
                sets.append(attach_any(base().components, file, base().hash))
                sets[-1].to(base().device)
        else:
            assert fusing is not None
            fused, about["report"] = fusing.by(variant)
            fused.attach()
            sets.append(fused)
        about["fusing_seconds"] = round(time.monotonic() - begin, 2)
        if variant.regions == "auto":
            return _keep(work, about, begin, _automatic(wanted, files, sets), None)
        placed = dict(enumerate(sets)) if variant.regions == "given" else {}
        return _cell(work, about, wanted, sets, placed)
    except Exception as error:  # a way that refuses or fails is a row; the others are still wanted
        return about | {"refused": str(error) if isinstance(error, UserInputError) else repr(error)}
    finally:
        for adapters in sets:
            adapters.detach()


def _file(group: Group, index: int, kind: str, seed: int, work: Path) -> AnyFile:
    return open_adapter(training_of(group.members[index], kind, seed).folder(work) / ADAPTER_NAME)


def _cell(
    work: Path, about: Row, wanted: Sequence[Scene], sets: Sequence[AdapterSet], placed: dict[int, AdapterSet]
) -> Row:
    """Draws the scenes, and neutral prompts where adapters act everywhere."""
    begin, regional = time.monotonic(), bool(placed) or len(wanted[0].boxes) > 2
    pictures = _regional(wanted, placed) if regional else []
    prompts = [] if regional else [(scene.prompt, scene.seed) for scene in wanted]
    neutral = [] if placed else [(text, NEUTRAL_SEED + number) for number, text in enumerate(NEUTRAL)]
    with fast_sampling(base().unet, sets):
        drawn = _plain([*prompts, *neutral])
    return _keep(work, about, begin, pictures or drawn[: len(prompts)], drawn[len(prompts) :] or None)


def _keep(
    work: Path, about: Row, begin: float, pictures: Sequence[Image.Image], neutral: Sequence[Image.Image] | None
) -> Row:
    """Writes the sheets; the row says where they are."""
    name = "-".join(str(about.get(key, "")) for key in ("group", "what", "variant", "member", "kind", "seed"))
    name = "".join(c if c.isalnum() or c == "-" else "_" for c in name)
    _save(work / "drawn" / f"{name}.webp", pictures)
    if neutral is not None:
        _save(work / "drawn" / f"{name}-neutral.webp", neutral)
    return about | {"file": name, "pictures": len(pictures), "seconds": round(time.monotonic() - begin, 2)}


def _plain(asked: Sequence[tuple[str, int]]) -> list[Image.Image]:
    prompts, seeds = [text for text, _ in asked], [seed for _, seed in asked]
    return list(generate(base(), prompts, seeds=seeds, batch_size=BATCH, inference_steps=STEPS, guidance=GUIDANCE))


def _regional(wanted: Sequence[Scene], placed: dict[int, AdapterSet]) -> list[Image.Image]:
    """By regions; those of one layout at once. `placed` are adapters that act in their member's region only."""
    found: dict[int, Image.Image] = {}
    for layout in dict.fromkeys(scene.regions for scene in wanted):
        numbers = [number for number, scene in enumerate(wanted) if scene.regions == layout]
        side, owners = wanted[0].side, [(adapters, index) for index, adapters in placed.items()]
        with drawing_regions(base(), layout, owners, (side, side), True):
            drawn = generate(
                base(), [wanted[n].prompt for n in numbers], seeds=[wanted[n].seed for n in numbers], width=side,
                height=side, batch_size=BATCH, inference_steps=STEPS, guidance=GUIDANCE,
            )  # fmt: skip
            found |= dict(zip(numbers, list(drawn), strict=True))
    return [found[number] for number in range(len(wanted))]


def _automatic(wanted: Sequence[Scene], files: Sequence[AnyFile], sets: Sequence[AdapterSet]) -> list[Image.Image]:
    """By regions that are found from the prompt's words."""
    prompts, seeds, side = [scene.prompt for scene in wanted], [scene.seed for scene in wanted], wanted[0].side
    with fast_sampling(base().unet, sets):
        found = FoundRegions(base(), prompts, files, sets, (side, side), STEPS, True)
        return list(
            generate(
                base(), prompts, seeds=seeds, batch_size=BATCH, inference_steps=STEPS, guidance=GUIDANCE,
                routing=found.routing,
            )
        )  # fmt: skip


def _save(path: Path, pictures: Sequence[Image.Image]) -> None:
    """Side by side in one file."""
    sheet = Image.new("RGB", (sum(p.width for p in pictures), pictures[0].height))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number * picture.width, 0))
    with atomic_path(path) as part:
        sheet.save(part, "WEBP", quality=90)


def read_sheet(path: Path) -> torch.Tensor:
    """The pictures of a sheet, [N, 3, side, side] in −1…1."""
    sheet = Image.open(path).convert("RGB")
    side = sheet.height
    return _tensors([sheet.crop((x, 0, x + side, side)) for x in range(0, sheet.width, side)])


def _tensors(pictures: Sequence[Image.Image]) -> torch.Tensor:
    pixels = torch.stack([torch.from_numpy(np.asarray(picture).copy()) for picture in pictures])
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
