"""How long a user waits: `pytest -m slow -s tests/browser/test_latency.py` prints the figures of BENCHMARKS.md."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ROUNDS = 5


@pytest.fixture
def cold(server: Any, tmp_path: Path) -> Iterator[Any]:
    """A server that was started just now, on an empty home."""
    server.stop()
    began = time.perf_counter()
    fresh = type(server)(tmp_path / "home").start()
    print(f"\nthe address is printed: {time.perf_counter() - began:.1f} s")
    yield fresh
    fresh.stop()
    server.start()


def test_what_a_user_waits_for(cold: Any, visitor: Callable[..., Any]) -> None:
    began = time.perf_counter()
    studio = visitor(at=cold, start=False)
    studio.page.goto(cold.address)
    expect(studio.page.locator("#generate")).to_be_visible()
    print(f"the page is there: {time.perf_counter() - began:.1f} s")
    studio.generate()
    studio.state("1 of 1 picture done")
    expect(studio.shown().first).to_be_visible()
    first = time.perf_counter() - began
    print(f"the first picture, 20 steps, from the page's opening and with the model's loading: {first:.1f} s")
    shown, done, loads = [], [], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        studio.generate()
        studio.state(re.compile("waiting|running"))
        shown.append(time.perf_counter() - began)
        studio.state("1 of 1 picture done")
        done.append(time.perf_counter() - began)
        began = time.perf_counter()
        studio.page.goto(cold.address)
        expect(studio.page.locator("#generate")).to_be_visible()
        loads.append(time.perf_counter() - began)
    for what, seconds in (
        ("Generate is pressed, the job is shown", shown),
        ("Generate is pressed, the picture is done", done),
        ("the page is loaded again", loads),
    ):
        spread = (max(seconds) - min(seconds)) / statistics.median(seconds)
        print(f"{what}: {statistics.median(seconds):.2f} s (spread {spread:.0%})")
    assert first < 120
