"""The factors of a whole set at once: layers alike are stacked, so that a step's small work is a few kernels.

An SDXL adapter has thousands of small tensors. Casting, scaling, rotating, clipping and updating them one by one costs
more launches than the UNet itself. Here the tensors of layers that are alike lie in one stack; the adapters keep views
of it, so files, merging and single layers see no difference. What a method computes from its factors before it meets x
(its chain, DoRA's norm) is computed for all layers of a stack by torch.vmap, in fp32, and rounded once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Container, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet
from adapters.base import Adapter
from adapters.low_rank import LowRank
from adapters.magnitude import Magnitude, gain_minus_one
from adapters.projections import differentiable_projections, projections
from adapters.side_stream import spread

Lay = Callable[[str, Tensor], Tensor]
"""(name, value) → the tensor that holds the value from now on."""


def where_it_is(name: str, value: Tensor) -> Tensor:
    """The value's own tensor."""
    return value


class _Slot(NamedTuple):
    """Where one stacked tensor of an adapter belongs."""

    path: str
    """Its name in the adapter, as in state_dict."""
    stack: Tensor
    """[layers, …]; a Parameter where it learns."""


@dataclass(frozen=True)
class _Group:
    """Adapters alike, and their tensors stacked in the same order."""

    members: list[Adapter]
    slots: list[_Slot]


class FactorBank:
    """Stacks the tensors of `adapter_set`, whose adapters become views; `staged` is the context of a forward pass.

    Args:
        adapter_set: on its device, after anything that freezes or replaces parameters (trainers.rules).
        dtype: what the base computes in: factors of chains are rounded to it, all at once.
        lay: where the stacks lie; names are those of layers and tensors, the same for sets built alike.
    """

    def __init__(self, adapter_set: AdapterSet, dtype: torch.dtype, lay: Lay = where_it_is) -> None:
        self.dtype = dtype
        self._leaf: dict[int, nn.Parameter] = {}
        uses = Counter(id(t) for a in adapter_set.adapters.values() for t in _tensors(a).values())
        shared = {number for number, count in uses.items() if count > 1}
        _lay_shared(adapter_set, shared, lay)
        self._groups = [_stack(members, shared, lay) for members in _alike(adapter_set, shared)]
        for own, stack, _ in self._rows_of_parameters():
            self._leaf[id(own)] = stack

    def _rows_of_parameters(self) -> Generator[tuple[nn.Parameter, nn.Parameter, int]]:
        for group in self._groups:
            for path, stack in group.slots:
                if isinstance(stack, nn.Parameter):
                    for row, member in enumerate(group.members):
                        yield member.get_parameter(path), stack, row

    def connect_gradients(self) -> None:
        """Makes each parameter's gradient a row of its stack's, where that has one: methods and rules read it."""
        for own, stack, row in self._rows_of_parameters():
            own.grad = None if stack.grad is None else stack.grad[row]

    def leaf(self, parameter: nn.Parameter) -> nn.Parameter:
        """What autograd and an element-wise optimizer see in a parameter's place: its stack, or itself."""
        return self._leaf.get(id(parameter), parameter)

    def leaves(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        """Each leaf of these parameters once."""
        return list({id(leaf): leaf for leaf in map(self.leaf, parameters)}.values())

    @contextmanager
    def staged(self) -> Generator[None]:
        """Within, adapters use tensors of the stacks (with gradients to them), and chains computed all at once."""
        placed: list[tuple[nn.Module, str]] = []
        try:
            for group in self._groups:
                for module, name, value in self._stage(group):
                    module.__dict__[name] = value  # found before the module's own parameter of that name
                    placed.append((module, name))
            yield
        finally:
            for module, name in placed:
                module.__dict__.pop(name, None)

    def _stage(self, group: _Group) -> list[tuple[nn.Module, str, Any]]:
        stacks = dict(group.slots)
        template = chained(group.members[0])
        if template is None:
            return self._rows(group, [path for path, stack in group.slots if stack.requires_grad])
        ups, downs = _chains(group, template)
        pairs = zip(spread(ups, self.dtype), spread(downs, self.dtype), strict=True)
        placed: list[tuple[nn.Module, str, Any]] = [
            (_chain_of(member), "staged", pair) for member, pair in zip(group.members, pairs, strict=True)
        ]
        if isinstance(group.members[0], Magnitude):
            gains = _gains(group, stacks["magnitude"], ups.detach(), downs.detach())
            placed += [
                (member, "staged_gain", gain)
                for member, gain in zip(group.members, spread(gains, gains.dtype), strict=True)
            ]
        return placed

    def regulariser(self) -> Tensor | None:
        """AdapterSet.regulariser, chains' computed for all layers of a stack at once. Within `staged`."""
        terms: list[Tensor] = []
        for group in self._groups:
            first = group.members[0]
            if not _does(first, "regulariser"):
                continue
            if chained(first) is None:
                terms += [term for member in group.members if (term := member.regulariser()) is not None]
            elif first.regulariser() is not None:
                terms.append(_over_layers(group, lambda adapter: adapter.regulariser()).sum())
        return torch.stack(terms).sum() if terms else None

    @torch.no_grad()
    def settle(self, phase: str) -> None:
        """AdapterSet.settle for all layers of a stack at once."""
        for group in self._groups:
            if _does(group.members[0], "settled"):
                stacks = dict(group.slots)
                gradients = {path: stack.grad for path, stack in group.slots if stack.grad is not None}
                found = _over_layers(group, lambda adapter, given: adapter.settled(given, phase), gradients)
                for path, value in found.items():
                    stacks[path].copy_(value)

    @staticmethod
    def _rows(group: _Group, paths: list[str]) -> list[tuple[nn.Module, str, Any]]:
        """The members' own factors as rows of the stacks, for methods that compute with them layer by layer."""
        stacks = dict(group.slots)
        return [
            (member.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], row)
            for path in paths
            for member, row in zip(group.members, spread(stacks[path], stacks[path].dtype), strict=True)
        ]


def chained(adapter: Adapter) -> LowRank | None:
    """The adapter's chain, or its inner method's under a magnitude, where many layers' can be computed at once."""
    inner = adapter.inner if isinstance(adapter, Magnitude) else adapter
    if not isinstance(inner, LowRank):
        return None
    return None if adapter.site.groups > 1 and adapter is not inner else inner


def _chain_of(adapter: Adapter) -> LowRank:
    found = chained(adapter)
    assert found is not None
    return found


def _alike(adapter_set: AdapterSet, shared: Container[int]) -> list[list[Adapter]]:
    """Adapters of the same class, knobs and shapes, whose shared tensors are the same and which learn at one rate."""
    groups: dict[object, list[Adapter]] = defaultdict(list)
    for name, adapter in adapter_set.adapters.items():
        shapes = tuple(
            (path, tuple(t.shape), t.dtype, t.device, t.requires_grad, id(t) if id(t) in shared else None)
            for path, t in _tensors(adapter).items()
        )
        site = adapter.site
        layer = (site.kind, tuple(site.shape), site.groups, name.split(".", 1)[0], adapter_set.rates.get(name))
        groups[type(adapter), repr(adapter.knobs), layer, shapes].append(adapter)
    return list(groups.values())


def _tensors(adapter: Adapter) -> dict[str, Tensor]:
    return {**dict(adapter.named_parameters()), **dict(adapter.named_buffers())}


@torch.no_grad()
def _lay_shared(adapter_set: AdapterSet, shared: Container[int], lay: Lay) -> None:
    done: set[int] = set()
    for adapter in adapter_set.adapters.values():
        for path, tensor in _tensors(adapter).items():
            if id(tensor) in shared and id(tensor) not in done:
                done.add(id(tensor))
                tensor.data = lay(f"{adapter.site.name}.{path}", tensor.detach())


@torch.no_grad()
def _stack(members: list[Adapter], shared: Container[int], lay: Lay) -> _Group:
    """Moves the members' tensors into stacks; tensors that layers share stay as they are."""
    slots: list[_Slot] = []
    for path, first in _tensors(members[0]).items():
        tensors = [_tensors(member)[path] for member in members]
        if id(first) in shared:
            continue
        name = f"{members[0].site.name}.{path}"
        stack = lay(name, torch.stack([tensor.detach() for tensor in tensors]))
        for tensor, row in zip(tensors, stack.unbind(), strict=True):
            tensor.data = row
        learns = isinstance(first, nn.Parameter)
        slots.append(_Slot(path, nn.Parameter(stack, requires_grad=first.requires_grad) if learns else stack))
    return _Group(members, slots)


def _chains(group: _Group, template: LowRank) -> tuple[Tensor, Tensor]:
    """(up [layers, d, r/g], down [layers, r, κ]), scale and core in up, in the factors' own precision."""
    prefix = "inner." if isinstance(group.members[0], Magnitude) else ""
    stacked = {path.removeprefix(prefix): stack for path, stack in group.slots if path.startswith(prefix)}
    given: tuple[Tensor, ...] = ()
    if template.projected is not None:
        given = (differentiable_projections([member.site for member in group.members], stacked[template.projected]),)
    return torch.vmap(lambda tensors, *given: torch.func.functional_call(template, tensors, given))(stacked, *given)


def _does(adapter: Adapter, name: str) -> bool:
    """Whether the method (under a magnitude, the inner one) has an answer of its own to this part of the contract."""
    inner = adapter.inner if isinstance(adapter, Magnitude) else adapter
    return getattr(type(inner), name) is not getattr(Adapter, name)


def _over_layers(group: _Group, work: Callable[..., Any], *given: Any) -> Any:
    """`work(adapter, *given)` for every member at once, told by the first; stacks and `given` have layers in front."""
    first = group.members[0]
    caller = _Caller(first, work)

    def one(tensors: dict[str, Tensor], *given: Any) -> Any:
        return torch.func.functional_call(caller, {f"adapter.{path}": t for path, t in tensors.items()}, given)

    return torch.vmap(one)(dict(group.slots), *given)


class _Caller(nn.Module):
    """A function of an adapter in the form that torch.func.functional_call takes."""

    def __init__(self, adapter: Adapter, work: Callable[..., Any]) -> None:
        super().__init__()
        self.adapter, self.work = adapter, work

    def forward(self, *given: Any) -> Any:
        return self.work(self.adapter, *given)


@torch.no_grad()
def _norms2(group: _Group, ups: Tensor, downs: Tensor) -> Tensor:
    """‖W_i + (B A)_i‖² of every layer, [layers, d]: kernels.chain_row_norm2 with the small products batched."""
    base = dict(group.slots)["base_norm2"]
    cross = projections([member.site for member in group.members], downs)
    square = ((ups @ (downs @ downs.mT)) * ups).sum(-1)
    return base + 2 * (ups * cross).sum(-1) + square


def _gains(group: _Group, magnitudes: Tensor, ups: Tensor, downs: Tensor) -> Tensor:
    """m/c − 1 of every layer, [layers, d]; c detached."""
    with torch.autocast(ups.device.type, enabled=False):
        return gain_minus_one(magnitudes, _norms2(group, ups, downs))
