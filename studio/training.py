"""`studio train`: the configuration, the run's folder, the loop and its display put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from adapters.errors import MissingError, UserInputError
from studio import __version__, config, runs
from studio.failures import Interrupted
from studio.processes import joined, unmoved
from studio.progress import display_for
from studio.sampling import warn
from studio.slots import beside, claimed
from studio.stopping import Stop
from studio.tracking import tracked
from trainers.config import TrainConfig
from trainers.events import Command, Event, Finished, Started
from trainers.loop import train
from trainers.world import World


@dataclass(frozen=True)
class Request:
    """What the command line asked for: flags by dotted key (None: not given), and the sources of the rest."""

    flags: Mapping[str, Any]
    preset: str | None = None
    file: Path | None = None
    assignments: Sequence[str] = ()
    out: Path | None = None
    resume: bool = False
    beside: Sequence[Path] = ()
    """Adapters that this one is to be fused with."""


def configure(request: Request) -> TrainConfig:
    """defaults < preset < YAML < --set < flags.

    A resumed run goes by its own config.yaml unless a preset or a file is named anew.
    """
    file = request.file
    if request.resume and file is None and request.preset is None:
        file = _own_config(request)
    over = [] if file is None else [config.file_layer(file)]
    over += [config.set_layer(request.assignments), config.flags_layer(request.flags)]
    base = "embedded"
    for layer in over:
        base = str(layer.values.get("base", base))
    preset = config.preset_layers(request.preset or config.DEFAULT_PRESET, config.family_of(base))
    whole = config.compose([*preset, *over])
    if not request.beside or request.resume:  # a run that goes on keeps its columns
        return whole
    return whole.model_copy(update={"adapter": beside(whole.adapter, request.beside)})


def _own_config(request: Request) -> Path | None:
    out = request.out or _latest(request.flags)
    if not out.exists():
        raise MissingError(
            f"There is no run in {out} to resume.", "Name its folder with --out, or start without --resume."
        )
    found = out / "config.yaml"
    return found if found.exists() else None


def _latest(flags: Mapping[str, Any]) -> Path:
    trigger = flags.get("data.captions.trigger")
    if trigger is None:
        raise UserInputError("--resume does not know which run.", "Name its folder with --out.")
    return runs.latest_out(str(trigger), str(flags.get("data.captions.class_word") or ""))


def out_folder(request: Request, run: TrainConfig) -> Path:
    captions = run.data.captions
    if request.out is not None:
        return request.out
    place = runs.latest_out if request.resume else runs.default_out
    return place(captions.trigger, captions.class_word)


def run_training(request: Request, console: Console) -> Path | None:
    """Train and show; returns the adapter's path. Raises Interrupted where a signal stopped it.

    In a process that shares another's run (studio.processes): computes its part, shows and returns nothing.
    """
    with joined() as world:
        whole = configure(request)
        out = world.from_main(lambda: out_folder(request, whole))
        if world.is_main:
            return _lead(request, whole, out, console, world)
        with unmoved():
            for _ in train(world.from_main(lambda: whole), out, resume=request.resume, world=world):
                pass
    return None


def _lead(request: Request, whole: TrainConfig, out: Path, console: Console, world: World) -> Path:
    with (
        runs.open_run(out, whole, resume=request.resume) as folder,
        claimed(whole, out, insist=not (request.beside or request.resume)) as (claiming, warning),
        Stop().listening() as stop,
    ):
        whole = world.from_main(lambda: claiming)  # with its slot
        if warning:
            warn(console, warning)

        def started() -> None:
            # Not before: a resume that is refused must leave the run's own configuration as it was.
            folder.write_config(whole, f"spectral-studio {__version__}")
            stop.patient = True  # while it steps

        def command() -> Command | None:
            return "pause" if stop.asked else None

        events = train(whole, out, resume=request.resume, commands=command, world=world)
        stream = folder.record(tracked(events, whole, out))
        last = _show(stream, console, started)
    if isinstance(last, Finished) and last.adapter is not None:
        return last.adapter
    raise Interrupted(f"Its state is saved. Go on with: studio train --resume --out {out}", stop.exit_code)


def _show(stream: Iterator[Event], console: Console, on_started: Callable[[], None]) -> Event | None:
    last: Event | None = None
    with display_for(console) as display:
        for last in stream:
            if isinstance(last, Started):
                on_started()
            display.show(last)
    return last
