"""What other programs' files hold beside changes of weights: biases, norms (LyCORIS), and embeddings (bundle_emb)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from adapters.errors import MismatchError
from adapters.extras import Extras

BUNDLE = "bundle_emb."
"""bundle_emb.<word>.clip_l and .clip_g (OneTrainer), or .string_to_param.* (A1111)."""
ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
_ONE_TENSOR = "string_to_param.*"
_LONGEST = 100
"""Letters of a word."""

Words = dict[str, dict[str, Tensor]]
Parts = Mapping[str, Mapping[str, Tensor]]
Known = Mapping[str, tuple[str, nn.Module]]


def vectors_in(parts: Parts, known: Known) -> tuple[dict[str, Tensor], list[str]]:
    """Differences of biases and of norms' weights, and the stems of those that the base has no place for.

    Args:
        parts: stem → part → tensor (layers.SUFFIXES).
        known: stem → name and module (names.known_modules).

    Raises:
        MismatchError: a difference is of another size than what it is added to.
    """
    vectors: dict[str, Tensor] = {}
    homeless: list[str] = []
    for stem, found in parts.items():
        name, module = known.get(stem, ("", None))
        is_norm = isinstance(module, nn.LayerNorm | nn.GroupNorm)
        given = {"bias": found.get("diff_b", found.get("b_norm"))}
        if is_norm:
            given["weight"] = found.get("w_norm", found.get("diff"))
        for end, vector in given.items():
            own = getattr(module, end, None)
            if vector is None or module is None:
                continue
            if not isinstance(own, Tensor):
                homeless.append(stem)
            elif own.numel() != vector.numel():
                raise MismatchError(
                    f"The file changes {name}.{end} by {vector.numel()} numbers, but this base's has {own.numel()}.",
                    "It was made for another base.",
                )
            else:
                vectors[f"{name}.{end}"] = vector.flatten()
    return vectors, homeless


def words_in(tensors: Mapping[str, Tensor], widths: Mapping[str, int]) -> tuple[Words, list[str]]:
    """Word → text encoder → embeddings [n, width], and the names of tensors that belong to no encoder here.

    Args:
        widths: text encoder → the width of its embeddings.
    """
    words: Words = {}
    strange: list[str] = []
    for name, tensor in tensors.items():
        if not name.startswith(BUNDLE):
            continue
        word, _, kind = name.removeprefix(BUNDLE).partition(".")
        rows = tensor if tensor.ndim == 2 else tensor[None]
        component = ENCODERS.get(kind)
        if kind == _ONE_TENSOR:
            component = next((encoder for encoder, width in widths.items() if width == rows.shape[-1]), None)
        fits = component is not None and rows.ndim == 2 and rows.shape[1] == widths.get(component) and len(rows) > 0
        if component is None or not fits or not word.strip() or len(word) > _LONGEST:
            strange.append(name)
        else:
            words.setdefault(word.strip(), {})[component] = rows
    return words, strange


def widths_of(components: Mapping[str, nn.Module]) -> dict[str, int]:
    """Text encoder → the width of its token embeddings."""
    return {
        component: parameter.shape[1]
        for component, model in components.items()
        for name, parameter in model.named_parameters()
        if name.endswith("token_embedding.weight")
    }


def bundled(extras: Extras) -> dict[str, Tensor]:
    """The words as OneTrainer, A1111 and SD.Next read them."""
    kinds = {component: kind for kind, component in ENCODERS.items()}
    return {
        f"{BUNDLE}{word}.{kinds[component]}": tensor
        for word, found in extras.words.items()
        for component, tensor in found.items()
    }
