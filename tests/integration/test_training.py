"""`trainers.loop.train` on the embedded base: what a run promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from adapters.errors import DivergedError, MismatchError, MissingError, UserInputError
from adapters.files import attach_file, load_adapter
from tests.support import PHOTOGRAPHS, adapter_tensors, make_pictures, quick_config, run
from tests.tolerances import relative_error
from trainers.config import TrainConfig
from trainers.dreambooth import class_prompt
from trainers.engine import Engine, StepResult
from trainers.events import Command, Finished, Note, Saved, Started, Stepped, Validated, parse_event
from trainers.sdxl import Base, generate


def same(first: Path, second: Path) -> bool:
    one, other = adapter_tensors(first / "adapter.safetensors"), adapter_tensors(second / "adapter.safetensors")
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def last(events: list, kind: type):
    return [event for event in events if isinstance(event, kind)][-1]


@pytest.mark.parametrize("method", ["lora", pytest.param("dora", marks=pytest.mark.slow)])
def test_training_lowers_the_loss_on_noise_it_never_saw(pictures: Path, cache: Path, tmp_path: Path, method: str):
    config = quick_config(pictures, adapter={"method": method, "rank": 8}, steps=40, batch_size=2)
    validated = last(run(config, tmp_path, cache), Validated)
    assert validated.loss < 0.95 * validated.base_loss


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason=f"the real photographs are not at {PHOTOGRAPHS}")
def test_training_on_real_photographs_lowers_the_loss_on_noise_it_never_saw(cache: Path, tmp_path: Path):
    config = quick_config(PHOTOGRAPHS / "dog3", adapter={"method": "lora", "rank": 8}, steps=40, batch_size=2)
    validated = last(run(config, tmp_path, cache), Validated)
    assert validated.loss < 0.95 * validated.base_loss


def test_the_first_validation_is_the_bare_base_s(pictures: Path, cache: Path, tmp_path: Path):
    first = next(e for e in run(quick_config(pictures, steps=1), tmp_path, cache) if isinstance(e, Validated))
    assert first.loss == first.base_loss


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adapter": {"method": "dora", "rank": 4, "dropout": 0.2}},
        {"targets": {"unet": "cross-attention", "text_encoder": "attention", "text_encoder_2": "linear"}},
        {"ema_decay": 0.9, "gradient_accumulation": 2, "optim": {"schedule": "cosine", "warmup_steps": 1}},
        {"optim": {"name": "Prodigy", "learning_rate": 1.0}, "gradient_checkpointing": True},
    ],
    ids=["plain", "dora-dropout", "text-encoders", "ema-accumulation-cosine", "prodigy-checkpointing"],
)
def test_an_interrupted_run_ends_bit_for_bit_like_an_uninterrupted_one(
    pictures: Path, cache: Path, tmp_path: Path, changes: dict[str, object]
):
    config = quick_config(pictures, **changes)
    run(config, tmp_path / "whole", cache)
    commands = iter([None, "pause"])
    stopped = run(config, tmp_path / "halves", cache, commands=lambda: next(commands))
    assert last(stopped, Finished).reason == "paused"
    resumed = run(config, tmp_path / "halves", cache, resume=True)
    assert next(e for e in resumed if isinstance(e, Started)).step == 2
    assert same(tmp_path / "whole", tmp_path / "halves")


def test_the_same_seed_gives_the_same_file_and_another_seed_another(pictures: Path, cache: Path, tmp_path: Path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(quick_config(pictures, steps=2, seed=seed), tmp_path / name, cache)
    assert same(tmp_path / "a", tmp_path / "b")
    assert not same(tmp_path / "a", tmp_path / "c")


@pytest.fixture(scope="module")
def trained(pictures: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    run(quick_config(pictures, steps=20), out, cache)
    return out / "adapter.safetensors"


def picture(base: Base, seed: int = 0) -> bytes:
    (made,) = generate(base, ["a photo of a sks octopus"], seeds=[seed], inference_steps=4)
    return made.tobytes()


def test_strength_zero_changes_nothing_and_detaching_leaves_no_trace(base: Base, trained: Path):
    before = picture(base)
    adapter = attach_file(base.components, trained, base.hash)
    changed = picture(base)
    adapter.strength = 0.0
    at_zero = picture(base)
    adapter.detach()
    assert changed != before
    assert at_zero == before == picture(base)


def test_two_adapters_at_once_differ_from_either(base: Base, trained: Path):
    pictures: list[bytes] = []
    for count in (1, 2):
        adapters = [attach_file(base.components, trained, base.hash) for _ in range(count)]
        pictures.append(picture(base))
        for adapter in adapters:
            adapter.detach()
    assert pictures[0] != pictures[1]


def test_the_same_seed_gives_the_same_picture(base: Base):
    assert picture(base, seed=3) == picture(base, seed=3)
    assert picture(base, seed=3) != picture(base, seed=4)


def test_a_picture_does_not_depend_on_its_neighbours_in_the_batch(base: Base):
    prompts = ["a dog on a red background", "a house on a blue background"]
    together = list(generate(base, prompts, seeds=[1, 2], inference_steps=4))
    (alone,) = generate(base, prompts[1:], seeds=[2], inference_steps=4)
    difference = max(abs(a - b) for a, b in zip(together[1].tobytes(), alone.tobytes(), strict=True))
    assert difference <= 2


def test_the_card_says_what_was_trained(trained: Path, base: Base):
    card = load_adapter(trained).card
    assert (card.trigger, card.class_word, card.steps, card.base_hash) == ("sks", "octopus", 20, base.hash)
    assert card.prediction_type == "epsilon" and card.resolution == base.native_resolution


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapter": {"method": "lora", "rank": 8}}, "adapter.rank was 4 and is now 8"),
        ({"seed": 5}, "seed was 0 and is now 5"),
        ({"optim": {"learning_rate": 1e-3}}, "optim.learning_rate"),
    ],
)
def test_a_changed_configuration_is_not_resumed(
    pictures: Path, cache: Path, tmp_path: Path, changes: dict[str, object], said: str
):
    run(quick_config(pictures, steps=2, save_every=1), tmp_path, cache)
    with pytest.raises(MismatchError, match=said):
        run(quick_config(pictures, steps=2, **changes), tmp_path, cache, resume=True)


def test_changed_pictures_are_not_resumed(pictures: Path, cache: Path, tmp_path: Path):
    run(quick_config(pictures, steps=1, save_every=1), tmp_path / "out", cache)
    more = make_pictures(tmp_path / "more", count=4)
    with pytest.raises(MismatchError, match=r"3\.png"):
        run(quick_config(more, steps=1), tmp_path / "out", cache, resume=True)


def test_more_steps_may_be_asked_for_when_the_rate_does_not_depend_on_them(pictures: Path, cache: Path, tmp_path: Path):
    run(quick_config(pictures, steps=2, save_every=2), tmp_path / "longer", cache)
    run(quick_config(pictures, steps=4), tmp_path / "longer", cache, resume=True)
    run(quick_config(pictures, steps=4), tmp_path / "whole", cache)
    assert same(tmp_path / "longer", tmp_path / "whole")


def test_fewer_steps_than_done_are_refused(pictures: Path, cache: Path, tmp_path: Path):
    run(quick_config(pictures, steps=3, save_every=1), tmp_path, cache)
    with pytest.raises(UserInputError, match="already done 3 steps"):
        run(quick_config(pictures, steps=2), tmp_path, cache, resume=True)


def test_a_pause_at_the_last_step_ends_the_run(pictures: Path, cache: Path, tmp_path: Path):
    events = run(quick_config(pictures, steps=1), tmp_path, cache, commands=lambda: "pause")
    assert last(events, Finished).reason == "done"


def test_zero_terminal_snr_on_a_base_that_predicts_noise_is_refused(pictures: Path, cache: Path, tmp_path: Path):
    with pytest.raises(UserInputError, match="v-prediction"):
        run(quick_config(pictures, objective={"zero_terminal_snr": True}), tmp_path, cache)


def test_nothing_to_learn_is_refused(pictures: Path):
    with pytest.raises(ValidationError, match="nothing would learn"):
        quick_config(pictures, targets={"unet": "none"})


def test_a_schedule_free_optimizer_is_saved_as_its_average(pictures: Path, cache: Path, tmp_path: Path):
    config = quick_config(pictures, steps=6, optim={"name": "ScheduleFreeAdamW", "learning_rate": 1e-2}, save_every=6)
    run(config, tmp_path, cache)
    saved = adapter_tensors(tmp_path / "adapter.safetensors")
    while_training = load_file(tmp_path / "checkpoints" / "step-000006.safetensors")
    assert any(not torch.equal(tensor, while_training[f"adapter/{name}"]) for name, tensor in saved.items())


def test_captions_longer_than_the_encoders_read_are_pointed_out(cache: Path, tmp_path: Path):
    folder = make_pictures(tmp_path / "pictures", count=1)
    (folder / "0.txt").write_text("a sks octopus " + "with a very long story " * 12)
    notes = [e.text for e in run(quick_config(folder, steps=1), tmp_path / "out", cache) if isinstance(e, Note)]
    assert any("longer than the 38 tokens" in note for note in notes)


def test_a_norm_that_is_infinite_survives_the_log():
    """Under fp16 the first steps may overflow; the loss scaler skips them."""
    event = Stepped(
        step=1, steps=2, loss=0.5, learning_rate=1e-4, grad_norm=float("inf"), seconds_per_step=1, memory_bytes=1
    )
    assert parse_event(event.model_dump_json()) == event


def test_a_checkpoint_whose_optimizer_state_has_another_form_is_refused(
    pictures: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = quick_config(pictures)
    commands = iter([None, "pause"])
    run(config, tmp_path / "out", cache, commands=lambda: next(commands))
    monkeypatch.setattr("trainers.engine.is_elementwise", lambda name: False)  # as before there were stacks
    with pytest.raises(MismatchError, match="an earlier version"):
        run(config, tmp_path / "out", cache, resume=True)


def test_resuming_nothing_is_refused(pictures: Path, cache: Path, tmp_path: Path):
    with pytest.raises(MissingError, match="no checkpoint"):
        run(quick_config(pictures), tmp_path, cache, resume=True)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(
    pictures: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole_step = Engine.step

    def poisoned(self: Engine, number: int) -> StepResult:
        result = whole_step(self, number)
        return StepResult(result.loss * float("nan"), result.grad_norm) if number == 2 else result

    monkeypatch.setattr(Engine, "step", poisoned)
    with pytest.raises(DivergedError, match="step-000002"):
        run(quick_config(pictures, save_every=1), tmp_path, cache)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [
        "step-000001.safetensors",
        "step-000002.safetensors",
    ]
    assert not (tmp_path / "adapter.safetensors").exists()


def test_a_learning_rate_far_too_high_diverges_with_a_reason(pictures: Path, cache: Path, tmp_path: Path):
    config = quick_config(pictures, steps=30, optim={"name": "SGD", "learning_rate": 1e30, "max_grad_norm": 0})
    with pytest.raises(DivergedError, match="no longer a number"):
        run(config, tmp_path, cache)


@pytest.mark.parametrize("command", ["save", "sample"])
def test_a_command_is_obeyed_at_the_next_step(pictures: Path, cache: Path, tmp_path: Path, command: Command):
    asked = iter([command, None, None])
    config = quick_config(pictures, steps=3, sample={"count": 1, "inference_steps": 1})
    run(config, tmp_path, cache, commands=lambda: next(asked))
    made = {"save": "checkpoints/step-000001.safetensors", "sample": "samples/step-000001.png"}[command]
    assert (tmp_path / made).is_file()


def test_every_event_survives_its_line_in_the_log(pictures: Path, cache: Path, tmp_path: Path):
    config = quick_config(pictures, steps=2, save_every=1, sample={"count": 1, "inference_steps": 1})
    events = run(config, tmp_path, cache)
    assert {type(e) for e in events} >= {Note, Started, Stepped, Validated, Saved, Finished}
    assert [parse_event(event.model_dump_json()) for event in events] == events


def test_only_the_newest_checkpoints_are_kept(pictures: Path, cache: Path, tmp_path: Path):
    run(quick_config(pictures, steps=5, save_every=1, keep_checkpoints=2), tmp_path, cache)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_prior_preservation_makes_its_class_pictures_once(pictures: Path, cache: Path, tmp_path: Path):
    config = quick_config(
        pictures, steps=1, prior={"weight": 1.0, "pictures": 2}, sample={"count": 0, "inference_steps": 1}
    )
    first = [e for e in run(config, tmp_path / "a", cache) if getattr(e, "stage", "") == "class pictures"]
    again = [e for e in run(config, tmp_path / "b", cache) if getattr(e, "stage", "") == "class pictures"]
    assert len(first) == 2 and not again


def test_the_class_prompt_is_the_template_without_the_trigger(pictures: Path):
    assert class_prompt(quick_config(pictures)) == "a photo of an octopus"
    assert class_prompt(quick_config(pictures, prior={"prompt": "a drawing of a {class}"})) == "a drawing of an octopus"


def test_prior_preservation_without_a_class_is_refused(pictures: Path, cache: Path, tmp_path: Path):
    nameless = {"folder": pictures, "captions": {"trigger": "sks"}}
    with pytest.raises(UserInputError, match="what the subject is"):
        run(quick_config(pictures, data=nameless, prior={"weight": 1.0}), tmp_path, cache)


def test_accumulated_batches_are_averaged_into_one_step(pictures: Path, cache: Path, tmp_path: Path):
    """At a rate so small that the weights stand still, two steps move twice as far as one over both batches."""
    still = {"name": "SGD", "learning_rate": 1e-6, "weight_decay": 0.0, "max_grad_norm": 0}
    run(quick_config(pictures, optim=still, steps=1, gradient_accumulation=2), tmp_path / "one", cache)
    run(quick_config(pictures, optim=still, steps=2), tmp_path / "two", cache)
    one, two = (adapter_tensors(tmp_path / name / "adapter.safetensors") for name in ("one", "two"))
    moved = [name for name in one if name.endswith("up")]
    assert moved and all(relative_error(two[name], 2 * one[name]) < 1e-3 for name in moved)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_run_works_in_each_precision_of_a_cpu(pictures: Path, cache: Path, tmp_path: Path, precision: str):
    run(quick_config(pictures, steps=2, precision=precision), tmp_path, cache)
    assert all(torch.isfinite(t).all() for t in adapter_tensors(tmp_path / "adapter.safetensors").values())


@pytest.mark.parametrize("target", ["attention", "linear", "all", "down_blocks.*.to_q"])
def test_layers_are_chosen_by_group_or_pattern(pictures: Path, cache: Path, tmp_path: Path, target: str):
    run(quick_config(pictures, steps=1, targets={"unet": target}), tmp_path, cache)
    assert adapter_tensors(tmp_path / "adapter.safetensors")


def test_a_configuration_survives_its_json(pictures: Path):
    config = quick_config(pictures)
    again = TrainConfig.model_validate_json(config.model_dump_json())
    assert again == config and again.fingerprint() == config.fingerprint()


def test_the_adapter_of_a_checkpoint_is_what_the_run_would_have_saved(
    pictures: Path, tmp_path: Path, cache: Path
) -> None:
    changes = {"save_every": 1, "keep_checkpoints": 2, "ema_decay": 0.5}
    run(quick_config(pictures, steps=3, **changes), tmp_path, cache)
    kept = sorted(path.name for path in (tmp_path / "adapters").iterdir())
    assert kept == ["step-000002.safetensors", "step-000003.safetensors"]
    last, final = (
        adapter_tensors(tmp_path / name) for name in ("adapters/step-000003.safetensors", "adapter.safetensors")
    )
    assert last.keys() == final.keys() and all(torch.equal(last[name], final[name]) for name in final)
