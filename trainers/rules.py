"""Optimizer rules: what is done to a method's gradients and learning rates, whatever the optimizer.

A rule goes by what a method says of itself: the roles of its factors (Adapter.parameter_groups) or its pair
(Adapter.gradient_pair). `class LoraPlus(Rule, name="lora+")` registers it; optim.rule chooses it by that name.
"""

from __future__ import annotations

from collections import defaultdict
from typing import ClassVar

import torch
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet
from adapters.base import Adapter, AdapterSpec, GradientPair
from adapters.errors import UnknownNameError, UserInputError
from adapters.magnitude import Magnitude
from adapters.registry import layer_type
from adapters.sites import Site

NONE = "none"
RULES: dict[str, type[Rule]] = {}


class Rule:
    """A rule by name. It is made before the engine lists the parameters; making it may freeze some.

    Args:
        adapter: the set that will be trained.
        ratio: optim.rule_ratio.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    equation: ClassVar[str]
    needs_role: ClassVar[str | None] = None
    """The role without which the rule has nothing to act on."""
    needs_pair: ClassVar[bool] = False
    sets_rates: ClassVar[bool] = False
    """Whether factors learn at different rates, which optimizers that find their own do not allow."""

    def __init_subclass__(cls, name: str) -> None:
        super().__init_subclass__()
        cls.name = name
        if RULES.setdefault(name, cls) is not cls:
            raise TypeError(f"two optimizer rules are called {name!r}")

    def __init__(self, adapter: AdapterSet, ratio: float) -> None:
        roles = {role for layer in adapter.adapters.values() for role in layer.parameter_groups()}
        if self.needs_role is not None and self.needs_role not in roles:
            raise self._refusal(layer_type(adapter.spec))
        self.ratio = ratio

    @classmethod
    def check(cls, spec: AdapterSpec) -> None:
        """Raises UserInputError where the spec alone tells that the rule cannot work with the method."""
        layer = layer_type(spec)
        inner = layer.inner_type if issubclass(layer, Magnitude) else layer
        no_roles = inner.parameter_groups is Adapter.parameter_groups
        no_pair = inner is not layer or inner.gradient_pair is Adapter.gradient_pair
        if (cls.needs_role is not None and no_roles) or (cls.needs_pair and no_pair):
            raise cls._refusal(layer)

    @classmethod
    def _refusal(cls, layer: type[Adapter]) -> UserInputError:
        lacks = "a plain pair of factors" if cls.needs_pair else f'factors of the role "{cls.needs_role}"'
        return UserInputError(
            f"The optimizer rule {cls.name} works on {lacks}, which {layer.title} does not have.",
            "Leave optim.rule out, or use it with adapter.method=lora.",
        )

    def rate_factor(self, role: str, parameter: nn.Parameter) -> float:
        """What a parameter's learning rate is multiplied by."""
        return 1.0

    def on_backward(self) -> None:
        """After backward and the method's own on_backward, before clipping."""


class Plain(Rule, name=NONE):
    title = "No rule"
    paper = ""
    equation = "every factor learns from its own gradient, at its part's rate"


class LoraPlus(Rule, name="lora+"):
    """Magnitudes and other vectors keep the base rate, whatever their role."""

    title = "LoRA+"
    paper = "arXiv 2402.12354"
    equation = "η_B = λ · η_A, λ = optim.rule_ratio"
    needs_role = "up"
    sets_rates = True

    def rate_factor(self, role: str, parameter: nn.Parameter) -> float:
        return self.ratio if role == "up" and parameter.ndim >= 2 else 1.0


class LoraFa(Rule, name="lora-fa"):
    """Half the optimizer state, and no input of a layer is kept for A's gradient."""

    title = "LoRA-FA"
    paper = "arXiv 2308.03303"
    equation = "A stays as it starts; B alone learns"
    needs_role = "down"

    def __init__(self, adapter: AdapterSet, ratio: float) -> None:
        super().__init__(adapter, ratio)
        for layer in adapter.adapters.values():
            for parameter in layer.parameter_groups().get("down", []):
                parameter.requires_grad_(False)
        if not adapter.parameters():
            raise UserInputError(
                f"With lora-fa nothing of {layer_type(adapter.spec).title} would learn.", "Leave optim.rule out."
            )


class LoraPro(Rule, name="lora-pro"):
    """The factors' gradients whose product step is nearest to full fine-tuning's (lora_pro_gradients).

    Adam's moments stay those of the factors. The eigen-decompositions make the host wait for a GPU once for each shape
    of layer.
    """

    title = "LoRA-Pro"
    paper = "arXiv 2407.18242"
    equation = "s(B g̃_A + g̃_B A) = P_B G + (I − P_B) G P_A"
    needs_pair = True

    def __init__(self, adapter: AdapterSet, ratio: float) -> None:
        super().__init__(adapter, ratio)
        pairs = {name: layer.gradient_pair() for name, layer in adapter.adapters.items()}
        if any(pair is None for pair in pairs.values()):
            raise self._refusal(layer_type(adapter.spec))
        self.adapter = adapter

    @torch.no_grad()
    def on_backward(self) -> None:
        alike: dict[object, list[tuple[Site, GradientPair]]] = defaultdict(list)
        for layer in self.adapter.adapters.values():
            pair = layer.gradient_pair()
            if pair is not None and pair.up.grad is not None and pair.down.grad is not None:
                key = (pair.up.shape, pair.down.shape, layer.site.groups, pair.scale, pair.up.dtype, pair.up.device)
                alike[key].append((layer.site, pair))
        for members in alike.values():
            self._replace(members)

    @staticmethod
    def _replace(members: list[tuple[Site, GradientPair]]) -> None:
        """Layers of one shape at once: [layers, groups, …] each."""

        def stacked(tensors: list[Tensor | None]) -> Tensor:
            return torch.stack([s.split_groups(t) for (s, _), t in zip(members, tensors, strict=True) if t is not None])

        pairs = [pair for _, pair in members]
        ups, downs = lora_pro_gradients(
            stacked([pair.up_value for pair in pairs]),
            stacked([pair.down_value for pair in pairs]),
            stacked([pair.up.grad for pair in pairs]),
            stacked([pair.down.grad for pair in pairs]),
            pairs[0].scale,
        )
        for pair, up, down in zip(pairs, ups, downs, strict=True):
            assert pair.up.grad is not None and pair.down.grad is not None
            pair.up.grad.copy_(up.flatten(0, 1))  # in place: they may be rows of a stack (adapters.bank)
            pair.down.grad.copy_(down.flatten(0, 1))


def lora_pro_gradients(
    up: Tensor, down: Tensor, up_grad: Tensor, down_grad: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """LoRA-Pro's g̃_B and g̃_A (theorems 2.1 and 2.3) for ΔW = s·B A, batched; no d×κ matrix and no SVD.

        g̃_A = (BᵀB)⁻¹ g_A/s² + X A
        g̃_B = (I − P_B) g_B (AAᵀ)⁻¹/s² − B X,   BᵀB·X + X·AAᵀ = −(BᵀB)⁻¹ g_A Aᵀ/s²

    Inverses are damped relative to the largest eigenvalue, and are 0 where that is 0: at B = 0 this leaves
    g̃_B = g_B (AAᵀ)⁻¹/s², g̃_A = 0, the limit in which the product's step is G P_A; it is never NaN.

    Args:
        up: B, [..., d, r], like up_grad (g_B).
        down: A, [..., r, κ], like down_grad (g_A).
        scale: s.

    Returns:
        (g̃_B, g̃_A).
    """
    square = scale * scale
    # a run that has diverged is told by its gradients, which stay NaN; eigh would raise here first
    b_values, b_vectors = torch.linalg.eigh((up.mT @ up).nan_to_num(0, 0, 0))
    a_values, a_vectors = torch.linalg.eigh((down @ down.mT).nan_to_num(0, 0, 0))
    b_values, a_values = b_values.clamp_min(0), a_values.clamp_min(0)
    b_inverse = (b_vectors * _damped(b_values)[..., None, :]) @ b_vectors.mT
    a_inverse = (a_vectors * _damped(a_values)[..., None, :]) @ a_vectors.mT
    along = b_inverse @ down_grad / square  # (BᵀB)⁻¹ g_A/s²
    right = -b_vectors.mT @ along @ down.mT @ a_vectors
    pairs = b_values[..., :, None] + a_values[..., None, :]
    x = b_vectors @ (right * _damped(pairs.flatten(-2)).view_as(pairs)) @ a_vectors.mT
    new_up = up_grad @ a_inverse / square
    new_up = new_up - up @ (b_inverse @ (up.mT @ new_up)) - up @ x
    return new_up, along + x @ down


def _damped(values: Tensor) -> Tensor:
    """1/(λ + 8ε·λ_max) over the last dimension (ε of the dtype: what a Gram matrix is known to); 0 where λ_max is 0."""
    largest = values.amax(-1, keepdim=True)
    damped = values + 8 * torch.finfo(values.dtype).eps * largest
    return torch.where(largest > 0, 1 / torch.where(largest > 0, damped, 1), 0)


def known_rule(name: str) -> str:
    """The name itself; raises UnknownNameError with the nearest."""
    if name not in RULES:
        raise UnknownNameError("optimizer rule", name, RULES)
    return name
