"""Batch files and folders of subjects: what runs they come to, and what is said of their mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.errors import FileFormatError, MissingError
from studio.batch.plan import MistakesError, Plan, plan
from tests.support import make_pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_pictures(tmp_path / "pets" / "zwx-clay-dog", count=1)
    make_pictures(tmp_path / "pets" / "rex", count=1)
    (tmp_path / "pets" / "rex" / "subject.yaml").write_text("trigger: ohwx\nclass: cat\nsteps: 7\n")
    return tmp_path


def planned(folder: Path, text: str) -> Plan:
    (folder / "b.yaml").write_text(text)
    return plan(folder / "b.yaml")


def mistakes(folder: Path, text: str) -> list[str]:
    with pytest.raises(MistakesError) as error:
        planned(folder, text)
    return error.value.what.splitlines()[1:]


def test_a_grid_is_every_choice_of_every_axis_over_the_defaults(folder: Path):
    made = planned(
        folder,
        "defaults: {preset: quick, optim: {learning_rate: 1e-5}}\n"
        "grid: {subjects: pets/*, adapters: [lora, dora], ranks: [2, 4], seeds: [0, 1], optim.weight_decay: 0.5}\n",
    )
    assert len(made.runs) == 16 and len({run.name for run in made.runs}) == 16
    first = made.runs[0].config
    assert (first.adapter.method, first.adapter.model_dump()["rank"], first.seed, first.batch_size) == ("lora", 2, 0, 2)
    assert (first.optim.learning_rate, first.optim.weight_decay) == (1e-5, 0.5)
    assert made.runs[-1].axes == {
        "subject": "zwx-clay-dog",
        "adapter": "dora",
        "rank": "4",
        "seed": "1",
        "weight decay": "0.5",
    }


def test_every_run_of_the_list_is_done_at_every_point_of_the_grid(folder: Path):
    made = planned(
        folder,
        "runs: [{name: short, subject: pets/rex, steps: 3}, {subject: pets/rex, steps: 9}]\ngrid: {seeds: [0, 1]}\n",
    )
    assert [(run.label, run.config.steps) for run in made.runs] == [
        ("short · seed 0", 3),
        ("short · seed 1", 3),
        ("ohwx cat · seed 0", 9),
        ("ohwx cat · seed 1", 9),
    ]


def test_a_folder_of_subjects_is_a_batch_and_says_their_words(folder: Path):
    made = plan(folder / "pets", preset="quick", assignments=["seed=3"])
    words = [(run.config.data.captions.trigger, run.config.data.captions.class_word) for run in made.runs]
    assert words == [("ohwx", "cat"), ("zwx", "clay dog")]
    assert [run.config.steps for run in made.runs] == [7, 150] and made.runs[0].config.seed == 3


def test_kohyas_folder_names_say_repeats_and_words(tmp_path: Path):
    make_pictures(tmp_path / "img" / "10_sks dog", count=1)
    data = plan(tmp_path / "img").runs[0].config.data
    assert (data.repeats, data.captions.trigger, data.captions.class_word) == (10, "sks", "dog")


def test_every_mistake_is_told_once_with_its_line_and_the_nearest_key(folder: Path):
    told = mistakes(
        folder,
        "defaults:\n  stepz: 20\n  adapter: {rank: 0}\ngrid:\n  subjects: pets/*\n"
        "  adapters: [lora, doraa]\n  steps: [5, -1]\n  seeds: [0, 1]\nrunz: []\n",
    )
    assert told[0].startswith("There is no key stepz (from b.yaml:2). Did you mean steps?")
    assert told[1] == "adapter.rank is 0 (from b.yaml:3): it must be at least 1."
    assert told[2].startswith("There is no adapter method 'doraa' (from b.yaml:6). Did you mean 'dora'?")
    assert told[3] == "steps is -1 (from b.yaml:7): it must be at least 1."
    assert told[4] == "There is no part runz of a batch file (from b.yaml:9). Did you mean runs?"
    assert len(told) == 5


def test_a_mistake_that_names_no_line_is_told_with_the_line_that_makes_it_and_beside_others(folder: Path):
    told = mistakes(
        folder,
        "runs: [{subject: pets/rex}, {subject: pets/rex, seed: 1}]\ngrid:\n  optim.rule: [adamw]\n  steps: [0]\n",
    )
    assert len(told) == 2
    assert told[0].startswith("There is no optimizer rule 'adamw' (from b.yaml:3)")
    assert told[1] == "steps is 0 (from b.yaml:4): it must be at least 1."


def test_runs_of_one_name_are_numbered(folder: Path):
    (folder / "b.yaml").write_text("runs:\n- {name: a, subject: pets/rex}\n- {name: a, subject: pets/rex, steps: 3}\n")
    assert [run.label for run in plan(folder / "b.yaml").runs] == ["a", "a (2)"]


def test_an_unknown_preset_and_an_unknown_method_hide_no_other_mistake(folder: Path):
    told = mistakes(
        folder,
        "defaults:\n  preset: quik\n  stepz: 20\n  adapter.rank: 2\ngrid:\n  subjects: pets/*\n  adapters: [doraa]\n",
    )
    starts = ("There is no preset 'quik'", "There is no key stepz", "There is no adapter method 'doraa'")
    assert len(told) == 3 and all(line.startswith(start) for line, start in zip(told, starts, strict=True))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("runs:\n- {steps: 3}\n", "data.folder is missing (from b.yaml:2)"),
        ("grid:\n  subjects: nobody/*\n", "There is no folder of pictures nobody/* (from b.yaml:2)"),
        ("runs:\n- {subject: pets/rex}\n- {subject: pets/rex}\n", "Two runs are the same: ohwx cat and ohwx cat"),
        ("grid: {subjects: pets/rex, presets: [qick]}\n", "There is no preset 'qick' (from b.yaml:1)"),
        ("grid: {subjects: pets/rex, base: [nowhere.safetensors]}\n", "There is no base model at"),
        ("defaults: {steps: 3}\n", "Neither runs nor grid says what to do"),
        ("grid: 3\n", "grid must hold keys with lists of values (from b.yaml:1)"),
        ("runs: [3]\n", "a run must hold keys of the schema, such as steps: 300 (from b.yaml:1)"),
    ],
)
def test_a_batch_that_cannot_be_done_is_refused_before_it_starts(folder: Path, text: str, sentence: str):
    assert any(sentence in line for line in mistakes(folder, text)), mistakes(folder, text)


def test_pictures_that_cannot_be_read_are_a_mistake_of_the_batch(folder: Path):
    (folder / "pets" / "rex" / "9.png").write_bytes(b"no picture")
    told = mistakes(folder, "grid: {subjects: pets/*}\n")
    assert len(told) == 1 and "1 of 2 pictures" in told[0] and "9.png" in told[0]


def test_class_pictures_without_a_class_are_a_mistake_of_the_batch(folder: Path):
    make_pictures(folder / "pets" / "solo", count=1)
    told = mistakes(folder, "defaults: {prior.weight: 0.5}\ngrid: {subjects: pets/solo}\n")
    assert told[0].startswith("Prior preservation needs to know what the subject is (from solo)")


def test_a_key_that_is_said_twice_is_refused_with_both_lines(folder: Path):
    with pytest.raises(FileFormatError, match="says steps twice, in lines 2 and 3"):
        planned(folder, "defaults:\n  steps: 3\n  steps: 4\n")


def test_a_file_that_is_not_there_or_no_yaml_is_told_so(folder: Path):
    with pytest.raises(MissingError, match="There is no file"):
        plan(folder / "none.yaml")
    with pytest.raises(FileFormatError, match="is not YAML"):
        planned(folder, "runs: [")
    with pytest.raises(FileFormatError, match="holds no keys"):
        planned(folder, "")


def test_merge_keys_and_anchors_of_yaml_work(folder: Path):
    made = planned(
        folder,
        "defaults: &all {steps: 3, seed: 9}\nruns:\n- {<<: *all, steps: 4, subject: pets/rex}\n",
    )
    assert (made.runs[0].config.steps, made.runs[0].config.seed) == (4, 9)
