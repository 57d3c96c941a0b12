"""Prompts and adapters that act in a region of the picture only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from adapters.errors import UserInputError
from adapters.files import AdapterCard, save_adapter
from adapters.sites import make_site
from studio.cli import app
from studio.recipe import read_recipes
from studio.regions import places
from tests.support import BASE, drawn, predicted, random_lora
from trainers.places import Region, parse_region
from trainers.regions import Regional, Within, region_masks, regional_sampling
from trainers.sdxl import Base

PROMPT = "a sks octopus on a white background"


def regional(base: Base, regions: list[Region], shared: float = 0.0) -> Regional:
    side = base.native_resolution // base.scale_factor
    contexts = torch.stack([base.encode_texts([region.prompt]).context for region in regions])
    return Regional(region_masks(regions, side, side)[None], contexts, guided=True, shared=shared)


# --- places -----------------------------------------------------------------------------------------------------


def test_places_are_named_or_numbers():
    assert parse_region("left half: a cat") == Region((0, 0, 0.5, 1), "a cat")
    assert parse_region(" 0.5, 0,1,0.25 :a: b") == Region((0.5, 0, 1, 0.25), "a: b")


@pytest.mark.parametrize(
    "text", ["left half", "left half:", "nowhere: a cat", "0,0,1: a cat", "0.6,0,0.5,1: a", "0,0,2,1: a"]
)
def test_what_is_no_region_is_refused_in_words(text: str):
    with pytest.raises(UserInputError) as refused:
        parse_region(text)
    assert "left half" in refused.value.fix


def test_masks_cover_their_boxes_to_parts_of_a_cell_and_share_where_they_overlap():
    masks = region_masks([Region((0, 0, 0.375, 1), "a"), Region((0.25, 0, 1, 1), "b")], 2, 4)
    assert masks[:, 0].tolist() == [[1, pytest.approx(1 / 3), 0, 0], [0, pytest.approx(2 / 3), 1, 1]]


# --- adapters -----------------------------------------------------------------------------------------------------


def test_an_adapter_s_change_stays_in_its_region_at_tokens_and_pixels(base: Base):
    within = Within(regional(base, [parse_region("left half: a"), parse_region("right half: b")]), 0)
    linear, conv = make_site("unet.x", nn.Linear(3, 3)), make_site("unet.y", nn.Conv2d(3, 3, 1))
    assert linear is not None and conv is not None
    tokens = within(linear, torch.ones(1, 64, 3)).unflatten(1, (8, 8))
    pixels = within(conv, torch.ones(1, 3, 8, 8))
    assert torch.equal(tokens[0, :, :4], torch.ones(8, 4, 3)) and not tokens[0, :, 4:].any()
    assert torch.equal(pixels[..., :4], torch.ones(1, 3, 8, 4)) and not pixels[..., 4:].any()


def test_keys_and_values_change_for_its_own_prompt_alone(base: Base):
    state = regional(base, [parse_region("left half: a"), parse_region("right half: b")])
    site = make_site("unet.mid_block.attn2.to_k", nn.Linear(3, 3))
    assert site is not None
    for now, kept in ((0, 0.0), (1, 1.0), (None, 0.0)):
        state.now = now
        assert float(Within(state, 1)(site, torch.ones(1, 40, 3)).mean()) == kept


def test_one_region_everywhere_is_the_plain_picture(base: Base):
    adapters = random_lora(base)
    expected = drawn(base, PROMPT)
    state = regional(base, [Region((0, 0, 1, 1), PROMPT)])
    with regional_sampling(base.unet, state, [(adapters, 0)]):
        found = drawn(base, PROMPT)
    adapters.detach()
    assert (found - expected).abs().max() <= 2


def test_the_bare_base_with_the_same_prompt_everywhere_is_the_plain_picture(base: Base):
    state = regional(base, [Region((0, 0, 0.5, 1), PROMPT), Region((0.5, 0, 1, 1), PROMPT)], shared=0.3)
    with regional_sampling(base.unet, state, []):
        found = drawn(base, PROMPT)
    assert (found - drawn(base, PROMPT)).abs().max() <= 2


def test_an_adapter_in_a_region_changes_that_part_most_and_leaves_no_trace_afterwards(base: Base):
    before = predicted(base, PROMPT)
    adapters = random_lora(base, size=0.02)
    state = regional(base, [Region((0, 0, 0.5, 1), PROMPT)])
    with regional_sampling(base.unet, state, [(adapters, 0)]):
        found = predicted(base, PROMPT)
    adapters.detach()
    change = (found - before).square()
    half = before.shape[-1] // 2
    assert change[..., :half].mean() > 2 * change[..., half:].mean()
    assert torch.equal(predicted(base, PROMPT), before)


def test_the_unet_runs_once_a_step_however_many_the_regions(base: Base):
    calls: list[int] = []
    handle = base.unet.register_forward_hook(lambda *_: calls.append(1))
    regions = [Region((n / 5, 0, (n + 1) / 5, 1), f"a cat {n}") for n in range(5)]
    with regional_sampling(base.unet, regional(base, regions), []):
        drawn(base, PROMPT)
    handle.remove()
    assert len(calls) == 3


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(base: Base, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    found: list[Path] = []
    for number, trigger in enumerate(("sks", "zwx")):
        adapters = random_lora(base, seed=number)
        adapters.detach()
        found.append(tmp_path_factory.mktemp("adapters") / f"{trigger}.safetensors")
        save_adapter(found[-1], adapters, AdapterCard(base=BASE, base_hash=base.hash, trigger=trigger))
    return found


def sample(files: list[Path], out: Path, *regions: str) -> tuple[int, str]:
    words = [word for region in regions for word in ("--region", region)]
    made = CliRunner().invoke(
        app, ["sample", *map(str, files), "--prompt", "two", "-n", "1", "--steps", "2", "--out", str(out), *words]
    )
    return made.exit_code, made.output


def test_the_command_draws_regions_and_its_recipe_tells_them(files: list[Path], tmp_path: Path):
    regions = ("left half: a sks cat", "0.5,0,1,1: a zwx dog")
    code, said = sample(files, tmp_path / "one", *regions)
    assert code == 0 and "lacks the trigger" not in said, said
    (recipe,) = read_recipes(tmp_path / "one" / "grid.png")
    assert recipe.regions == regions
    assert sample(files, tmp_path / "plain")[0] == 0
    one, plain = (Image.open(tmp_path / name / "grid.png").tobytes() for name in ("one", "plain"))
    assert one != plain


def test_regions_that_make_no_sense_are_refused(files: list[Path], tmp_path: Path):
    for regions, told in (
        (["left half: a sks cat", "right half: another sks cat"], "Several regions say sks"),
        (["left half"], "lacks a place or a prompt"),
        ([f"left half: {n}" for n in range(6)], "more than 5"),
    ):
        code, said = sample(files, tmp_path / "none", *regions)
        assert code != 0 and told in said and "Traceback" not in said


def test_adapters_without_triggers_go_by_order_and_fused_ones_act_everywhere(base: Base, files: list[Path]):
    from adapters.files import FusedConcept, attach_file, load_adapter

    regions = [parse_region("left half: a"), parse_region("right half: b")]
    loaded = [load_adapter(path) for path in files]
    sets = [attach_file(base.components, file, base.hash) for file in loaded]
    for adapters in sets:
        adapters.detach()

    def with_card(number: int, **changes: object):
        file = loaded[number]
        card = file.card.model_copy(update={"trigger": "", **changes})
        return type(file)(file.tensors, type(file.header)(**{**vars(file.header), "card": card}))

    assert [n for _, n in places(regions, [with_card(0), with_card(1)], sets)] == [0, 1]
    fused = with_card(0, concepts=(FusedConcept(trigger="x"),))
    assert [n for _, n in places(regions, [fused, with_card(1)], sets)] == [1]
    assert places(regions, loaded, sets) == []
