"""Counter-based randomness: every draw is seeded by what it is for, so nothing needs to be carried to resume."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from a path of names and numbers, e.g. derive_seed(seed, "noise", step)."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(device: torch.device | str, *parts: object) -> torch.Generator:
    """A generator on `device`, seeded by the same path."""
    import torch  # here: forms that check captions have none

    return torch.Generator(device).manual_seed(derive_seed(*parts))
