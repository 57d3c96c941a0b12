from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from pydantic import ValidationError

from tests.tolerances import FP32, relative_error
from trainers import objective
from trainers.objective import ObjectiveConfig

SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TIMESTEPS = torch.tensor([0, 10, 250, 500, 750, 999])


def scheduler(config: ObjectiveConfig) -> DDPMScheduler:
    return objective.training_scheduler(DDPMScheduler(**SDXL), config)


def weight(config: ObjectiveConfig) -> torch.Tensor:
    made = scheduler(config)
    velocity = made.config["prediction_type"] == "v_prediction"
    return objective.snr_weight(made.alphas_cumprod, TIMESTEPS, config, velocity)


def test_without_options_every_timestep_counts_the_same():
    assert torch.equal(weight(ObjectiveConfig()), torch.ones(len(TIMESTEPS)))


def test_min_snr_weights_equal_the_diffusers_scripts():
    snr = compute_snr(scheduler(ObjectiveConfig()), TIMESTEPS)
    assert relative_error(weight(ObjectiveConfig(min_snr_gamma=5)), snr.clamp(max=5) / snr) < FP32
    velocity = weight(ObjectiveConfig(min_snr_gamma=5, prediction_type="v_prediction"))
    assert relative_error(velocity, snr.clamp(max=5) / (snr + 1)) < FP32


def test_debiased_weights_are_one_over_the_root_of_the_snr():
    snr = compute_snr(scheduler(ObjectiveConfig()), TIMESTEPS)
    assert relative_error(weight(ObjectiveConfig(debiased=True)), snr.clamp(1e-3, 1e3).rsqrt()) < FP32


def test_zero_terminal_snr_ends_in_pure_noise_with_finite_weights():
    config = ObjectiveConfig(prediction_type="v_prediction", zero_terminal_snr=True, min_snr_gamma=5)
    assert scheduler(config).alphas_cumprod[-1] < 1e-6
    assert torch.isfinite(weight(config)).all()


def test_zero_terminal_snr_with_epsilon_is_refused():
    with pytest.raises(ValidationError, match="v_prediction"):
        ObjectiveConfig(zero_terminal_snr=True, prediction_type="epsilon")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_target_recovers_the_clean_latents(kind: str):
    config = ObjectiveConfig(prediction_type=kind)
    made, draws = scheduler(config), torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 4, 8, 8, generator=draws, dtype=torch.float64) for _ in range(2))
    timesteps = torch.tensor([100, 700])
    noisy = made.add_noise(clean, noise, timesteps)
    target = objective.prediction_target(made, clean, noise, timesteps)
    alpha = made.alphas_cumprod.double()[timesteps][:, None, None, None]
    if kind == "epsilon":
        recovered = (noisy - (1 - alpha).sqrt() * target) / alpha.sqrt()
    else:
        recovered = alpha.sqrt() * noisy - (1 - alpha).sqrt() * target
    assert relative_error(recovered, clean) < FP32


def test_offset_noise_shifts_whole_channels():
    draws = torch.Generator().manual_seed(0)
    noise = objective.draw_noise(torch.zeros(64, 4, 16, 16), ObjectiveConfig(noise_offset=0.5), draws)
    assert noise.mean(dim=(2, 3)).std() == pytest.approx(0.5, rel=0.2)


def test_multires_noise_has_unit_variance_and_neighbours_that_agree():
    draws = torch.Generator().manual_seed(0)
    noise = objective.draw_noise(torch.zeros(16, 4, 32, 32), ObjectiveConfig(multires_discount=0.8), draws)
    assert noise.std() == pytest.approx(1.0, rel=1e-3)
    assert (noise[..., 1:] * noise[..., :-1]).mean() > 0.2


def test_the_same_generator_seed_draws_the_same_noise():
    config = ObjectiveConfig(noise_offset=0.1, multires_discount=0.3)
    first, second = (
        objective.draw_noise(torch.zeros(2, 4, 8, 8), config, torch.Generator().manual_seed(7)) for _ in range(2)
    )
    assert torch.equal(first, second)


def test_timesteps_stay_in_the_asked_range():
    config = ObjectiveConfig(min_timestep=200, max_timestep=300)
    drawn = objective.draw_timesteps(2000, config, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert (drawn.min(), drawn.max()) == (200, 300)


def test_pseudo_huber_is_square_near_zero_and_linear_far_away():
    config = ObjectiveConfig(loss="huber", huber_c=0.1)
    near, far = torch.full((1, 1, 1, 1), 1e-3), torch.full((1, 1, 1, 1), 100.0)
    zero = torch.zeros(1, 1, 1, 1)
    assert objective.elementwise_loss(near, zero, config).item() == pytest.approx(1e-6, rel=1e-2)
    assert objective.elementwise_loss(far, zero, config).item() == pytest.approx(2 * 0.1 * 100, rel=1e-2)


def test_a_masked_position_does_not_count():
    errors = torch.ones(1, 2, 2, 2)
    mask = torch.tensor([[[[4.0, 0.0], [0.0, 0.0]]]])
    errors[:, :, 1, 1] = 1e6
    assert objective.picture_losses(errors, mask, torch.ones(1)).item() == pytest.approx(1.0)


@pytest.mark.parametrize("options", [{"min_snr_gamma": 5}, {"debiased": True}])
def test_a_weight_means_the_same_error_whichever_target_is_predicted(options: dict[str, object]):
    """e_ε² = ᾱ·e_v² at a given noisy latent, so w_v = ᾱ·w_ε."""
    alpha = scheduler(ObjectiveConfig()).alphas_cumprod[TIMESTEPS]
    epsilon = weight(ObjectiveConfig(**options))
    velocity = weight(ObjectiveConfig(**options, prediction_type="v_prediction"))
    assert relative_error(velocity, alpha * epsilon) < FP32
