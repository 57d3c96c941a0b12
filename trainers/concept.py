"""What a run learns, as a UUID: the same trigger, class word and pictures are the same concept, on any machine."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable

from trainers.captions import CaptionConfig
from trainers.dataset import DataConfig
from trainers.images import picture_paths

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "spectral-studio:concept")


def concept_id(captions: CaptionConfig, pictures: Iterable[str]) -> str:
    """The UUID (version 5) from the sha256 of the pictures; their names and order do not count."""
    return str(uuid.uuid5(_NAMESPACE, "\n".join([captions.trigger, captions.class_word, *sorted(pictures)])))


def concept_of(data: DataConfig) -> str:
    """The same from the folder, before a run begins. Raises UserInputError where it holds no pictures."""
    found = [hashlib.sha256(path.read_bytes()).hexdigest() for path in picture_paths(data.folder)]
    return concept_id(data.captions, found)
