"""What stands in for CUDA graphs on a CPU: operators recorded with the tensors they met, and run again on these."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """Every operator called within; `play` calls them again, without the Python around them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a recording may not read a number"
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, tree_leaves(found)))
        return found

    @torch.no_grad()
    def play(self) -> None:
        for func, args, kwargs, outputs in self.calls:
            for old, new in zip(outputs, tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class TapeRecorder:
    """trainers.fast.capture.Recorder with tapes for graphs."""

    made: int = 0
    """Recordings by all recorders."""

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator] = (), enabled: bool = True) -> None:
        self.enabled = enabled
        self.problems: dict[Hashable, str] = {}
        self._tapes: dict[Hashable, Tape | None] = {}

    def run(self, name: Hashable, work: Callable[[], None]) -> None:
        if name not in self._tapes:
            self._tapes[name] = None
            work()
        elif (tape := self._tapes[name]) is not None:
            tape.play()
        else:
            TapeRecorder.made += 1
            with Tape() as tape:
                work()
            self._tapes[name] = tape

    def forget(self) -> None:
        self._tapes.clear()
