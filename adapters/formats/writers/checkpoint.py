"""A whole SDXL model in one file, with the adapter in its weights, as SDXL checkpoints are shared."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from adapters.base import Adapter
from adapters.extras import Extras
from adapters.formats.export import HASH_KEY, PROGRAMS, Exported, Format, Source, modelspec
from adapters.formats.sgm import Piece, checkpoint_pieces
from adapters.layer import master
from adapters.streamed import Streamed, save_streamed

_ARCHITECTURE = "stable-diffusion-xl-v1-base"


class MergedCheckpoint(Format, name="merged-checkpoint"):
    """Stability's own names (formats.sgm). Each tensor is merged when it is written: no second copy of the model."""

    whole_model: ClassVar[bool] = True

    def read_by(self, extras: Extras) -> dict[str, str]:
        return dict.fromkeys(PROGRAMS, "yes") | {"diffusers": "yes, by from_single_file", "kohya_ss": "yes, as a base"}

    def save(self, path: str | os.PathLike[str], source: Source, rank: int, dtype: torch.dtype) -> Exported:
        """The whole change of every layer; `rank` is not needed."""
        merged = MergedModel(source)
        tensors = {name: merged.streamed(piece) for name, piece in checkpoint_pieces(merged.names()).items()}
        if source.card.prediction_type == "v_prediction":  # how such checkpoints say what they are
            marks = ("v_pred", "ztsnr") if source.card.zero_terminal_snr else ("v_pred",)
            tensors |= {mark: Streamed((0,), lambda: torch.zeros(0)) for mark in marks}
        save_streamed(path, tensors, dtype, modelspec(source.card, _ARCHITECTURE), HASH_KEY)
        return Exported(0.0, len(source.adapters.adapters), tuple(source.adapters.extras.words))


class MergedModel:
    """The tensors of a pipeline with an adapter in them, one at a time."""

    def __init__(self, source: Source) -> None:
        self._own = {component: _tensors(model) for component, model in source.components.items()}
        self._adapters: Mapping[str, Adapter] = source.adapters.adapters
        self._vectors = source.adapters.extras.vectors

    def names(self) -> dict[str, list[str]]:
        """Component → its tensors' names."""
        return {component: list(tensors) for component, tensors in self._own.items()}

    def streamed(self, piece: Piece) -> Streamed:
        """A piece of the file, made when it is written."""
        own = [self._own[piece.component][name] for name in piece.names]
        shape = piece.laid(tensor.to("meta") for tensor in own).shape
        return Streamed(tuple(shape), lambda: piece.laid(self.value(piece.component, name) for name in piece.names))

    def value(self, component: str, name: str) -> Tensor:
        """One tensor, merged in fp32."""
        full, own = f"{component}.{name}", self._own[component][name]
        layer, _, end = full.rpartition(".")
        if end == "weight" and (adapter := self._adapters.get(layer)) is not None:
            weight = master(own)
            return weight + adapter.delta_weight(weight)
        vector = self._vectors.get(full)
        return own if vector is None else master(own) + vector.to(own.device)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("text_model."): tensor for name, tensor in model.state_dict().items()}
