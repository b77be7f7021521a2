"""The method's settings on the page, drawn from their knobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from composers import methods
from composers.plan import Setting
from studio.web.form import methods as method_room
from studio.web.parts.desk import Desk


def add(desk: Desk, method: gr.Radio, values: gr.State, structure: gr.State) -> None:
    """Draws the method's settings into the current blocks, and redraws them when another method is chosen."""

    @gr.render(  # type: ignore[untyped-decorator]
        inputs=[method, values],
        triggers=[method.change, structure.change, desk.model.change],
        show_progress="hidden",
    )
    def draw(name: str, held: Mapping[str, object]) -> None:
        gr.Markdown(methods()[name].summary, elem_classes="small-note")
        own = method_room.settings(name)
        for start in range(0, len(own), 3):
            with gr.Row():
                for setting in own[start : start + 3]:
                    control = _control(setting, held.get(setting.name, setting.default))
                    control.input(
                        lambda held, value, name=setting.name: {**held, name: value},
                        [values, control],
                        values,
                        show_progress="hidden",
                        trigger_mode="always_last",
                        concurrency_limit=None,
                        api_visibility="private",
                    )


def _control(setting: Setting, value: Any) -> Any:
    knob = setting.knob
    label = f"{knob.label} ({knob.unit})" if knob.unit else knob.label
    if knob.choices:
        return gr.Dropdown(
            list(knob.choices), value=value, label=label, info=knob.help, min_width=150, interactive=True
        )
    if isinstance(setting.default, bool):
        return gr.Checkbox(value, label=label, info=knob.help, min_width=150, interactive=True)
    if knob.low is not None and knob.high is not None and knob.high <= 200:
        step = 1 if setting.whole else 0.05
        return gr.Slider(
            knob.low,
            knob.high,
            value,
            step=step,
            label=label,
            info=knob.help,
            min_width=150,
            interactive=True,
        )
    if isinstance(setting.default, int | float):
        return gr.Number(
            value,
            label=label,
            info=knob.help,
            precision=0 if setting.whole else None,
            min_width=150,
            interactive=True,
        )
    return gr.Textbox(value, label=label, info=knob.help, min_width=150, interactive=True)
