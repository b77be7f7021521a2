"""One model at work: pictures are given by the keys of their jobs, share UNet calls, and come back as they finish.

`lora-studio batch` has one Renderer in its own process; under Ray, each actor has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipelines import Failed, Finished, Request, StudioError, StudioPipeline
from studio.pictures.metadata import Setup
from studio.rendering.runner import Fill, Runner
from studio.rendering.saver import Made, Png


@dataclass(frozen=True)
class Rendered:
    """A picture, or why there is none. key: its job's."""

    key: str
    made: Made | Png | None = field(default=None, repr=False)
    error: str | None = None


class Renderer:
    """Renders pictures with one loaded model. files: name -> file of the adapters."""

    def __init__(self, pipe: StudioPipeline, files: Mapping[str, Path], setup: Setup) -> None:
        self.pipe = pipe
        self._files, self._setup = files, setup
        pipe.store.add(files)
        self._runner: Runner[str] = Runner(pipe.model)

    def close(self) -> None:
        """Drops all pictures, and unloads the adapters."""
        self._runner.close()
        self.pipe.unload_lora_weights()

    @property
    def busy(self) -> bool:
        return not self._runner.idle

    @property
    def room(self) -> int:
        """About how many more pictures to give now, so that no row stays empty."""
        return self._runner.room

    @property
    def fill(self) -> Fill:
        return self._runner.fill

    def give(self, key: str, request: Request) -> Rendered | None:
        """Asks for a picture. None: it will come; else what says why it cannot be made."""
        try:
            self._runner.give(key, request)
        except StudioError as error:
            return Rendered(key, error=str(error))
        return None

    def step(self) -> list[Rendered]:
        """Runs one round; returns the pictures that it finished, and those that failed."""
        rendered = []
        for key, event in self._runner.step():
            if isinstance(event, Finished):
                rendered.append(Rendered(key, Made.of(event, self._files, self._setup)))
            elif isinstance(event, Failed):
                rendered.append(Rendered(key, error=str(event.error)))
        return rendered
