"""Another program's file as one of ours, for one base."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from adapters.adapter_set import Knobs, knobs_told
from adapters.errors import FileFormatError, MismatchError
from adapters.extras import Extras
from adapters.files import AdapterCard, AdapterFile, AdapterHeader
from adapters.formats.beside import vectors_in, widths_of, words_in
from adapters.formats.foreign import ForeignFile
from adapters.formats.layers import Told, layer_of, per_input
from adapters.formats.names import known_modules
from adapters.formats.peft_options import PeftOptions
from adapters.formats.rotated import Angles, Rotation, angles_of, rotation_of
from adapters.layer import master
from adapters.registry import make_spec
from adapters.sites import Site, make_site

_VECTORS = frozenset({"diff_b", "w_norm", "b_norm"})
_FACTORS = ("down", "hada_w1_a")

Parts = Mapping[str, Mapping[str, Tensor]]
Sites = Mapping[str, Site]


@dataclass(frozen=True)
class Converted:
    """What became of a file."""

    file: AdapterFile
    error: float
    """The largest relative error over its layers: 0 where every change has our form."""
    left_out: tuple[str, ...]
    """Stems that no layer of this base has, and tensors of kinds that are not known here."""


@torch.no_grad()
def convert(foreign: ForeignFile, components: Mapping[str, nn.Module], rank: int = 64) -> Converted:
    """As a file of ours for this base: a LoRA, or a DoRA, OFT or BOFT where every layer is one.

    Args:
        components: the base's models, whose layers the stems name.
        rank: by which a change without factors (LoKr, a whole difference, DoRA of the input) is told.

    Raises:
        MismatchError: no layer of the file is one of this base, or shapes do not fit.
        FileFormatError: a layer's tensors make no sense together.
    """
    known, parts = known_modules(components), foreign.by_stem()
    vectors, homeless = vectors_in(parts, known)
    words, strange = words_in(foreign.tensors, widths_of(components))
    sites = _sites(parts, known)
    if not sites:
        raise MismatchError(
            f"None of the {len(parts)} layers in {foreign.path} is one of this base (such as {next(iter(parts))}).",
            "It was made for another kind of model (SD 1.5?); choose one for SDXL.",
        )
    ready = {stem: _prepared(site, parts[stem], foreign.options) for stem, site in sites.items()}
    rotations = _rotations(sites, ready, foreign.options)
    turned = _turned(sites, ready, rotations)
    if turned is None:
        file, error = _as_factors(sites, ready, rotations, rank, foreign.card)
    else:
        file, error = _as_turns(turned, foreign.card)
    tensors = file.tensors | Extras(vectors, words).tensors()
    header = replace(file.header, shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()})
    left_out = [*sorted(set(parts) - set(known)), *homeless, *strange, *foreign.unknown()]
    return Converted(AdapterFile(tensors, header), error, tuple(left_out))


def _sites(parts: Parts, known: Mapping[str, tuple[str, nn.Module]]) -> dict[str, Site]:
    """Stem → the layer whose weight is changed."""
    found = {
        stem: make_site(*known[stem])
        for stem, tensors in parts.items()
        if stem in known and tensors.keys() - _VECTORS - {"alpha"}
    }
    return {stem: site for stem, site in found.items() if site is not None}


def _prepared(site: Site, found: Mapping[str, Tensor], options: PeftOptions) -> dict[str, Tensor]:
    """A layer's tensors in the precision to compute in, and the alpha that stands elsewhere."""
    weight = site.weight
    dtype = torch.promote_types(weight.dtype, torch.float32)
    ready = {name: tensor.to(weight.device, dtype) for name, tensor in found.items() if name not in _VECTORS}
    if "down" in ready and "alpha" not in ready:
        alpha = options.alpha(site.name, len(ready["down"]))
        if alpha is not None:
            ready["alpha"] = torch.tensor(alpha, dtype=dtype)
    if "alpha" in ready and ready["alpha"].numel() != 1:
        raise FileFormatError(f"The file's alpha of {site.name} is not one number.", "Get the file again.")
    return ready


@contextmanager
def _fitting(site: Site) -> Generator[None]:
    """Tensors that do not fit together end in a sentence."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, KeyError, IndexError, ValueError) as error:
        raise FileFormatError(f"The file's tensors for {site.name} do not fit together.", "Get it again.") from error


def _rotations(sites: Sites, parts: Parts, options: PeftOptions) -> dict[str, Rotation | None]:
    found: dict[str, Rotation | None] = {}
    for stem, site in sites.items():
        with _fitting(site):
            flat = stem.startswith(("lora_", "oft_"))  # OneTrainer's way to name layers, and to turn kernels
            found[stem] = rotation_of(site, parts[stem], series=options.series(), kernels_turned=flat)
    return found


def _turned(sites: Sites, parts: Parts, rotations: Mapping[str, Rotation | None]) -> dict[str, Angles] | None:
    """Every layer's angles by its name, where all layers are rotations that ours can be."""
    turned: dict[str, Angles] = {}
    for stem, site in sites.items():
        rotation = rotations[stem]
        angles = None if rotation is None or "dora_scale" in parts[stem] else angles_of(site, rotation)
        if angles is None:
            return None
        turned[site.name] = angles
    return turned


def _as_turns(turned: Mapping[str, Angles], card: AdapterCard) -> tuple[AdapterFile, float]:
    """An OFT, or a BOFT where any layer has a gain or several levels."""
    butterfly = any(angles.is_butterfly for angles in turned.values())
    knobs = {name: angles.knobs(butterfly) for name, angles in turned.items()}
    tensors = {name: angles.tensors(butterfly) for name, angles in turned.items()}
    file = _file("boft" if butterfly else "oft", knobs, tensors, card)
    return file, max(angles.error for angles in turned.values())


def _as_factors(
    sites: Sites, parts: Parts, rotations: Mapping[str, Rotation | None], rank: int, card: AdapterCard
) -> tuple[AdapterFile, float]:
    """A LoRA, or a DoRA where every layer has factors and one scale an output row."""
    all_dora = all(_is_dora(sites[stem], found) for stem, found in parts.items())
    told: dict[str, Told] = {}
    for stem, site in sites.items():
        with _fitting(site):
            told[site.name] = layer_of(site, master(site.weight), parts[stem], rotations[stem], rank, all_dora)
    knobs: dict[str, Knobs] = {name: (("rank", len(layer.down)),) for name, layer in told.items()}
    tensors = {name: layer.tensors() for name, layer in told.items()}
    file = _file("dora" if all_dora else "lora", knobs, tensors, card)
    return file, max(layer.error for layer in told.values())


def _is_dora(site: Site, found: Mapping[str, Tensor]) -> bool:
    """Whether our DoRA is the same: factors, and one scale an output row."""
    scale = found.get("dora_scale")
    return scale is not None and not found.keys().isdisjoint(_FACTORS) and not per_input(site, scale)


def _file(method: str, knobs: Mapping[str, Knobs], layers: Parts, card: AdapterCard) -> AdapterFile:
    """`knobs` and `layers` by layers' names, "unet.down_blocks.…"."""
    usual, overrides = knobs_told(knobs)
    targets: dict[str, list[str]] = {}
    for name in layers:
        component, path = name.split(".", 1)
        targets.setdefault(component, []).append(path)
    tensors = {f"{name}.{factor}": tensor for name, found in layers.items() for factor, tensor in found.items()}
    header = AdapterHeader(
        spec=make_spec(method, **usual),
        targets={component: ", ".join(paths) for component, paths in targets.items()},
        card=card,
        shapes={},
        overrides=tuple(overrides),
    )
    return AdapterFile(tensors, header)
