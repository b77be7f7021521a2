"""A slider through the pictures of a sweep, with one strength at each position."""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.web.parts.desk import Desk, who
from studio.web.parts.job_viewer import Viewer


def add(desk: Desk, viewer: Viewer, name: str) -> None:
    """Draws it into the current blocks. It is visible while the viewer shows a sweep. name: prefix of its elements'
    ids."""
    slider = gr.Slider(
        1, 2, 1, step=1, label="Scrub through the strengths", visible=False, elem_id=f"{name}-scrub"
    )
    picture = gr.Image(
        visible=False, label="At this strength", height=420, format="png", elem_id=f"{name}-scrubbed"
    )

    def offered(job: str, browser: str | None, request: gr.Request) -> tuple[Any, Any]:
        view = desk.worker.view(job, who(browser, request), records=False) if job else None
        done = view.finished if view is not None and view.kind == "sweep" else ()
        there = len(done) > 1
        return (
            gr.Slider(1, max(len(done), 2), 1, step=1, visible=there),
            gr.Image(str(done[0].file), label=done[0].label, visible=True)
            if there
            else gr.Image(None, visible=False),
        )

    gr.on(
        [viewer.pictures.change, viewer.job.change],
        offered,
        [viewer.job, desk.browser],
        [slider, picture],
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
    )

    def at(place: float, job: str, browser: str | None, request: gr.Request) -> Any:
        view = desk.worker.view(job, who(browser, request), records=False) if job else None
        done = view.finished if view is not None else ()
        if not 1 <= place <= len(done):
            return gr.skip()
        chosen = done[int(place) - 1]
        return gr.Image(str(chosen.file), label=chosen.label)

    slider.input(
        at,
        [slider, viewer.job, desk.browser],
        picture,
        show_progress="hidden",
        trigger_mode="always_last",
        queue=False,
        api_visibility="private",
    )
