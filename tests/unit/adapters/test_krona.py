"""KronA: a sum of Kronecker products."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from adapters.inject import attach
from adapters.kronecker import factorization
from adapters.registry import make_spec
from adapters.targets import select_sites
from tests.tolerances import FP64, relative_error


def test_the_delta_is_the_scaled_sum_of_torchs_kronecker_products():
    layer = nn.Conv2d(12, 18, 3).double()
    spec = make_spec("krona", factor=3, terms=3, rank=4, alpha=6.0)
    adapter = attach({"unet": nn.Sequential(layer)}, spec, {"unet": "0"}).adapters["unet.0"]
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()
    state = adapter.state_dict()
    products = [torch.kron(a[:, :, None, None], b) for a, b in zip(state["w1"], state["w2"], strict=True)]
    assert relative_error(adapter.delta_weight(layer.weight), 1.5 * sum(products)) < FP64


def test_at_the_start_the_first_factor_has_the_spread_of_its_rows_and_the_second_is_0():
    adapter = attach({"unet": nn.Sequential(nn.Linear(640, 640))}, make_spec("krona", factor=64), {"unet": "0"})
    state = adapter.state_dict()
    assert state["unet.0.w1"].std().item() == pytest.approx(1 / 64, rel=0.05)
    assert not state["unet.0.w2"].any()


@pytest.mark.parametrize(
    ("second", "names"), [("low-rank", {"w1", "w2_a", "w2_b"}), ("tucker", {"w1", "t2", "w2_a", "w2_b"})]
)
def test_a_second_factor_in_parts_has_lokrs_names_with_the_terms_in_front(second: str, names: set[str]):
    model = nn.Sequential(nn.Conv2d(32, 32, 3))
    krona = attach({"unet": model}, make_spec("krona", factor=4, second=second, rank=2, terms=3), {"unet": "0"})
    lokr = attach({"unet": model}, make_spec("lokr", factor=4, tucker=second == "tucker", rank=2), {"unet": "0"})
    shapes = {name: tensor.shape[1:] for name, tensor in krona.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in lokr.state_dict().items()}
    assert {name.removeprefix("unet.0.") for name in shapes} == names
    assert {tensor.shape[0] for tensor in krona.state_dict().values()} == {3}


def test_the_default_split_has_about_the_published_number_of_parameters_on_sdxls_attention():
    """Published are 3.8 M and 14.95 MB, but not the split: 16 is the one inferred from them (3.87 M, 14.78 MiB)."""
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
    adapter_set = attach({"unet": unet}, make_spec("krona"), {"unet": "attention"})
    assert adapter_set.num_parameters() == 3_874_560
    splits = [
        (factorization(s.rows, 16), factorization(s.columns, 16)) for s in select_sites(unet, "unet", "attention")
    ]
    assert {(first[0], second[0]) for first, second in splits} == {(16, 16)}
