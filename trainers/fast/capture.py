"""Work on fixed tensors, recorded once as a CUDA graph and replayed: one launch in the place of thousands."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cache

import torch

from adapters.side_stream import abandon_pending


class Recorder:
    """Runs named pieces of work: the first time as they are, then recorded, then replayed.

    The first run of a piece is an ordinary one: libraries load their kernels, plans and workspaces. A piece must read
    and write the same tensors each time, wait for the device nowhere, and draw random numbers from `generators` alone,
    which may be seeded anew before each run. A piece that turns out not to be recordable goes on running as it is;
    `problems` says which and why.
    """

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator] = (), enabled: bool = True) -> None:
        self.enabled = enabled and device.type == "cuda"
        self.problems: dict[Hashable, str] = {}
        self._generators = list(generators)
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self._stream = _stream(device) if self.enabled else None
        self._pool = torch.cuda.graph_pool_handle() if self.enabled else None

    def run(self, name: Hashable, work: Callable[[], None]) -> None:
        """`work` once, by whatever way is open for it."""
        if self._stream is None or name in self.problems:
            work()
            return
        outer = torch.cuda.current_stream()
        self._stream.wait_stream(outer)
        with torch.cuda.stream(self._stream):
            if name not in self._graphs:
                self._graphs[name] = None
                torch.cuda.empty_cache()  # what other streams kept is of no use to this one
                work()
            else:
                graph = self._graphs[name] or self._record(name, work)
                if graph is None:
                    work()
                else:
                    graph.replay()
        outer.wait_stream(self._stream)

    def forget(self) -> None:
        """Record everything anew: what a piece does has changed."""
        self._graphs.clear()
        if self.enabled:
            torch.cuda.empty_cache()

    def _record(self, name: Hashable, work: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        try:
            # thread_local: NCCL's own thread looks at its events meanwhile, which would end a recording of all threads
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                work()
        except Exception as error:  # torch says it in many ways; what the work itself is to blame for shows when run
            self.problems[name] = (str(error).strip().splitlines() or [type(error).__name__])[0]
            abandon_pending()
            for generator in (*self._generators, torch.cuda.default_generators[torch.cuda.current_device()]):
                revive(generator)
            return None
        self._graphs[name] = graph
        return graph


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recorders of a process: cuBLAS keeps 32 MiB for each stream that it has ever seen."""
    return torch.cuda.Stream(device)


def revive(generator: torch.Generator) -> None:
    """Gives a generator a state of its own again, at the start of its seed.

    Where a recording fails, torch leaves those that took part believing that they are still being recorded.
    """
    seed = generator.initial_seed()
    generator.graphsafe_set_state(torch.Generator(generator.device).graphsafe_get_state())
    generator.manual_seed(seed)
