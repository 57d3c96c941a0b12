"""What a run learns, as a UUID: the same trigger, class word and pictures are the same concept, on any machine."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from adapters.digest import file_sha256
from trainers.captions import CaptionConfig
from trainers.dataset import DataConfig
from trainers.images import picture_paths

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "spectral-studio:concept")


def concept_id(captions: CaptionConfig, pictures: Iterable[str]) -> str:
    """The UUID (version 5) from the sha256 of the pictures; their names and order do not count."""
    return str(uuid.uuid5(_NAMESPACE, "\n".join([captions.trigger, captions.class_word, *sorted(pictures)])))


def concept_of(data: DataConfig) -> str:
    """The same from the folder, before a run begins. Raises UserInputError where it holds no pictures."""
    return concept_id(data.captions, map(file_sha256, picture_paths(data.folder)))
