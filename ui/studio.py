"""What all pages share: the queue, the drafts, and the clerk who answers what takes torch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from adapters.errors import StudioError
from studio import workers
from studio.clerk import Clerk
from studio.library import Library
from studio.queue import Queue
from studio.store.states import WAITING
from ui.drafts import Drafts
from ui.exports import Exports

BASES = {
    "embedded": "Built-in: small and quick, 128 px",
    "stabilityai/stable-diffusion-xl-base-1.0": "Stable Diffusion XL 1.0, 1024 px",
}
_LOOK_EVERY_SECONDS = 3.0


class Studio:
    """One for a server. `open` starts what goes on beside the requests, `close` ends it; jobs outlive both."""

    def __init__(self, queue: Queue, bases: Sequence[str] = ()) -> None:
        self.bases = {**BASES, **{name: name for name in bases}}
        """What may be taught, with what people call it: nobody names a base by a text of their own."""
        self.queue = queue
        self.clerk = Clerk()
        self.library = Library(self.home, queue.store)
        self.exports = Exports(self.library)
        self.drafts = Drafts(self.home / "drafts")
        self._closing = threading.Event()
        self.trouble = ""
        """Why nobody works at the queue, if so."""

    @property
    def home(self) -> Path:
        return self.queue.home

    def revision(self) -> int:
        """Grows whenever a job, an export or the library moves: while it is the same, pages show what is."""
        return self.queue.revision() + self.library.revision() + self.exports.revision

    def open(self) -> None:
        self.exports.clean()
        self.clerk.wake()
        threading.Thread(target=self._look_after_jobs, name="studio-janitor", daemon=True).start()

    def close(self) -> None:
        self._closing.set()
        self.clerk.close()
        self.exports.close()

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
