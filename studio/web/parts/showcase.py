"""A strip on the first screen: one mix by four methods, drawn on this computer, with the time that sharing passes
saved.

It is drawn at the first start, while nobody asks for anything else, and kept in the home's cache.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from composers import build
from pipelines.errors import RenderError, SetupError, StudioError
from pipelines.home.files import write_whole
from pipelines.home.plain import read_json, read_text, reading
from studio.drafts.draft import Draft, Wanted
from studio.jobs import LIVE, JobState, JobView, PictureView, Worker
from studio.library.models import BUILT_IN
from studio.web.parts.desk import address

OWNER = "studio"
"""The owner of the strip's jobs. Nobody can log in by this name or see the jobs."""
QUIET = 2.0
"""Seconds without any job before the strip is drawn."""
PROMPT = "a panda wearing a kimono at a castle"
MIX = ("panda", "kimono", "castle")
METHODS = ("merge", "switch", "composite", "cmlora")
SEED = 7


@dataclass(frozen=True)
class Strip:
    """The finished strip. together, alone: seconds in shared passes, and one picture after another; 0 until
    measured."""

    files: tuple[Path, ...]
    together: float = 0.0
    alone: float = 0.0
    device: str = ""


class Showcase:
    """Draws the strip once, with the built-in model, and remembers it.

    thread: draws it; None before `start`. problem: why it could not be drawn, "" if nothing went wrong.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._folder = worker.home.cache / "web" / "showcase"
        self.thread: threading.Thread | None = None
        self.problem = ""

    @property
    def strip(self) -> Strip | None:
        """The strip; None until it is drawn."""
        file = self._folder / "strip.json"
        try:
            with reading(str(file), SetupError):
                said = read_json(read_text(file), str(file))
                files = tuple(self._file(name) for name in METHODS)
                strip = Strip(files, float(said["together"]), float(said["alone"]), str(said["device"]))
        except StudioError:
            return None
        return strip if all(file.is_file() for file in strip.files) else None

    def start(self) -> None:
        """Begins to draw, if that was not done before; returns at once."""
        if self.strip is None and self.thread is None:
            self.thread = threading.Thread(target=self._draw, name="showcase", daemon=True)
            self.thread.start()

    def html(self) -> str:
        """The strip, or why it is not there, as HTML."""
        strip = self.strip
        if strip is None:
            said = (
                self.problem or "drawing one mix by four methods in one pass; the first time takes a moment …"
            )
            return f'<p class="small-note">{escape(said)}</p>'
        figures = "".join(
            f'<figure><img src="{address(file)}" alt="{escape(PROMPT)}, by {name}">'
            f"<figcaption>{name}</figcaption></figure>"
            for name, file in zip(METHODS, strip.files, strict=True)
        )
        ratio = strip.alone / strip.together if strip.together else 0
        return (
            f'<div class="strip">{figures}</div><p class="small-note">“{escape(PROMPT)}” with the LoRAs '
            f"{', '.join(MIX)}: four methods, one seed. Measured here ({escape(strip.device)}): "
            f"{strip.together:.1f} s in one pass, {strip.alone:.1f} s one after another ({ratio:.2f} times).</p>"
        )

    def _draw(self) -> None:
        """Draws while nobody else has a job. If a job comes, it comes first, and drawing begins again later."""
        try:
            together = self._rendered(METHODS)
            self._worker.home.made(self._folder)
            for name, picture in zip(METHODS, together, strict=True):
                shutil.copyfile(picture.file, self._file(name))
            alone = [self._rendered((name,))[0] for name in METHODS]
            said = json.dumps(
                {
                    "together": max(picture.seconds for picture in together),
                    "alone": sum(picture.seconds for picture in alone),
                    "device": together[0].device,
                }
            )
            write_whole(self._folder / "strip.json", said, force=True)
        except StudioError as error:
            self.problem = str(error)

    def _rendered(self, names: Sequence[str]) -> list[_Drawn]:
        """Draws the mix by these methods, in one job that has the device to itself. Raises StudioError."""
        while True:
            self._wait_for_quiet()
            job = self._worker.submit(OWNER, [_draft(name) for name in names], model=BUILT_IN, kind=LIVE)
            view = self._look(job)
            while view is not None and not view.state.over:
                if self._worker.busy(but=OWNER):
                    self._worker.cancel(job, OWNER)
                self._worker.wait(self._worker.version, 0.5)
                view = self._look(job)
            if view is None or view.state is JobState.FAILED:
                raise RenderError(view.error if view is not None else "the strip could not be drawn")
            if view.state is JobState.DONE:
                return [_drawn(picture) for picture in view.pictures]
            self._worker.delete(job, OWNER)

    def _look(self, job: str) -> JobView | None:
        self._go_on()
        return self._worker.view(job, OWNER)

    def _go_on(self) -> None:
        if not self._worker.running:
            raise RenderError("the studio was closed")

    def _wait_for_quiet(self) -> None:
        """Waits until the built-in model is ready and nobody has had a job for some seconds. Raises RenderError when
        the studio closes."""
        quiet = 0.0
        while quiet < QUIET:
            time.sleep(0.25)
            self._go_on()
            state = self._worker.model_state()
            idle = state.ready and state.source == BUILT_IN and not self._worker.busy(but=OWNER)
            quiet = quiet + 0.25 if idle else 0.0

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.png"


@dataclass(frozen=True)
class _Drawn:
    """One drawn picture. seconds: from its first step to its pixels."""

    file: Path
    seconds: float
    device: str


def _drawn(picture: PictureView) -> _Drawn:
    assert picture.file is not None
    assert picture.record is not None
    return _Drawn(picture.file, float(picture.record["seconds"]), str(picture.record["device"]))


def _draft(method: str) -> Draft:
    values = {"prompt": PROMPT, "composer": build(method, {}), "seed": SEED}
    return Draft(values, tuple(Wanted(name) for name in MIX))
