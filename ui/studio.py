"""What all pages share: the queue, the drafts, and the clerk who answers what takes torch."""

from __future__ import annotations

import threading
from pathlib import Path

from adapters.errors import StudioError
from studio import workers
from studio.clerk import Clerk
from studio.queue import Queue
from studio.store.states import WAITING
from ui.drafts import Drafts

_LOOK_EVERY_SECONDS = 3.0


class Studio:
    """One for a server. `open` starts what goes on beside the requests, `close` ends it; jobs outlive both."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.clerk = Clerk()
        self.drafts = Drafts(self.home / "drafts")
        self._closing = threading.Event()
        self.trouble = ""
        """Why nobody works at the queue, if so."""

    @property
    def home(self) -> Path:
        return self.queue.home

    def open(self) -> None:
        self.clerk.wake()
        threading.Thread(target=self._look_after_jobs, name="studio-janitor", daemon=True).start()

    def close(self) -> None:
        self._closing.set()
        self.clerk.close()

    def _look_after_jobs(self) -> None:
        """The dead are found and somebody is there to work, as long as the server runs."""
        while not self._closing.wait(_LOOK_EVERY_SECONDS):
            try:
                self.queue.sweep()
                if self.queue.list_jobs(WAITING, limit=1) and not workers.alive(self.home):
                    workers.ensure(self.queue)
                self.trouble = ""
            except StudioError as error:
                self.trouble = str(error)
