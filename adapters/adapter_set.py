"""The adapters of one spec on all chosen layers: on and off the model, trained, merged, saved together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from adapters.base import Adapter, AdapterSpec
from adapters.errors import MismatchError, StudioError
from adapters.extras import Extras, Vectors
from adapters.layer import AdaptedLayer, Switch, adapted_layer
from adapters.sites import Site


class LayerOverride(BaseModel):
    """Knobs and a learning rate for some of the layers that learn; a later one wins."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    component: str = Field(default="unet", description="unet, text_encoder or text_encoder_2")
    layers: str = Field(description="which of the layers that learn: groups and patterns, as in targets")
    adapter: dict[str, Any] = Field(default_factory=dict, description="knobs of the method that differ here")
    learning_rate: float | None = Field(default=None, gt=0, description="learning rate of these layers")


Knobs = tuple[tuple[str, Any], ...]
"""Names of knobs with their values."""


def knobs_told(layers: Mapping[str, Knobs]) -> tuple[dict[str, Any], list[LayerOverride]]:
    """The knobs of most layers, and overrides for the others. `layers` is by their names, "unet.down_blocks.…"."""
    usual = Counter(layers.values()).most_common(1)[0][0]
    others: dict[tuple[str, Knobs], list[str]] = {}
    for name, knobs in layers.items():
        if knobs != usual:
            component, path = name.split(".", 1)
            others.setdefault((component, knobs), []).append(path)
    return dict(usual), [
        LayerOverride(component=component, layers=", ".join(paths), adapter=dict(knobs))
        for (component, knobs), paths in others.items()
    ]


@dataclass(frozen=True)
class ParameterGroup:
    """Trainables that an optimizer treats alike."""

    component: str
    role: str
    learning_rate: float | None
    """Where the layers have one of their own."""
    parameters: list[nn.Parameter]


class AdapterSet:
    """The adapters of one spec on all chosen layers of a pipeline's models.

    They are not submodules of the base: `base.to()`, `base.train()` and `base.parameters()` do not reach
    them, the methods here do. Names are "<component>.<module path>.<factor>", for example
    "unet.mid_block.attentions.0.proj_in.down".

    With a strength of s every layer computes with W + s·(W' − W); at 0 the base runs alone, bit for bit.
    """

    warning: str | None = None
    """What the user should know about how this set came to be (files.attach_file)."""
    extras: Extras = Extras()
    """What goes into its file besides factors, and acts where `bind` was called."""

    def __init__(
        self,
        spec: AdapterSpec,
        targets: Mapping[str, str],
        adapters: Mapping[str, Adapter],
        overrides: Sequence[LayerOverride] = (),
        rates: Mapping[str, float] | None = None,
    ) -> None:
        self.spec = spec
        self.targets = dict(targets)
        self.adapters = dict(adapters)
        self.overrides = tuple(overrides)
        self.rates = dict(rates or {})
        """Learning rates of single layers, by their names."""
        self._switch = Switch()
        self._layers: list[AdaptedLayer] = []
        self._vectors: Vectors | None = None

    def bind(self, extras: Extras, components: Mapping[str, nn.Module]) -> None:
        """Lets the extras' vectors act with the set, once it is attached. Raises what Vectors raises."""
        self.extras, self._vectors = extras, Vectors(extras.vectors, components)

    # --- on the model -------------------------------------------------------------------------------------

    def attach(self, only: Container[str] | None = None) -> None:
        """Puts the hooks on (done by `attach`), or those of the layers named `only`. Refused over merged weights."""
        adapters = [adapter for name, adapter in self.adapters.items() if only is None or name in only]
        layers = [adapted_layer(adapter.site) for adapter in adapters]
        for layer in layers:
            if layer.original is not None:
                raise StudioError(
                    f"{layer.site.name} carries a merged adapter.", "Unmerge it before attaching another."
                )
        for layer, adapter in zip(layers, adapters, strict=True):
            layer.add(adapter, self._switch)
        self._layers = layers
        if self._vectors is not None:
            owned = [name for name in self._vectors.names if only is None or name.rpartition(".")[0] in only]
            self._vectors.attach(self._switch, owned)

    def detach(self) -> None:
        """Leaves the base as it was: hooks off, bytes restored."""
        self.unmerge()
        for layer in self._layers:
            layer.remove(self._switch)
        self._layers = []
        if self._vectors is not None:
            self._vectors.detach(self._switch)

    @property
    def strength(self) -> float:
        return self._switch.strength

    @strength.setter
    def strength(self, value: float) -> None:
        if self._switch.merged and value != self._switch.strength:
            raise StudioError("The strength of a merged adapter cannot change.", "Unmerge it first.")
        self._switch.strength = float(value)
        if self._vectors is not None:
            self._vectors.refresh()

    def place(self, place: Callable[[Site, Tensor], Tensor] | None) -> None:
        """Keeps the set's changes to a part of the picture (None: everywhere again). Not for merged sets."""
        if self._switch.merged and place is not None:
            raise StudioError("A merged adapter acts everywhere.", "Unmerge it first.")
        self._switch.place = place

    @property
    def merged(self) -> bool:
        return self._switch.merged

    def merge(self) -> None:
        """Writes W + strength·ΔW into the base, summed in fp32 and rounded to the base's dtype.

        Each merged layer's own bytes are kept in CPU memory until unmerge. In bf16 a small delta loses some
        percent to the rounding; unmerged inference loses nothing.
        """
        try:
            self._refresh(merged=True)
        except Exception:  # a method that cannot merge, or no memory left for the copies
            self._refresh(merged=False)
            raise

    def unmerge(self) -> None:
        """Restores the base's bytes exactly (other merged sets stay merged)."""
        self._refresh(merged=False)

    def _refresh(self, merged: bool) -> None:
        if merged == self._switch.merged:
            return
        self._switch.merged = merged
        for layer in self._layers:
            layer.refresh()

    # --- training -----------------------------------------------------------------------------------------

    def named_parameters(self, component: str | None = None) -> Iterator[tuple[str, nn.Parameter]]:
        """The trainables, of one component or of all; a factor that layers share comes once."""
        for name, tensor in self._named_tensors():
            if isinstance(tensor, nn.Parameter) and tensor.requires_grad and _belongs(name, component):
                yield name, tensor

    def parameters(self, component: str | None = None) -> list[nn.Parameter]:
        return [parameter for _, parameter in self.named_parameters(component)]

    def parameter_groups(self, component: str | None = None) -> list[ParameterGroup]:
        """What the optimizer trains, each factor once. Gates that a method updates itself are not among them."""
        groups: dict[tuple[str, str, float | None], ParameterGroup] = {}
        seen: set[int] = set()
        for name, adapter in self.adapters.items():
            if not _belongs(name, component):
                continue
            owner, rate = name.split(".", 1)[0], self.rates.get(name)
            for role, members in adapter.parameter_groups().items():
                fresh = [p for p in members if p.requires_grad and id(p) not in seen]
                seen.update(map(id, fresh))
                group = groups.setdefault((owner, role, rate), ParameterGroup(owner, role, rate, []))
                group.parameters.extend(fresh)
        return [group for group in groups.values() if group.parameters]

    def num_parameters(self, component: str | None = None) -> int:
        return sum(parameter.numel() for parameter in self.parameters(component))

    def train(self, mode: bool = True) -> AdapterSet:
        for adapter in self.adapters.values():
            adapter.train(mode)
        return self

    def eval(self) -> AdapterSet:
        return self.train(False)

    def to(self, device: torch.device | str) -> AdapterSet:
        for adapter in self.adapters.values():
            adapter.to(device)
        return self

    def regulariser(self) -> Tensor | None:
        """The sum over layers, to be added to the loss; None when the method has none."""
        terms = [term for a in self.adapters.values() if (term := a.regulariser()) is not None]
        return torch.stack(terms).sum() if terms else None

    def on_backward(self) -> None:
        """After backward, before clipping."""
        for adapter in self.adapters.values():
            adapter.on_backward()

    def on_step(self, step: int) -> None:
        """After the optimizer's step, before zero_grad; `step` counts optimizer steps, from 1."""
        self.settle(self.phase(step))
        self.advance(step)

    def phase(self, step: int) -> str:
        """What `settle` does after this step (Adapter.phase)."""
        adapters = list(self.adapters.values())
        return type(adapters[0]).phase(adapters, step)

    @torch.no_grad()
    def settle(self, phase: str) -> None:
        """Layer by layer what adapters.bank does for all at once: Adapter.settled."""
        for adapter in self.adapters.values():
            gradients = {name: p.grad for name, p in adapter.named_parameters() if p.grad is not None}
            tensors = adapter.state_dict(keep_vars=True)
            for name, value in adapter.settled(gradients, phase).items():
                tensors[name].copy_(value)

    def advance(self, step: int) -> None:
        """What a method does at single steps, after `settle`."""
        adapters = list(self.adapters.values())
        type(adapters[0]).on_step_all(adapters, step)

    # --- state --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """All that a resume needs: factors, frozen ones included, and schedule state; not copied. Shared ones once."""
        return {name: tensor.detach() for name, tensor in self._named_tensors()}

    def file_state(self) -> dict[str, Tensor]:
        """What a finished file holds: without what only a resume needs, and without ranks that are zero."""
        kept: dict[str, Tensor] = {}
        pruned = {layer: adapter.pruned() for layer, adapter in self.adapters.items()}
        for name, _ in self._named_tensors():
            layer, factor = self._split(name)
            if factor not in self.adapters[layer].resume_only:
                kept[name] = pruned[layer][factor].detach()
        return kept

    def check_shapes(self, given: Mapping[str, tuple[int, ...]]) -> None:
        """Raises MismatchError where a state of these shapes could not be loaded."""
        wanted: dict[str, tuple[int, ...]] = {}
        for name, tensor in self.state_dict().items():
            layer, factor = self._split(name)
            shape = tuple(tensor.shape)
            if name not in given and factor in self.adapters[layer].resume_only:
                continue
            axis = self.adapters[layer].prunable.get(factor)
            if name in given and axis is not None and _shorter(given[name], shape, axis):
                shape = given[name]
            wanted[name] = shape
        check_shapes(wanted, given)

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies values in, converted to each factor's dtype and device; what a file left out is zero.

        Raises:
            MismatchError: names or shapes differ; nothing is changed then.
        """
        self.check_shapes({name: tuple(t.shape) for name, t in tensors.items()})
        for name, tensor in self.state_dict().items():
            if name not in tensors:
                tensor.zero_()
            elif tensors[name].shape == tensor.shape:
                tensor.copy_(tensors[name])
            else:
                tensor.zero_()
                tensor[tuple(slice(size) for size in tensors[name].shape)] = tensors[name].to(tensor)

    def _split(self, name: str) -> tuple[str, str]:
        """A state's name as the layer's and the factor's."""
        layer = next(layer for layer in _prefixes(name) if layer in self.adapters)
        return layer, name[len(layer) + 1 :]

    def factor_names(self) -> list[str]:
        """The names in state_dict that are Parameters, frozen ones included; the rest is schedule state."""
        return [name for name, tensor in self._named_tensors() if isinstance(tensor, nn.Parameter)]

    def _named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        seen: set[int] = set()
        for layer_name, adapter in self.adapters.items():
            kept = adapter.state_dict(keep_vars=True)
            for name, tensor in kept.items():
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield f"{layer_name}.{name}", tensor


def _prefixes(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _shorter(given: tuple[int, ...], built: tuple[int, ...], axis: int) -> bool:
    """Whether it is the built shape but for fewer ranks along `axis`."""
    if len(given) != len(built):
        return False
    return (*given[:axis], *given[axis + 1 :]) == (*built[:axis], *built[axis + 1 :]) and given[axis] <= built[axis]


def _belongs(name: str, component: str | None) -> bool:
    return component is None or name.startswith(f"{component}.")


def check_shapes(wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]) -> None:
    """Raises MismatchError naming the first factor that is missing, superfluous or of another shape."""
    fix = "Use the adapter with the architecture it was made for, or with the layers it was made on."
    for name, shape in wanted.items():
        if name not in given:
            raise MismatchError(f"The adapter has nothing for {name}, which this base and its targets ask for.", fix)
        if tuple(given[name]) != tuple(shape):
            found, asked = "×".join(map(str, given[name])), "×".join(map(str, shape))
            raise MismatchError(f"{name} is {found} in the adapter, but this base's layer needs {asked}.", fix)
    for name in given:
        if name not in wanted:
            raise MismatchError(f"The adapter has {name}, but this base and its targets have no such layer.", fix)
