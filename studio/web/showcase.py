"""The first thing on the first screen: one mix by four methods, drawn here, with what one pass saved here.

Drawn at the first start, in pieces between which jobs have their turn, and kept in the home's cache.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from composers import Composer, build
from pipelines import Request, StudioPipeline
from pipelines.adapters import inspect_file
from pipelines.errors import StudioError
from studio.jobs import Worker
from studio.opening import BUILT_IN
from studio.outputs import write_whole
from studio.web.desk import address

PROMPT = "a panda wearing a kimono at a castle"
MIX = ("panda", "kimono", "castle")
METHODS = ("merge", "switch", "composite", "cmlora")
SEED = 7


@dataclass(frozen=True)
class Strip:
    """together, alone: seconds in one pass, and one picture after another; 0 where it is not measured yet."""

    files: tuple[Path, ...]
    together: float = 0.0
    alone: float = 0.0
    device: str = ""


class Showcase:
    """Draws the strip once, on the worker's own thread, and remembers it."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._folder = worker.home.cache / "web" / "showcase"
        self.problem = ""

    @property
    def strip(self) -> Strip | None:
        """None until it is drawn."""
        try:
            said = json.loads((self._folder / "strip.json").read_text(encoding="utf-8"))
            strip = Strip(
                tuple(self._file(name) for name in METHODS), said["together"], said["alone"], said["device"]
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return strip if all(file.is_file() for file in strip.files) else None

    def start(self) -> None:
        """Begins to draw, where that was not done before; returns at once."""
        if self.strip is None:
            threading.Thread(target=self._draw, name="showcase", daemon=True).start()

    def html(self) -> str:
        """The strip, or what it waits for."""
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
            f"{', '.join(MIX)}: four methods, one seed, one pass. Measured here ({escape(strip.device)}): "
            f"{strip.together:.1f} s in one pass, {strip.alone:.1f} s one after another ({ratio:.2f} times).</p>"
        )

    def _draw(self) -> None:
        try:
            rendered = self._call(METHODS)
            for name, image in zip(METHODS, rendered.images, strict=True):
                self._save(name, image)
            together, alone = rendered.seconds, 0.0
            for name in METHODS:
                alone += self._call((name,)).seconds
            device = rendered.device
            said = json.dumps({"together": together, "alone": alone, "device": device})
            write_whole(self._folder / "strip.json", lambda path: _write(path, said), force=True)
        except StudioError as error:
            self.problem = str(error)

    def _call(self, names: Sequence[str]) -> _Rendered:
        future: Future[_Rendered] = self._worker.call(
            lambda pipe: _render(pipe, self._worker, names), model=BUILT_IN
        )
        return future.result()

    def _save(self, name: str, image: Image.Image) -> None:
        self._worker.home.made(self._folder)
        write_whole(self._file(name), lambda path: image.save(path, format="PNG"), force=True)

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.png"


@dataclass(frozen=True)
class _Rendered:
    images: list[Any]
    seconds: float
    device: str


def _render(pipe: StudioPipeline, worker: Worker, names: Sequence[str]) -> _Rendered:
    """The strip's adapters under names of their own, so that those of jobs stay as they are."""
    files = [worker.home.find_lora(name, BUILT_IN).path for name in MIX]
    own = [f"showcase {name}" for name in MIX]
    weights = [inspect_file(file).metadata.preferred_weight or 1.0 for file in files]
    loaded: list[str] = []
    try:
        for name, file in zip(own, files, strict=True):
            pipe.load_lora_weights(file, adapter_name=name)
            loaded.append(name)
        mix = dict(zip(own, weights, strict=True))
        requests = [Request(PROMPT, adapters=mix, composer=_method(name), seed=SEED) for name in names]
        began = time.perf_counter()
        result = pipe(requests)
        return _Rendered(result.images, time.perf_counter() - began, result.records[0].device)
    finally:
        for name in loaded:
            pipe.unload_lora_weights(name)


def _method(name: str) -> Composer:
    return build(name, {})


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
