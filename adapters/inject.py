"""Attaching adapters to a base model and taking them off again without a trace."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from adapters.base import Adapter, AdapterSpec, Context
from adapters.errors import MismatchError, StudioError, UserInputError
from adapters.layer import AdaptedLayer, Switch, adapted_layer, master
from adapters.registry import adapter_type
from adapters.sites import Site, select_sites


class AdapterSet:
    """The adapters of one spec on all chosen layers of a pipeline's models.

    They are not submodules of the base: `base.to()`, `base.train()` and `base.parameters()` do not reach
    them, the methods here do. Names are "<component>.<module path>.<factor>", for example
    "unet.mid_block.attentions.0.proj_in.down".

    With a strength of s every layer computes with W + s·(W' − W); at 0 the base runs alone, bit for bit.
    """

    warning: str | None = None
    """What the user should know about how this set came to be (files.attach_file)."""

    def __init__(self, spec: AdapterSpec, targets: Mapping[str, str], adapters: Mapping[str, Adapter]) -> None:
        self.spec = spec
        self.targets = dict(targets)
        self.adapters = dict(adapters)
        self._switch = Switch()
        self._layers: list[AdaptedLayer] = []

    # --- on the model -------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Puts the hooks on (done by `attach`). Refused on layers whose weights are merged."""
        layers = [adapted_layer(adapter.site) for adapter in self.adapters.values()]
        for layer in layers:
            if layer.original is not None:
                raise StudioError(
                    f"{layer.site.name} carries a merged adapter.", "Unmerge it before attaching another."
                )
        for layer, adapter in zip(layers, self.adapters.values(), strict=True):
            layer.add(adapter, self._switch)
        self._layers = layers

    def detach(self) -> None:
        """Leaves the base as it was: hooks off, bytes restored."""
        self.unmerge()
        for layer in self._layers:
            layer.remove(self._switch)
        self._layers = []

    @property
    def strength(self) -> float:
        return self._switch.strength

    @strength.setter
    def strength(self, value: float) -> None:
        if self._switch.merged and value != self._switch.strength:
            raise StudioError("The strength of a merged adapter cannot change.", "Unmerge it first.")
        self._switch.strength = float(value)

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

    def parameter_groups(self, component: str | None = None) -> dict[str, list[nn.Parameter]]:
        """The trainables by role ("down", "up", "magnitude", …), each once."""
        groups: dict[str, list[nn.Parameter]] = {}
        seen: set[int] = set()
        for name, adapter in self.adapters.items():
            if not _belongs(name, component):
                continue
            for role, members in adapter.parameter_groups().items():
                fresh = [p for p in members if p.requires_grad and id(p) not in seen]
                seen.update(map(id, fresh))
                groups.setdefault(role, []).extend(fresh)
        return {role: members for role, members in groups.items() if members}

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
        adapter_type(self.spec.method).on_step_all(list(self.adapters.values()), step)

    # --- state --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Factors, frozen ones included, and schedule state; not copied. A shared factor comes once."""
        return {name: tensor.detach() for name, tensor in self._named_tensors()}

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies values in, converted to each factor's dtype and device.

        Raises:
            MismatchError: names or shapes differ; nothing is changed then.
        """
        own = self.state_dict()
        check_shapes({name: t.shape for name, t in own.items()}, {name: t.shape for name, t in tensors.items()})
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

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


def build(components: Mapping[str, nn.Module], spec: AdapterSpec, targets: Mapping[str, str], seed: int) -> AdapterSet:
    """An adapter set that is not on the model yet: `attach` without the hooks."""
    sites: list[Site] = []
    for component, target in targets.items():
        if component not in components:
            known = ", ".join(components)
            raise UserInputError(f"The adapter wants {component}, which was not given.", f"Given were: {known}.")
        sites += select_sites(components[component], component, target)
    context = Context(seed, tuple(sites))
    method = adapter_type(spec.method)
    with torch.no_grad():
        adapters = {site.name: method(site, master(site.weight), spec, context) for site in sites}
    return AdapterSet(spec, targets, adapters)


def attach(
    components: Mapping[str, nn.Module], spec: AdapterSpec, targets: Mapping[str, str], seed: int = 0
) -> AdapterSet:
    """Puts an adapter of `spec` on every layer that `targets` names; the output does not change by a bit.

    Args:
        components: the models by their name in the pipeline: "unet", "text_encoder", "text_encoder_2".
        spec: the method and its knobs (registry.make_spec).
        targets: component → named groups or patterns (sites.select_sites).
        seed: each layer draws its factors from (seed, layer name), whatever the order or device.

    Raises:
        UserInputError: a target matched nothing, a component was not given, a knob does not fit a layer.
        StudioError: a layer carries a merged adapter.
    """
    adapter_set = build(components, spec, targets, seed)
    adapter_set.attach()
    return adapter_set


def base_hash(components: Mapping[str, nn.Module]) -> str:
    """sha256 (hex) over the names, dtypes, shapes and bytes of all weights and buffers.

    The same base loaded in another dtype has another hash. Adapters do not count, unless merged.
    """
    tensors = [
        (f"{component}.{name}", tensor)
        for component, model in sorted(components.items())
        for name, tensor in sorted(model.state_dict().items())
    ]
    with ThreadPoolExecutor() as pool:  # hashlib lets go of the interpreter lock
        digests = pool.map(lambda item: _tensor_digest(*item), tensors)
        return hashlib.sha256(b"".join(digests)).hexdigest()


def _tensor_digest(name: str, tensor: Tensor) -> bytes:
    digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    digest.update(raw.numpy().data)  # hashed in place, not copied
    return digest.digest()
