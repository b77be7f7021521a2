"""The Compare page: the mix of Compose by several methods or at several strengths, in one job at one seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from composers import methods
from composers.shown import shown
from pipelines.bounds import check_text
from pipelines.errors import RequestError
from studio.jobs import PictureView
from studio.web.form.components import Fields
from studio.web.form.form import ALL, MOST_COMPARED, compared, left_out, sweep, whole
from studio.web.parts import scrub
from studio.web.parts.desk import Desk, who
from studio.web.parts.job_viewer import Viewer
from studio.web.parts.submit import asker

LONGEST_LINE = 5_000
"""Most characters in the box of strengths."""
KINDS = ("compare", "sweep", "leave-one-out")


def add(desk: Desk, fields: Fields) -> Viewer:
    """Draws the page into the current blocks. Prompt, mix and all other settings are those of the Compose page."""
    gr.Markdown(
        "Prompt, mix, seed and settings are those of **Compose**; all pictures of a comparison share one seed and "
        "their UNet passes.",
        elem_classes="small-note",
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            chosen = gr.CheckboxGroup(
                list(methods()),
                value=[name for name in ("merge", "switch", "composite", "cmlora") if name in methods()],
                label="Methods",
                elem_id="compare-methods",
            )
            factors = gr.Textbox(
                "1", label="Strengths, as factors", info="such as 0.6, 0.8, 1", elem_id="compare-factors"
            )
            compare = gr.Button("Compare", variant="primary", elem_id="compare")
            who_did = gr.Button("Who did this? (leave one out)", elem_id="leave-one-out")
            gr.Markdown("### Sweep a strength")
            name = gr.Dropdown([ALL], value=ALL, label="LoRA")
            with gr.Row():
                low = gr.Number(0, label="From", step=0.1)
                high = gr.Number(1.5, label="To", step=0.1)
                count = gr.Slider(3, 16, 7, step=1, label="Pictures")
            swept = gr.Button("Sweep in one pass", elem_id="sweep")
        with gr.Column(scale=8, min_width=340):
            stop = gr.Button("Stop", size="sm")
            viewer = Viewer.drawn(desk, stop, gallery="compared", kinds=KINDS)
            scrub.add(desk, viewer, "compare")
            with gr.Row():
                left = gr.Dropdown([], value=None, label="Left", elem_id="left")
                right = gr.Dropdown([], value=None, label="Right", elem_id="right")
            slider = gr.ImageSlider(
                label="Left | right",
                type="filepath",
                interactive=False,
                height=460,
                visible=False,
                elem_id="ab",
            )

    own = {chosen, factors, name, low, high, count, desk.browser, desk.model}
    for button, make, kind in (
        (compare, lambda got, form: compared(form, got[chosen], _numbers(got[factors])), "compare"),
        (who_did, lambda got, form: left_out(form), "leave-one-out"),
        (swept, lambda got, form: sweep(form, got[name], got[low], got[high], pictures(got[count])), "sweep"),
    ):
        button.click(
            asker(desk, fields, make, kind),
            fields.components | own,
            viewer.job,
            trigger_mode="multiple",
            concurrency_limit=None,
            show_progress="hidden",
            api_visibility="private",
        )
    fields.rows.change(
        lambda rows: gr.Dropdown(choices=[ALL, *(row.name for row in rows)]),
        fields.rows,
        name,
        show_progress="hidden",
        api_visibility="private",
    )

    def finished(job: str, browser: str | None, request: gr.Request) -> dict[str, PictureView]:
        """The job's finished pictures by number: pages name pictures by numbers, not by files."""
        view = desk.worker.view(job, who(browser, request)) if job else None
        return {str(picture.index): picture for picture in (view.finished if view is not None else ())}

    def offered(job: str, browser: str | None, request: gr.Request) -> tuple[Any, ...]:
        done = finished(job, browser, request)
        choices = [(picture.label, number) for number, picture in done.items()]
        ends = (choices[0][1], choices[-1][1]) if choices else (None, None)
        return (
            gr.Dropdown(choices=choices, value=ends[0]),
            gr.Dropdown(choices=choices, value=ends[1]),
            gr.ImageSlider(_pair(done, *ends) if len(done) > 1 else None, visible=len(done) > 1),
        )

    gr.on(
        [viewer.pictures.change, viewer.job.change],
        offered,
        [viewer.job, desk.browser],
        [left, right, slider],
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
    )

    def chosen_pair(one: Any, other: Any, job: str, browser: str | None, request: gr.Request) -> Any:
        return _pair(finished(job, browser, request), one, other)

    for side in (left, right):
        side.input(
            chosen_pair,
            [left, right, viewer.job, desk.browser],
            slider,
            show_progress="hidden",
            api_visibility="private",
        )

    return viewer


def _pair(done: Mapping[str, PictureView], one: Any, other: Any) -> tuple[str, str] | None:
    """The files of two pictures, given by their numbers; None where one is not there."""
    files = [done[str(number)].file for number in (one, other) if str(number) in done]
    return (str(files[0]), str(files[1])) if len(files) == 2 else None


def pictures(value: object) -> int:
    """The number of pictures of a sweep. Raises RequestError."""
    return whole(value, "the pictures of a sweep", 1, MOST_COMPARED)


def _numbers(text: object) -> list[float]:
    """The numbers of a text such as "0.6, 0.8, 1". Raises RequestError."""
    text = check_text("the strengths", text, LONGEST_LINE)
    try:
        found = [float(part) for part in text.replace(";", ",").split(",") if part.strip()]
    except ValueError as error:
        raise RequestError(
            f"strengths {shown(text)} must be numbers with commas between them, as in 0.6, 0.8, 1"
        ) from error
    if not found:
        raise RequestError("give at least one strength, as in 1")
    return found
