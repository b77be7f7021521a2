"""Choosing a model: one of those found, or a checkpoint by its path or hub id. Folders can be added. Shows how loading
goes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from composers.shown import shown
from pipelines.errors import RequestError
from pipelines.home.files import is_folder
from pipelines.home.paths import expanded
from pipelines.home.settings import Roots
from studio.jobs.gate import Trust
from studio.library.models import ModelEntry
from studio.web.parts.desk import Desk, plain

SMALL = (
    " <strong>Small built-in demo model</strong>: it knows its own little world and no other words than those listed "
    "below the prompt."
)


@dataclass(frozen=True)
class ModelPicker:
    """The picker. model: the choice. line: what is loaded, or how loading goes. found: the user's own models."""

    model: gr.Dropdown
    line: gr.HTML
    found: gr.HTML

    @classmethod
    def drawn(cls, desk: Desk) -> ModelPicker:
        """Draws it into the current blocks."""
        trust = desk.worker.trust
        with gr.Row():
            model = gr.Dropdown(
                [], label="Model", allow_custom_value=True, scale=2, min_width=220, elem_id="model"
            )
            line = gr.HTML(
                elem_id="model-line", elem_classes=["live", "small-note"], container=False, min_width=240
            )
            own = gr.Button(
                "Use my own checkpoint", size="sm", scale=0, min_width=190, elem_id="own-checkpoint"
            )
        with gr.Column(visible=False, elem_id="own-panel") as panel:
            gr.Markdown(_invitation(desk, trust), elem_classes="small-note")
            with gr.Row(equal_height=True, visible=trust.paths or trust.downloads):
                source = gr.Textbox(
                    label=_source_label(trust),
                    placeholder=_source_example(trust),
                    elem_id="own-source",
                    scale=4,
                )
                load = gr.Button("Load it", variant="primary", scale=0, min_width=110, elem_id="own-load")
            with gr.Row(equal_height=True, visible=trust.paths):
                folder = gr.Textbox(
                    label="A folder with checkpoints, to choose from at any time",
                    placeholder="/home/me/stable-diffusion-webui/models/Stable-diffusion",
                    elem_id="own-folder",
                    scale=4,
                )
                point = gr.Button("Add folder", scale=0, min_width=110, elem_id="own-add")
            found = gr.HTML(elem_id="own-found", elem_classes="live", container=False)
        picker = cls(model, line, found)
        picker._wire(desk, own, panel, source, load, folder, point)
        return picker

    def _wire(
        self, desk: Desk, own: gr.Button, panel: gr.Column, source: gr.Textbox, load: gr.Button,
        folder: gr.Textbox, point: gr.Button,
    ) -> None:  # fmt: skip
        def chosen(name: str | None) -> str:
            desk.worker.load(name or None)
            return name or ""

        self.model.change(chosen, self.model, desk.model, show_progress="hidden", api_visibility="private")
        desk.model.change(  # a picture's settings may choose another model
            desk.chosen, desk.model, self.model, show_progress="hidden", api_visibility="private"
        )
        opened = gr.State(False)

        def toggled(is_open: bool) -> tuple[Any, ...]:
            return not is_open, gr.Column(visible=not is_open), *self.choices(desk)

        own.click(
            toggled,
            opened,
            [opened, panel, self.model, self.found],
            show_progress="hidden",
            api_visibility="private",
        )

        def loaded(name: str) -> str:
            if not name.strip():
                raise RequestError("say which checkpoint to load: write its path or its name")
            desk.worker.load(name.strip())
            return name.strip()

        gr.on(
            [load.click, source.submit],
            loaded,
            source,
            self.model,
            show_progress="hidden",
            api_visibility="private",
        )

        def pointed(text: str) -> tuple[Any, ...]:
            if not desk.worker.trust.paths:
                raise RequestError("folders of this computer are its owner's to add, with --model-dir")
            path = expanded(text.strip()).absolute()
            if not text.strip() or not is_folder(path):
                raise RequestError(f"{shown(text)} is no folder on this computer; check the path")
            desk.worker.add_folders(Roots(models=(path,)))
            return self.choices(desk)

        gr.on(
            [point.click, folder.submit],
            pointed,
            folder,
            [self.model, self.found],
            show_progress="hidden",
            api_visibility="private",
        )

    def choices(self, desk: Desk, chosen: str | None = None) -> tuple[Any, Any]:
        """The models that are there now, as values for `model` and `found`. chosen: the name to choose, if any."""
        entries = desk.worker.models()
        usable = [(_label(entry), entry.name) for entry in entries if entry.usable]
        picked = gr.Dropdown(choices=usable) if chosen is None else gr.Dropdown(choices=usable, value=chosen)
        return picked, _found(entries) + plain("", desk.unanswered())


def model_line(desk: Desk) -> str:
    """What is wrong with the machine or the worker, if anything is; then what is loaded, how loading goes, or why it
    failed. As HTML."""
    wrong = escape(desk.worker.health().sentence, quote=True)
    return (f'<div data-said="{wrong}"><strong>{wrong}</strong></div>' if wrong else "") + _of_model(desk)


def _of_model(desk: Desk) -> str:
    state = desk.worker.model_state()
    if state.error:
        error = escape(state.error, quote=True)
        return f'<span data-said="{error}"><strong>{error}</strong> Choose another model.</span>'
    if state.loading:
        seconds = max(0, round(time.time() - state.since))
        loading = escape(state.loading, quote=True)
        if state.share is not None:
            said = escape(
                state.loading.partition(":")[0], quote=True
            )  # so that not every per cent is read aloud
            bar = f'<div class="progress"><i style="width:{100 * state.share:.0f}%"></i></div>'
            return f'<span data-said="{said}">{loading}</span>{bar}'
        return (
            f'<span data-said="{loading}">{loading} {seconds} s</span>'
            '<div class="progress endless"><i></i></div>'
        )
    if not state.ready or state.defaults is None:
        return "no model is loaded yet"
    own = state.defaults
    return (
        f"{escape(state.label)} on {escape(state.device)} ({escape(state.dtype)}): {own.width} x {own.height}, "
        f"{escape(own.scheduler)}, {own.steps} steps, guidance {own.guidance_scale:g}."
        f"{SMALL if state.vocabulary else ''}"
    )


def _label(entry: ModelEntry) -> str:
    return f"{entry.name} · {entry.base}" + (" · built in" if entry.embedded else f" · {_size(entry.size)}")


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GB" if size >= 2**29 else f"{size / 2**20:.0f} MB"


def _found(entries: Sequence[ModelEntry]) -> str:
    """The user's own models by name, and why some cannot be used, as HTML."""
    own = [entry for entry in entries if not entry.embedded]
    if not own:
        return '<p class="small-note">No checkpoint is in the folders yet.</p>'
    lines = "".join(
        f"<li><strong>{escape(entry.name)}</strong> "
        + (
            f"{escape(entry.base)}, {_size(entry.size)}"
            if entry.usable
            else f"cannot be used: {escape(entry.base)}"
        )
        + "</li>"
        for entry in own
    )
    return f'<p class="small-note">Found in the folders:</p><ul class="found">{lines}</ul>'


def _invitation(desk: Desk, trust: Trust) -> str:
    kinds = "SD 1.x, SD 2.x or SDXL, as one .safetensors file or a diffusers folder"
    if not trust.paths:
        return f"Whoever runs this studio chooses its models: a checkpoint ({kinds}) goes into its models folder."
    return f"{kinds}. Put it into `{desk.worker.home.path / 'models'}`, or name it here."


def _source_label(trust: Trust) -> str:
    return "Its path" + (", or its id on the Hugging Face hub" if trust.downloads else "")


def _source_example(trust: Trust) -> str:
    return "/home/me/models/juggernautXL.safetensors" + (
        "  or  stabilityai/stable-diffusion-xl-base-1.0" if trust.downloads else ""
    )
