"""(IA)³ (arXiv 2205.05638): one learnt gain for each output, or input, channel."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapters.base import Adapter, AdapterSpec, Context
from adapters.sites import Site

_FEED_FORWARD_DOWN = re.compile(r"(^|\.)(ff\.net\.2|mlp\.fc2)$")


class Ia3Spec(AdapterSpec, frozen=True):
    method: Literal["ia3"] = "ia3"
    side: Literal["auto", "output", "input"] = Field(
        default="auto",
        description="Which channels get a gain; auto: the inputs of a feed-forward part's second layer, else outputs.",
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Chance of dropping each feature that a gain acts on in training."
    )


class Ia3(Adapter, spec=Ia3Spec):
    """W' = diag(1 + g)·W with d parameters, or W·diag(1 + g) with c of them; g = 0 at the start.

    The paper's l is 1 + g: kept as an offset, it starts at the identity and weight decay pulls towards the base. The
    paper scales keys, values and the hidden layer of the feed-forward part; the latter are the inputs of the layer
    after it. On the output side the bias is not scaled, since a delta is of the weight alone (peft scales it, too).
    Output: ΔW x = g⊙(y − bias), from the base's own output; input: the base layer on g⊙x. A magnitude would
    learn the same as g (output) or would need all of W∘W at each step (input), so no row norm is offered.
    """

    title: ClassVar[str] = "(IA)³"
    paper: ClassVar[str] = "arXiv 2205.05638"
    equation: ClassVar[str] = "W' = diag(1 + g) · W, or W · diag(1 + g)"

    def __init__(self, site: Site, weight: Tensor, spec: Ia3Spec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        self.dropout = spec.dropout
        self.on_input = spec.side == "input" or (spec.side == "auto" and bool(_FEED_FORWARD_DOWN.search(site.name)))
        self.gain = nn.Parameter(weight.new_zeros(site.channels if self.on_input else site.rows))

    def delta(self, x: Tensor, y_base: Tensor) -> Tensor:
        if self.on_input:
            return self.site.apply_weight(self._scaled(x))
        return self._scaled(self.site.without_bias(y_base))

    def delta_weight(self, weight: Tensor) -> Tensor:
        gain = self.gain.to(weight.dtype)
        if self.on_input:
            return self.site.from_inputs(self.site.as_inputs(weight) * self.site.per_output(gain))
        return self.site.as_weight(gain[:, None] * self.site.matricise(weight))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"magnitude": [self.gain]}

    def _scaled(self, features: Tensor) -> Tensor:
        gain = self.site.per_output(self.gain).to(features.dtype)
        return gain * F.dropout(features, self.dropout, self.training)
