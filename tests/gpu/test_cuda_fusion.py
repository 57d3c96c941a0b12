"""What fusing looks at of a base is the same where its passes are recorded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapters.fusion.grams import Sample
from adapters.sites import make_site
from trainers.fast.capture import Recorder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card here"),
]


def test_a_recorded_pass_samples_the_inputs_of_an_eager_one():
    site, here = (make_site("a", nn.Conv2d(4, 8, 3, stride=2, padding=1).to(place)) for place in ("cuda", "cpu"))
    assert site is not None and here is not None
    sample, expected = Sample(site, 32), Sample(here, 32)
    recorder, x = Recorder(torch.device("cuda")), torch.zeros(2, 4, 16, 16, device="cuda")
    for number in range(5):
        x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(number)))
        recorder.run("look", lambda: sample.add(x))
        expected.add(x.cpu())
    assert not recorder.problems
    assert torch.equal(sample.taken(), expected.taken())
