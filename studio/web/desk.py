"""What every page works with: the worker, the trainings, and who is looking."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import gradio as gr

from pipelines import StudioError
from pipelines.errors import ModelError
from studio.jobs import Trainings, Worker
from studio.jobs.owner import owner_of
from studio.library.card import Card
from studio.library.fit import Fit, fit_of
from studio.opening import Opening, model_name


@dataclass(frozen=True)
class Desk:
    """browser: holds the browser's random id. form: what the browser keeps of the Compose form (`kept_form`).
    model: holds the chosen model's name, "" for the default. opened: whether the page knows whose it is."""

    worker: Worker
    trainings: Trainings
    browser: gr.BrowserState
    form: gr.BrowserState
    model: gr.State
    opened: gr.State

    def chosen(self, model: str) -> str:
        """The model's name, the default one's where none was chosen."""
        return model_name(Opening(model or None), self.worker.home)

    def fit(self, model: str) -> Fit | None:
        """What an adapter must be to fit the model; None where headers cannot tell."""
        try:
            return fit_of(self.chosen(model), self.worker.home)
        except ModelError:
            return None

    def fitting(self, model: str) -> list[Card]:
        """The library's cards that fit the model, by name."""
        return self.worker.library.search(fit=self.fit(model), fitting_only=True)


def who(browser: str | None, request: gr.Request) -> str:
    """The owner of what is asked for."""
    return owner_of(request.username, browser)


@contextmanager
def told() -> Iterator[None]:
    """Within: a StudioError becomes the message that the page shows."""
    try:
        yield
    except StudioError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error


def address(file: Path) -> str:
    """Where the page finds a file that it may show."""
    return f"/gradio_api/file={quote(str(file))}"
