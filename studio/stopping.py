"""Ctrl+C and SIGTERM: the first lets what is at work save its state, the second ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """What a process was told by signals, while it listens. Until `patient` is set, the first one ends it at once."""

    def __init__(self, patient: bool = False) -> None:
        self.patient = patient
        self._signal: int | None = None
        self._event = threading.Event()

    @property
    def asked(self) -> bool:
        return self._signal is not None

    @property
    def exit_code(self) -> int:
        return 128 + (self._signal or signal.SIGINT)

    def wait(self, seconds: float) -> None:
        """Sleeps, but not past a signal."""
        self._event.wait(seconds)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked or not self.patient:
            raise KeyboardInterrupt
        self._signal = number
        self._event.set()

    @contextmanager
    def listening(self) -> Generator[Stop]:
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
