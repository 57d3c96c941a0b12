"""From what a person asked for to a submission: the configuration composed and checked, before it waits in a queue.

Imports torch (the schema lives beside the methods): a server does this in a thread, or after its start.
"""

from __future__ import annotations

from pathlib import Path

from adapters.errors import MissingError, UserInputError
from studio import config, runs
from studio.queue import Submission
from studio.store import Job, TrainRequest
from studio.training import Request, configure
from trainers import images
from trainers.checkpoint import newest, step_of
from trainers.config import TrainConfig


def submission(request: Request, *, batch: str | None = None, key: str | None = None) -> Submission:
    """What `studio train` would run, to be queued; refuses what it would refuse, pictures that cannot be used, too."""
    whole = configure(request)
    captions = whole.data.captions
    folder = request.out
    if folder is None and request.resume:
        folder = runs.latest_out(captions.trigger, captions.class_word)
    images.find_pictures(whole.data.folder, whole.data.checks)
    return checked(whole, folder, resume=request.resume, batch=batch, key=key)


def checked(
    whole: TrainConfig,
    folder: Path | None = None,
    *,
    resume: bool = False,
    batch: str | None = None,
    key: str | None = None,
) -> Submission:
    """A submission of that configuration; `folder` must not hold a run unless it is resumed, nor be the pictures'."""
    if folder is not None:
        runs.check_folder(folder, whole, resume=resume)
    captions = whole.data.captions
    return Submission(
        request=TrainRequest(config=whole.model_dump(mode="json"), resume=resume),
        title=" ".join(filter(None, (captions.trigger, captions.class_word))),
        folder=None if folder is None else folder.expanduser().absolute(),
        batch=batch,
        key=key,
    )


def again(job: Job, *, preset: str | None = None, assignments: list[str] | None = None) -> Submission:
    """A new job with another one's settings, and other values over them: those of a preset, then --set's."""
    if not job.config:
        raise UserInputError(f"Job {job.id} trains nothing.", "Only trainings have settings and presets.")
    values = dict(job.config)
    layers = [config.Layer(f"job {job.id}", values)]
    if preset is not None:
        layers += config.preset_layers(preset, config.family_of(str(values["base"])))
    layers.append(config.set_layer(assignments or []))
    return checked(config.compose(layers), batch=job.batch)


def further(job: Job, steps: int) -> Submission:
    """So many steps more of a training, in its own folder, from its newest checkpoint."""
    saved = newest(job.run) if job.config else None
    if saved is None:
        raise MissingError(f"Nothing is left of job {job.id} to go on from.", "Begin a new run with its settings.")
    layers = [config.Layer(f"job {job.id}", dict(job.config)), config.set_layer([f"steps={step_of(saved) + steps}"])]
    whole = config.compose(layers)
    if "steps" in whole.decisive():
        raise UserInputError(
            f"Its settings were laid out for {job.config['steps']} steps.", "Begin a new run with more of them."
        )
    key = f"{job.id}:further:{whole.steps}"
    return checked(whole, job.run, resume=True, batch=job.batch, key=key).model_copy(update={"title": job.title})
