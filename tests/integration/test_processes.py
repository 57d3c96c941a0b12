"""Processes that share each batch: the run that one process would make, and an end for all when one fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from adapters.errors import MissingError
from studio.runs import RunFolder
from tests.parallel import together, train_all
from tests.support import make_pictures, quick_config
from tests.tolerances import FP32, same_bits
from trainers.config import TrainConfig
from trainers.events import Finished, Started, Stepped, Validated

ROOT = Path(__file__).parents[2]
CASES: dict[str, dict[str, object]] = {
    "plain": {
        "gradient_accumulation": 2,
        "ema_decay": 0.9,
        "objective": {"noise_offset": 0.1, "multires_discount": 0.3, "min_snr_gamma": 5.0},
        "optim": {"learning_rate": 2e-3, "schedule": "cosine"},
    },
    "class pictures": {"prior": {"weight": 0.5, "pictures": 3}},
    "adalora": {
        "adapter": {"method": "adalora", "rank": 4, "initial": 0.1, "final": 0.4, "interval": 1},
        "steps": 6,
    },
    "rosa": {"adapter": {"method": "rosa", "rank": 2, "calibration_draws": 2}, "targets": {"unet": "mid"}},
    "lora-pro": {"optim": {"learning_rate": 2e-3, "rule": "lora-pro"}},
    "text encoders": {"targets": {"unet": "mid", "text_encoder": "attention", "text_encoder_2": "attention"}},
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two shapes, so that batches come from two buckets."""
    folder = make_pictures(tmp_path_factory.mktemp("shapes"), count=5)
    for number, path in enumerate(make_pictures(folder / "wide", count=3, size=(192, 96)).iterdir()):
        path.rename(folder / f"wide-{number}.png")
    (folder / "wide").rmdir()
    return folder


def config(folder: Path, **changes: object) -> TrainConfig:
    whole = {"batch_size": 4, "steps": 3, "validation_levels": 1, "sample": {"count": 0, "inference_steps": 1}}
    captions = {"trigger": "sks", "class_word": "octopus", "dropout": 0.3}
    data = {"folder": folder, "captions": captions, "crop_variants": 2}
    return quick_config(folder, **{**whole, "data": data, **changes})


@pytest.fixture(scope="module", params=CASES)
def made(
    request: pytest.FixtureRequest, shapes: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Folders of a case's run by two processes and by one."""
    two, one = (tmp_path_factory.mktemp(name) for name in ("two", "one"))
    wanted = config(shapes, **CASES[request.param])
    together(train_all, {two: wanted}, cache)
    train_all({one: wanted}, cache)
    return two, one


def stepped(out: Path) -> list[float]:
    """Loss and gradient's norm of each step."""
    events = [event for event in RunFolder(out).read_events() if isinstance(event, Stepped)]
    return [number for event in events for number in (event.loss, event.grad_norm)]


def validated(out: Path) -> list[float]:
    return [event.loss for event in RunFolder(out).read_events() if isinstance(event, Validated)]


def test_two_processes_have_the_losses_and_gradients_of_one(made: tuple[Path, Path]):
    two, one = made
    assert len(stepped(one)) >= 2 * 3 and len(validated(one)) == 2
    assert stepped(two) == pytest.approx(stepped(one), rel=FP32)
    assert validated(two) == pytest.approx(validated(one), rel=FP32)


def test_both_processes_end_with_the_same_adapter_bit_for_bit(made: tuple[Path, Path]):
    first, second = (load_file(made[0] / f"rank-{rank}.safetensors") for rank in (0, 1))
    assert first.keys() == second.keys() and all(same_bits(first[name], second[name]) for name in first)


def test_only_the_main_process_tells_what_happens(made: tuple[Path, Path]):
    events = list(RunFolder(made[0]).read_events())
    assert [event.processes for event in events if isinstance(event, Started)] == [2]
    assert sum(isinstance(event, Finished) for event in events) == 1


@pytest.fixture(scope="module")
def whole(shapes: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts, by one process."""
    out = tmp_path_factory.mktemp("whole")
    train_all({out: config(shapes, **CASES["plain"])}, cache)
    return out


@pytest.mark.parametrize("first", [1, 2])
def test_a_run_goes_on_with_another_number_of_processes(
    whole: Path, shapes: Path, cache: Path, tmp_path: Path, first: int
):
    runs = {tmp_path: config(shapes, **CASES["plain"])}
    for count, arguments in ((first, (2,)), (3 - first, (0, True))):
        if count == 2:
            together(train_all, runs, cache, *arguments)
        else:
            train_all(runs, cache, *arguments)
    reasons = [event.reason for event in RunFolder(tmp_path).read_events() if isinstance(event, Finished)]
    assert reasons == ["paused", "done"]
    assert stepped(tmp_path) == pytest.approx(stepped(whole), rel=FP32)


FAULT = """
import os
if os.environ.get("RANK") == "1":
    from adapters.errors import MissingError
    from trainers.engine import Engine
    def step(self, number):
        raise MissingError("The second process has lost its disk.", "Look for it.")
    Engine.step = step
"""


def test_what_fails_in_one_process_ends_the_command_with_its_sentence(pictures: Path, cache: Path, tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(FAULT)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "SPECTRAL_STUDIO_CACHE": str(cache)}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    words = [
        "--trigger",
        "sks",
        "--class",
        "octopus",
        "--steps",
        "5",
        "--set",
        "batch_size=2",
        "--set",
        "prior.weight=0",
        "--out",
        str(tmp_path / "o"),
        "--gpus",
        "2",
    ]
    command = [sys.executable, "-m", "studio", "train", str(pictures), *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == MissingError.exit_code
    assert done.stderr.endswith("The second process has lost its disk.\nLook for it.\n")
    assert done.stdout == "" and "Traceback" not in done.stderr
