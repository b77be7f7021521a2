"""A worker in a home of its own, with the random SDXL model and two LoRAs for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines import StudioPipeline
from pipelines.home import Home
from studio.drafts.draft import Draft, Wanted
from studio.jobs import JobView, Worker
from studio.jobs.gate import Trust

PATIENCE = 60.0


class Calls:
    """How often a UNet was called."""

    def __init__(self, unet: Any) -> None:
        self.count = 0
        unet.register_forward_pre_hook(self._called)

    def _called(self, *_: object) -> None:
        self.count += 1


class Studio:
    """A started worker and short words for what tests do with it."""

    def __init__(self, home: Home, model: str, trust: Trust | None = None) -> None:
        self.home = home
        self.model = model
        self.worker = Worker(home, trust=trust)
        self.worker.start()

    def ask(self, owner: str, *drafts: Draft, **options: object) -> str:
        return self.worker.submit(owner, drafts, **{"model": self.model, **options})  # type: ignore[arg-type]

    def until(self, id: str, owner: str, true: Callable[[JobView], bool]) -> JobView:
        """The job's view as soon as something is true of it."""
        version = -1
        for _ in range(1000):
            version = self.worker.wait(version, PATIENCE)
            view = self.worker.view(id, owner)
            assert view is not None
            if true(view):
                return view
        raise AssertionError("it never came true")

    def pause(self) -> threading.Event:
        """Holds the worker's thread until the event is set, so that what is asked for meanwhile begins together."""
        go, held = threading.Event(), threading.Event()

        def wait(pipe: StudioPipeline) -> None:
            held.set()
            go.wait(PATIENCE)

        self.worker.call(wait, model=self.model)
        assert held.wait(PATIENCE)
        return go

    def count_calls(self) -> Calls:
        """Counts the UNet's calls from now on."""
        resident = self.worker._rounds.resident
        assert resident is not None
        return Calls(resident.pipe.model.unet)

    def over(self, id: str, owner: str) -> JobView:
        return self.until(id, owner, lambda view: view.state.over)


def draft(prompt: str = "a fox", *loras: str, **values: object) -> Draft:
    """A very small picture."""
    wanted = tuple(Wanted(name, 0.8) for name in loras)
    return Draft({"prompt": prompt, "steps": 3, "width": 32, "height": 32, **values}, wanted)


@pytest.fixture
def studio_home(home: Path, loras: Path, sdxl_folder: Path) -> Home:
    return Home.resolve(home, model_dirs=[sdxl_folder.parent])


@pytest.fixture
def open_studio(studio_home: Home, sdxl_folder: Path) -> Iterator[Callable[..., Studio]]:
    """open_studio() -> a started one; all are closed in the end."""
    opened: list[Studio] = []

    def start(model: str = sdxl_folder.name, trust: Trust | None = None) -> Studio:
        opened.append(Studio(studio_home, model, trust))
        return opened[-1]

    yield start
    for studio in opened:
        if studio.worker.running:
            studio.worker.close()


@pytest.fixture
def studio(open_studio: Callable[..., Studio]) -> Studio:
    return open_studio()
