"""What an adapter file changes besides the weights of layers: biases, norms, and words of the prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from adapters.errors import MismatchError
from adapters.layer import Switch, master

_VECTOR, _WORD = "extra.vector.", "extra.word."
"""How their names begin in a file of ours."""
_PATCH = "_vector_patch"


@dataclass(frozen=True)
class Extras:
    """Empty for most adapters: methods of ours learn none of this, other programs' files may hold it."""

    vectors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """What is added to a bias or a norm's weight, by its name, "unet.conv_norm_out.weight"."""
    words: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict[str, Mapping[str, Tensor]])
    """Word → text encoder → the embeddings that it stands for (textual inversion), [n, width]."""

    def __bool__(self) -> bool:
        return bool(self.vectors or self.words)

    def tensors(self) -> dict[str, Tensor]:
        """As a file of ours holds them."""
        vectors = {f"{_VECTOR}{name}": tensor for name, tensor in self.vectors.items()}
        words = {
            f"{_WORD}{component}.{word}": tensor
            for word, found in self.words.items()
            for component, tensor in found.items()
        }
        return vectors | words


def is_extra(name: str) -> bool:
    """Whether a tensor of that name in a file of ours belongs to its Extras."""
    return name.startswith((_VECTOR, _WORD))


def extras_named(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The vectors and the words that tensors of these names hold."""
    known = list(names)
    words = [name.removeprefix(_WORD).partition(".")[2] for name in known if name.startswith(_WORD)]
    return [name.removeprefix(_VECTOR) for name in known if name.startswith(_VECTOR)], list(dict.fromkeys(words))


def extras_in(tensors: Mapping[str, Tensor]) -> Extras:
    """`Extras.tensors` backwards; others are skipped."""
    words: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(_WORD):
            component, _, word = name.removeprefix(_WORD).partition(".")
            words.setdefault(word, {})[component] = tensor
    vectors = {name.removeprefix(_VECTOR): tensor for name, tensor in tensors.items() if name.startswith(_VECTOR)}
    return Extras(vectors, words)


def summed(parts: Sequence[tuple[Extras, float]]) -> Extras:
    """Several adapters' extras, their vectors with weights; of a word in several, the first one's meaning."""
    vectors: dict[str, Tensor] = {}
    words: dict[str, Mapping[str, Tensor]] = {}
    for extras, weight in parts:
        for name, vector in extras.vectors.items():
            vectors[name] = weight * vector + vectors.get(name, 0.0)
        words = {**extras.words, **words}
    return Extras(vectors, words)


class Vectors:
    """An adapter's vectors on the biases and norms of one base: its bytes come back when they are taken off."""

    def __init__(self, vectors: Mapping[str, Tensor], components: Mapping[str, nn.Module]) -> None:
        """Raises MismatchError for a vector that no parameter of the base fits."""
        self._bound: dict[str, tuple[nn.Parameter, Tensor]] = {}
        self._on: list[_Patch] = []
        known = {name: dict(vectors_of(model)) for name, model in components.items()}
        for name, vector in vectors.items():
            component, _, path = name.partition(".")
            parameter = known.get(component, {}).get(path)
            if parameter is None or parameter.shape != vector.shape:
                found = "no such vector" if parameter is None else f"one of {len(parameter)}"
                raise MismatchError(
                    f"The adapter changes {name} by {tuple(vector.shape)} numbers, but this base has {found}.",
                    "Use the adapter with the architecture it was made for.",
                )
            self._bound[name] = parameter, vector

    def attach(self, switch: Switch, names: Iterable[str]) -> None:
        """Adds those of `names`, times the switch's strength."""
        for name in names:
            parameter, vector = self._bound[name]
            patch = _patch_of(parameter)
            patch.entries.append((vector, switch))
            self._on.append(patch)
        self.refresh()

    def refresh(self) -> None:
        """After the strength changed."""
        for patch in self._on:
            patch.refresh()

    def detach(self, switch: Switch) -> None:
        for patch in self._on:
            patch.entries = [entry for entry in patch.entries if entry[1] is not switch]
            patch.refresh()
        self._on = []

    @property
    def names(self) -> list[str]:
        return list(self._bound)


def vectors_of(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Every bias and norm's weight by our path: text encoders' without the "text_model." that some have."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            yield name.removeprefix("text_model."), parameter


@dataclass(eq=False)
class _Patch:
    """One parameter, and what all attached adapters add to it."""

    parameter: nn.Parameter
    original: Tensor
    """Its own bytes, on the CPU."""
    entries: list[tuple[Tensor, Switch]] = field(default_factory=list[tuple[Tensor, Switch]])

    @torch.no_grad()
    def refresh(self) -> None:
        """original + Σ strength·vector, summed in fp32 and rounded once."""
        active = [(vector, switch.strength) for vector, switch in self.entries if switch.strength != 0.0]
        total = master(self.original)
        for vector, strength in active:
            total = total + strength * vector.to(total)
        self.parameter.copy_(total if active else self.original)
        if not self.entries:
            delattr(self.parameter, _PATCH)


def _patch_of(parameter: nn.Parameter) -> _Patch:
    """The one that is on the parameter already, or a new one."""
    found = getattr(parameter, _PATCH, None)
    if not isinstance(found, _Patch):
        found = _Patch(parameter, parameter.detach().to("cpu", copy=True))
        setattr(parameter, _PATCH, found)
    return found
