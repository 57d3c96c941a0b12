"""FLoRA: a Tucker core of each layer's own."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from adapters.base import Adapter
from adapters.inject import attach
from adapters.registry import make_spec
from tests.tolerances import FP64, relative_error


def moved(layer: nn.Linear | nn.Conv2d, **knobs: object) -> Adapter:
    torch.manual_seed(0)
    spec = make_spec("flora", **{"rank": 4, "alpha": 6.0, **knobs})
    adapter = attach({"unet": nn.Sequential(layer.double())}, spec, {"unet": "0"}).adapters["unet.0"]
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()
    return adapter


def test_on_a_linear_layer_the_delta_is_up_core_down():
    layer = nn.Linear(10, 12)
    adapter = moved(layer)
    f = adapter.state_dict()
    assert relative_error(adapter.delta_weight(layer.weight), 1.5 * f["up"] @ f["core"] @ f["down"]) < FP64


@pytest.mark.parametrize("kernel_modes", [False, True])
def test_on_a_convolution_the_delta_is_the_tucker_product(kernel_modes: bool):
    layer = nn.Conv2d(10, 12, (5, 3))
    adapter = moved(layer, kernel_modes=kernel_modes)
    f = adapter.state_dict()
    tall, wide = (f["tall"], f["wide"]) if kernel_modes else (torch.eye(5).double(), torch.eye(3).double())
    expected = 1.5 * torch.einsum("pqab,op,qi,ka,lb->oikl", f["core"], f["up"], f["down"], tall, wide)
    assert relative_error(adapter.delta_weight(layer.weight), expected) < FP64
    assert f["core"].shape == ((4, 4, 4, 3) if kernel_modes else (4, 4, 5, 3))


def test_each_group_of_a_convolution_has_a_tucker_product_of_its_own():
    layer = nn.Conv2d(10, 12, 3, groups=2)
    adapter = moved(layer)
    f = adapter.state_dict()
    halves = [
        torch.einsum("pqkl,op,qi->oikl", *(f[name].chunk(2)[g] for name in ("core", "up", "down"))) for g in range(2)
    ]
    assert relative_error(adapter.delta_weight(layer.weight), 1.5 * torch.cat(halves)) < FP64


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(32, 16, 3, padding=1),
        nn.Conv2d(32, 16, 3, stride=2, padding=1),
        nn.Conv2d(32, 16, 3, padding=1, groups=2),
    ],
    ids=str,
)
def test_only_the_narrow_middle_has_the_kernel(layer: nn.Conv2d):
    adapter = moved(layer)
    x = torch.randn(1, 32, 8, 8).double()
    y = layer(x)
    n_in, n_out, g = 64, y[0, 0].numel(), layer.groups
    with FlopCounterMode(display=False) as counter:
        adapter.delta(x, y)
    assert counter.get_total_flops() == 2 * (n_in * 4 * 32 // g + n_out * 4 * 4 // g * 9 + n_out * 4 * 16 // g)


def test_over_few_channels_whole_kernels_are_cheaper_and_are_taken():
    layer = nn.Conv2d(4, 64, 3, padding=1)
    adapter = moved(layer, rank=8)
    x = torch.randn(1, 4, 16, 16).double()
    y = layer(x)
    with FlopCounterMode(display=False) as counter:
        adapter.delta(x, y)
    folding = 8 * 8 * 9 * 4
    assert counter.get_total_flops() == 2 * (256 * 8 * (36 + 64) + folding)


def test_the_start_is_a_core_of_0_between_factors_of_spread_002():
    adapter = attach({"unet": nn.Sequential(nn.Linear(640, 640))}, make_spec("flora"), {"unet": "0"}).adapters["unet.0"]
    f = adapter.state_dict()
    assert not f["core"].any()
    for name in ("up", "down"):
        assert f[name].std().item() == pytest.approx(0.02, rel=0.05)


def test_rank_4_on_sdxls_3x3_convolutions_has_the_published_number_of_parameters():
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
        )
    adapter_set = attach({"unet": unet}, make_spec("flora", rank=4), {"unet": "conv"})
    kernels = [a for a in adapter_set.adapters.values() if a.site.weight.shape[2:] == (3, 3)]
    assert len(kernels) == 40
    found = sum(parameter.numel() for adapter in kernels for parameter in adapter.parameters())
    assert found == sum(4 * (a.site.weight.shape[0] + a.site.weight.shape[1]) + 144 for a in kernels)
    assert round(found / 1e6, 3) == 0.275
