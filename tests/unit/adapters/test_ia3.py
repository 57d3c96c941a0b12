"""(IA)³'s own promises: which side gets the gains, and what they leave alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapters.base import Context
from adapters.methods.ia3 import Ia3, Ia3Spec
from adapters.registry import make_spec
from adapters.sites import Site, make_site
from tests.tolerances import FP64, relative_error


def build(layer: nn.Linear | nn.Conv2d, name: str = "unet.a", **knobs: object) -> tuple[Ia3, Site]:
    torch.manual_seed(0)
    site = make_site(name, layer.double())
    assert site is not None
    spec = make_spec("ia3", **knobs)
    assert isinstance(spec, Ia3Spec)
    ia3 = Ia3(site, site.weight.detach(), spec, Context(0, (site,)))
    nn.init.normal_(ia3.gain)
    return ia3, site


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2", True),
        ("text_encoder.encoder.layers.3.mlp.fc2", True),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj", False),
        ("text_encoder.encoder.layers.3.mlp.fc1", False),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k", False),
        ("unet.diff.net.2", False),
    ],
)
def test_auto_scales_the_hidden_layer_of_the_feed_forward_part_at_its_way_out(name: str, inputs: bool):
    ia3, _ = build(nn.Linear(12, 5), name)
    assert ia3.gain.shape == (12 if inputs else 5,)


def test_the_side_may_be_chosen_against_auto():
    assert build(nn.Linear(12, 5), "unet.ff.net.2", side="output")[0].gain.shape == (5,)
    assert build(nn.Linear(12, 5), side="input")[0].gain.shape == (12,)


@torch.no_grad()
def test_the_output_side_is_a_diagonal_matrix_before_w():
    ia3, site = build(nn.Conv2d(6, 8, 3, groups=2))
    expected = torch.diag(ia3.gain) @ site.matricise(site.weight)
    assert relative_error(site.matricise(ia3.delta_weight(site.weight)), expected) < FP64


@torch.no_grad()
def test_the_input_side_of_a_grouped_convolution_scales_each_groups_own_channels():
    ia3, site = build(nn.Conv2d(6, 8, 3, groups=2), side="input")
    expected = torch.cat([site.weight[:4] * ia3.gain[:3, None, None], site.weight[4:] * ia3.gain[3:, None, None]])
    assert relative_error(ia3.delta_weight(site.weight), expected) < FP64


@pytest.mark.parametrize("side", ["output", "input"])
@torch.no_grad()
def test_the_bias_is_not_scaled(side: str):
    ia3, site = build(nn.Linear(12, 5), side=side)
    x = torch.zeros(1, 12).double()
    assert ia3.delta(x, site.module(x)).abs().max() == 0
