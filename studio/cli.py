"""The command line. Torch and everything on it is imported by the command that needs it: --help is instant."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from studio import __version__, cli_batch, cli_jobs, cli_library, cli_ui, options, slot_commands


class _Commands(TyperGroup):
    """Every error of every command ends as sentences and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        with _explained():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Teach Stable Diffusion XL a subject from a handful of pictures, and draw it.",
    epilog="studio COMMAND --help tells a command's options; docs/config.md lists every key of --set.",
)


@contextmanager
def _explained() -> Generator[None]:
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except (Exception, KeyboardInterrupt) as error:
        # typer reports wrong usage itself, and in its own words.
        if hasattr(error, "format_message"):
            raise
        from studio.failures import explain, show

        failure = explain(error)
        show(failure)
        raise typer.Exit(failure.code) from None


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"spectral-studio {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version and stop.")
    ] = False,
) -> None:
    del version


@app.command()
def train(
    folder: options.Folder = None,
    trigger: options.Trigger = None,
    class_word: options.ClassWord = None,
    base: options.Base = None,
    adapter: options.Adapter = None,
    steps: options.Steps = None,
    preset: options.Preset = None,
    config: options.Config = None,
    assignments: options.Assignments = None,
    out: options.Out = None,
    resume: options.Resume = False,
    beside: options.Beside = None,
    gpus: Annotated[int | None, typer.Option(metavar="N", min=1, help="GPUs that share each batch.")] = None,
    library: options.Library = False,
) -> None:
    """Teach a base the subject in FOLDER; leaves DIR/adapter.safetensors, samples and config.yaml."""
    _start(gpus)
    from studio.training import run_training

    request = options.request(
        folder, trigger, class_word, base, adapter, steps, preset, config, assignments, out, resume, beside
    )
    if (made := run_training(request, Console(stderr=True))) is not None:
        typer.echo(made)
        if library:
            cli_library.add([made])


@app.command()
def sample(
    prompt: Annotated[list[str], typer.Option(metavar="TEXT", help="What to draw; may be given several times.")],
    adapters: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[ADAPTER]...", help="Files, run folders or lib:IDs; none: the bare base."),
    ] = None,
    strength: Annotated[
        list[float] | None, typer.Option(metavar="S", help="Strength of the adapters: once, or once for each.")
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYERS", help="Layers of the adapters to use, such as style: once, or once for each."),
    ] = None,
    count: Annotated[int, typer.Option("-n", metavar="N", min=1, help="Pictures a prompt.")] = 4,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Seed of the first picture; the next has one more.")
    ] = 0,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Pixels; left out: the base's own.")] = None,
    negative: Annotated[str, typer.Option(metavar="TEXT", help="What not to draw.")] = "",
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Denoising steps.")] = 25,
    guidance: Annotated[float, typer.Option(metavar="G", min=0, help="Classifier-free guidance scale.")] = 5.0,
    scheduler: Annotated[
        str, typer.Option(metavar="NAME", help="euler, euler-a, ddim, dpm++, dpm++-karras, unipc or heun.")
    ] = "euler",
    base: Annotated[
        str | None, typer.Option(metavar="BASE", help="Base; left out: the one the adapters were made on.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the pictures; left out: samples/<prompt>-<n>.")
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PLACE:TEXT", help='"left half: a sks cat" or "0.5,0,1,1: a zwx car", up to five; or auto.'
        ),
    ] = None,
) -> None:
    """Draw pictures with adapters, each with its recipe inside, and a grid of all."""
    _start()
    from studio import sampling

    request = sampling.Request(
        adapters or [], prompt, strength or [1.0], part or (), count=count, seed=seed,
        size=None if size is None else sampling.parse_size(size), negative=negative, steps=steps, guidance=guidance,
        scheduler=scheduler, base=base, out=out, regions=region or (),
    )  # fmt: skip
    typer.echo(sampling.sample(request, Console(stderr=True)))


@app.command()
def fuse(
    adapters: Annotated[list[Path], typer.Argument(metavar="ADAPTER...", help="Files, run folders or lib:IDs.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The fused adapter; its report lies beside it.")],
    how: Annotated[
        str,
        typer.Option(
            metavar="WAY",
            help="spectral, least-squares, zip, sum, mean, null-space, ties, dare, svd or geodesic (OFT, BOFT).",
        ),
    ] = "least-squares",
    weights: Annotated[
        str | None, typer.Option(metavar="W,W,...", help="How strongly each acts; left out: 1 each.")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A knob of the ways, such as rank=16.")
    ] = None,
    prompts: Annotated[
        bool, typer.Option("--prompts/--no-prompts", help="Look at what the base is given on the subjects' prompts.")
    ] = True,
    base: Annotated[
        str | None, typer.Option(metavar="BASE", help="Base; left out: the one the adapters were made on.")
    ] = None,
    library: options.Library = False,
) -> None:
    """Make one adapter of several, and report what they do to each other."""
    _start()
    from studio import fusing, sampling

    options = fusing.parse_options(assignments or [])
    numbers = fusing.parse_weights(weights)
    request = fusing.Request(adapters, how, out, numbers, options, prompts, base)
    result = fusing.fuse(request, sampling.teller(Console(stderr=True)))
    _print(fusing.report_lines(result.report))
    _print(str(path) for path in result.files)
    if library:
        cli_library.add([result.adapter])


@app.command()
def export(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A file, a run's folder or lib:ID.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write, ending in .safetensors.")],
    form: Annotated[
        str, typer.Option("--format", metavar="NAME", help="kohya, diffusers, lokr or merged-checkpoint.")
    ] = "kohya",
    rank: Annotated[int, typer.Option(metavar="N", min=1, help="Rank for methods that have no exact LoRA form.")] = 64,
    dtype: Annotated[str, typer.Option(metavar="TYPE", help="fp16, bf16 or fp32.")] = "fp16",
    base: Annotated[
        str | None, typer.Option(metavar="BASE", help="Base; left out: the one the adapter was made on.")
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Without biases, norms and embedded words, which some programs refuse.")
    ] = False,
) -> None:
    """Write an adapter, or the base with it in its weights, as other programs read it."""
    _start()
    from studio import exporting

    request = exporting.Request(adapter, form, out, rank, dtype, base, plain)
    _print(exporting.export_adapter(request, Console(stderr=True)))


@app.command()
def resize(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A file, a run's folder or lib:ID.")],
    rank: Annotated[int, typer.Option(metavar="N", min=1, help="Rank of the result.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write.")],
    base: Annotated[
        str | None, typer.Option(metavar="BASE", help="Base; left out: the one the adapter was made on.")
    ] = None,
) -> None:
    """Make the best LoRA of a rank from an adapter of any method, and tell what is lost."""
    _start()
    from studio import reshaping

    _print(reshaping.resize(adapter, rank, out, base, Console(stderr=True)))


@app.command()
def extract(
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="A fine-tuned model: hub id, folder or file.")],
    original: Annotated[str, typer.Argument(metavar="ORIGINAL", help="The model that it was made from.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The adapter to write.")],
    rank: Annotated[int, typer.Option(metavar="N", min=1, help="Rank of the result.")] = 32,
    targets: Annotated[str, typer.Option(metavar="LAYERS", help="Layers of the UNet, as in targets.unet.")] = "all",
    trigger: Annotated[str, typer.Option(metavar="WORD", help="Word that stands for what was learnt.")] = "",
) -> None:
    """Make an adapter of the difference of two models."""
    _start()
    from studio import reshaping

    _print(reshaping.extract(tuned, original, rank, targets, out, trigger))


@app.command()
def merge(
    adapters: Annotated[list[Path], typer.Argument(metavar="ADAPTER...", help="Files, run folders or lib:IDs.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The diffusers folder to write.")],
    strength: Annotated[
        list[float] | None, typer.Option(metavar="S", help="Strength of the adapters: once, or once for each.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="BASE", help="Base; left out: the one the adapters were made on.")
    ] = None,
) -> None:
    """Write a model with adapters in its weights."""
    _start()
    from studio import reshaping

    _print(reshaping.merge(adapters, strength or [], out, base, Console(stderr=True)))


app.command("slots")(slot_commands.slots)


@app.command()
def adapters(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """List the adapter methods with their papers and knobs, the starts, scales and optimizer rules."""
    from studio import info

    _print([info.adapters_json()] if as_json else info.adapters_text())


@app.command("info")
def info_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file, a run's folder, lib:ID, or a picture.")],
) -> None:
    """Tell what an adapter file says of itself, or how a picture was made."""
    from studio import info

    _print(info.describe_file(file))


@app.command()
def doctor() -> None:
    """Tell what this machine can and cannot do."""
    from studio.doctor import examine

    marks = {"good": ("✓", "green"), "note": ("·", "yellow"), "bad": ("✗", "red")}
    console = Console()
    for finding in examine():
        mark, style = marks[finding.level]
        console.print(f"[{style}]{mark}[/] ", end="")
        console.print(finding.text, markup=False, highlight=False, soft_wrap=True)


cli_jobs.add_to(app)
cli_batch.add_to(app)
cli_library.add_to(app)
cli_ui.add_to(app)


def _start(gpus: int | None = None) -> None:
    """Before a command's own modules: what is slow to import, and only as much of it as is needed.

    With several `gpus` this process only starts others that do the same.
    """
    if gpus is not None:
        from studio import processes

        if processes.to_be_started(gpus):
            raise typer.Exit(processes.launch(gpus, ["-m", "studio", *sys.argv[1:]]))
    from studio.start import import_diffusers

    import_diffusers()


def _print(lines: Any) -> None:
    for line in lines:
        typer.echo(line)


def main() -> None:
    """The console script.

    Half the cores unless OMP_NUM_THREADS says otherwise: on two cores a second thread makes a step of the embedded base
    a sixth faster, but three to fifteen times slower as soon as anything else runs, since threads wait for each other.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))
    app(prog_name="studio")
