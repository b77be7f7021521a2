"""Work recorded once and replayed: a CUDA graph, or the same work on the same buffers where there are no graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

Result = TypeVar("Result", covariant=True)


class Recording(Protocol[Result]):
    """Recorded work. A replay reads the buffers that the work read, and writes those of `result`."""

    def replay(self) -> Result: ...


class Recorder(Protocol):
    """Records work on static buffers."""

    def record(self, work: Callable[[], Result]) -> Recording[Result]: ...


class CudaGraphs:
    """CUDA graphs that share one memory pool, since only one of them runs at a time and what it leaves is copied out
    before the next one starts."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], Result]) -> Recording[Result]:
        """Runs the work once on a side stream (libraries set themselves up), then records it."""
        side: torch.cuda.Stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            work()
        torch.cuda.current_stream(self._device).wait_stream(side)
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        # Pictures may be decoded on another thread meanwhile, and its allocations must not end the recording.
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
    """Static buffers without graphs: every replay does the work again. For tests on the CPU."""

    def record(self, work: Callable[[], Result]) -> Recording[Result]:
        return _Rerun(work)


class _Rerun(Recording[Result]):
    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work

    def replay(self) -> Result:
        return self._work()
