"""The mix's rows on the page. They are drawn from one value; an edit changes this value without drawing the rows
again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from composers.shown import shown
from pipelines.errors import RequestError
from pipelines.home import Home
from studio.library.card import Card
from studio.web.form import mix
from studio.web.form.form import real
from studio.web.parts import words
from studio.web.parts.desk import Desk, address
from studio.web.parts.thumbs import thumb

HINT = "Alt+↑ and Alt+↓ inside a row move it."


@dataclass(frozen=True)
class MixStates:
    """The states behind the mix's rows.

    rows: the mix. structure: a number that rises when the rows must be drawn again.
    settled: a number that rises when an edit is finished, as when a slider is let go.
    swept: (name of the row whose strength is to be swept, number of sweeps asked for so far).
    """

    rows: gr.State
    structure: gr.State
    settled: gr.State
    swept: gr.State

    @classmethod
    def fresh(cls) -> MixStates:
        return cls(gr.State(()), gr.State(0), gr.State(0), gr.State(("", 0)))


def add(desk: Desk, states: MixStates, prompt: gr.Textbox) -> None:
    """Draws the rows into the current blocks."""
    _by_keyboard(states)

    @gr.render(  # type: ignore[untyped-decorator]
        inputs=[states.rows, desk.model],
        triggers=[states.structure.change, desk.model.change],
        show_progress="hidden",
    )
    def draw(held: mix.MixRows, model: str) -> None:
        if not held:
            gr.Markdown("None yet: the model alone.", elem_classes="small-note")
            return
        found = desk.worker.library.named(row.name for row in held)
        cards = {card.name.casefold(): card for card in found}
        for place, row in enumerate(held):
            card = cards.get(row.name.casefold())
            _row(desk.worker.home, states, prompt, place, row, card, last=place == len(held) - 1)
        gr.Markdown(HINT, elem_classes="small-note")


def _by_keyboard(states: MixStates) -> None:
    """Moves rows when the page's script asks for it. The script asks again if nothing happens, since a click may be
    lost while rows are being drawn. So every move names its row, and a move that was made is not made twice."""
    button = gr.Button("Move a row", visible="hidden", elem_id="move-row")
    asked = gr.JSON(visible=False)

    def move(asked: Mapping[str, Any], held: mix.MixRows, structure: int) -> tuple[Any, Any]:
        rows, place = tuple(held), int(asked["place"])
        if not 0 <= place < len(rows) or rows[place].name != asked["name"]:
            return gr.skip(), gr.skip()
        return mix.moved(rows, place, int(asked["by"])), structure + 1

    button.click(
        move,
        [asked, states.rows, states.structure],
        [states.rows, states.structure],
        js="(asked, rows, structure) => [window.studioMove, rows, structure]",
        show_progress="hidden",
        trigger_mode="multiple",
        api_visibility="private",
    )


def _row(
    home: Home, states: MixStates, prompt: gr.Textbox, place: int, row: mix.MixRow, card: Card | None, *, last: bool
) -> None:  # fmt: skip
    triggers = () if card is None else tuple(card.triggers)
    strength = row.strength
    if row.weight is None and card is not None and card.preferred_weight is not None:
        strength = card.preferred_weight
    presets = [(label, key) for key, label in mix.PRESETS.items()]
    if row.preset == mix.CUSTOM:
        presets.append(("As it came", mix.CUSTOM))
    with gr.Group(elem_classes=["mix-row"] if row.on else ["mix-row", "off"]):
        with gr.Row(equal_height=False):
            head = _thumb(home, card, row.name) + _name(row, card)
            gr.HTML(head, elem_classes="mix-head", container=False, min_width=100)
            up = gr.Button("Up", elem_classes="icon-button", interactive=place > 0, min_width=50, size="sm")
            down = gr.Button(
                "Down", elem_classes="icon-button", interactive=not last, min_width=60, size="sm"
            )
            gone = gr.Button("Remove", elem_classes="icon-button", min_width=70, size="sm")
        with gr.Row():
            on = gr.Checkbox(row.on, label=f"Use {row.name}", interactive=True, min_width=120, scale=1)
            weight = gr.Slider(
                min(mix.LOWEST, strength), max(mix.HIGHEST, strength), strength, step=0.05,
                label=f"{row.name}: strength", info=_recommended(card), interactive=True, scale=3, min_width=180,
            )  # fmt: skip
        with gr.Accordion(
            "Text encoder, blocks, trigger words", open=row.text_weight is not None or bool(row.preset)
        ):
            with gr.Row():
                text = gr.Textbox(
                    _written(row.text_weight),
                    label="Text-encoder strength",
                    interactive=True,
                    placeholder="as strength",
                    min_width=140,
                )
                preset = gr.Dropdown(
                    presets,
                    value=row.preset,
                    label="Blocks",
                    interactive=True,
                    min_width=140,
                )
            with gr.Row():
                words_in = gr.Button(
                    f"Add its words: {', '.join(triggers)}", visible=bool(triggers), size="sm"
                )
                sweep = gr.Button("Sweep its strength", size="sm")

    def edit(event: Any, control: Any, name: str, read: Callable[[Any], Any] = lambda value: value) -> None:
        """Lets a control edit one field of the row. The event keeps its name when the rows are drawn again, so that no
        edit is lost."""
        event(
            lambda held, value: mix.changed(tuple(held), place, **{name: read(value)}),
            [states.rows, control],
            states.rows,
            show_progress="hidden",
            trigger_mode="always_last",
            concurrency_limit=None,
            api_visibility="private",
            key=("edit", name, place),
        )

    def settle(event: Any, control: Any, name: str, read: Callable[[Any], Any] = lambda value: value) -> None:
        """As `edit`, and the edit is finished."""
        event(
            lambda held, value, number: (
                mix.changed(tuple(held), place, **{name: read(value)}),
                number + 1,
            ),
            [states.rows, control, states.settled],
            [states.rows, states.settled],
            show_progress="hidden",
            trigger_mode="multiple",  # an edit does not wait for an answer, which the browser may have missed
            api_visibility="private",
            key=("settle", name, place),
        )

    edit(weight.input, weight, "weight")
    settle(weight.release, weight, "weight")
    settle(on.input, on, "on")
    settle(preset.input, preset, "preset")
    settle(text.submit, text, "text_weight", _strength)
    edit(text.blur, text, "text_weight", _strength)

    def restructure(button: gr.Button, name: str, change: Callable[[mix.MixRows], mix.MixRows]) -> None:
        button.click(
            lambda held, number: (change(tuple(held)), number + 1),
            [states.rows, states.structure],
            [states.rows, states.structure],
            show_progress="hidden",
            api_visibility="private",
            key=(name, place),
        )

    restructure(up, "up", lambda held: mix.moved(held, place, -1))
    restructure(down, "down", lambda held: mix.moved(held, place, 1))
    restructure(gone, "remove", lambda held: mix.removed(held, place))
    words_in.click(
        lambda text: words.with_triggers(text, triggers),
        prompt,
        prompt,
        show_progress="hidden",
        api_visibility="private",
    )
    sweep.click(
        lambda swept: (row.name, swept[1] + 1),
        states.swept,
        states.swept,
        show_progress="hidden",
        api_visibility="private",
    )


def _written(strength: float | None) -> str:
    """The strength as text, as `_strength` reads it."""
    if strength is None:
        return ""
    short = f"{strength:g}"
    return short if float(short) == strength else repr(strength)


def _strength(text: str) -> float | None:
    """A text-encoder strength that was typed; None for an empty text, which means the same as the strength. Raises
    RequestError."""
    if not text.strip():
        return None
    try:
        return real(float(text), "text-encoder strength")
    except ValueError as error:
        raise RequestError(f"text-encoder strength {shown(text)} must be a number, or empty") from error


# -- texts ----------------------------------------------------------------------------------------------------


def _thumb(home: Home, card: Card | None, name: str) -> str:
    file = None if card is None else thumb(card, home)
    if file is None:
        return '<span class="none" role="presentation"></span>'
    return f'<img src="{address(file)}" alt="{escape(name, quote=True)}">'


def _name(row: mix.MixRow, card: Card | None) -> str:
    said = "not in the library" if card is None else ", ".join(card.triggers[:3]) or card.category
    return f'<div class="row-name">{escape(row.name)}<small>{escape(said)}</small></div>'


def _recommended(card: Card | None) -> str | None:
    """The strengths that the file, or a note beside it, recommends."""
    if card is None:
        return None
    said = []
    if card.strength_range is not None:
        said.append(f"{card.strength_range[0]:g} to {card.strength_range[1]:g}")
    if card.preferred_weight is not None:
        said.append(f"best at {card.preferred_weight:g}" if said else f"{card.preferred_weight:g}")
    return f"recommended {', '.join(said)}" if said else None
