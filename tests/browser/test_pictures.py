"""The README's pictures of the web studio.

LORA_STUDIO_SHOTS=assets/gallery pytest -m slow tests/browser/test_pictures.py
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def fresh(server: Any, tmp_path: Path) -> Iterator[Any]:
    """A server on an empty home, which draws the first screen's strip itself."""
    started = type(server)(tmp_path / "home").start()
    yield started
    started.stop()


@pytest.mark.parametrize("dark", [False, True], ids=["compose", "dark"])
def test_a_mix_of_three(fresh: Any, visitor: Callable[..., Any], tmp_path: Path, dark: bool) -> None:
    studio = visitor(width=1366, height=1000, dark=dark, at=fresh)
    studio.write("a panda wearing a kimono at a castle")
    studio.add("panda", "kimono", "castle")
    studio.number("seed", 7)
    studio.number("count", 2)
    studio.generate()
    studio.state("2 of 2 pictures done")
    expect(studio.shown()).to_have_count(2)
    strip = studio.page.locator("#showcase img")  # five jobs that wait for quiet
    expect(strip).to_have_count(4, timeout=450_000)
    studio.page.mouse.move(0, 0)
    studio.page.evaluate("window.scrollTo(0, 0)")
    studio.page.wait_for_timeout(1000)
    file = Path(os.environ.get("LORA_STUDIO_SHOTS", tmp_path)) / f"web-{'dark' if dark else 'compose'}.png"
    studio.page.screenshot(path=file)
    Image.open(file).convert("RGB").quantize(256).save(file, optimize=True)
