"""Composing a configuration: who wins over whom, and what a refusal says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapters.errors import FileFormatError, MissingError, UnknownNameError, UserInputError
from studio import config
from studio.config import Layer, compose, file_layer, flags_layer, set_layer
from studio.training import Request, configure
from trainers.config import TrainConfig

REQUIRED = {"data.folder": "/pictures", "data.captions.trigger": "sks"}


def composed(*assignments: str, **flags: object) -> TrainConfig:
    return compose([set_layer(assignments), flags_layer({**REQUIRED, **flags})])


def refusal(*assignments: str) -> UserInputError:
    with pytest.raises(UserInputError) as caught:
        composed(*assignments)
    return caught.value


def test_a_later_layer_wins_and_keeps_what_it_does_not_name():
    made = compose([Layer("a", {"steps": 1, "seed": 2}), Layer("b", {"steps": 3}), flags_layer(REQUIRED)])
    assert (made.steps, made.seed) == (3, 2)


def test_preset_file_set_and_flags_win_in_that_order(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("steps: 11\nseed: 11\nbatch_size: 11\n")
    made = configure(Request({**REQUIRED, "steps": 33}, preset="quick", file=file, assignments=["steps=22", "seed=22"]))
    preset = config.preset("quick")
    assert (made.steps, made.seed, made.batch_size) == (33, 22, 11)
    assert made.optim.learning_rate == preset["embedded"]["optim"]["learning_rate"]


def test_a_flag_that_was_not_given_changes_nothing():
    assert composed("steps=7", steps=None).steps == 7


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("optim.learning_rate=1e-4", "learning_rate", 1e-4),
        ("optim.learning_rate=2E-3", "learning_rate", 2e-3),
        ("optim.options={betas: [0.9, 0.99]}", "options", {"betas": [0.9, 0.99]}),
        ("optim.options.eps=1e-6", "options", {"eps": 1e-6}),
    ],
)
def test_a_value_of_set_is_read_as_yaml(text: str, key: str, value: object):
    assert getattr(composed(text).optim, key) == value


def test_one_text_will_do_for_a_list():
    assert composed("sample.prompts=a {trigger} {class}").sample.prompts == ("a {trigger} {class}",)


def test_the_adapter_may_be_given_as_one_word():
    assert compose([Layer("a", {"adapter": "dora"}), flags_layer(REQUIRED)]).adapter.method == "dora"


def test_knobs_are_those_of_the_method():
    made = composed("adapter.rank=32", **{"adapter.method": "dora"})
    assert made.adapter.model_dump() == {**type(made.adapter)().model_dump(), "rank": 32}


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("adapter.rnk", "adapter.rank"),
        ("rank", "adapter.rank"),
        ("optim.lerning_rate", "optim.learning_rate"),
        ("learning_rate", "optim.learning_rate"),
        ("stepz", "steps"),
        ("data.trigger", "data.captions.trigger"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(key: str, near: str):
    error = refusal(f"{key}=1")
    assert isinstance(error, UnknownNameError)
    assert near in error.fix and f"There is no key {key} (from --set)" in error.what


def test_an_unknown_adapter_names_the_nearest_known_one():
    assert "dora" in refusal("adapter.method=dorra").fix


def test_an_unknown_preset_names_the_nearest_known_one():
    with pytest.raises(UnknownNameError, match="quick"):
        config.preset("quik")


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("adapter.rank=0", "adapter.rank is 0 (from --set): it must be at least 1."),
        ("steps=many", "steps is 'many' (from --set): it must be a whole number."),
        ("objective.loss=hubber", "allowed are 'l2' or 'huber'; you may mean huber."),
        ("data.flip=perhaps", "data.flip is 'perhaps' (from --set): it must be true or false."),
        ("optim.learning_rate=-1", "it must be more than 0"),
        ("objective.max_timestep=1000", "it must be at most 999"),
        ("ema_decay=1", "it must be less than 1"),
        ("data.captions.template=a {thing}", "unknown placeholder {thing}"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_what_is(assignment: str, said: str):
    assert said in refusal(assignment).what


def test_a_refusal_says_what_the_key_means():
    assert "optimizer steps" in refusal("steps=0").fix


def test_every_wrong_value_is_named_at_once():
    assert len(refusal("steps=0", "batch_size=0", "adapter.rank=0").what.splitlines()) == 3
    assert len(refusal("steps=0", "batch_size=0").what.splitlines()) == 2


def test_values_that_contradict_each_other_are_refused():
    assert "not both" in refusal("objective.min_snr_gamma=5", "objective.debiased=true").what


def test_a_group_is_no_value():
    assert "adapter.rank" not in refusal("optim=3").fix
    assert "optim.learning_rate" in refusal("optim=3").fix


def test_what_is_missing_is_named_with_the_flag_that_gives_it():
    with pytest.raises(UserInputError) as caught:
        compose([flags_layer({})])
    assert "data.folder is missing" in caught.value.what
    assert "--trigger sks" in caught.value.fix


def test_an_assignment_without_a_value_is_refused():
    assert "key=value" in refusal("steps").what


def test_a_whole_configuration_written_as_yaml_gives_itself_again(tmp_path: Path):
    made = composed("adapter.rank=3", "optim.options.eps=1e-6", "sample.prompts=[one, two]", "prior.weight=0.5")
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(made, "a heading\nof two lines"))
    assert compose([file_layer(path)]) == made


def test_paths_in_a_file_are_relative_to_the_file(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("data: {folder: photos, captions: {trigger: sks}}\nprior: {folder: /class}\n")
    made = compose([file_layer(path)])
    assert Path(made.data.folder) == tmp_path / "photos"
    assert made.prior.folder == "/class"


@pytest.mark.parametrize(("text", "said"), [("a: [", "is not YAML"), ("- 1", "holds no keys"), ("", "holds no keys")])
def test_a_file_that_holds_no_configuration_is_refused(tmp_path: Path, text: str, said: str):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=said):
        file_layer(path)


def test_a_file_that_is_not_there_is_missing(tmp_path: Path):
    with pytest.raises(MissingError):
        file_layer(tmp_path / "none.yaml")


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("family", ["embedded", "sdxl"])
@pytest.mark.parametrize("name", config.preset_names())
def test_every_preset_makes_a_configuration_with_every_method(name: str, family: str, method: str):
    layers = [*config.preset_layers(name, family), flags_layer({**REQUIRED, "adapter.method": method})]
    assert compose(layers).adapter.method == method


def test_a_preset_s_knob_that_the_method_lacks_is_left_out_but_the_user_s_is_refused():
    knob = {"adapter": {"no_such_knob": 1}}
    compose([Layer("preset", knob, optional=True), flags_layer(REQUIRED)])
    with pytest.raises(UnknownNameError):
        compose([Layer("file", knob), flags_layer(REQUIRED)])


def test_the_presets_of_the_issue_are_there():
    assert config.preset_names() == ["quick", "balanced", "best", "small-gpu", "low-memory", "b-lora"]


def test_a_small_diffusers_folder_takes_the_embedded_presets(tmp_path: Path):
    for name, side in (("small", 16), ("large", 128)):
        unet = tmp_path / name / "unet"
        unet.mkdir(parents=True)
        (unet / "config.json").write_text(json.dumps({"sample_size": side}))
    assert config.family_of(str(tmp_path / "small")) == "embedded"
    assert config.family_of(str(tmp_path / "large")) == config.family_of("owner/name") == "sdxl"
