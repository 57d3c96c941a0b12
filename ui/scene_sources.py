"""Create's form filled from what is there already: adapters of the library, a job's settings, a picture's recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adapters.errors import FileFormatError, UserInputError
from studio.paths import LIBRARY_PREFIX
from studio.recipe import Recipe, read_recipes
from studio.store import SampleRequest, Use
from trainers.places import AUTO
from trainers.schedulers import SCHEDULERS
from ui import scenes
from ui.scenes import LONGEST, MOST, Scene
from ui.studio import Studio


def take_adapters(studio: Studio, scene: Scene, ids: Sequence[str]) -> list[str]:
    """Uses these, and says which could not be."""
    return [problem for id in ids if (problem := scenes.toggle(studio, scene, id))]


def take_job(studio: Studio, scene: Scene, id: str) -> list[str]:
    """A job's settings, its pictures beside them; MissingError where there is none, UserInputError for other kinds."""
    job = studio.queue.get_job(id)
    asked = job.request
    if not isinstance(asked, SampleRequest):
        raise UserInputError(f"{job.title} draws no pictures of its own.", "Open it from Home.")
    first = asked.drawings[0]
    alike = [one for one in asked.drawings if (one.prompt, one.uses) == (first.prompt, first.uses)]
    told = _take(studio, scene, asked)
    scene.prompt, scene.seed, scene.count = first.prompt, str(first.seed), min(len(alike), MOST)
    told += _take_uses(studio, scene, [(Path(one.adapter).name, one) for one in first.uses])
    scene.job = job.id
    return told


def take_picture(studio: Studio, scene: Scene, path: Path) -> list[str]:
    """The recipe in a picture. FileFormatError, without the server's path, where there is none."""
    try:
        recipes = read_recipes(path)
    except FileFormatError as error:
        raise FileFormatError(error.what.replace(str(path), path.name), error.fix) from error
    if not recipes:
        raise FileFormatError(f"{path.name} carries no recipe.", "Only PNG files that this studio drew have one.")
    return take_recipes(studio, scene, recipes)


def take_recipes(studio: Studio, scene: Scene, recipes: Sequence[Recipe]) -> list[str]:
    """A picture's settings; of a grid those of its first picture, and as many as are like it."""
    first = recipes[0]
    alike = [one for one in recipes if one.model_copy(update={"seed": first.seed}) == first]
    told = _take(studio, scene, first)
    scene.prompt, scene.seed, scene.count = first.prompt[:LONGEST], str(first.seed)[:30], min(len(alike), MOST)
    uses = [
        (Path(one.file).name, Use(adapter=LIBRARY_PREFIX + one.sha256, strength=one.strength, part=one.part))
        for one in first.adapters
    ]
    return told + _take_uses(studio, scene, uses)


def _take(studio: Studio, scene: Scene, given: SampleRequest | Recipe) -> list[str]:
    """What a request and a recipe have alike; sentences on what does not go here."""
    told: list[str] = []
    if given.base in studio.bases:
        scene.base = given.base
    else:
        told.append(f"It was drawn on {given.base[:200]}, which is not offered here.")
    if given.scheduler in SCHEDULERS:
        scene.scheduler = given.scheduler
    scene.negative = given.negative[:LONGEST]
    scene.size = "" if given.size is None else f"{given.size[0]}x{given.size[1]}"
    scene.steps, scene.guidance, scene.locked = min(given.steps, 10_000), given.guidance, True
    auto = [text.strip().lower() for text in given.regions] == [AUTO]
    scene.places = "found" if auto else "drawn" if given.regions else "whole"
    scene.regions = [] if auto else [text[:LONGEST] for text in given.regions]
    return told


def _take_uses(studio: Studio, scene: Scene, uses: Sequence[tuple[str, Use]]) -> list[str]:
    """Those that are in the library, and the others' names."""
    scene.uses = [use for _, use in uses if scenes.known(studio, use.adapter)]
    missing = [name[:100] for name, use in uses if use not in scene.uses]
    return [f"Not in the library, and left out: {', '.join(missing)}."] if missing else []
