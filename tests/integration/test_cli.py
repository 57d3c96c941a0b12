"""The commands end to end on the embedded base: what they leave behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from adapters.base import REGISTRY
from adapters.files import load_adapter
from studio import __version__, config, training
from studio.cli import app
from studio.library import Library
from studio.recipe import read_recipes
from studio.runs import RunFolder
from studio.stopping import Stop
from tests.support import BASE, adapter_tensors
from trainers.events import Finished, Started, Stepped
from trainers.sdxl import Base

FAST = [
    "--preset",
    "quick",
    "--base",
    BASE,
    "--set",
    "sample.count=1",
    "--set",
    "sample.inference_steps=2",
    "--set",
    "data.crop_variants=1",
]
DRAW = ["--prompt", "a photo of a sks octopus", "--steps", "2", "-n", "2"]


def studio(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeeded(*arguments: str | Path) -> Result:
    result = studio(*arguments)
    assert result.exit_code == 0, result.output
    return result


def train(pictures: Path, out: Path, *more: str | Path) -> Result:
    return studio("train", pictures, "--trigger", "sks", "--class", "octopus", *FAST, "--out", out, *more)


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("runs") / "sks"
    result = train(pictures, out, "--steps", "3", "--set", "adapter.rank=4")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out / "adapter.safetensors")
    return RunFolder(out)


def test_training_adds_its_adapter_to_the_library_where_that_is_asked_for(pictures: Path, tmp_path: Path):
    told = train(pictures, tmp_path / "run", "--steps", "1", "--library").stdout.split()
    entry = Library().get_adapter(told[-1])
    assert entry.name == "sks octopus" and entry.thumbnail is not None
    assert Library().path_of(entry.id).read_bytes() == Path(told[0]).read_bytes()


def test_training_leaves_the_adapter_its_configuration_events_and_samples(run: RunFolder):
    assert load_adapter(run.adapter).card.trigger == "sks"
    assert config.compose([config.file_layer(run.config)]).steps == 3
    assert (run.path / "samples" / "step-000003.png").is_file()
    events = list(run.read_events())
    assert [event.step for event in events if isinstance(event, Stepped)] == [1, 2, 3]
    assert isinstance(events[-1], Finished) and events[-1].reason == "done"


def test_the_configuration_of_a_run_gives_the_same_adapter_again(run: RunFolder, tmp_path: Path):
    succeeded("train", "--config", run.config, "--out", tmp_path / "again")
    first, second = adapter_tensors(run.adapter), adapter_tensors(tmp_path / "again" / "adapter.safetensors")
    assert all(first[name].equal(second[name]) for name in first)


def test_a_finished_run_is_refused_and_trained_further_on_request(run: RunFolder, pictures: Path, tmp_path: Path):
    out = tmp_path / "copy"
    assert train(pictures, out, "--steps", "1", "--set", "save_every=1").exit_code == 0
    refused = train(pictures, out, "--steps", "2")
    assert refused.exit_code == 2 and "--resume" in refused.stderr
    succeeded("train", "--resume", "--out", out, "--steps", "2")
    assert load_adapter(out / "adapter.safetensors").card.steps == 2
    assert [event.step for event in RunFolder(out).read_events() if isinstance(event, Started)] == [0, 1]


def test_a_resumed_run_keeps_its_own_configuration(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert (
        studio("train", pictures, "--trigger", "sks", *FAST, "--steps", "1", "--set", "adapter.rank=3").exit_code == 0
    )
    request = training.Request({"data.captions.trigger": "sks", "steps": 2}, resume=True)
    assert training.configure(request).adapter.model_dump()["rank"] == 3
    assert training.out_folder(request, training.configure(request)) == Path("runs/sks-1")


def test_a_resume_that_is_refused_leaves_the_run_as_it_was(pictures: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert train(pictures, out, "--steps", "1", "--set", "save_every=1").exit_code == 0
    before = (out / "config.yaml").read_bytes()
    refused = studio("train", "--resume", "--out", out, "--set", "seed=5")
    assert refused.exit_code == 7 and "seed was 0 and is now 5" in refused.stderr
    assert (out / "config.yaml").read_bytes() == before


def test_a_command_line_stop_saves_and_says_how_to_go_on(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Stop, "asked", True)
    result = train(pictures, tmp_path / "out", "--steps", "5")
    assert result.exit_code == 130
    assert f"studio train --resume --out {tmp_path / 'out'}" in result.stderr
    assert (tmp_path / "out" / "checkpoints" / "step-000001.safetensors").is_file()


def test_ctrl_c_saves_the_state_and_the_run_goes_on_from_it(pictures: Path, tmp_path: Path):
    out = tmp_path / "out"
    arguments = ["train", str(pictures), "--trigger", "sks", *FAST, "--out", str(out), "--steps", "100000"]
    process = subprocess.Popen([sys.executable, "-m", "studio", *arguments], stderr=subprocess.PIPE, text=True)
    try:
        _wait_for_a_step(out, process)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, told
    assert "Traceback" not in told and "saved" in told
    assert list((out / "checkpoints").iterdir())


def _wait_for_a_step(out: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not any(isinstance(event, Stepped) for event in RunFolder(out).read_events()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)


def test_pictures_carry_the_recipe_that_makes_them_again(run: RunFolder, tmp_path: Path):
    succeeded("sample", run.adapter, *DRAW, "--seed", "5", "--strength", "0.5", "--out", tmp_path / "one")
    path = tmp_path / "one" / "a-photo-of-a-sks-octopus-6.png"
    (recipe,) = read_recipes(path)
    assert (recipe.seed, recipe.adapters[0].strength, recipe.base) == (6, 0.5, BASE)
    succeeded(
        *("sample", recipe.adapters[0].file, "--prompt", recipe.prompt, "--seed", str(recipe.seed)),
        *("--strength", str(recipe.adapters[0].strength), "--steps", str(recipe.steps)),
        *("-n", "1", "--out", tmp_path / "two"),
    )
    # The noise is the picture's own; the batch may change the last bits.
    first, second = Image.open(path).tobytes(), Image.open(tmp_path / "two" / path.name).tobytes()
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) <= 2


def test_the_grid_holds_every_picture(run: RunFolder, tmp_path: Path):
    succeeded("sample", run.path, *DRAW, "--prompt", "a sks octopus", "--out", tmp_path)
    assert len(read_recipes(tmp_path / "grid.png")) == 4
    side = Image.open(tmp_path / "a-sks-octopus-0.png").width
    assert Image.open(tmp_path / "grid.png").size == (2 * side, 2 * side)


def test_strength_zero_draws_what_the_bare_base_draws(run: RunFolder, tmp_path: Path):
    succeeded("sample", run.adapter, *DRAW, "--strength", "0", "--out", tmp_path / "zero")
    succeeded("sample", "--base", BASE, *DRAW, "--out", tmp_path / "bare")
    zero, bare = (Image.open(tmp_path / name / "a-photo-of-a-sks-octopus-0.png").tobytes() for name in ("zero", "bare"))
    assert zero == bare


def test_a_prompt_without_the_trigger_is_warned_about(run: RunFolder, tmp_path: Path):
    arguments = ["--prompt", "an octopus", "--steps", "1", "-n", "1", "--out", tmp_path]
    assert 'lacks the trigger "sks"' in succeeded("sample", run.adapter, *arguments).stderr


def test_sizes_are_width_by_height(run: RunFolder, tmp_path: Path):
    succeeded("sample", run.adapter, *DRAW, "--size", "96x64", "--out", tmp_path)
    assert Image.open(tmp_path / "a-photo-of-a-sks-octopus-0.png").size == (96, 64)


def test_info_tells_card_knobs_layers_and_size(run: RunFolder):
    text = succeeded("info", run.path).stdout
    for part in ("LoRA", "rank 4", "unet: attention", "trigger: sks", "class word: octopus", "steps: 3"):
        assert part in text


def test_info_tells_how_a_picture_was_made(run: RunFolder, tmp_path: Path):
    succeeded("sample", run.adapter, *DRAW, "--out", tmp_path)
    text = succeeded("info", tmp_path / "a-photo-of-a-sks-octopus-0.png").stdout
    assert "a photo of a sks octopus" in text and str(run.adapter) in text


def test_adapters_lists_every_method_with_paper_and_knobs():
    whole = json.loads(succeeded("adapters", "--json").stdout)
    listed = {method["name"]: method for method in whole["methods"]}
    assert listed.keys() == set(REGISTRY)
    assert "2106.09685" in listed["lora"]["paper"]
    assert "rank" in {knob["name"] for knob in listed["lora"]["knobs"]}
    assert "adapter.rank" in succeeded("adapters").stdout


@pytest.mark.parametrize(
    ("group", "names", "key"),
    [
        ("initialisations", {"pissa", "milora", "olora", "lora-ga"}, "adapter.init=pissa"),
        ("scales", {"rslora"}, "adapter.rank_stabilized=true"),
        ("rules", {"lora+", "lora-fa", "lora-pro"}, "optim.rule=lora-pro"),
    ],
)
def test_adapters_lists_what_goes_with_any_method(group: str, names: set[str], key: str):
    listed = {entry["name"]: entry for entry in json.loads(succeeded("adapters", "--json").stdout)[group]}
    assert names <= listed.keys()
    assert all(entry["title"] and entry["equation"] and "arXiv" in entry["paper"] for entry in listed.values())
    assert key in succeeded("adapters").stdout


def test_doctor_runs_here():
    assert "embedded base" in succeeded("doctor").stdout


def test_the_version_is_said():
    assert succeeded("--version").stdout.strip() == f"spectral-studio {__version__}"


def test_help_does_not_wait_for_torch():
    code = "import sys\nfrom studio.cli import app\n"
    code += "app(['--help'], standalone_mode=False); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "sample" in done.stdout


def test_an_adapter_for_velocities_is_sampled_with_velocities(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    keys = ["objective.prediction_type=v_prediction", "objective.zero_terminal_snr=true"]
    trained = train(pictures, tmp_path / "v", "--steps", "1", *(part for key in keys for part in ("--set", key)))
    assert trained.exit_code == 0, trained.output
    seen: list[tuple[str, bool]] = []
    monkeypatch.setattr(Base, "set_schedule", lambda self, kind, zero: seen.append((kind, zero)))
    succeeded("sample", tmp_path / "v", *DRAW, "--out", tmp_path)
    assert seen == [("v_prediction", True)]


def test_a_half_of_a_b_lora_draws_other_pictures_than_the_whole(pictures: Path, tmp_path: Path):
    """The preset learns two blocks; --part keeps one of them, and the recipe says so."""
    whole = train(pictures, tmp_path / "b", "--preset", "b-lora", "--steps", "3", "--set", "optim.learning_rate=0.01")
    assert whole.exit_code == 0, whole.output
    drawn: dict[str, bytes] = {}
    for part in ("", "content", "style"):
        out = tmp_path / f"pictures-{part}"
        more = ["--part", part] if part else []
        succeeded("sample", tmp_path / "b", "--prompt", "a sks dog", "-n", "1", "--steps", "2", "--out", out, *more)
        drawn[part] = Image.open(next(out.glob("*-0.png"))).tobytes()
        (recipe,) = read_recipes(next(out.glob("*-0.png")))
        assert recipe.adapters[0].part == (part or None)
    assert len(set(drawn.values())) == 3


def test_a_part_that_the_adapter_lacks_is_refused_in_words(run: RunFolder):
    refused = studio("sample", run.path, "--prompt", "a sks dog", "--part", "conv")
    assert refused.exit_code == 2 and "meets no layer of this adapter" in refused.output


def test_groups_of_layers_have_ranks_and_rates_of_their_own(pictures: Path, tmp_path: Path):
    overrides = "targets.overrides=[{layers: conv, adapter: {rank: 2}, learning_rate: 5e-5}]"
    chosen = ["--set", "targets.unet=attention, conv&mid", "--set", "adapter.rank=4", "--set", overrides]
    made = train(pictures, tmp_path / "o", "--steps", "1", *chosen)
    assert made.exit_code == 0, made.output
    shapes = {name: t.shape[0] for name, t in adapter_tensors(tmp_path / "o" / "adapter.safetensors").items()}
    convs = {rank for name, rank in shapes.items() if "mid_block.resnets" in name and name.endswith("down")}
    others = {rank for name, rank in shapes.items() if "attn1" in name and name.endswith("down")}
    assert convs == {2} and others == {4}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("{layers: conv}", "meets no layer that learns"),
        ("{layers: attention, adapter: {rnak: 2}}", "rank"),
        ("{layers: attention, adapter: {method: dora}}", "not the method"),
        ("{component: unit, layers: attention}", "unet"),
    ],
)
def test_an_override_that_makes_no_sense_is_refused_in_words(pictures: Path, tmp_path: Path, override: str, words: str):
    refused = train(pictures, tmp_path / "o", "--set", f"targets.overrides=[{override}]")
    assert refused.exit_code == 2 and words in refused.output and "Traceback" not in refused.output
