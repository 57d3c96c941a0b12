"""Every row of the contract's table on a CUDA card: the start, a training step in bf16, and the CPU's numbers.

Run with `pytest -m gpu`. Last run: see docs/measurements.md.
"""

from __future__ import annotations

import pytest
import torch

from tests.contract.harness import Base, Layer, Method, nudge, train
from tests.contract.table import promised
from tests.tolerances import FP64_GRADIENT, relative_error, same_bits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card here"),
]


@promised("identity")
def test_at_the_start_the_output_is_the_bases_bit_for_bit(method: Method, layer: Layer):
    base = Base(layer, torch.bfloat16, "cuda")
    before = base()
    base.attach(method)
    assert same_bits(base().cpu(), before.cpu())


@promised("gradients")
def test_it_trains_in_bf16_and_stays_finite(method: Method, layer: Layer):
    base = Base(layer, torch.bfloat16, "cuda")
    adapter_set = base.attach(method)
    before = base()
    train(base, adapter_set, steps=2)
    assert not torch.equal(base(), before)
    assert all(torch.isfinite(parameter).all() for parameter in adapter_set.parameters())


@promised("nudge")
def test_the_card_gives_the_cpus_numbers(method: Method, layer: Layer):
    ours = Base(layer, torch.float64).attach(method)
    nudge(ours)
    on_card = Base(layer, torch.float64, "cuda")
    theirs = on_card.attach(method)
    theirs.load_state_dict(ours.state_dict())
    cpu = Base(layer, torch.float64)
    again = cpu.attach(method)
    again.load_state_dict(ours.state_dict())
    assert relative_error(on_card().cpu(), cpu()) < FP64_GRADIENT


@promised("merge")
def test_merging_on_the_card_gives_the_unmerged_output(method: Method, layer: Layer):
    base = Base(layer, torch.float64, "cuda")
    adapter_set = base.attach(method)
    nudge(adapter_set)
    unmerged = base()
    adapter_set.merge()
    assert relative_error(base().cpu(), unmerged.cpu()) < FP64_GRADIENT
    adapter_set.unmerge()
    assert same_bits(base().cpu(), unmerged.cpu())
