"""The Compose form's components, by name: what a handler got becomes a Form, and a Form what a handler returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from studio.drafts.draft import HIGHEST_SEED
from studio.web.form.form import OWN, Form, real, whole


@dataclass(frozen=True)
class Fields:
    """The form's components. read: what a handler got, as a Form; filled: a Form, as what a handler returns."""

    prompt: gr.Textbox
    negative: gr.Textbox
    method: gr.Radio
    method_values: gr.State
    rows: gr.State
    structure: gr.State
    seed: gr.Number
    count: gr.Slider
    steps: gr.Slider
    guidance: gr.Number
    width: gr.Number
    height: gr.Number
    scheduler: gr.Dropdown
    rescale: gr.Slider
    clip_skip: gr.Number
    init_image: gr.Image
    strength: gr.Slider
    vae: gr.Dropdown

    @property
    def components(self) -> set[Any]:
        return set(vars(self).values())

    def read(self, got: Mapping[Any, Any]) -> Form:
        """Raises RequestError for what is no number where one must stand."""

        def count(component: gr.Number | gr.Slider, what: str, empty: int = 0) -> int:
            value = got[component]
            return whole(empty if value is None else value, what, -1, HIGHEST_SEED)

        def number(component: gr.Number | gr.Slider, what: str, empty: float = 0.0) -> float:
            value = got[component]
            return real(empty if value is None else value, what, -1e6, 1e6)

        return Form(
            prompt=got[self.prompt] or "",
            negative=got[self.negative] or "",
            method=got[self.method],
            method_values=got[self.method_values],
            rows=tuple(got[self.rows]),
            seed=count(self.seed, "seed", -1),
            count=count(self.count, "pictures", 1),
            steps=count(self.steps, "steps"),
            guidance=number(self.guidance, "guidance scale", -1),
            width=count(self.width, "width"),
            height=count(self.height, "height"),
            scheduler=got[self.scheduler] or OWN,
            rescale=number(self.rescale, "guidance rescale"),
            clip_skip=count(self.clip_skip, "clip skip"),
            init_image=got[self.init_image],
            strength=number(self.strength, "strength", Form.strength),
            vae=got[self.vae] or "",
        )

    def filled(
        self, form: Form, structure: int, lend: Callable[[Path], Path] | None = None
    ) -> dict[Any, Any]:
        """What puts a form on the page. structure: the state's present number.

        lend: makes a copy of the initial picture that the page may show, since the home's own it may not. Without it
        no picture is put there. Raises RequestError.
        """
        image = Path(form.init_image) if form.init_image else None
        shown = lend(image) if lend is not None and image is not None and image.is_file() else None
        return {
            self.prompt: form.prompt,
            self.negative: form.negative,
            self.method: form.method,
            self.method_values: dict(form.method_values),
            self.rows: form.rows,
            self.structure: structure + 1,
            self.seed: form.seed,
            self.count: form.count,
            self.steps: form.steps,
            self.guidance: form.guidance,
            self.width: form.width,
            self.height: form.height,
            self.scheduler: form.scheduler,
            self.rescale: form.rescale,
            self.clip_skip: form.clip_skip,
            self.init_image: None if shown is None else str(shown),
            self.strength: form.strength,
            self.vae: form.vae,
        }
