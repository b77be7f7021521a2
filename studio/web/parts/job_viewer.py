"""Watching jobs: the state of the chosen one, its pictures as they come, and a list of the others.

A viewer only looks. Closing the page ends the viewer, but never the job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from studio.jobs import LIVE, JobHead
from studio.web.parts import job_line
from studio.web.parts.desk import Desk, who

BEAT = 0.5
"""Seconds between two looks."""
AGAIN = 1.0
"""Seconds after which a page repeats a question that was not answered."""
ASK_AGAIN = "(seen, told, again) => (seen && seen !== told ? `${Date.now()}` : again)"
LISTED = 30


@dataclass(frozen=True)
class Viewer:
    """Shows jobs. job: holds the id of the chosen one. model_seen: changes in the browser when another model is
    ready."""

    job: gr.State
    model_seen: gr.Textbox
    pictures: gr.Gallery

    @classmethod
    def drawn(
        cls, desk: Desk, stop: gr.Button, *, gallery: str = "pictures", kinds: Sequence[str] = ()
    ) -> Viewer:
        """Draws it into the current blocks. stop: the button that stops the job. kinds: of the jobs to list; () lists
        all but live ones."""
        line = gr.HTML(elem_id=f"{gallery}-state", elem_classes="live", container=False)
        pictures = gr.Gallery(
            label="Pictures",
            elem_id=gallery,
            columns=2,
            object_fit="contain",
            height=460,
            preview=False,
            visible="hidden",
            format="png",
        )
        jobs = gr.Dropdown([], value=None, label="Your jobs", elem_id=f"{gallery}-jobs")
        job = gr.State("")
        model_seen = gr.Textbox(visible="hidden", label="Model")
        seen = gr.Textbox("", visible="hidden", label="Seen")

        def look(job: str, seen: str, browser: str | None, request: gr.Request) -> tuple[Any, ...]:
            owner = who(browser, request)
            view = desk.worker.view(job, owner, latest=True, records=False) if job else None
            now = job_line.shown(view)
            heads = [head for head in desk.worker.heads(owner, limit=LISTED) if _wanted(head, kinds)]
            choices = tuple((_title(head), head.id) for head in heads)
            state = desk.worker.model_state()
            model = f"{state.source} {state.label}" if state.ready else ""
            return job_line.only_new(
                (now.line, _gallery(now), gr.Dropdown(choices=list(choices), value=job or None), model),
                (now.line, now.pictures, (choices, job), model),
                seen,
            )

        gr.Timer(BEAT).tick(
            look,
            [job, seen, desk.browser],
            [line, pictures, jobs, model_seen, seen],
            queue=False,  # one request a look; through the queue each opens a stream, and answers can be missed
            show_progress="hidden",
            api_visibility="private",
        )

        def stopped(job: str, browser: str | None, request: gr.Request) -> None:
            owner = who(browser, request)
            if job and not desk.worker.cancel(job, owner):
                # the job is over, so the oldest unfinished one is stopped instead
                for oldest in desk.worker.unfinished(owner)[:1]:
                    desk.worker.cancel(oldest, owner)

        stop.click(
            stopped, [job, desk.browser], queue=False, show_progress="hidden", api_visibility="private"
        )
        jobs.input(lambda id: id or "", jobs, job, show_progress="hidden", api_visibility="private")
        return cls(job, model_seen, pictures)

    def on_model(
        self, do: Callable[[str], dict[Any, Any]], model: gr.State, outputs: Sequence[Component]
    ) -> None:
        """Calls `do` with the chosen model's name when the page opens, and whenever another model is ready.

        The page asks again until an answer has come, so that a lost one leaves nothing empty. It asks outside Gradio's
        queue, whose answers can be missed.
        """
        answered, again = gr.Textbox("", visible="hidden"), gr.Textbox("", visible="hidden")

        def answer(seen: str, answered_for: str, model: str) -> dict[Any, Any]:
            return {answered: seen} if seen == answered_for else {**do(model), answered: seen}

        gr.on(
            [self.model_seen.change, again.change],
            answer,
            [self.model_seen, answered, model],
            [*outputs, answered],
            queue=False,
            trigger_mode="once",  # does not ask again while an answer is under way
            show_progress="hidden",
            api_visibility="private",
        )
        gr.Timer(AGAIN).tick(
            None, [self.model_seen, answered, again], again, js=ASK_AGAIN, api_visibility="private"
        )

    def found_again(self, desk: Desk, browser: str, request: gr.Request) -> str:
        """The job to show when a page is opened: the newest unfinished one, else the newest; "" where there is none."""
        heads = [head for head in desk.worker.heads(who(browser, request)) if head.kind != LIVE]
        at_work = [head for head in heads if not head.state.over]
        return (at_work or heads)[0].id if heads else ""


def _gallery(now: job_line.Shown) -> gr.Gallery:
    """The gallery, hidden until there is a picture."""
    return gr.Gallery(list(now.pictures), visible=True if now.pictures else "hidden")


def _wanted(head: JobHead, kinds: Sequence[str]) -> bool:
    return head.kind in kinds if kinds else head.kind != LIVE


def _title(head: JobHead) -> str:
    return f"{head.state}: {head.title or head.kind} ({head.tally.total})"
