"""Live drafts: when a strength's slider is let go, the picture is redrawn in a few steps, at the same seed. Drafts are
not kept.

A new draft of a page cancels the one before it, which ends before its next UNet call.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from pipelines import StudioError
from pipelines.errors import ModelError
from studio.jobs import LIVE, JobState, JobView, ModelState, Worker
from studio.jobs.gate import model_key
from studio.web.form import mix
from studio.web.form.components import Fields
from studio.web.form.form import DRAFT_STEPS, live
from studio.web.parts.desk import Desk, address, who
from studio.web.parts.job_viewer import Viewer
from studio.web.parts.mix_rows import MixStates
from studio.web.parts.submit import submit, with_example

LOOK_EVERY = 0.08
"""Seconds between two looks at a draft."""
SEED = 7
"""The seed of a draft where the form gives none and no picture is shown."""
KEPT = 3
"""Most drafts of a page that are kept for a while, since the page may still be fetching their files."""
MOST_PAGES = 500

OTHER_MODEL = (
    "A draft by this model may take a while; “Sweep its strength” in a row draws several in one pass."
)
SMALL_MODEL = f"Letting go of a strength redraws the mix in {DRAFT_STEPS} steps, at the same seed."


class Drafts:
    """The drafts of every open page. Safe for several threads."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._lock = threading.Lock()
        self._of_page: OrderedDict[str, list[tuple[str, str]]] = OrderedDict()

    def begin(self, page: str, owner: str, submit: Callable[[], str]) -> str:
        """Cancels the page's draft and submits a new one; returns its job's id. Raises StudioError."""
        with self._lock:
            earlier = self._of_page.pop(page, [])
            for job, whose in earlier[-1:]:
                self._worker.cancel(job, whose)
            self._of_page[page] = earlier
            job = submit()
            earlier.append((job, owner))
            gone = [earlier.pop(0) for _ in earlier[KEPT:]]
            if len(self._of_page) > MOST_PAGES:
                gone += self._of_page.popitem(last=False)[1]
        for old, whose in gone:
            self._worker.delete(old, whose)
        return job


@dataclass(frozen=True)
class Live:
    """Live drafts on the page. on: whether drafts are drawn. panel: shows the newest one."""

    on: gr.Checkbox
    panel: gr.HTML

    def for_model(self, state: ModelState) -> dict[Any, Any]:
        """Switches drafts on for a model that draws them quickly; else off, with the reason."""
        small = bool(state.vocabulary)
        return {
            self.on: gr.Checkbox(value=small, info=SMALL_MODEL if small else OTHER_MODEL),
            self.panel: "",
        }

    def wire(self, desk: Desk, fields: Fields, states: MixStates, viewer: Viewer) -> None:
        """Draws a draft whenever an edit of the mix is settled."""
        drafts = Drafts(desk.worker)

        async def draw(got: dict[Any, Any], request: gr.Request) -> AsyncIterator[dict[Any, Any]]:
            if not got[self.on]:
                yield {self.panel: ""}
                return
            worker, owner = desk.worker, who(got[desk.browser], request)
            state = worker.model_state()

            def begin() -> str:
                seed = _seed_of(worker, got[viewer.job], owner)
                key = model_key(got[desk.model] or None, form.vae or None, worker.home, worker.trust)
                if key.source != state.source:
                    raise ModelError(
                        f"{state.source or 'no model'} is at work, and a draft is not worth a change"
                    )
                return submit(desk, owner, form, live(form, seed), got[desk.model], LIVE)

            try:
                form = with_example(fields.read(got), state)
                job = await asyncio.to_thread(drafts.begin, str(request.session_hash), owner, begin)
            except StudioError as error:
                yield {self.panel: f'<p class="small-note">No draft: {escape(str(error))}</p>'}
                return
            said = mix.as_text(mix.active(form.rows))
            shown = ""
            version = -1
            while True:
                if worker.version == version:
                    await asyncio.sleep(LOOK_EVERY)
                    continue
                version = worker.version
                view = await asyncio.to_thread(worker.view, job, owner, records=False)
                if view is None or view.state is JobState.CANCELLED:
                    return
                html = _html(view, said)
                if html not in ("", shown):
                    shown = html
                    yield {self.panel: html}
                if view.state.over:
                    return
                await asyncio.sleep(LOOK_EVERY)

        states.settled.change(
            draw,
            fields.components | {self.on, desk.browser, desk.model, viewer.job},
            [self.panel],
            trigger_mode="multiple",  # a new draft does not wait for the one that it replaces
            concurrency_limit=None,
            show_progress="hidden",
            api_visibility="private",
        )


def _seed_of(worker: Worker, job: str, owner: str) -> int:
    """The seed of the job that is shown."""
    view = worker.view(job, owner, most=1, records=False) if job else None
    return view.pictures[0].seed if view is not None and view.pictures else SEED


def _html(view: JobView, mix_said: str) -> str:
    """The draft as it is now, as HTML; "" before there is anything to see."""
    [picture] = view.pictures
    if view.state is JobState.FAILED:
        return f'<p class="small-note">No draft: {escape(view.error)}</p>'
    file = picture.file or picture.preview
    if file is None or not file.is_file():
        return ""
    at = "" if view.state.over else f", step {picture.step} of {picture.count}"
    caption = f"{mix_said} · seed {picture.seed}{at}"
    alt = escape(f"Draft: {mix_said}", quote=True)
    return (
        f'<figure data-state="{view.state}"><img src="{address(file)}" alt="{alt}">'
        f"<figcaption>Draft: {escape(caption)}</figcaption></figure>"
    )
