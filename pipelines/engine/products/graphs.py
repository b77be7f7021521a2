"""Work that is recorded once and replayed: as a CUDA graph, or, where there are none, by doing the work again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

Result = TypeVar("Result", covariant=True)


class Recording(Protocol[Result]):
    """Recorded work. A replay reads the same buffers as the work did, and writes and returns the same results."""

    def replay(self) -> Result: ...


class Recorder(Protocol):
    """Makes recordings of work on static buffers."""

    def record(self, work: Callable[[], Result]) -> Recording[Result]: ...


class CudaGraphs:
    """Records CUDA graphs that share one memory pool.

    They can share it because only one graph runs at a time, and its results are copied before the next one starts.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], Result]) -> Recording[Result]:
        """Run the work once on a side stream, so that libraries set themselves up; then record it."""
        side: torch.cuda.Stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            work()
        torch.cuda.current_stream(self._device).wait_stream(side)
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile, and their allocations must not end the recording.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = work()
        return _Graph(graph, result)


class _Graph(Recording[Result]):
    def __init__(self, graph: torch.cuda.CUDAGraph, result: Result) -> None:
        self._graph, self._result = graph, result

    def replay(self) -> Result:
        self._graph.replay()
        return self._result


class Reruns:
    """Recordings without graphs: every replay does the work again. For tests on the CPU."""

    def record(self, work: Callable[[], Result]) -> Recording[Result]:
        return _Rerun(work)


class _Rerun(Recording[Result]):
    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work

    def replay(self) -> Result:
        return self._work()
