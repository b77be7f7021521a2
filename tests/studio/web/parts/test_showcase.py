"""The first screen's strip is drawn by the studio itself, once, and only while nobody asks for anything."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.home import Home
from studio.drafts.draft import Draft
from studio.jobs import Worker
from studio.web.parts import showcase
from studio.web.parts.showcase import METHODS, Showcase


def few_steps(draft: Draft) -> Draft:
    return replace(draft, values={**draft.values, "steps": 4})


def test_the_strip_is_drawn_once_and_measured(
    home: Path, loras: Path, sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(showcase, "BUILT_IN", sdxl_folder.name)
    monkeypatch.setattr(showcase, "MIX", ("fox", "hat"))
    monkeypatch.setattr(showcase, "QUIET", 0.0)
    draft = showcase._draft
    monkeypatch.setattr(showcase, "_draft", lambda name: few_steps(draft(name)))
    worker = Worker(Home.resolve(home, model_dirs=[sdxl_folder.parent]))
    worker.start()
    try:
        worker.load(sdxl_folder.name).result(120)
        strip = Showcase(worker)
        assert "drawing one mix" in strip.html()
        strip.start()
        end = time.monotonic() + 120
        while strip.strip is None:
            assert not strip.problem
            assert time.monotonic() < end
            time.sleep(0.1)
        assert all(f", by {name}" in strip.html() for name in METHODS)
        assert strip.strip.together > 0
        assert strip.strip.alone > 0
        assert Showcase(worker).strip == strip.strip  # kept for the next start
    finally:
        worker.close()


def test_a_strip_that_is_interrupted_by_the_end_says_nothing_on_stderr(
    home: Path,
    loras: Path,
    sdxl_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(showcase, "BUILT_IN", sdxl_folder.name)
    worker = Worker(Home.resolve(home, model_dirs=[sdxl_folder.parent]))
    worker.start()
    strip = Showcase(worker)
    strip.start()
    worker.close()
    assert strip.thread is not None
    strip.thread.join(30)
    assert strip.problem == "the studio was closed"
    assert "Traceback" not in capfd.readouterr().err
