"""The commands of the package (see its docstring)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from benchmarks.speed import __doc__ as usage
from benchmarks.speed import sampling, scale, second_job, subjects
from benchmarks.speed.cpu import compare
from benchmarks.speed.model import Setting
from benchmarks.speed.ours import OurStep
from benchmarks.speed.profile import profile_step
from benchmarks.speed.run import RESULTS, Session, load
from benchmarks.speed.sections import BY_DEFAULT, SECTIONS
from benchmarks.speed.table import PAGE, write_page
from benchmarks.speed.whole_run import measure_runs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("sections", nargs="*", default=list(BY_DEFAULT), help=", ".join([*SECTIONS, second_job.NAME]))
    run.add_argument("--seconds", type=float, default=3600, help="no further row begins after this")
    run.add_argument("--only", nargs="+", default=[], help="rows that have one of these texts in their name")
    run.add_argument("--steps", type=int, default=20, help="timed steps of a round (half as many of slow rows)")
    profiled = commands.add_parser("profile")
    profiled.add_argument("--method", default="lora")
    profiled.add_argument("--targets", default="attention")
    profiled.add_argument("--batch-size", type=int, default=1)
    for command in (run, commands.add_parser("table")):
        command.add_argument("--results", type=Path, default=RESULTS)
        command.add_argument("--page", type=Path, default=PAGE)
    for command in (run, profiled, commands.add_parser("sampling")):
        command.add_argument("--tiny", action="store_true", help="the embedded base: to try the commands on a CPU")
    scaled = commands.add_parser("scale")
    scaled.add_argument("--gpus", type=int, required=True)
    scaled.add_argument("--batch-size", type=int, default=4, help="pictures in a step of each GPU")
    scaled.add_argument("--steps", type=int, default=40, help="timed steps of a round")
    scaled.add_argument("--rounds", type=int, default=2)
    scaled.add_argument("--results", type=Path, default=scale.RESULTS)
    scaled.add_argument("--tiny", action="store_true")
    batch = commands.add_parser("subjects")
    batch.add_argument("--gpus", type=int, required=True)
    batch.add_argument("--each", type=int, default=4, help="subjects of each GPU that are timed")
    batch.add_argument("--steps", type=int, default=150, help="of a subject")
    batch.add_argument("--tiny", action="store_true")
    whole = commands.add_parser("whole")
    whole.add_argument("work", type=Path, help="folder with 8 GB to spare")
    whole.add_argument("--tiny", action="store_true")
    cpu = commands.add_parser("cpu")
    cpu.add_argument("--ranks", type=int, nargs="+", default=[4, 16])
    cpu.add_argument("--rounds", type=int, default=8)
    return parser


def main() -> None:
    options = _parser().parse_args()
    if options.command == "cpu":
        for rank in options.ranks:
            print(json.dumps({"rank": rank, **compare(rank, rounds=options.rounds)}), flush=True)
        return
    if options.command == "whole":
        measure_runs(options.work, tiny=options.tiny)
        return
    if options.command == "scale":
        found = scale.compare(options.gpus, options.batch_size, options.steps, options.rounds, tiny=options.tiny)
        scale.keep(found, options.results)
        return
    if options.command == "subjects":
        subjects.keep(subjects.compare(options.gpus, options.each, options.steps, tiny=options.tiny))
        return
    if options.command == "table":
        write_page(load(options.results), options.page)
        return
    on_gpu = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if on_gpu else "cpu"), torch.bfloat16 if on_gpu else torch.float32
    setting = Setting(getattr(options, "batch_size", 1), device, dtype, options.tiny)
    if options.command == "sampling":
        print(json.dumps(sampling.compare(device, tiny=options.tiny)))
        return
    if options.command == "profile":
        print(profile_step(OurStep(setting, options.method, options.targets), device))
        return
    session = Session(setting, options.seconds, options.results, options.only, steps=options.steps)
    for name in options.sections:
        if name == second_job.NAME:
            second_job.measure_jobs(device, tiny=options.tiny)
        else:
            session.section(name)
    write_page(load(options.results), options.page)


if __name__ == "__main__":
    main()
