"""The studio's pages, put together over one worker."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import gradio as gr

from studio.jobs import Trainings, Worker
from studio.opening import Opening, model_name
from studio.web import (
    api,
    blora_page,
    compare,
    compose,
    frequency_page,
    gallery_page,
    library_page,
)
from studio.web.desk import Desk
from studio.web.gallery_page import Ways
from studio.web.model_picker import ModelPicker, model_line
from studio.web.showcase import Showcase
from studio.web.watching import only_new

COMPOSE = "compose"
COMPARE = "compare"


def build(worker: Worker, trainings: Trainings) -> gr.Blocks:
    """All pages and the functions for programs."""
    showcase = Showcase(worker)
    pages: gr.Blocks
    with gr.Blocks(title="LoRA Studio", analytics_enabled=False) as pages:
        desk = Desk(
            worker,
            trainings,
            gr.BrowserState("", storage_key="lora-studio-owner"),
            gr.State(model_name(Opening(), worker.home)),  # as the picker will say: rows are not drawn twice
        )
        gr.HTML(
            '<div id="head"><h1>LoRA Studio</h1><p>many LoRAs, many mixes, one pass</p></div>',
            container=False,
        )
        picker = ModelPicker.drawn(desk)
        strip = gr.HTML(container=False, elem_id="showcase", render=False)
        with gr.Tabs(selected=COMPOSE, elem_id="pages") as tabs:
            with gr.Tab("Compose", id=COMPOSE):
                fields, viewer, generate = compose.add(desk, strip)
            with gr.Tab("Compare", id=COMPARE):
                compared = compare.add(desk, fields)
            with gr.Tab("Library", id="library-page") as library:
                library_page.add(desk, fields, library)
            with gr.Tab("Gallery", id="gallery-page") as gallery:
                gallery_page.add(desk, fields, gallery, Ways(tabs, COMPOSE, COMPARE, compared))
            with gr.Tab("B-LoRA", id="blora-page"):
                blora_page.add(desk)
            with gr.Tab("Frequency", id="frequency-page"):
                frequency_page.add(desk, viewer)
        api.add(worker)

        def opened(browser: str, request: gr.Request) -> tuple[Any, ...]:
            owner = browser or secrets.token_urlsafe(18)
            showcase.start()
            found = viewer.found_again(desk, owner, request)
            return owner, found, *picker.choices(desk, desk.chosen("")), 1, gr.Button(interactive=True)

        pages.load(
            opened,
            desk.browser,
            [desk.browser, viewer.job, picker.model, picker.found, fields.structure, generate],
            show_progress="hidden",
            api_visibility="private",
        )
        seen = gr.State(())

        def beat(seen: Sequence[int]) -> tuple[Any, ...]:
            now = (model_line(desk), showcase.html())
            return only_new(now, now, seen)

        gr.Timer(2.0).tick(
            beat,
            seen,
            [picker.line, strip, seen],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )
    return pages
