from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from adapters.errors import UnknownNameError, UserInputError
from trainers.optim import OptimConfig, build_optimizer, build_schedule, clip_gradients, find_optimizer, rate_warning


def groups(count: int = 1) -> list[dict[str, object]]:
    return [{"params": [nn.Parameter(torch.ones(4, 4))], "lr": 1e-3 * (n + 1)} for n in range(count)]


@pytest.mark.parametrize("name", ["AdamW", "adamw", "SGD", "Adafactor", "Prodigy", "Lion", "CAME"])
def test_an_optimizer_is_found_by_name_in_any_case(name: str):
    assert find_optimizer(name).__name__.lower() == name.lower()


@pytest.mark.parametrize("name", ["AdamW", "Prodigy", "Lion", "CAME"])
def test_every_source_of_optimizers_takes_a_step(name: str):
    parameter = nn.Parameter(torch.zeros(4, 4))
    optimizer = build_optimizer(OptimConfig(name=name), [{"params": [parameter], "lr": 1.0}])
    for _ in range(2):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert parameter.abs().min() > 0


def test_an_unknown_optimizer_names_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        find_optimizer("AdamV")
    assert caught.value.nearest in ("Adam", "AdamW")


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(UnknownNameError, match="betaz") as caught:
        build_optimizer(OptimConfig(options={"betaz": [0.9, 0.99]}), groups())
    assert caught.value.nearest == "betas"


def test_an_impossible_option_is_refused_in_words():
    with pytest.raises(UserInputError, match="AdamW refused"):
        build_optimizer(OptimConfig(options={"betas": [2.0, 0.99]}), groups())


def test_weight_decay_is_not_the_learning_rate():
    optimizer = build_optimizer(OptimConfig(learning_rate=3e-4, weight_decay=0.05), groups())
    assert optimizer.defaults["weight_decay"] == 0.05
    assert optimizer.defaults["lr"] == 3e-4


def test_each_group_keeps_its_own_learning_rate():
    optimizer = build_optimizer(OptimConfig(), groups(2))
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 2e-3]


def test_text_encoders_learn_at_half_the_rate_unless_told():
    assert OptimConfig(learning_rate=1e-4).rate_for("text_encoder") == 5e-5
    assert OptimConfig(learning_rate=1e-4, text_encoder_learning_rate=1e-5).rate_for("text_encoder_2") == 1e-5


def test_each_component_may_have_a_rate_of_its_own():
    config = OptimConfig(learning_rate=3e-4, text_encoder_learning_rate=2e-5, text_encoder_2_learning_rate=1e-5)
    assert [config.rate_for(part) for part in ("unet", "text_encoder", "text_encoder_2")] == [3e-4, 2e-5, 1e-5]


def test_the_cosine_schedule_warms_up_and_ends_at_zero():
    config = OptimConfig(schedule="cosine", warmup_steps=10)
    optimizer = build_optimizer(config, groups())
    schedule = build_schedule(config, optimizer, 100)
    rates: list[float] = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == 0 and max(rates) == pytest.approx(1e-3) and rates[-1] < 1e-5


@pytest.mark.parametrize(("max_norm", "after"), [(1.0, 1.0), (0.0, 8.0)])
def test_clipping_to_zero_means_no_clipping(max_norm: float, after: float):
    parameter = nn.Parameter(torch.zeros(4, 4))
    parameter.grad = torch.full((4, 4), 2.0)
    assert clip_gradients([parameter], max_norm).item() == pytest.approx(8.0)
    assert parameter.grad.norm().item() == pytest.approx(after, rel=1e-4)


def test_a_rate_that_stops_a_rate_finding_optimizer_is_pointed_out():
    assert "1.0" in (rate_warning(OptimConfig(name="Prodigy", learning_rate=1e-4)) or "")
    assert rate_warning(OptimConfig(name="Prodigy", learning_rate=1.0)) is None
    assert rate_warning(OptimConfig(name="AdamW", learning_rate=1e-4)) is None


def test_an_optimizer_that_finds_one_rate_gets_one_rate():
    config = OptimConfig(name="Prodigy", learning_rate=1.0)
    assert {config.rate_for(part) for part in ("unet", "text_encoder", "text_encoder_2")} == {1.0}
    with pytest.raises(ValidationError, match="one learning rate"):
        OptimConfig(name="Prodigy", learning_rate=1.0, text_encoder_learning_rate=0.5)


def test_an_optimizer_that_needs_the_loss_again_is_refused():
    with pytest.raises(UserInputError, match="several times a step"):
        build_optimizer(OptimConfig(name="LBFGS"), groups())
