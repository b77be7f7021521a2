"""A worker in a home of its own, with the random SDXL model and two LoRAs for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.home import Home
from studio.jobs import JobView, Worker
from studio.jobs.gate import Trust
from studio.recipe import Draft, Wanted

PATIENCE = 60.0


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

    def over(self, id: str, owner: str) -> JobView:
        return self.until(id, owner, lambda view: view.state.over)


def _draft(prompt: str = "a fox", *loras: str, **values: object) -> Draft:
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
        if studio.worker._thread.is_alive():
            studio.worker.close()


@pytest.fixture
def studio(open_studio: Callable[..., Studio]) -> Studio:
    return open_studio()


@pytest.fixture
def draft() -> Callable[..., Draft]:
    """draft("a fox", "fox", seed=7) -> a very small picture with that LoRA."""
    return _draft
