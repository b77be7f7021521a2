"""What a refusal may cost. Generous: a loaded machine must not fail, and what these tests look for is off by far."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cheap(seconds: float = 5.0, megabytes: float = 100.0) -> Iterator[None]:
    """Fails where the block takes more time of the processor, or more memory of Python's own at once."""
    tracemalloc.start()
    began = time.process_time()
    try:
        yield
    finally:
        took = time.process_time() - began
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert took < seconds, f"it took {took:.1f} s"
    assert most < megabytes * 1e6, f"it took {most / 1e6:.0f} MB"
