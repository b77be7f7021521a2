"""Watching jobs: the state of the one that is looked at, its pictures as they come, and the list of the others.

A viewer only looks: closing the page ends the viewer and never the job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from studio.jobs import LIVE, JobView
from studio.web.parts import job_line
from studio.web.parts.desk import Desk, who

BEAT = 0.5
"""Seconds between two looks."""
LISTED = 30


@dataclass(frozen=True)
class Viewer:
    """job: the id of the one that is looked at. model_seen: changes in the browser when another model is ready."""

    job: gr.State
    model_seen: gr.Textbox
    pictures: gr.Gallery

    @classmethod
    def drawn(
        cls, desk: Desk, stop: gr.Button, *, gallery: str = "pictures", kinds: Sequence[str] = ()
    ) -> Viewer:
        """Draws it into the blocks at hand. stop: the button that stops the job. kinds: of the jobs that it lists,
        all where none is named."""
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
        job, seen = gr.State(""), gr.State(())
        model_seen = gr.Textbox(visible="hidden", label="Model")

        def look(job: str, seen: Sequence[int], browser: str | None, request: gr.Request) -> tuple[Any, ...]:
            owner = who(browser, request)
            now = job_line.shown(desk.worker.view(job, owner) if job else None)
            views = [view for view in desk.worker.views(owner, limit=LISTED) if _wanted(view, kinds)]
            choices = tuple((_title(view), view.id) for view in views)
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
            if job and not desk.worker.cancel(
                job, owner
            ):  # it is over: the oldest of the others, if there is one
                live = [view for view in desk.worker.views(owner) if not view.state.over]
                if live:
                    desk.worker.cancel(live[-1].id, owner)

        stop.click(
            stopped, [job, desk.browser], queue=False, show_progress="hidden", api_visibility="private"
        )
        jobs.input(lambda id: id or "", jobs, job, show_progress="hidden", api_visibility="private")
        return cls(job, model_seen, pictures)

    def on_model(self, do: Callable[..., Any], inputs: Any, outputs: Sequence[Any]) -> None:
        """Calls `do` when another model is ready, and once at first."""
        self.model_seen.change(do, inputs, list(outputs), show_progress="hidden", api_visibility="private")

    def found_again(self, desk: Desk, browser: str, request: gr.Request) -> str:
        """The job to look at when a page is opened: the newest that is not over, else the newest."""
        views = [view for view in desk.worker.views(who(browser, request)) if view.kind != LIVE]
        at_work = [view for view in views if not view.state.over]
        return (at_work or views)[0].id if views else ""


def _gallery(now: job_line.Shown) -> gr.Gallery:
    """Out of the way until there is a picture."""
    return gr.Gallery(list(now.pictures), visible=True if now.pictures else "hidden")


def _wanted(view: JobView, kinds: Sequence[str]) -> bool:
    return view.kind in kinds if kinds else view.kind != LIVE


def _title(view: JobView) -> str:
    return f"{view.state}: {view.title or view.kind} ({len(view.pictures)})"
