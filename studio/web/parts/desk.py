"""What every page works with: the worker, the trainings, and who is looking."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

import gradio as gr

from pipelines.errors import ModelError
from studio.jobs import Trainings, Worker
from studio.jobs.owner import owner_of
from studio.library.card import Card
from studio.library.fit import Fit, fit_of
from studio.rendering.opening import Opening, model_name
from studio.web.door.events import login_of
from studio.web.door.files import Files
from studio.web.form.mix import MixRows, preferring


@dataclass(frozen=True)
class Desk:
    """What every page needs. files: the broker of files. browser: holds the browser's random id. form: holds what the
    browser keeps of the Compose form (`studio.web.form.kept`). model: holds the name of the chosen model, "" for the
    default. opened: holds whether the page knows its owner yet."""

    worker: Worker
    trainings: Trainings
    files: Files
    browser: gr.BrowserState
    form: gr.BrowserState
    model: gr.State
    opened: gr.State

    def chosen(self, model: str) -> str:
        """The model's name; that of the default model where none is chosen."""
        return model_name(Opening(model or None), self.worker.home)

    def fit(self, model: str) -> Fit | None:
        """What an adapter must be to fit the model; None where the model's header cannot be read."""
        try:
            return fit_of(self.chosen(model), self.worker.home)
        except ModelError:
            return None

    def unanswered(self) -> list[str]:
        """Notes about folders that do not answer, so that lists leave out their files. Only a user who may name paths
        sees which folders."""
        silent = self.worker.home.silent
        if silent and not self.worker.trust.paths:
            return ["A folder of this studio does not answer at present; its files are left out."]
        return [f"{folder} does not answer at present; its files are left out." for folder in silent]

    def fitting(self, model: str) -> list[Card]:
        """The library's cards that fit the model, by name."""
        return self.worker.library.search(fit=self.fit(model), fitting_only=True)

    def preferring(self, rows: MixRows) -> MixRows:
        """The mix; rows that leave their strength to the file get the one that the file prefers."""
        if all(row.weight is not None for row in rows):
            return rows
        found = self.worker.library.named(row.name for row in rows)
        return preferring(rows, {card.name.casefold(): card.preferred_weight for card in found})


def who(browser: str | None, request: gr.Request) -> str:
    """The owner of what a page asks for: the login, else the browser."""
    return owner_of(login_of(request), browser)


def whose_files(request: gr.Request) -> str | None:
    """The owner of files that go to a page; None where nobody logs in, since requests for files carry no browser's
    id."""
    login = login_of(request)
    return owner_of(login) if login else None


def plain(text: str, lines: Iterable[str] = ()) -> str:
    """A paragraph and a list as HTML. The texts are escaped, since some come from files and pictures."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return (f'<p class="small-note">{escape(text)}</p>' if text else "") + (
        f"<ul>{items}</ul>" if items else ""
    )


def address(file: Path) -> str:
    """The address at which the page finds a file that it may show."""
    return f"/gradio_api/file={quote(str(file))}"
