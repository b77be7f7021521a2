"""The Frequency page: what LoRAs do to a picture's high frequencies, step by step, and the band that follows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import gradio as gr

from pipelines import spectrum
from pipelines.errors import RequestError
from studio.jobs.profiles import profile
from studio.web.parts.desk import Desk, told
from studio.web.parts.job_viewer import Viewer

WAIT = 1800.0
"""Seconds that a measurement may wait for its turn."""


def add(desk: Desk, viewer: Viewer) -> None:
    """Draws the page into the blocks at hand."""
    gr.Markdown(
        "A LoRA is measured in a few short runs with and without it. Those that change high frequencies early "
        "(**high** band) dominate early in CMLoRA, the others late. Measured once, then remembered.",
        elem_classes="small-note",
    )
    with gr.Row():
        names = gr.Dropdown(
            [], multiselect=True, max_choices=8, label="LoRAs", scale=5, elem_id="profile-names"
        )
        measure = gr.Button("Measure", variant="primary", scale=1, elem_id="profile")
    plot = gr.Image(
        label="Change of high frequencies",
        type="filepath",
        interactive=False,
        elem_id="profile-plot",
        format="png",
    )

    def measured(names: Sequence[str], model: str, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008
        with told():
            if not names:
                raise RequestError("choose at least one LoRA")
            source = desk.chosen(model)
            found = {}
            for place, name in enumerate(names):
                progress((place, len(names)), desc=f"measuring {name}")
                found[name] = profile(desk.worker, name, model=source).result(WAIT)
        mark = hashlib.sha256("|".join([source, *names]).encode()).hexdigest()[:16]
        file = desk.worker.home.made(desk.worker.home.cache / "web") / f"profile-{mark}.png"
        spectrum.plot(found, file)
        return str(file)

    measure.click(measured, [names, desk.model], plot, concurrency_limit=None, api_visibility="private")

    def offered(model: str) -> Any:
        return gr.Dropdown(choices=[card.name for card in desk.fitting(model)])

    viewer.on_model(offered, desk.model, [names])
