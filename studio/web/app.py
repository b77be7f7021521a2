"""The studio's pages, put together over one worker."""

from __future__ import annotations

import secrets
from html import escape
from importlib import resources
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
from studio.web.desk import Desk, told
from studio.web.look import Look
from studio.web.showcase import Showcase

COMPOSE = "compose"
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


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
        model, line = _model_picker(desk)
        strip = gr.HTML(container=False, elem_id="showcase", render=False)
        with gr.Tabs(selected=COMPOSE, elem_id="pages") as tabs:
            with gr.Tab("Compose", id=COMPOSE):
                fields, viewer = compose.add(desk, strip)
            with gr.Tab("Compare", id="compare"):
                compare.add(desk, fields)
            with gr.Tab("Library", id="library-page") as library:
                library_page.add(desk, fields, library)
            with gr.Tab("Gallery", id="gallery-page") as gallery:
                gallery_page.add(desk, fields, gallery, tabs, COMPOSE)
            with gr.Tab("B-LoRA", id="blora-page"):
                blora_page.add(desk)
            with gr.Tab("Frequency", id="frequency-page"):
                frequency_page.add(desk, viewer)
        api.add(worker)

        def opened(browser: str, request: gr.Request) -> tuple[Any, ...]:
            owner = browser or secrets.token_urlsafe(18)
            showcase.start()
            names = [entry.name for entry in worker.models() if entry.usable]
            return (
                owner,
                viewer.found_again(desk, owner, request),
                gr.Dropdown(choices=names, value=desk.chosen("")),
                1,
            )

        pages.load(
            opened,
            desk.browser,
            [desk.browser, viewer.job, model, fields.structure],
            show_progress="hidden",
            api_visibility="private",
        )
        gr.Timer(2.0).tick(
            lambda: (_model_line(desk), showcase.html()),
            None,
            [line, strip],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )
    return pages


def look() -> Look:
    """How it looks: gradio's own theme with the system's fonts, and nothing that is fetched from elsewhere."""
    static = resources.files("studio.web") / "static"
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.slate,
        spacing_size=gr.themes.sizes.spacing_sm,
        radius_size=gr.themes.sizes.radius_lg,
        font=FONTS,
        font_mono=MONO,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_shadow="none",
        block_title_text_weight="600",
        block_title_text_color="*body_text_color",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        input_background_fill="*neutral_50",
        input_background_fill_dark="*neutral_950",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
        button_primary_text_color="white",
        checkbox_label_background_fill_selected="*primary_600",
        checkbox_label_background_fill_selected_dark="*primary_600",
        checkbox_label_text_color_selected="white",
        slider_color="*primary_600",
        slider_color_dark="*primary_400",
    )
    css = (static / "studio.css").read_text(encoding="utf-8")
    return Look(
        theme=theme,
        css=css,
        head=f"<style>{css}</style>",  # gradio keeps `css` to what is inside its container; the frame is ours too
        js=(static / "studio.js").read_text(encoding="utf-8"),
    )


def _model_picker(desk: Desk) -> tuple[gr.Dropdown, gr.HTML]:
    with gr.Row():
        model = gr.Dropdown(
            [],
            label="Model",
            info="a name, or the path of your own checkpoint (.safetensors or a diffusers folder), or a hub id",
            allow_custom_value=True,
            scale=2,
            elem_id="model",
        )
        line = gr.HTML(elem_id="model-line", elem_classes=["live", "small-note"], container=False)

    def chosen(name: str | None) -> str:
        with told():
            desk.worker.load(name or None)
        return name or ""

    model.change(chosen, model, desk.model, show_progress="hidden", api_visibility="private")
    return model, line


def _model_line(desk: Desk) -> str:
    state = desk.worker.model_state()
    if state.error:
        return f"<strong>{escape(state.error)}</strong>"
    if state.loading:
        return escape(state.loading)
    if not state.ready or state.defaults is None:
        return "no model is loaded yet"
    own = state.defaults
    small = (
        " <strong>Small built-in demo model</strong>: it knows its own little world. "
        "To use your own checkpoint, give its path as the model."
        if state.vocabulary
        else ""
    )
    return (
        f"{escape(state.label)} on {escape(state.device)} ({escape(state.dtype)}): {own.width} x {own.height}, "
        f"{escape(own.scheduler)}, {own.steps} steps, guidance {own.guidance_scale:g}.{small}"
    )
