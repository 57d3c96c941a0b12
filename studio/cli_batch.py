"""`studio batch`: many runs from one file or one folder of subjects, and their report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from studio import options

if TYPE_CHECKING:
    from studio.batch.plan import Plan
    from studio.batch.record import RunStatus

_RUN = "run"


class _RunUnlessNamed(TyperGroup):
    """`studio batch FILE` is `studio batch run FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_RUN, *args]
        return super().parse_args(ctx, args)


batch = typer.Typer(
    cls=_RunUnlessNamed,
    no_args_is_help=True,
    help="Do many runs: studio batch FILE.yaml, or a folder of subjects. studio batch report tells of one.",
)


def add_to(app: typer.Typer) -> None:
    app.add_typer(batch, name="batch")


@batch.command(_RUN)
def run(
    target: Annotated[
        Path, typer.Argument(metavar="FILE.yaml|FOLDER", help="Defaults, runs and grid; or a folder of subjects.")
    ],
    preset: options.Preset = None,
    assignments: options.Assignments = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR|URL", help="Where runs and report go; left out: one of the queue's folders."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow it to its end; or only queue it.")] = True,
    start_worker: Annotated[
        bool, typer.Option("--worker/--no-worker", help="Start workers where there are none.")
    ] = True,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="auto|local|ADDRESS", help="Do it on a Ray cluster, in the place of this machine's queue."
        ),
    ] = None,
) -> None:
    """Do all runs of FILE.yaml, or a run for each folder in FOLDER; again: go on with what is missing."""
    from studio.start import import_diffusers

    import_diffusers()
    from studio.batch.plan import plan

    planned = plan(target, preset, assignments or ())
    console = Console(stderr=True)
    console.print(f"{planned.name}: {len(planned.runs)} runs.", markup=False, highlight=False)
    if ray is not None:
        _on_ray(planned, ray, out, console)
    else:
        _on_queue(planned, out, console, wait=wait, start_worker=start_worker)


def _on_queue(planned: Plan, out: str | None, console: Console, *, wait: bool, start_worker: bool) -> None:
    from studio import workers
    from studio.batch import local, report
    from studio.failures import Interrupted
    from studio.queue import Queue

    queue = Queue()
    id, storage = local.open_storage(queue, planned, out)
    record = local.start(planned, queue, id, storage)
    if start_worker:
        workers.ensure(queue)
    if not wait:
        typer.echo(id)
        return
    try:
        local.follow(queue, record, _say(console), start_worker=start_worker)
    except KeyboardInterrupt:
        raise Interrupted(f"The jobs go on; the same command follows them. Now: studio batch report {id}") from None
    found = local.statuses(queue, record)
    typer.echo(report.write_report(storage, record, found))
    _end(found)


def _on_ray(planned: Plan, address: str, out: str | None, console: Console) -> None:
    from studio.batch import cluster, report

    storage, record = cluster.prepare(planned, out)
    found = cluster.do(record, storage, address, _say(console))
    typer.echo(report.write_report(storage, record, found))
    _end(found)


def _say(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)


def _end(found: dict[str, RunStatus]) -> None:
    """Exit code 1 where a run has not come to its end."""
    if any(status.state != "done" for status in found.values()):
        raise typer.Exit(1)


@batch.command("report")
def report_command(
    which: Annotated[str, typer.Argument(metavar="ID|DIR|URL", help="A batch's id, or the folder of its --out.")],
) -> None:
    """Write the report of a batch as it is now; prints its place."""
    from studio.batch import local, report
    from studio.queue import Queue

    queue = Queue()
    storage, record = local.find(queue, which)
    typer.echo(report.write_report(storage, record, local.all_statuses(queue, storage, record)))
