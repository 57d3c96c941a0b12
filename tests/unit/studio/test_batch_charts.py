"""The curves of a batch's report."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from studio.batch.charts import Line, chart, smoothed, ticks
from studio.batch.figures import _last_loss
from trainers.events import Stepped


def test_a_smoothed_line_keeps_its_mean_level_and_is_no_longer_than_it_must_be():
    points = [(n, 1.0 + (-1) ** n) for n in range(5000)]
    shown = smoothed(points)
    assert len(shown) <= 320 and all(abs(value - 1.0) < 0.01 for _, value in shown)


@pytest.mark.parametrize(("steps", "last"), [(20, [19, 20]), (10, [10]), (3, [3])])
def test_the_loss_of_a_run_is_the_mean_of_the_last_tenth_of_its_steps(steps: int, last: list[int]):
    common = {"steps": steps, "learning_rate": 0.0, "grad_norm": 0.0, "seconds_per_step": 0.0, "memory_bytes": 0}
    told = [Stepped(step=step, loss=float(step), **common) for step in range(1, steps + 1)]
    assert _last_loss(told) == sum(last) / len(last)


def test_ticks_are_round_and_within_bounds():
    assert ticks(0.13, 0.34) == pytest.approx([0.15, 0.2, 0.25, 0.3])
    assert ticks(0, 1000) == [0, 200, 400, 600, 800, 1000]


def test_a_chart_is_xml_with_a_curve_for_each_line_whatever_they_are_called():
    svg = chart([Line('<a & "b">', [(1, 0.5), (2, 0.4)]), Line("c", [(1, 0.3), (2, math.nan)])], "step", "loss")
    curves = ElementTree.fromstring(svg).findall("polyline")
    assert [curve.findtext("title") for curve in curves] == ['<a & "b">', "c"]


def test_nothing_to_draw_is_no_chart():
    assert chart([], "step", "loss") == ""
