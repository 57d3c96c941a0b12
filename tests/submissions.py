"""Jobs of which nothing but their place in the queue matters. Imports no torch."""

from __future__ import annotations

from typing import Any

from studio.queue import Submission


def submission(title: str = "sks dog", **more: Any) -> Submission:
    return Submission(config={"base": "embedded", "adapter": {"method": "lora"}}, title=title, **more)
