"""Pictures from the queue: RUN/pictures/0000.png and so on, in the order of the request. Those that are there stay.

Where it was asked for, RUN/scores.json follows (studio.scores).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from adapters.errors import UnknownNameError
from adapters.formats.open import open_adapter
from studio.drawing import Loaded, drawn, recipes
from studio.paths import picture_name
from studio.scoring import Scoring
from studio.short_run import ShortRun
from studio.store import SampleRequest, Use
from trainers.events import Progress
from trainers.schedulers import SCHEDULERS
from trainers.sdxl import Base


class SampleRun(ShortRun):
    """Draws what is missing of a job's pictures; those of the same adapters follow each other."""

    def _work(self) -> None:
        request = self.claim.job.request
        assert isinstance(request, SampleRequest)
        if request.scheduler not in SCHEDULERS:
            raise UnknownNameError("scheduler", request.scheduler, list(SCHEDULERS))
        base = self.base(request.base)
        self._count(request)
        missing = [number for number in range(len(request.drawings)) if not self._path(number).exists()]
        for uses in dict.fromkeys(request.drawings[number].uses for number in missing):
            self._draw(request, base, uses, [one for one in missing if request.drawings[one].uses == uses])
        if request.scored:
            scoring = Scoring(base, request, self.folder.path, self.claim.queue, self.adapter, self.tell)
            self.attempt(scoring.score, "The pictures have no scores")

    def _draw(self, request: SampleRequest, base: Base, uses: Sequence[Use], numbers: Sequence[int]) -> None:
        paths = [self.adapter(use.adapter) for use in uses]
        loaded = [
            Loaded(path, open_adapter(path), use.strength, use.part) for path, use in zip(paths, uses, strict=True)
        ]
        asked = [request.drawings[number] for number in numbers]
        wanted = recipes(request, base, loaded, [(one.prompt, one.seed) for one in asked])
        with closing(drawn(base, loaded, wanted, self.tell)) as pictures:
            for number, picture in zip(numbers, pictures, strict=True):
                picture.save(self._path(number), self.tell)
                self._count(request)

    def _count(self, request: SampleRequest) -> None:
        done = sum(self._path(number).exists() for number in range(len(request.drawings)))
        self.tell(Progress(stage="pictures", done=done, total=len(request.drawings)))

    def _path(self, number: int) -> Path:
        return self.folder.path / picture_name(number)
