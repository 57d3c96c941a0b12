"""How runs went so far: their events, read on from where the last look ended, kept small for drawing."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from studio.queue import Queue
from trainers import events
from trainers.events import Event

POINTS = 200
"""A LinePlot blocks the page for longer the more it has: a redraw took 51 to 75 ms with 400, under 50 with 200."""
_KEPT = 32
_SMOOTHING = 0.05


@dataclass
class Course:
    """Losses by step, samples by step (file names), and what was worth a warning."""

    offset: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)
    samples: list[tuple[int, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def see(self, event: Event) -> None:
        match event:
            case events.Started():  # goes on from a checkpoint: what came after it is done again
                self.losses = [(step, loss) for step, loss in self.losses if step <= event.step]
            case events.Stepped():
                self.losses.append((event.step, event.loss))
            case events.Sampled():
                self.samples = [one for one in self.samples if one[0] != event.step] + [(event.step, event.path.name)]
            case events.Note(level="warning") if event.text not in self.notes:
                self.notes.append(event.text)
            case _:
                pass

    def smoothed(self, points: int = POINTS) -> list[tuple[int, float]]:
        """The loss's exponential moving average (its start corrected for, as Adam's), at so many steps at most."""
        average, weight, drawn = 0.0, 0.0, list[tuple[int, float]]()
        for step, loss in self.losses:
            average += _SMOOTHING * (loss - average)
            weight += _SMOOTHING * (1 - weight)
            drawn.append((step, average / weight))
        if len(drawn) <= points:
            return drawn
        last = len(drawn) - 1
        return [drawn[round(number * last / (points - 1))] for number in range(points)]


class Courses:
    """The courses that were looked at last. A look reads only what has been written since the one before."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Course] = OrderedDict()

    def of(self, id: str) -> Course:
        with self._lock:
            course = self._known.pop(id, None) or Course()
            chunk = self.queue.follow(id, course.offset)
            if chunk.offset < course.offset:  # another run has begun in that folder
                course = Course()
            for event in chunk.events:
                course.see(event)
            course.offset = chunk.offset
            self._known[id] = course
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
            return course
