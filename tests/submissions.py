"""Jobs of which nothing but their place in the queue matters. Imports no torch."""

from __future__ import annotations

from typing import Any

from studio.queue import Submission
from studio.store import TrainRequest


def submission(title: str = "sks dog", *, resume: bool = False, **more: Any) -> Submission:
    config = {"base": "embedded", "adapter": {"method": "lora"}}
    return Submission(request=TrainRequest(config=config, resume=resume), title=title, **more)
