"""MoRA: a pool of rank-1 experts that layers of one shape share, with a router in each layer."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from adapters.base import Adapter, AdapterSpec, Context
from adapters.errors import UserInputError
from adapters.sites import Site


class MoraSpec(AdapterSpec, frozen=True):
    method: Literal["mora"] = "mora"
    experts: int = Field(default=32, ge=1, le=4096, description="Rank-1 experts E in the pool of each shape.")
    top_k: int = Field(default=8, ge=1, description="Experts that one token or position uses.")
    balance: float = Field(
        default=0.01,
        ge=0,
        description="Weight of the load balance, once for each backward pass: divide it by gradient_accumulation.",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Chance of dropping each input feature in training.")

    @field_validator("top_k")
    @classmethod
    def _within_pool(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("experts", value):
            raise ValueError(f"there are only {info.data['experts']} experts")
        return value


class Mora(Adapter, spec=MoraSpec):
    """y += U ((V x) ∘ G(x)): E(d + κ) parameters a shape, shared by its layers, and E·κ a layer for the router R.

    G(x) keeps the k largest of softmax(R x), at each token or position, as they are (they are not scaled to sum to
    1). V ~ N(0, 1/κ) and U = 0 at the start. On a convolution V and R are kernels of the base's geometry.

    Balance: the Switch Transformer's term (arXiv 2101.03961, equations 4–6), balance·E·Σ f_i P_i with f_i the share
    of choices that fall on expert i and P_i its mean probability. It depends on x, and `delta` keeps no state, so
    the term is no number in the loss: its gradient is added where the probabilities' gradient passes in backward,
    which checkpointing and compiling keep. So it is not scaled with the loss: over several backward passes a step
    it adds up, and under fp16 loss scaling it all but vanishes.
    """

    title: ClassVar[str] = "MoRA"
    paper: ClassVar[str] = "this project's; the balance is arXiv 2101.03961"
    equation: ClassVar[str] = "Δy = U ((V x) ∘ topk(softmax(R x)))"

    def __init__(self, site: Site, weight: Tensor, spec: MoraSpec, context: Context) -> None:
        super().__init__(site, weight, spec, context)
        if site.groups > 1:
            raise UserInputError(
                f"{site.name} is a grouped convolution: MoRA's experts see all of a layer's channels.",
                "Leave this layer out, or use another method on it.",
            )
        self.top_k, self.balance, self.dropout = spec.top_k, spec.balance, spec.dropout
        size = (spec.experts, site.columns)

        def draw(generator: torch.Generator) -> Tensor:
            return (torch.randn(size, generator=generator) / site.columns**0.5).to(weight)

        component = site.name.split(".", 1)[0]  # components are trained at rates of their own
        pool = f"mora {component} {tuple(weight.shape)} {spec.experts}"
        self.down = context.shared(f"{pool} down", draw)
        self.up = context.shared(f"{pool} up", lambda _: weight.new_zeros(site.rows, spec.experts))
        self.router = nn.Parameter(draw(context.generator(site.name)))

    def delta(self, x: Tensor, y_base: Tensor) -> Tensor:
        x = F.dropout(x, self.dropout, self.training)
        both = self.site.apply_down(x, torch.cat([self.down, self.router]).to(x.dtype))
        z, logits = both.chunk(2, self.site.channel_axis)
        probabilities = logits.to(self.router.dtype).softmax(self.site.channel_axis)
        chosen = probabilities.topk(self.top_k, self.site.channel_axis).indices
        mask = torch.zeros_like(probabilities).scatter(self.site.channel_axis, chosen, 1.0)
        if self.training and self.balance > 0:
            probabilities = _push(probabilities, self.balance_gradient(mask))
        return self.site.apply_up(z * (probabilities * mask).to(z.dtype), self.up.to(z.dtype))

    def balance_gradient(self, mask: Tensor) -> Tensor:
        """∂(balance·E·Σ f_i P_i)/∂p: the same for each of the N tokens, so [E] in the shape that broadcasts."""
        experts = mask.shape[self.site.channel_axis]
        count = mask.numel() // experts
        load = mask.movedim(self.site.channel_axis, -1).flatten(0, -2).mean(0) / self.top_k
        return self.balance * experts / count * self.site.per_output(load)

    def delta_weight(self, weight: Tensor) -> Tensor:
        raise UserInputError(
            "MoRA chooses its experts by each input: no single weight does the same, so it cannot be merged.",
            "Keep it attached, or train a method that merges, such as lora.",
        )

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"down": [self.down], "up": [self.up], "router": [self.router]}


def _copied(value: Tensor, push: Tensor) -> Tensor:
    return value.clone()


def _empty(value: Tensor, push: Tensor) -> Tensor:
    return torch.empty_like(value)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _pushed(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return gradient + ctx.saved_tensors[0], None


# the identity, which adds `push` to the gradient on its way back; an operator, so that torch.compile takes it whole
_push = torch.library.custom_op(
    "spectral::push", _copied, mutates_args=(), schema="(Tensor value, Tensor push) -> Tensor"
)
_push.register_fake(_empty)
_push.register_autograd(_pushed, setup_context=_keep)
