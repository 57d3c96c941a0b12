"""VeRA, Bone, Bat, OFT, BOFT and (IA)³ give peft's outputs and gradients from the same parameters, in float64.

GLoRA is not here: peft's is another method (W∘A + B with A and B as large as W).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import BOFTConfig, IA3Config, MissConfig, OFTConfig, PeftConfig, VeraConfig, get_peft_model
from torch import Tensor, nn

from tests.contract.harness import LAYERS, Base, Layer, Method, nudge
from tests.tolerances import FP64, relative_error

Pairs = list[tuple[nn.Parameter, nn.Parameter, Callable[[Tensor], Tensor]]]
LINEAR = {name: LAYERS[name] for name in ("linear", "linear without bias")}
# on k×k convolutions peft rotates channels × taps, which no rotation of the input's channels equals
POINTWISE = {**LINEAR, "conv 1x1": LAYERS["conv 1x1"]}


def each(layers: dict[str, Layer]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("layer", layers.values(), ids=layers)


def same(tensor: Tensor) -> Tensor:
    return tensor


def agree(
    layer: Layer,
    method: Method,
    config: PeftConfig,
    pairs: Callable[[Any, dict[str, nn.Parameter], nn.Module], Pairs],
    bias: bool = True,
) -> None:
    """Each pair is our parameter, theirs, and the map from ours to theirs, through which the gradients go back."""
    ours, theirs = Base(layer, torch.float64), Base(layer, torch.float64)
    if not bias and ours.layer.bias is not None:
        for base in (ours, theirs):
            nn.init.zeros_(base.layer.bias)
    adapter_set = ours.attach(method)
    nudge(adapter_set)
    get_peft_model(theirs, config, autocast_adapter_dtype=False)
    own = {name.rsplit(".", 1)[-1]: parameter for name, parameter in adapter_set.named_parameters()}
    mapped = pairs(theirs.layer, own, adapter_set.adapters["unet.layer"])
    assert {id(p) for p, _, _ in mapped} == {id(p) for p in own.values()}
    for parameter, their_parameter, to_theirs in mapped:
        found = to_theirs(parameter.detach()).clone()
        assert found.shape == their_parameter.shape
        their_parameter.data = found
    x = ours.x.requires_grad_()
    found, expected = ours(x), theirs(x)
    assert relative_error(found, expected) < FP64
    direction = torch.randn_like(found)
    our_gradients = torch.autograd.grad(found, [x, *(p for p, _, _ in mapped)], direction)
    their_gradients = torch.autograd.grad(expected, [x, *(p for _, p, _ in mapped)], direction)
    assert relative_error(our_gradients[0], their_gradients[0]) < FP64
    for (parameter, _, to_theirs), our_gradient, their_gradient in zip(
        mapped, our_gradients[1:], their_gradients[1:], strict=True
    ):
        _, carried_back = torch.autograd.functional.vjp(to_theirs, parameter.detach(), their_gradient)
        assert relative_error(our_gradient, carried_back) < FP64


@each(LINEAR)  # peft has VeRA for Linear layers only
def test_vera_agrees_with_peft(layer: Layer):
    def pairs(theirs: Any, own: dict[str, nn.Parameter], adapter: Any) -> Pairs:
        theirs.vera_A["default"], theirs.vera_B["default"] = adapter.bank_down.data, adapter.bank_up.data
        return [(own["b"], theirs.vera_lambda_b["default"], same), (own["d"], theirs.vera_lambda_d["default"], same)]

    agree(layer, Method("vera", {"rank": 8}, len), VeraConfig(r=8, target_modules=["layer"]), pairs)


@pytest.mark.parametrize("rank", [4, 6], ids=["even", "padded"])
@each(LINEAR)  # peft has MiSS (Bone) and Bat for Linear layers only
def test_bone_with_strided_shards_agrees_with_peft(layer: Layer, rank: int):
    agree(
        layer,
        Method("bone", {"rank": rank, "shards": "strided"}, len),
        MissConfig(r=rank, target_modules=["layer"]),
        lambda theirs, own, _: [(own["up"], theirs.miss_block["default"], lambda up: up.mT)],
    )


@each(LINEAR)
def test_bat_agrees_with_peft(layer: Layer):
    agree(
        layer,
        Method("bat", {"rank": 4}, len),
        MissConfig(r=4, init_weights="bat", target_modules=["layer"]),
        lambda theirs, own, _: [(own["blocks"], theirs.miss_block["default"], same)],
    )


@pytest.mark.filterwarnings("ignore:Invalid `oft_block_size`")  # peft says that it takes the nearest divisor
@pytest.mark.parametrize("block_size", [4, 6], ids=["divisor", "nearest divisor"])
@each(POINTWISE)
def test_oft_agrees_with_peft(layer: Layer, block_size: int):
    agree(
        layer,
        Method("oft", {"block_size": block_size}, len),
        OFTConfig(oft_block_size=block_size, use_cayley_neumann=False, target_modules=["layer"]),
        lambda theirs, own, _: [(own["angles"], theirs.oft_R["default"].weight, lambda angles: angles[0])],
    )


class BlockDiagonal:
    """peft's CUDA extension in torch: without it peft falls back to one factor."""

    @staticmethod
    def apply(blocks: Tensor) -> Tensor:
        return torch.stack([torch.block_diag(*level) for level in blocks])


@pytest.mark.parametrize(("block_size", "factors"), [(4, 1), (4, 2), (2, 3)], ids=str)
@each(POINTWISE)
def test_boft_agrees_with_peft(layer: Layer, block_size: int, factors: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", object)
    monkeypatch.setattr("peft.tuners.boft.layer.FastBlockDiag", BlockDiagonal)
    rows, columns = torch.triu_indices(block_size, block_size, 1)

    def skew(angles: Tensor) -> Tensor:
        upper = angles.new_zeros(*angles.shape[:-1], block_size, block_size)
        upper[..., rows, columns] = angles
        return upper - upper.mT

    def pairs(theirs: Any, own: dict[str, nn.Parameter], _: nn.Module) -> Pairs:
        scale = theirs.boft_s["default"]
        return [
            (own["angles"], theirs.boft_R["default"], skew),
            (own["gain"], scale, lambda gain: (1 + gain).reshape(scale.shape)),
        ]

    config = BOFTConfig(boft_block_size=block_size, boft_n_butterfly_factor=factors, target_modules=["layer"])
    agree(layer, Method("boft", {"block_size": block_size, "factors": factors}, len), config, pairs)


@pytest.mark.parametrize("side", ["output", "input"])
@each(LAYERS)
def test_ia3_agrees_with_peft(layer: Layer, side: str):
    """On the output side without a bias: peft scales it, too."""

    def pairs(theirs: Any, own: dict[str, nn.Parameter], _: nn.Module) -> Pairs:
        scale = theirs.ia3_l["default"]
        return [(own["gain"], scale, lambda gain: (1 + gain).reshape(scale.shape))]

    feed_forward = ["layer"] if side == "input" else []
    config = IA3Config(target_modules=["layer"], feedforward_modules=feed_forward)
    agree(layer, Method("ia3", {"side": side}, len), config, pairs, bias=side == "input")
