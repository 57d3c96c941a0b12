"""A moving average of the trainable parameters, kept beside them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """ema ← d·ema + (1−d)·p with d = min(decay, (1+step)/(10+step)), the usual warm-up."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.values: list[Tensor] = [parameter.detach().clone() for parameter in parameters]
        self._weight = torch.zeros((), dtype=torch.float64, device=parameters[0].device)

    def schedule(self, step: int) -> None:
        """Sets what the next `update` weighs the present values by; from the host, before the step."""
        self._weight.fill_(1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def update(self) -> None:
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.lerp_(parameter, self._weight.to(value.dtype))

    @contextmanager
    def applied(self) -> Generator[None]:
        """Within this block the parameters hold the average; afterwards their own values again, bit for bit."""
        own = [parameter.detach().clone() for parameter in self.parameters]
        self._write(self.values)
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
