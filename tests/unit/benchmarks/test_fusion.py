"""The fusion benchmark's arithmetic: shares of an identity, intervals, places in pictures, and the page."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.fusion import metric
from benchmarks.fusion.designs import Designs, load_designs, save_designs
from benchmarks.fusion.look import WINDOW, window
from benchmarks.fusion.metric import Cell
from benchmarks.fusion.scenes import scenes
from benchmarks.fusion.subjects import GROUND, groups
from benchmarks.fusion.table import render, write_page
from benchmarks.fusion.tasks import Alone, Joint, Plan, Train, ordered, ready
from benchmarks.fusion.variants import variants
from trainers.result import ADAPTER_NAME

BASE = torch.tensor([[0.2, 0.1], [0.0, 0.3]])
ALONE = torch.tensor([[0.8, 0.1], [0.0, 0.9]])


def _cell(joint: torch.Tensor) -> Cell:
    return Cell(joint=joint, base=BASE, alone=ALONE, elsewhere=BASE)


def test_a_picture_like_single_ones_keeps_all_and_one_like_the_base_keeps_nothing() -> None:
    assert metric.share([metric.kept(_cell(ALONE))]).value == pytest.approx(1.0)
    assert metric.share([metric.kept(_cell(BASE))]).value == pytest.approx(0.0)


def test_half_way_from_the_base_to_single_ones_is_half_kept() -> None:
    assert metric.share([metric.kept(_cell((ALONE + BASE) / 2))]).value == pytest.approx(0.5)


def test_a_place_that_shows_the_other_member_has_leaked_wholly() -> None:
    swapped = torch.tensor([[0.0, 0.9], [0.8, 0.0]])
    assert metric.share([metric.leaked(_cell(swapped))]).value == pytest.approx(1.0)
    assert metric.share([metric.leaked(_cell(BASE))]).value == pytest.approx(0.0)
    assert metric.share([metric.leaked_alone(_cell(swapped))]).value == pytest.approx(0.0)


def test_shares_are_ratios_of_sums_within_their_interval() -> None:
    found = metric.share([(1.0, 2.0), (3.0, 4.0), (0.0, 4.0)])
    assert found.value == pytest.approx(0.4)
    assert 0.0 <= found.low < found.value < found.high <= 0.75


def test_cells_that_are_all_alike_leave_no_interval() -> None:
    found = metric.share([(1.0, 2.0)] * 5)
    assert (found.low, found.high) == pytest.approx((0.5, 0.5))


def test_a_difference_over_the_same_cells_knows_what_they_share() -> None:
    hard, easy = [(0.1, 1.0), (0.9, 1.0)], [(0.3, 1.0), (1.1, 1.0)]
    found = metric.difference(easy, hard)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.2, 0.2))


def test_rank_correlation_is_pearsons_of_ranks() -> None:
    first, second = [3.0, 1.0, 2.0, 2.0], [9.0, 2.0, 4.0, 1.0]
    expected = torch.corrcoef(torch.tensor([[3.0, 0.0, 1.5, 1.5], [3.0, 1.0, 2.0, 0.0]]))[0, 1]
    assert metric.rank_correlation(first, second) == pytest.approx(float(expected))
    assert metric.rank_correlation([1.0, 1.0], [1.0, 2.0]) == 0.0


def test_area_under_curve_counts_pairs_in_order() -> None:
    assert metric.area_under_curve(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0])) == pytest.approx(3.5 / 4)


def test_a_window_is_centred_on_what_stands_in_its_part_of_the_picture() -> None:
    picture = torch.ones(3, 128, 128)
    picture[:, 20:60, 70:100] = -1.0
    picture[:, 50:90, 0:60] = 0.0
    found = window(picture, (0.5, 0.0, 1.0, 1.0))
    assert found.shape == (3, WINDOW, WINDOW)
    dark = torch.nonzero(found[0] == -1)
    assert (dark.float().mean(0) - (WINDOW - 1) / 2).abs().max() <= 1
    assert not bool((found == 0.0).any())


def test_nothing_in_a_place_is_an_empty_window() -> None:
    assert bool((window(torch.full((3, 128, 128), 0.5), (0.0, 0.0, 0.5, 0.5)) == 0.5).all())


@pytest.mark.parametrize("group", groups(), ids=lambda group: group.name)
def test_members_stand_everywhere_in_turn_and_are_asked_for_where_they_stand(group: Any) -> None:
    size = len(group.members)
    drawn = scenes(group, range(size), 2 * size)
    for index, member in enumerate(group.members):
        assert len({scene.boxes[index] for scene in drawn}) == size
        assert all(member.trigger in scene.regions[index].prompt for scene in drawn)
        assert all(scene.regions[index].box == scene.boxes[index] for scene in drawn)
    assert all(scene.prompt.endswith(GROUND) for scene in drawn)
    assert [scene.seed for scene in drawn] == [scene.seed for scene in scenes(group, (), 2 * size)]


def test_members_of_a_group_learn_on_slots_of_their_own() -> None:
    for group in groups():
        assert len({member.slot for member in group.members}) == len(group.members)


def _plan(work: Path) -> Plan:
    return Plan(work, tuple(groups()), tuple(variants()), (0, 1), 4)


def test_pictures_come_after_the_trainings_that_they_need(tmp_path: Path) -> None:
    order = list(ordered(_plan(tmp_path), ("train", "draw")))
    place = {
        task.training.folder(tmp_path) / ADAPTER_NAME: n for n, task in enumerate(order) if isinstance(task, Train)
    }
    for number, task in enumerate(order):
        adapters = [path for path in task.needs(_plan(tmp_path)) if path.name == ADAPTER_NAME]
        assert all(place[path] < number for path in adapters)
    assert len(order) == len(set(order))


def test_every_variant_of_every_group_and_seed_that_it_joins_is_drawn_once(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    tasks = [task for task in ordered(plan, ("draw",)) if isinstance(task, Joint)]
    drawn = [(task.group, variant.name, task.seed) for task in tasks for variant in task.variants]
    wanted = {(g, v.name, seed) for g in plan.groups for v in plan.variants if v.joins(g) for seed in plan.seeds}
    assert set(drawn) == wanted and len(drawn) == len(wanted)


def test_a_task_waits_for_its_adapters_and_lets_later_ones_go_first(tmp_path: Path) -> None:
    plan, group = _plan(tmp_path), groups()[0]
    first, second = Alone(group, 0, "lora", 0), Alone(group, 1, "lora", 0)
    assert ready([first, second], plan, 2) == []
    (path,) = second.needs(plan)
    path.parent.mkdir(parents=True)
    path.touch()
    assert ready([first, second], plan, 2) == [second]


def test_designs_come_back_from_their_sheet(tmp_path: Path) -> None:
    pixels = torch.zeros(5, 4, WINDOW, WINDOW)
    for number in range(5):
        pixels[number, :, 16:48, 16:48] = torch.tensor([0.2 * number, 0.5, 1.0, 1.0])[:, None, None]
    names = (("octopus", "noto"), ("octopus", "fluent"))
    save_designs(Designs(pixels, torch.tensor([0, 0, 1, 1, 1]), names), tmp_path)
    found = load_designs(tmp_path)
    assert found.names == names and found.look.tolist() == [0, 0, 1, 1, 1]
    assert float((found.pixels - pixels).abs().mean()) < 0.02


def test_the_page_has_the_ways_best_first_and_keeps_what_is_written_around_them(tmp_path: Path) -> None:
    page = tmp_path / "fusion.md"
    page.write_text("before\n<!-- fusion: begin -->\nold\n<!-- fusion: end -->\nafter\n")
    write_page(render(_rows({"sum": 0.5, "ties": 1.0}), [], "a trial"), "fusion", page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert text.index("| ties | 2 | 100 (100…100) | 50 (50…50) |") < text.index("| sum | 2 | 50 (50…50) |")
    assert "- ties: identity kept ≥ 90 %: met (100); 20 points above the sum: met (+50); drift no more" in text


def _rows(kept: dict[str, float]) -> list[dict[str, Any]]:
    """Results of the first pair, two seeds, in which ways keep what is said."""
    group = groups()[0].name
    shared = {"group": group, "recognised": [1.0, 1.0], "drift_pixels": 0.1, "drift_look": 0.1}
    rows: list[dict[str, Any]] = [{**shared, "what": "base", "likeness": BASE.tolist()}]
    for seed, member in itertools.product((0, 1), (0, 1)):
        rows.append({**shared, "what": "alone", "member": member, "kind": "lora", "seed": seed})
        rows[-1]["likeness"] = ALONE.tolist()
    for seed, (name, part) in itertools.product((0, 1), kept.items()):
        joint = (BASE + part * (ALONE - BASE)).tolist()
        rows.append({**shared, "what": "joint", "variant": name, "seed": seed, "likeness": joint})
    return rows
