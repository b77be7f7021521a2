"""The Compose form's components, by name: what a handler got becomes a Form, and a Form what a handler returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from studio.web.form import OWN, Form


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
        return Form(
            prompt=got[self.prompt] or "",
            negative=got[self.negative] or "",
            method=got[self.method],
            method_values=got[self.method_values],
            rows=tuple(got[self.rows]),
            seed=int(got[self.seed] if got[self.seed] is not None else -1),
            count=int(got[self.count]),
            steps=int(got[self.steps] or 0),
            guidance=float(got[self.guidance] if got[self.guidance] is not None else -1),
            width=int(got[self.width] or 0),
            height=int(got[self.height] or 0),
            scheduler=got[self.scheduler] or OWN,
            rescale=float(got[self.rescale] or 0),
            clip_skip=int(got[self.clip_skip] or 0),
            init_image=got[self.init_image],
            strength=float(got[self.strength]),
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
