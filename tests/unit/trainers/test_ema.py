from __future__ import annotations

import torch
from torch import nn

from trainers.ema import MovingAverage


def test_the_average_follows_with_the_asked_decay():
    parameter = nn.Parameter(torch.zeros(3))
    average = MovingAverage([parameter], decay=0.5)
    with torch.no_grad():
        parameter.fill_(1.0)
    average.schedule(step=1000)
    average.update()
    assert torch.allclose(average.values[0], torch.full((3,), 0.5))


def test_early_steps_average_over_little():
    parameter = nn.Parameter(torch.ones(3))
    average = MovingAverage([parameter], decay=0.999)
    with torch.no_grad():
        parameter.fill_(2.0)
    average.schedule(step=0)
    average.update()
    assert torch.allclose(average.values[0], torch.full((3,), 1.9))


def test_showing_the_average_leaves_the_parameters_as_they_were():
    parameter = nn.Parameter(torch.randn(5))
    before = parameter.detach().clone()
    average = MovingAverage([parameter], decay=0.9)
    average.values[0].zero_()
    with average.applied():
        assert torch.equal(parameter, torch.zeros(5))
    assert torch.equal(parameter, before)
