"""The Compare page: the composed mix by several methods or at several strengths, in one job at one seed."""

from __future__ import annotations

from typing import Any

import gradio as gr

from composers import methods
from composers.shown import shown
from pipelines.bounds import check_text
from pipelines.errors import RequestError
from studio.web import scrub
from studio.web.desk import Desk, who
from studio.web.fields import Fields
from studio.web.form import ALL, MOST_COMPARED, compared, left_out, sweep, whole
from studio.web.submitting import asker
from studio.web.viewer import Viewer

LONGEST_LINE = 5_000
"""Characters of the strengths."""
KINDS = ("compare", "sweep", "leave-one-out")


def add(desk: Desk, fields: Fields) -> Viewer:
    """Draws the page into the blocks at hand; the prompt, the mix and the rest are the Compose page's."""
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

    def offered(job: str, browser: str | None, request: gr.Request) -> tuple[Any, ...]:
        view = desk.worker.view(job, who(browser, request)) if job else None
        done = view.finished if view is not None else ()
        choices = [(picture.label, str(picture.file)) for picture in done]
        files = [file for _, file in choices]
        return (
            gr.Dropdown(choices=choices, value=files[0] if files else None),
            gr.Dropdown(choices=choices, value=files[-1] if files else None),
            gr.ImageSlider((files[0], files[-1]) if len(files) > 1 else None, visible=len(files) > 1),
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
    for side in (left, right):
        side.input(
            lambda one, other: (one, other) if one and other else None,
            [left, right],
            slider,
            show_progress="hidden",
            api_visibility="private",
        )

    return viewer


def pictures(value: object) -> int:
    """How many a sweep has. Raises RequestError."""
    return whole(value, "the pictures of a sweep", 1, MOST_COMPARED)


def _numbers(text: object) -> list[float]:
    """ "0.6, 0.8, 1" -> numbers. Raises RequestError."""
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
