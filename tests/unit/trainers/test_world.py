from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from adapters.errors import UserInputError
from tests.tolerances import same_bits
from trainers.engine import shared_gradients
from trainers.world import ALONE, World


def test_a_batch_that_cannot_be_shared_evenly_is_refused_with_one_that_can():
    World(0, 4).check_batch(8)
    with pytest.raises(UserInputError, match="cannot be shared evenly among 4") as refused:
        World(0, 4).check_batch(6)
    assert "batch_size=8" in refused.value.fix


def test_a_process_alone_waits_for_nobody_and_hears_itself():
    value = torch.tensor([1.0, 2.0])
    with ALONE.main_first():
        ALONE.wait()
    ALONE.add_up(value)
    ALONE.spread([value])
    assert value.tolist() == [1.0, 2.0] and ALONE.mean(value) is value
    assert ALONE.from_main(lambda: "pause") == "pause"


def test_the_first_process_to_fail_speaks_and_the_others_take_its_code(monkeypatch: pytest.MonkeyPatch):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    assert [World(rank, 2).first_to_fail(code) for rank, code in ((1, 5), (0, 1), (0, 1))] == [None, 5, 5]


def test_gradients_lie_in_one_buffer_each_in_the_layout_of_its_parameter():
    parameters = [nn.Parameter(value) for value in (torch.randn(3, 5), torch.randn(7, 2).T, torch.randn(()))]
    buffer = shared_gradients(parameters)
    expected = [torch.randn_like(parameter) for parameter in parameters]
    torch.autograd.backward([(p * g).sum() for p, g in zip(parameters, expected, strict=True)])
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert parameter.grad is not None and same_bits(parameter.grad, gradient)
        assert parameter.grad.stride() == parameter.stride()
        assert parameter.grad.data_ptr() % 256 == buffer.data_ptr() % 256
    buffer.zero_()
    assert not any(parameter.grad.any() for parameter in parameters if parameter.grad is not None)
    assert buffer[-1] == 0 and buffer.numel() == 3 * 64 + 1
