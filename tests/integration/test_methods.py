"""Every registered method and every optimizer rule through the real training loop on the embedded base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from adapters.base import REGISTRY
from adapters.errors import UserInputError
from adapters.files import attach_file, load_adapter
from tests.contract.table import METHODS
from tests.support import BASE, adapter_tensors, make_pictures, quick_config, run
from tests.tolerances import same_bits
from trainers.events import Finished, Started
from trainers.sdxl import Base, load_base

TARGETS = {"unet": "cross-attention&up.0, conv&mid", "text_encoder": "attention"}
SMALL = {"unet": "cross-attention&mid"}


def knobs_of(method: str) -> Mapping[str, object]:
    """Those of the contract's first row of the method."""
    return next((row.knobs for row in METHODS if row.name == method), {})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"), count=2)


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base(BASE)


def outputs(base: Base) -> list[torch.Tensor]:
    """What the adapted models compute from fixed inputs."""
    draw = torch.Generator().manual_seed(0)
    unet = base.unet.config
    tokens = torch.arange(4, 12)[None]
    width = base.components["text_encoder_2"].config.projection_dim
    with torch.no_grad():
        encoded = base.components["text_encoder"](tokens, output_hidden_states=True).hidden_states[-2]
        side = unet["sample_size"]
        noise = base.unet(
            torch.randn(1, unet["in_channels"], side, side, generator=draw),
            torch.tensor([500]),
            torch.randn(1, 8, unet["cross_attention_dim"], generator=draw),
            added_cond_kwargs={
                "text_embeds": torch.randn(1, width, generator=draw),
                "time_ids": torch.full((1, 6), float(8 * side)),
            },
            return_dict=False,
        )[0]
    return [noise, encoded]


@pytest.mark.parametrize("method", sorted(REGISTRY))
def test_a_method_trains_saves_and_attaches_again(pictures: Path, cache: Path, tmp_path: Path, base: Base, method: str):
    adapter = {"method": method, **knobs_of(method)}
    config = quick_config(pictures, adapter=adapter, targets=TARGETS, steps=3, save_every=3, validation_levels=0)
    events = run(config, tmp_path, cache)
    assert isinstance(events[-1], Finished) and events[-1].reason == "done"
    path = tmp_path / "adapter.safetensors"
    file = load_adapter(path)
    assert file.spec == config.adapter and all(torch.isfinite(tensor).all() for tensor in file.tensors.values())
    bare = outputs(base)
    attached = attach_file(base.components, path, base.hash)
    adapted = outputs(base)
    attached.strength = 0.0
    at_zero = outputs(base)
    attached.detach()
    again = attach_file(base.components, file, base.hash)
    repeated = outputs(base)
    again.detach()
    changed = [not torch.equal(one, other) for one, other in zip(bare, adapted, strict=True)]
    # A budget over all layers may leave a whole model without any rank.
    assert any(changed) if REGISTRY[method].depends_on_steps else all(changed)
    assert all(same_bits(one, other) for one, other in zip(bare, at_zero, strict=True))
    assert all(same_bits(one, other) for one, other in zip(adapted, repeated, strict=True))
    assert all(same_bits(one, other) for one, other in zip(bare, outputs(base), strict=True))


def interrupted_like_whole(changes: dict[str, object], pictures: Path, cache: Path, out: Path, stop: int = 2) -> None:
    config = quick_config(pictures, validation_levels=0, **changes)
    run(config, out / "whole", cache)
    commands = iter([*[None] * (stop - 1), "pause"])
    stopped = run(config, out / "halves", cache, commands=lambda: next(commands))
    assert isinstance(stopped[-1], Finished) and stopped[-1].reason == "paused"
    resumed = run(config, out / "halves", cache, resume=True)
    assert next(event for event in resumed if isinstance(event, Started)).step == stop
    one, other = (adapter_tensors(out / half / "adapter.safetensors") for half in ("whole", "halves"))
    assert one.keys() == other.keys()
    assert [name for name in one if not same_bits(one[name], other[name])] == []


SCHEDULED = {
    "adalora": {"rank": 4, "target_rank": 2, "interval": 1},
    "lora-dash": {"rank": 4, "start_step": 3},
}


@pytest.mark.parametrize("method", [name for name in SCHEDULED if name in REGISTRY])
def test_a_schedule_of_a_method_goes_on_where_it_was(pictures: Path, cache: Path, tmp_path: Path, method: str):
    """Counted in optimizer steps: neither the batches of one step nor a recomputed forward may advance it."""
    changes = {
        "adapter": {"method": method, **SCHEDULED[method]},
        "targets": SMALL,
        "steps": 5,
        "gradient_accumulation": 2,
        "gradient_checkpointing": True,
    }
    interrupted_like_whole(changes, pictures, cache, tmp_path)


@pytest.mark.parametrize("rule", ["lora+", "lora-fa", "lora-pro"])
def test_a_run_under_a_rule_resumes_bit_for_bit(pictures: Path, cache: Path, tmp_path: Path, rule: str):
    changes = {"optim": {"learning_rate": 2e-3, "rule": rule}, "targets": TARGETS, "steps": 4}
    interrupted_like_whole(changes, pictures, cache, tmp_path)


def test_under_lora_fa_the_down_factors_stay_and_are_not_counted(pictures: Path, cache: Path, tmp_path: Path):
    counted: dict[str, int] = {}
    for rule in ("none", "lora-fa"):
        optim = {"learning_rate": 2e-3, "rule": rule}
        config = quick_config(pictures, optim=optim, targets=SMALL, steps=1, validation_levels=0)
        started = next(event for event in run(config, tmp_path / rule, cache) if isinstance(event, Started))
        counted[rule] = started.trainable_parameters
    tensors = adapter_tensors(tmp_path / "lora-fa" / "adapter.safetensors")
    sizes = {role: sum(t.numel() for name, t in tensors.items() if name.endswith(role)) for role in ("up", "down")}
    assert counted == {"none": sizes["up"] + sizes["down"], "lora-fa": sizes["up"]}


def test_overrides_reach_the_file_through_a_whole_run(pictures: Path, cache: Path, tmp_path: Path, base: Base):
    override = {"layers": "conv", "adapter": {"rank": 2}, "learning_rate": 5e-5}
    targets = {**TARGETS, "overrides": [override]}
    run(quick_config(pictures, targets=targets, steps=1, validation_levels=0), tmp_path, cache)
    file = load_adapter(tmp_path / "adapter.safetensors")
    ranks = {tensor.shape[0] for name, tensor in file.tensors.items() if name.endswith("conv1.down")}
    others = {tensor.shape[0] for name, tensor in file.tensors.items() if name.endswith("to_q.down")}
    assert (ranks, others) == ({2}, {4})
    attach_file(base.components, file, base.hash).detach()


CALIBRATED = {
    "rosa": {"rank": 4, "init": "lora-ga", "calibration_draws": 1, "dropout": 0.1},
    "sora": {"rank": 4, "magnitude": True},
}


@pytest.mark.parametrize("method", sorted(CALIBRATED))
def test_a_start_from_gradients_gates_and_an_average_resume_bit_for_bit(
    pictures: Path, cache: Path, tmp_path: Path, method: str
):
    changes = {"adapter": {"method": method, **CALIBRATED[method]}, "targets": SMALL, "steps": 4, "ema_decay": 0.9}
    interrupted_like_whole(changes, pictures, cache, tmp_path)


@pytest.mark.parametrize("method", ["lora", "rosa"])
def test_layers_that_the_loss_never_reaches_are_refused_in_words(
    pictures: Path, cache: Path, tmp_path: Path, method: str
):
    """SDXL reads its first text encoder before the last layer."""
    targets = {"unet": "none", "text_encoder": "encoder.layers.2.*"}
    config = quick_config(pictures, adapter={"method": method, "rank": 2}, targets=targets, validation_levels=0)
    with pytest.raises(UserInputError, match="does not depend on any of the layers"):
        run(config, tmp_path, cache)


def test_a_rule_that_a_method_cannot_take_is_refused_before_pictures_are_read(cache: Path, tmp_path: Path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "broken.png").write_bytes(b"reading this one would be refused first")
    optim = {"learning_rate": 2e-3, "rule": "lora+"}
    config = quick_config(tmp_path / "pictures", adapter={"method": "vera", "rank": 4}, optim=optim)
    with pytest.raises(UserInputError, match="lora\\+"):
        run(config, tmp_path, cache)
