"""The studio's pages, put together over one worker."""

from __future__ import annotations

import secrets
from html import escape
from typing import Any

import gradio as gr

from studio.jobs import Trainings, Worker
from studio.rendering.opening import Opening, model_name
from studio.web import api
from studio.web.door.events import login_of
from studio.web.door.files import Files
from studio.web.form.form import Form
from studio.web.form.kept import PutBack, put_back
from studio.web.pages import blora as blora_page
from studio.web.pages import compare, compose
from studio.web.pages import frequency as frequency_page
from studio.web.pages import gallery as gallery_page
from studio.web.pages import library as library_page
from studio.web.pages.gallery import GalleryWays
from studio.web.parts.desk import Desk
from studio.web.parts.job_line import only_new
from studio.web.parts.model_picker import ModelPicker, model_line
from studio.web.parts.showcase import Showcase

COMPOSE = "compose"
COMPARE = "compare"
BROWSER_KEY = "lora-studio"
"""It never changes, so that browsers can read what they kept, also after a restart of the server."""


def build(worker: Worker, trainings: Trainings) -> gr.Blocks:
    """All pages and the functions for programs."""
    showcase = Showcase(worker)
    pages: gr.Blocks
    with gr.Blocks(title="LoRA Studio", analytics_enabled=False) as pages:
        desk = Desk(
            worker,
            trainings,
            Files(worker),
            gr.BrowserState("", storage_key="lora-studio-owner", secret=BROWSER_KEY),
            gr.BrowserState(None, storage_key="lora-studio-form", secret=BROWSER_KEY),
            gr.State(
                model_name(Opening(), worker.home)
            ),  # equal to the picker's first value, so rows are drawn once
            gr.State(False),
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
                gallery_page.add(desk, fields, gallery, GalleryWays(tabs, COMPOSE, COMPARE, compared))
            with gr.Tab("B-LoRA", id="blora-page"):
                blora_page.add(desk)
            with gr.Tab("Frequency", id="frequency-page"):
                frequency_page.add(desk, viewer)
        api.add(worker)

        def opened(got: dict[Any, Any], request: gr.Request) -> dict[Any, Any]:
            owner = got[desk.browser] or secrets.token_urlsafe(18)
            showcase.start()
            kept = put_back(
                got[desk.form], login_of(request), worker.home, worker.trust, worker.library.named
            )
            back = kept or PutBack(Form())
            for note in back.notes:
                gr.Warning(escape(note, quote=False), duration=None)
            model = desk.chosen(back.model)
            choice, found = picker.choices(desk, model)
            return {
                **(fields.filled(back.form, 0) if kept is not None else {fields.structure: 1}),
                desk.browser: owner,
                desk.model: model,
                desk.opened: True,
                viewer.job: viewer.found_again(desk, owner, request),
                picker.model: choice,
                picker.found: found,
                generate: gr.Button(interactive=True),
            }

        outputs = {desk.browser, desk.model, desk.opened, viewer.job, picker.model, picker.found, generate}
        pages.load(
            opened,
            {desk.browser, desk.form},
            [*fields.changed, *outputs],
            show_progress="hidden",
            api_visibility="private",
        )
        seen = gr.Textbox("", visible="hidden", label="Seen")

        def beat(seen: str) -> tuple[Any, ...]:
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
