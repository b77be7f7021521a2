"""Submitting what the form asks for: one way for every page and button."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from studio.jobs import ModelState
from studio.web.form import mix
from studio.web.form.components import Fields
from studio.web.form.form import Form, Submission
from studio.web.parts.desk import Desk, who


def asker(
    desk: Desk, fields: Fields, make: Callable[[Mapping[Any, Any], Form], Submission], kind: str
) -> Callable[..., str]:
    """A handler that submits the pictures which `make` derives from its inputs and the form. It returns the job's
    id."""

    def ask(got: dict[Any, Any], request: gr.Request) -> str:
        form = with_example(fields.read(got), desk.worker.model_state())
        return submit(desk, who(got[desk.browser], request), form, make(got, form), got[desk.model], kind)

    return ask


def submit(desk: Desk, owner: str, form: Form, asked: Submission, model: str, kind: str) -> str:
    """Submits a job; returns its id. Raises StudioError, and then nothing is queued."""
    return desk.worker.submit(
        owner,
        asked.drafts,
        model=model or None,
        vae=form.vae or None,
        kind=kind,
        labels=asked.labels,
        title=f"{form.prompt[:60]} · {mix.as_text(mix.active(form.rows))}",
        settings={"before": dict(asked.before)} if asked.before else None,
    )


def with_example(form: Form, state: ModelState) -> Form:
    """The form; where its prompt is empty, with the model's first example."""
    if form.prompt.strip() or not state.examples:
        return form
    return form.saying(prompt=state.examples[0])
