"""The commands of the queue: submit, jobs …, worker. Their modules are imported when they run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from studio import options

if TYPE_CHECKING:
    from studio.store import Ask

jobs = typer.Typer(no_args_is_help=True, help="Look at the queue's jobs, and steer them.")
Id = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, or as much of it as tells it from others.")]
StartWorker = Annotated[
    bool, typer.Option("--worker/--no-worker", help="Start a worker if there is none; or only put it into the queue.")
]
_ASKS: dict[Ask, str] = {
    "cancel": "Stop a job for good; a checkpoint is kept.",
    "pause": "Save a job's state and let others go first.",
    "save": "Have a running job save a checkpoint now.",
    "sample": "Have a running job draw samples now.",
}


def add_to(app: typer.Typer) -> None:
    app.command()(submit)
    app.add_typer(jobs, name="jobs")
    app.command()(worker)


def submit(
    folder: options.Folder = None,
    trigger: options.Trigger = None,
    class_word: options.ClassWord = None,
    base: options.Base = None,
    adapter: options.Adapter = None,
    steps: options.Steps = None,
    preset: options.Preset = None,
    config: options.Config = None,
    assignments: options.Assignments = None,
    out: options.QueueOut = None,
    resume: options.Resume = False,
    beside: options.Beside = None,
    start_worker: StartWorker = True,
) -> None:
    """Put a training into the queue, and start a worker for it; prints the job's id. Takes what studio train takes."""
    from studio.start import import_diffusers

    import_diffusers()
    from studio.queue import Queue
    from studio.submitting import submission

    request = options.request(
        folder, trigger, class_word, base, adapter, steps, preset, config, assignments, out, resume, beside
    )
    queue = Queue()
    id = queue.submit(submission(request))
    typer.echo(id)
    if start_worker:
        _ensure_worker()


def _ensure_worker() -> None:
    from studio import workers
    from studio.queue import Queue

    if workers.ensure(Queue()):
        typer.echo("A worker has been started; it ends after 10 minutes without a job.", err=True)


@jobs.command("list")
def list_jobs(
    every: Annotated[bool, typer.Option("--all", help="Those that are over, too, all of them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List the queue, and the last ten jobs that are over."""
    from studio import job_texts, workers
    from studio.queue import Queue
    from studio.store.states import OVER, STATES, WAITING

    queue = Queue()
    queue.sweep()
    shown = queue.list_jobs([state for state in STATES if state not in OVER])
    shown += queue.list_jobs(OVER, limit=None if every else 10)
    if as_json:
        typer.echo(json.dumps([job_texts.as_json(job) for job in shown], indent=1))
        return
    Console().print(job_texts.table(shown) if shown else "The queue is empty.")
    if not workers.alive(queue.home) and any(job.state in WAITING for job in shown):
        typer.echo("No worker is alive: studio worker does the queue.", err=True)


@jobs.command()
def show(
    job: Id,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Tell all about one job."""
    from studio import job_texts
    from studio.queue import Queue

    queue = Queue()
    queue.sweep()
    found = queue.get_job(job)
    lines = [json.dumps(job_texts.as_json(found), indent=1)] if as_json else job_texts.lines(found)
    for line in lines:
        typer.echo(line)


@jobs.command()
def follow(job: Id) -> None:
    """Show a job's progress until it is over or paused. Ctrl+C ends the showing, not the job."""
    from studio import job_texts
    from studio.queue import Queue

    found = job_texts.follow(Queue(), job, Console(stderr=True))
    typer.echo(found.state)
    if found.failure is not None:
        typer.echo(f"{found.failure.what}\n{found.failure.fix}", err=True)
        raise typer.Exit(found.failure.code)


@jobs.command()
def resume(job: Id, start_worker: StartWorker = True) -> None:
    """Let a paused job go on from where it was."""
    from studio.queue import Queue

    typer.echo(Queue().send(job, "resume").state)
    if start_worker:
        _ensure_worker()


@jobs.command()
def retry(
    job: Id,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="A preset over the job's settings, such as low-memory.")
    ] = None,
    assignments: options.Assignments = None,
    start_worker: StartWorker = True,
) -> None:
    """Try a failed or cancelled job again, from its checkpoint; with other settings: as a new job. Prints the id."""
    from studio.queue import Queue

    queue = Queue()
    if preset is None and not assignments:
        typer.echo(queue.retry(job).id)
    else:
        from studio.submitting import again

        typer.echo(queue.submit(again(queue.get_job(job), preset=preset, assignments=assignments)))
    if start_worker:
        _ensure_worker()


@jobs.command()
def reorder(
    job: Id, place: Annotated[int, typer.Argument(metavar="PLACE", min=1, help="Its new place; 1 is the next.")]
) -> None:
    """Move a waiting job to another place in the queue."""
    from studio import job_texts
    from studio.queue import Queue

    Console().print(job_texts.table(Queue().reorder(job, place)))


def _asker(ask: Ask) -> Callable[..., None]:
    def command(job: Id) -> None:
        from studio.queue import Queue
        from studio.store.states import ACTIVE

        state = Queue().send(job, ask).state
        typer.echo(state)
        if state in ACTIVE:
            typer.echo("It has been told, and does so after the step that it is in.", err=True)

    return command


for _ask, _help in _ASKS.items():
    jobs.command(_ask, help=_help)(_asker(_ask))


def worker(
    gpu: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Number of the GPU; left out: a free one.")
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Do one job, waiting for it if there is none, and stop.")
    ] = False,
    until_empty: Annotated[bool, typer.Option("--until-empty", help="Stop when no job waits.")] = False,
    idle: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0, help="Stop when no job has waited for so long.")
    ] = None,
    max_crashes: Annotated[
        int, typer.Option(metavar="N", min=1, help="Workers that may die over a job before it is given up.")
    ] = 3,
) -> None:
    """Do the queue's jobs, one after the other, on one GPU. SIGTERM or Ctrl+C: saves, and the job waits again."""
    from studio.queue import Queue
    from studio.workers import Terms, work

    terms = Terms(once, 0 if until_empty else idle, max_crashes)
    if not work(Queue(), Console(stderr=True), gpu, terms):
        # The device answers this process no more, but will answer a new one.
        os.execv(sys.executable, [sys.executable, "-m", "studio", *sys.argv[1:]])
