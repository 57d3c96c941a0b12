"""A fusion from the queue: RUN/adapter.safetensors with its report beside it, and an entry of the library."""

from __future__ import annotations

from studio.fusing import Request, fuse, options_of
from studio.short_run import ShortRun
from studio.store import FuseRequest


class FuseRun(ShortRun):
    """Makes one adapter of several."""

    def _work(self) -> None:
        asked = self.claim.job.request
        assert isinstance(asked, FuseRequest)
        request = Request(
            adapters=[self.adapter(one) for one in asked.adapters],
            how=asked.how,
            out=self.folder.adapter,
            weights=asked.weights,
            options=options_of(asked.options),
            base=asked.base,
        )
        fuse(request, self.tell, self.base)
