"""Another program's file laid on one base: which layer each of its tensors changes, and how."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapters.errors import FileFormatError, MismatchError
from adapters.extras import Extras
from adapters.formats.beside import vectors_in, widths_of, words_in
from adapters.formats.foreign import ForeignFile
from adapters.formats.layers import Told, layer_of, per_input, whole_of
from adapters.formats.names import known_modules
from adapters.formats.peft_options import PeftOptions
from adapters.formats.rotated import Angles, Rotation, angles_of, rotation_of
from adapters.layer import master
from adapters.sites import Site, make_site

_VECTORS = frozenset({"diff_b", "w_norm", "b_norm"})
_FACTORS = ("down", "hada_w1_a")


@dataclass(frozen=True)
class PlacedLayer:
    """The tensors under one stem, and the layer whose weight they change."""

    site: Site
    stem: str
    raw: Mapping[str, Tensor]
    """By the names of layers.SUFFIXES, as they lie in the file."""
    options: PeftOptions

    def told(self, rank: int, keep_magnitude: bool) -> Told:
        """Its factors (layers.layer_of)."""
        with _fitting(self.site):
            found = self._ready()
            weight = master(self.site.weight)
            return layer_of(self.site, weight, found, self._rotation(found), rank, keep_magnitude)

    def whole(self, weight: Tensor) -> Tensor:
        """W' − W as d×κ, with nothing left out (layers.whole_of)."""
        with _fitting(self.site):
            found = self._ready()
            return whole_of(self.site, weight, found, self._rotation(found))

    def angles(self) -> Angles | None:
        """Where it is a rotation that our OFT or BOFT can be."""
        if "dora_scale" in self.raw:
            return None
        with _fitting(self.site):
            rotation = self._rotation(self._ready())
            return None if rotation is None else angles_of(self.site, rotation)

    @property
    def is_dora(self) -> bool:
        """Whether our DoRA is the same: factors, and one scale an output row."""
        scale = self.raw.get("dora_scale")
        factors = not self.raw.keys().isdisjoint(_FACTORS)
        return scale is not None and factors and not per_input(self.site, scale)

    def _ready(self) -> dict[str, Tensor]:
        """The tensors in the precision to compute in, and the alpha that stands elsewhere."""
        weight = self.site.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        ready = {name: tensor.to(weight.device, dtype) for name, tensor in self.raw.items() if name not in _VECTORS}
        if "down" in ready and "alpha" not in ready:
            alpha = self.options.alpha(self.site.name, len(ready["down"]))
            if alpha is not None:
                ready["alpha"] = torch.tensor(alpha, dtype=dtype)
        if "alpha" in ready and ready["alpha"].numel() != 1:
            raise FileFormatError(f"The file's alpha of {self.site.name} is not one number.", "Get the file again.")
        return ready

    def _rotation(self, found: Mapping[str, Tensor]) -> Rotation | None:
        flat = self.stem.startswith(("lora_", "oft_"))  # OneTrainer's way to name layers, and to turn kernels
        return rotation_of(self.site, found, series=self.options.series(), kernels_turned=flat)


@dataclass(frozen=True)
class Placed:
    """All of a file that the base has a place for."""

    layers: tuple[PlacedLayer, ...]
    extras: Extras
    left_out: tuple[str, ...]
    """Stems that no layer of this base has, and tensors of kinds that are not known here."""


def place(foreign: ForeignFile, components: Mapping[str, nn.Module]) -> Placed:
    """Where the file's tensors belong in these models.

    Raises:
        MismatchError: no layer of the file is one of this base, or a bias or norm is of another size.
    """
    known, parts = known_modules(components), foreign.by_stem()
    vectors, homeless = vectors_in(parts, known)
    words, strange = words_in(foreign.tensors, widths_of(components))
    layers: list[PlacedLayer] = []
    for stem, found in parts.items():
        if stem in known and found.keys() - _VECTORS - {"alpha"}:
            site = make_site(*known[stem])
            if site is not None:
                layers.append(PlacedLayer(site, stem, found, foreign.options))
    if not layers:
        raise MismatchError(
            f"None of the {len(parts)} layers in {foreign.path} is one of this base (such as {next(iter(parts))}).",
            "It was made for another kind of model (SD 1.5?); choose one for SDXL.",
        )
    left_out = [*sorted(set(parts) - set(known)), *homeless, *strange, *foreign.unknown()]
    return Placed(tuple(layers), Extras(vectors, words), tuple(left_out))


@contextmanager
def _fitting(site: Site) -> Generator[None]:
    """Tensors that do not fit together end in a sentence."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, KeyError, IndexError, ValueError) as error:
        raise FileFormatError(f"The file's tensors for {site.name} do not fit together.", "Get it again.") from error
