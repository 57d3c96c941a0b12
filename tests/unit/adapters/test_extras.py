"""What goes beside layers' weights: sums, files, and a base that gets its bytes back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from adapters.adapter_set import AdapterSet
from adapters.errors import MismatchError
from adapters.extras import Extras, extras_in, is_extra, summed
from adapters.files import AdapterCard, attach_file, read_header, save_adapter
from adapters.inject import attach, base_hash
from adapters.registry import make_spec
from tests.tolerances import FP32, relative_error, same_bits

VECTORS = {"unet.norm.weight": torch.full((4,), 2.0), "unet.layer.bias": torch.arange(4.0)}
WORDS = {"my. word": {"text_encoder": torch.ones(2, 3)}}


class Base(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 4, dtype=dtype)
        self.norm = nn.LayerNorm(4, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(x))


def bound(base: Base, vectors: dict[str, torch.Tensor] = VECTORS) -> AdapterSet:
    adapters = attach({"unet": base}, make_spec("lora", rank=1), {"unet": "layer"})
    adapters.detach()
    adapters.bind(Extras(vectors, WORDS), {"unet": base})
    adapters.attach()
    return adapters


def test_tensors_of_a_file_are_told_apart_and_put_together_again():
    tensors = Extras(VECTORS, WORDS).tensors()
    assert all(is_extra(name) for name in tensors) and not is_extra("unet.layer.down")
    again = extras_in({**tensors, "unet.layer.down": torch.ones(1)})
    assert again.vectors.keys() == VECTORS.keys() and again.words.keys() == WORDS.keys()
    assert torch.equal(again.words["my. word"]["text_encoder"], torch.ones(2, 3))


def test_vectors_of_several_adapters_are_summed_with_weights_and_the_first_meaning_of_a_word_counts():
    first, second = Extras(VECTORS, WORDS), Extras({"unet.norm.weight": torch.ones(4)}, {"my. word": {}, "b": {}})
    found = summed([(first, 0.5), (second, -3.0)])
    assert torch.equal(found.vectors["unet.norm.weight"], torch.full((4,), -2.0))
    assert torch.equal(found.vectors["unet.layer.bias"], 0.5 * torch.arange(4.0))
    assert found.words["my. word"] == WORDS["my. word"] and "b" in found.words


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_two_sets_add_up_and_each_takes_its_own_off_again(dtype: torch.dtype):
    base = Base(dtype)
    before, digest = base.norm.weight.detach().clone(), base_hash({"unet": base})
    one, two = bound(base), bound(base)
    two.strength = 0.25
    assert relative_error(base.norm.weight, before + 2.0 + 0.5) < FP32
    one.detach()
    assert relative_error(base.norm.weight, before + 0.5) < FP32
    two.detach()
    assert base_hash({"unet": base}) == digest


def test_merging_and_unmerging_leave_them_as_they_are():
    base, x = Base(), torch.randn(3, 6)
    adapters = bound(base)
    adapters.strength = 0.5
    expected = base(x)
    adapters.merge()
    assert relative_error(base(x), expected) < FP32
    adapters.unmerge()
    assert same_bits(base(x), expected)


def test_a_part_of_the_layers_brings_its_own_biases_only():
    base = Base()
    scale, bias = base.norm.weight.detach().clone(), base.layer.bias.detach().clone()
    adapters = bound(base)
    adapters.detach()
    adapters.attach({"unet.layer"})
    assert torch.equal(base.norm.weight, scale) and not torch.equal(base.layer.bias, bias)
    adapters.detach()


def test_they_are_saved_with_the_set_and_act_when_it_is_attached(tmp_path: Path):
    base = Base()
    adapters = bound(base)
    save_adapter(tmp_path / "a.safetensors", adapters, AdapterCard())
    expected = base(torch.ones(1, 6))
    adapters.detach()
    assert sum(is_extra(name) for name in read_header(tmp_path / "a.safetensors").shapes) == 3
    found = attach_file({"unet": base}, tmp_path / "a.safetensors")
    assert same_bits(base(torch.ones(1, 6)), expected) and "my. word" in found.extras.words


@pytest.mark.parametrize(
    ("name", "size", "said"), [("unet.norm.weight", 5, "one of 4"), ("unet.gone.bias", 4, "no such vector")]
)
def test_a_vector_that_the_base_has_no_place_for_is_refused_by_its_name(name: str, size: int, said: str):
    base = Base()
    with pytest.raises(MismatchError, match=rf"{name}.*{said}"):
        bound(base, {name: torch.ones(size)})
