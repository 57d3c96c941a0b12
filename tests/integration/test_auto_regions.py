"""`--region auto`: regions that are found while the picture is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from typer.testing import CliRunner

from adapters.adapter_set import AdapterSet
from adapters.files import AdapterCard, FusedConcept, save_adapter
from studio.cli import app
from studio.recipe import read_recipes
from tests.support import BASE, predicted, random_lora
from trainers.auto_regions import AutoRegions
from trainers.mentions import Subject
from trainers.sdxl import Base, generate

PROMPT = "a sks octopus and a zwx rocket"
SUBJECTS = [Subject("sks", "octopus"), Subject("zwx", "rocket")]


@pytest.fixture
def pair(base: Base) -> Iterator[list[AdapterSet]]:
    sets = [random_lora(base, seed, 0.05) for seed in (1, 2)]
    yield sets
    for adapters in sets:
        adapters.detach()


def routing(base: Base, sets: list[AdapterSet], count: int = 1) -> AutoRegions:
    side = base.native_resolution
    return AutoRegions(base, [PROMPT] * count, SUBJECTS, list(zip(sets, (0, 1), strict=False)), [], (side, side), True)


def predicted_twice(base: Base) -> None:
    """The UNet on two noises, without and with a prompt."""
    states, side = base.encode_texts([PROMPT] * 4), base.native_resolution // base.scale_factor
    noise = torch.randn(2, base.unet.config["in_channels"], side, side, generator=torch.Generator().manual_seed(0))
    known = {"text_embeds": states.pooled, "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]] * 4)}
    with torch.no_grad():
        base.unet(noise.repeat(2, 1, 1, 1), 900, states.context, added_cond_kwargs=known)


def draw(base: Base, found: AutoRegions, *seeds: int) -> list[torch.Tensor]:
    made = generate(base, [PROMPT] * len(seeds), seeds=seeds, inference_steps=5, routing=found)
    return [torch.from_numpy(np.array(picture)).float() for picture in made]


PIPE = SimpleNamespace(scheduler=SimpleNamespace(timesteps=range(5)))


def test_while_subjects_are_looked_for_the_base_is_alone(base: Base, pair: list[AdapterSet]):
    for adapters in pair:
        adapters.strength = 0.0
    alone = predicted(base, PROMPT)
    for adapters in pair:
        adapters.strength = 1.0
    with routing(base, pair).batch(slice(0, 1)) as after_step:
        assert torch.equal(predicted(base, PROMPT), alone)
        after_step(PIPE, 0, 500, {})
        assert not torch.equal(predicted(base, PROMPT), alone)


def test_then_each_adapter_acts_in_its_own_masks_of_each_picture_alone(base: Base, pair: list[AdapterSet]):
    layer = base.unet.get_submodule("up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(2, 64, layer.in_features, generator=draws).repeat(2, 1, 1)  # two pictures, without and with prompt
    plain = F.linear(x, layer.weight)
    found = routing(base, pair[:1], 2)
    pair[1].strength = 0.0
    with found.batch(slice(0, 2)) as after_step:
        predicted_twice(base)
        after_step(PIPE, 0, 500, {})
        change = (layer(x) - plain).abs().sum(-1)
    assert not torch.equal(*found.masks)
    for picture, masks in enumerate(found.masks):
        mine = F.adaptive_avg_pool2d(masks[:1], 8).flatten() > 0
        for row in (picture, picture + 2):
            assert (change[row, mine] > 0.01).all() and change[row, ~mine].max() < 1e-5


def test_nothing_is_left_behind(base: Base, pair: list[AdapterSet]):
    before = predicted(base, PROMPT)
    hooks = [len(module._forward_hooks) for module in base.unet.modules()]
    draw(base, routing(base, pair), 0)
    assert torch.equal(predicted(base, PROMPT), before)
    assert [len(module._forward_hooks) for module in base.unet.modules()] == hooks
    assert [adapters.strength for adapters in pair] == [1.0, 1.0]


def test_a_failure_while_subjects_are_looked_for_leaves_nothing_behind(base: Base, pair: list[AdapterSet]):
    with pytest.raises(KeyboardInterrupt), routing(base, pair).batch(slice(0, 1)):
        raise KeyboardInterrupt
    assert [adapters.strength for adapters in pair] == [1.0, 1.0]


def test_two_pictures_at_once_are_two_pictures_one_by_one(base: Base, pair: list[AdapterSet]):
    together, first, second = routing(base, pair, 2), routing(base, pair), routing(base, pair)
    pictures = draw(base, together, 3, 4)
    singles = [*draw(base, first, 3), *draw(base, second, 4)]
    assert not torch.equal(*together.masks)
    for masks, alone in zip(together.masks, (first, second), strict=True):
        assert torch.equal(masks, alone.masks[0])
    for picture, alone in zip(pictures, singles, strict=True):
        assert (picture - alone).abs().max() <= 2


def test_the_unet_runs_once_a_step(base: Base, pair: list[AdapterSet]):
    calls: list[int] = []
    handle = base.unet.register_forward_hook(lambda *_: calls.append(1))
    draw(base, routing(base, pair, 2), 0, 1)
    handle.remove()
    assert len(calls) == 5


def test_on_the_base_itself_left_and_right_are_found_where_they_were_asked_for(base: Base):
    prompt, side = "a sks octopus on the left and a zwx rocket on the right", base.native_resolution
    found = AutoRegions(base, [prompt], SUBJECTS, [], [], (side, side), True)
    list(generate(base, [prompt], seeds=[0], inference_steps=10, guidance=4.5, routing=found))
    columns = torch.arange(found.masks[0].shape[2]).float()
    octopus, rocket = ((mask.sum(0) * columns).sum() / mask.sum() for mask in found.masks[0])
    assert octopus < rocket - 3


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(base: Base, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, saved = tmp_path_factory.mktemp("adapters"), list[Path]()
    concepts = tuple(FusedConcept(trigger=one.trigger, class_word=one.class_word) for one in SUBJECTS)
    cards = {
        "sks": {"trigger": "sks", "class_word": "octopus"},
        "zwx": {"trigger": "zwx", "class_word": "rocket"},
        "style": {},
        "both": {"concepts": concepts},
    }
    for seed, (name, known) in enumerate(cards.items()):
        adapters = random_lora(base, seed, 0.05)
        adapters.detach()
        saved.append(folder / f"{name}.safetensors")
        save_adapter(saved[-1], adapters, AdapterCard.model_validate({"base": BASE, "base_hash": base.hash, **known}))
    return saved


def sample(files: list[Path], out: Path, *more: str, prompt: str = PROMPT) -> tuple[int, str]:
    words = ["sample", *map(str, files), "--prompt", prompt, "-n", "1", "--steps", "5", "--out", str(out), *more]
    made = CliRunner().invoke(app, words)
    return made.exit_code, made.output


def test_the_command_draws_the_same_again_and_saves_where_it_found_them(files: list[Path], tmp_path: Path):
    for name in ("one", "two"):
        code, said = sample(files[:3], tmp_path / name, "--region", "auto")
        assert code == 0 and "red sks octopus, green zwx rocket" in said, said
    (recipe,) = read_recipes(tmp_path / "one" / "grid.png")
    assert recipe.regions == ("auto",)
    for name in ("grid", "a-sks-octopus-and-a-zwx-rocket-0-regions"):
        first, second = (Image.open(tmp_path / folder / f"{name}.png") for folder in ("one", "two"))
        assert first.tobytes() == second.tobytes()
    colors = {color for _, color in second.convert("RGB").getcolors() or ()}
    assert colors <= {(0, 0, 0), (230, 60, 60), (60, 200, 80)} and len(colors) > 1


def test_of_a_fused_file_the_prompts_go_by_region(files: list[Path], tmp_path: Path):
    assert sample([files[3]], tmp_path / "auto", "--region", "auto")[0] == 0
    assert sample([files[3]], tmp_path / "plain")[0] == 0
    routed, plain = (Image.open(tmp_path / name / "grid.png").tobytes() for name in ("auto", "plain"))
    assert routed != plain


def test_a_class_word_that_is_missing_is_told(files: list[Path], tmp_path: Path):
    code, said = sample(files[:2], tmp_path / "out", "--region", "auto", prompt="a sks and a zwx rocket")
    assert code == 0 and 'say "sks octopus"' in said and "zwx but not what it is" not in said


@pytest.mark.parametrize(
    ("which", "more", "prompt", "told"),
    [
        ([0], ["auto"], PROMPT, "name only sks octopus"),
        ([2, 2], ["auto"], PROMPT, "name none"),
        ([0, 0], ["auto"], PROMPT, "are called sks"),
        ([0, 1], ["auto"], "a sks octopus", "does not say zwx"),
        ([0, 1], ["auto", "left half: a"], PROMPT, "found or given, not both"),
        ([3, 3, 3], ["auto"], PROMPT, "6 subjects are more than 5"),
        ([0, 1], ["auto", "--steps", "1"], PROMPT, "several steps"),
    ],
)
def test_what_cannot_be_routed_is_refused_in_words(
    files: list[Path], tmp_path: Path, which: list[int], more: list[str], prompt: str, told: str
):
    options = [part for word in more for part in (["--region", word] if not word.startswith("-") else [word])]
    if "--steps" in more:
        options = ["--region", "auto", "--steps", "1"]
    code, said = sample([files[number] for number in which], tmp_path / "none", *options, prompt=prompt)
    assert code != 0 and told in said and "Traceback" not in said
