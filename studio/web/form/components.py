"""The Compose form's components: they are made from the table of fields, read as a Form, and filled from one.

Controls cannot show every value exactly: "" and None look alike, and sliders round. So the page keeps the form that was
last put into it (by a picture, or by the browser). A control that still shows the value of that form stands for exactly
this value.
"""

from __future__ import annotations

import filecmp
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.request import MOST
from pipelines.schedulers import MODEL_OWN, canonical, scheduler_names
from studio.drafts.draft import HIGHEST_SEED
from studio.drafts.fields import BY_NAME, Field
from studio.drafts.input_images import Inline, InputImage, input_image
from studio.web.form.form import OWN_METHOD, Form, real, whole

OWN = "the model's own"


def control(field: Field, **look: Any) -> Any:
    """The control of a field. look: further arguments of the component."""
    own, nothing = field.knob, field.nothing
    look = {
        "value": shown(field, None),
        "label": own.label,
        "info": own.help,
        "elem_id": field.name.replace("_", "-"),
        "min_width": 150,
        **look,
    }
    if field.kind == "scheduler":
        choices = [
            (nothing, ""),
            ("the checkpoint's", MODEL_OWN),
            *((name, name) for name in scheduler_names()),
        ]
        return gr.Dropdown(choices, **look)
    if field.kind == "choice" or (field.kind == "truth" and field.optional):
        choices = [(name, name) for name in own.choices or ("true", "false")]
        return gr.Dropdown([(nothing, ""), *choices] if field.optional else choices, **look)
    if field.kind == "truth":
        return gr.Checkbox(**look)
    if field.optional and field.kind != "prompt" and look["info"] == own.help:
        empty = f"{field.empty:g}" if field.kind in ("whole", "real") else "Empty"
        look["info"] = f"{own.help} {empty}: {nothing}."
    return _number(field, look) if field.kind in ("whole", "real") else gr.Textbox(**look)


def picture_control(field: Field) -> gr.Image:
    """The control of a field that is a picture. It gives the file itself; Gradio would write another one."""
    return gr.Image(
        type="filepath",
        image_mode=None,
        format="png",
        label=field.knob.label,
        height=200,
        min_width=150,
        elem_id=field.name.replace("_", "-"),
    )


def _number(field: Field, look: dict[str, Any]) -> Any:
    """A slider where the field has a most usual value or lies in 0 … 1; else a box for a number."""
    own = field.knob
    low = field.empty if field.optional and own.low is not None else own.low
    step, precision = (1, 0) if field.kind == "whole" else (0.05, None)
    most = field.most or (1 if (low, own.high) == (0, 1) else None)
    if low is not None and most is not None:
        return gr.Slider(low, most, step=step, precision=precision, **look)
    # no maximum: Gradio would complain at every key, and Request refuses values out of range anyway
    return gr.Number(minimum=low, precision=precision, **look)


def shown(field: Field, value: Any) -> Any:
    """What the field's control shows for a value; None stands for nothing said."""
    if value is None:
        value = field.empty
    if field.kind == "scheduler":
        return canonical(value) if value else ""
    if field.kind == "pair" or (field.kind == "truth" and field.optional):
        return "" if value is None else field.write(value)
    return _lines(value) if isinstance(value, str) else value


def _lines(text: str) -> str:
    """The text with line ends as browsers write them."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _shows(field: Field, held: Any, value: Any) -> bool:
    """Whether a control that holds `held` shows the value (None: nothing said). Numbers are compared as floats, since
    browsers round large ones."""
    if held is None:
        return value is None
    own = shown(field, value)
    if isinstance(own, str):
        return isinstance(held, str) and _lines(held) == own
    if isinstance(own, bool) or isinstance(held, bool) or not isinstance(held, int | float):
        return bool(held == own)
    return abs(held) < MOST and float(held) == float(own)


def _said(field: Field, held: Any) -> Any:
    """The value that a control holds; None where it says nothing. Raises RequestError."""
    if _shows(field, held, None):
        return None
    if field.kind == "whole":
        return whole(held, field.name, -HIGHEST_SEED, HIGHEST_SEED)
    if field.kind == "real":
        return real(held, field.name, -MOST, MOST)
    if field.kind == "truth" and not field.optional:
        return bool(held)
    text = str(held)
    if not text.strip():
        return None
    return field.read(text) if field.kind in ("pair", "truth") else text


@dataclass(frozen=True)
class Fields:
    """The form's components. controls: those of the fields in `form.VALUES`, by name; the value of a field without a
    control is kept unseen. images: those of the fields that are pictures. panel: they lie in it, and it is opened
    when a picture is put in. brought: holds the form that was last put into the page."""

    controls: Mapping[str, Any]
    method: gr.Radio
    method_values: gr.State
    rows: gr.State
    structure: gr.State
    images: Mapping[str, gr.Image]
    panel: gr.Accordion
    count: gr.Slider
    vae: gr.Dropdown
    brought: gr.State

    @property
    def components(self) -> set[Any]:
        """Those that hold what the form says."""
        others = {one for one in vars(self).values() if not isinstance(one, Mapping | gr.Accordion)}
        return {*self.controls.values(), *self.images.values(), *others}

    @property
    def changed(self) -> list[Any]:
        """Those that `filled` changes."""
        return [*self.components, self.panel]

    @property
    def prompt(self) -> Any:
        return self.controls["prompt"]

    def read(self, got: Mapping[Any, Any]) -> Form:
        """The Form of what a handler got. Raises RequestError for a value that cannot be read."""
        brought: Form = got[self.brought]
        values = dict(brought.values)
        for name, component in self.controls.items():
            field, held = BY_NAME[name], got[component]
            if not _shows(field, held, values.get(name)):
                values[name] = _said(field, held)
                if values[name] is None:
                    del values[name]
        method, settings = got[self.method], got[self.method_values]
        if (method, settings) == (brought.method or OWN_METHOD, brought.method_values):
            method = brought.method
        return Form(
            values=values,
            method=method,
            method_values=settings,
            rows=tuple(got[self.rows]),
            images={
                name: held
                for name, component in self.images.items()
                if (held := _picture(got[component], brought.images.get(name))) is not None
            },
            count=whole(1 if got[self.count] is None else got[self.count], "pictures", -1, HIGHEST_SEED),
            vae=got[self.vae] or "",
        )

    def filled(
        self, form: Form, structure: int, lend: Callable[[InputImage], Path] | None = None
    ) -> dict[Any, Any]:
        """What a handler returns to put a Form into the page. structure: the present number in that state.

        lend: copies a picture to where the page may show it; it may not show the home's own. Without `lend`, or if the
        file is gone, there is no picture. Raises RequestError.
        """
        lent: dict[str, str] = {}
        for name, text in form.images.items():
            source = input_image(name, text)
            if lend is not None and not (isinstance(source, Path) and not source.is_file()):
                lent[name] = str(lend(source))
        form = replace(form, images={name: text for name, text in form.images.items() if name in lent})
        return {
            **{one: _filled(BY_NAME[name], form.said(name)) for name, one in self.controls.items()},
            self.method: form.method or OWN_METHOD,
            self.method_values: dict(form.method_values),
            self.rows: form.rows,
            self.structure: structure + 1,
            **{component: lent.get(name) for name, component in self.images.items()},
            **({self.panel: gr.Accordion(open=True)} if lent else {}),
            self.count: form.count,
            self.vae: form.vae,
            self.brought: form,
        }

    def with_seed(self, seed: int, brought: Form) -> dict[Any, Any]:
        """What a handler returns to put a seed into the page."""
        return {self.controls["seed"]: seed, self.brought: brought.saying(seed=seed)}


def _filled(field: Field, value: Any) -> Any:
    """What a control is given to show a value. A slider is extended where the value lies beyond its end."""
    own = shown(field, value)
    return own if field.most is None else gr.update(value=own, maximum=max(field.most, own))


def _picture(held: str | None, brought: str | None) -> str | None:
    """What a picture is read from: what was brought if the page shows a copy of that."""
    if held is None or brought is None:
        return held
    try:
        source = input_image("picture", brought)
        if isinstance(source, Inline):
            return brought if Path(held).read_bytes() == source.data else held
        return brought if filecmp.cmp(held, brought, shallow=False) else held
    except OSError:
        return held
