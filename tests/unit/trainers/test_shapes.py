"""The suite's own net: signatures' shapes are checked while tests run."""

from __future__ import annotations

import jaxtyping
import pytest
import torch

from trainers.objective import multires_noise


def test_a_function_that_is_given_another_shape_than_its_signature_says_is_caught():
    with pytest.raises(jaxtyping.TypeCheckError):
        multires_noise(torch.zeros(4, 8, 8), 0.3, torch.Generator())
