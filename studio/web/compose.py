"""The Compose page: a prompt, a mix, a method, and the pictures as they come."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import gradio as gr

from composers import ComposerError, methods
from pipelines import StudioError
from pipelines.home import Home
from pipelines.schedulers import scheduler_names
from pipelines.text.tags import take_tags
from pipelines.text.vocabulary import unknown as unknown_words
from studio.jobs import ModelState
from studio.library.card import Card
from studio.web import methods as method_room
from studio.web import mix, words
from studio.web.desk import Desk, address, told, who
from studio.web.form import OWN, Asked, Form, drafts_of, left_out
from studio.web.thumbs import thumb
from studio.web.viewer import Viewer

GAUGE = 2.0
"""Total strength that fills the gauge."""


@dataclass(frozen=True)
class Fields:
    """The form's components. read: what a handler got, as a Form; values: a Form, as what a handler returns."""

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
        )

    def filled(self, form: Form, structure: int) -> dict[Any, Any]:
        """What puts a form on the page. structure: the state's present number."""
        return {
            self.prompt: form.prompt,
            self.negative: form.negative,
            self.method: form.method,
            self.method_values: dict(form.method_values),
            self.rows: form.rows,
            self.structure: structure + 1,
            self.seed: form.seed,
            self.steps: form.steps,
            self.guidance: form.guidance,
            self.width: form.width,
            self.height: form.height,
            self.scheduler: form.scheduler,
            self.rescale: form.rescale,
            self.clip_skip: form.clip_skip,
        }


def asker(
    desk: Desk, fields: Fields, make: Callable[[Mapping[Any, Any], Form], Asked], kind: str
) -> Callable[..., str]:
    """A handler that submits what `make` asks for, of what it got and the form; it returns the job's id."""

    def ask(got: dict[Any, Any], request: gr.Request) -> str:
        form = _with_example(fields.read(got), desk.worker.model_state())
        with told():
            asked = make(got, form)
            return desk.worker.submit(
                who(got[desk.browser], request),
                asked.drafts,
                model=got[desk.model] or None,
                kind=kind,
                labels=asked.labels,
                title=f"{form.prompt[:60]} · {mix.as_text(mix.active(form.rows))}",
            )

    return ask


def add(desk: Desk, strip: gr.HTML) -> tuple[Fields, Viewer]:
    """Draws the page into the blocks at hand. strip: what the first screen shows of the studio."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=340):
            prompt = gr.Textbox(
                label="Prompt",
                lines=3,
                elem_id="prompt",
                placeholder="What to draw; empty draws the model's first example",
                info="(word:1.2) weighs, <lora:name:0.8> adds a LoRA. Ctrl+Enter draws, Ctrl+↑/↓ changes a weight.",
            )
            unknown = gr.HTML(elem_id="unknown", container=False)
            with gr.Row():
                surprise = gr.Button("Surprise me", size="sm", visible=False, elem_id="surprise")
                take = gr.Button("Turn tags into rows", size="sm", visible=False)
            with gr.Accordion("Words this model knows", open=False, visible=False) as vocabulary:
                category = gr.Radio([], label="Kind of word", elem_id="category")
                chips = gr.HTML(container=False)
            negative = gr.Textbox(label="Negative prompt", lines=1, elem_id="negative")
            gr.Markdown("### LoRAs")
            add_lora = gr.Dropdown(
                [], value=None, label="Add a LoRA", info="those that fit the model", elem_id="add-lora"
            )
            rows = gr.State(())
            structure = gr.State(0)
            _rows(desk, rows, structure, prompt)
            with gr.Row():
                gauge = gr.HTML(container=False, elem_id="gauge")
                normalise = gr.Button(
                    "Normalise to 1", size="sm", scale=0, min_width=130, elem_id="normalise"
                )
            method = gr.Radio(list(methods()), value="merge", label="Method", elem_id="method")
            method_values = gr.State({})
            _settings(desk, method, method_values, structure)
            about = gr.HTML(container=False, elem_id="cost")
            with gr.Accordion("Size, steps, sampler", open=False):
                with gr.Row():
                    width = gr.Number(0, label="Width", info="0: the model's own", precision=0, minimum=0)
                    height = gr.Number(0, label="Height", info="0: the model's own", precision=0, minimum=0)
                with gr.Row():
                    steps = gr.Slider(
                        0, 150, 0, step=1, label="Steps", info="0: the model's own", elem_id="steps"
                    )
                    guidance = gr.Number(
                        -1, label="Guidance scale", info="-1: the model's own; 1 or less: none"
                    )
                scheduler = gr.Dropdown([OWN, *scheduler_names()], value=OWN, label="Sampler")
            with gr.Accordion("Advanced", open=False):
                with gr.Row():
                    rescale = gr.Slider(0, 1, 0, step=0.05, label="Guidance rescale")
                    clip_skip = gr.Number(0, label="Clip skip", precision=0, minimum=0, maximum=11)
                init_image = gr.Image(type="filepath", label="Start from a picture", height=200)
                strength = gr.Slider(0.05, 1, 0.8, step=0.05, label="How far to change that picture")
        with gr.Column(scale=7, min_width=340):
            with gr.Row(elem_id="actions"):
                generate = gr.Button("Generate", variant="primary", scale=3, elem_id="generate")
                stop = gr.Button("Stop", scale=1, elem_id="stop")
            with gr.Row():
                seed = gr.Number(
                    -1, label="Seed", info="-1: a new one each time", precision=0, elem_id="seed"
                )
                count = gr.Slider(1, 16, 1, step=1, label="Pictures", elem_id="count")
            viewer = Viewer.drawn(desk, stop)
            with gr.Row():
                reuse_seed = gr.Button("Keep this seed", size="sm")
                who_did = gr.Button("Who did this?", size="sm", elem_id="who-did-this")
            with gr.Accordion("One mix, four methods, one pass"):
                strip.render()  # type: ignore[no-untyped-call]
    fields = Fields(
        prompt, negative, method, method_values, rows, structure, seed, count, steps, guidance, width, height,
        scheduler, rescale, clip_skip, init_image, strength,
    )  # fmt: skip

    # -- what the form says of itself --------------------------------------------------------------------

    def summary(got: Mapping[Any, Any]) -> dict[Any, Any]:
        form = fields.read(got)
        state = desk.worker.model_state()
        return {
            gauge: _gauge(form.rows),
            about: _cost(form, state),
            unknown: words.unknown_html(
                unknown_words(form.prompt, state.vocabulary, _triggers(desk, form.rows, got[desk.model]))
            ),
            take: gr.Button(visible=_has_tags(form.prompt)),
        }

    gr.on(
        [prompt.change, rows.change, method.change, method_values.change, steps.change, guidance.change],
        summary,
        fields.components | {desk.model},
        {gauge, about, unknown, take},
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
    )

    def for_model(model: str) -> dict[Any, Any]:
        state = desk.worker.model_state()
        groups = list(state.vocabulary)
        return {
            add_lora: gr.Dropdown(choices=[card.name for card in desk.fitting(model)], value=None),
            surprise: gr.Button(visible=bool(groups)),
            vocabulary: gr.Accordion(visible=bool(groups)),
            category: gr.Radio(groups, value=groups[0] if groups else None),
            chips: words.chips(state.vocabulary[groups[0]]) if groups else "",
            prompt: gr.Textbox(placeholder=f"{state.examples[0]}" if state.examples else "What to draw"),
        }

    viewer.on_model(for_model, desk.model, [add_lora, surprise, vocabulary, category, chips, prompt])
    category.change(
        lambda group: words.chips(desk.worker.model_state().vocabulary.get(group, {})),
        category,
        chips,
        show_progress="hidden",
        api_visibility="private",
    )
    surprise.click(
        lambda: words.by_chance(desk.worker.model_state().vocabulary, random.Random()),
        None,
        prompt,
        api_visibility="private",
    )

    # -- the mix -----------------------------------------------------------------------------------------

    def added(name: str | None, rows: mix.Rows, structure: int, model: str) -> tuple[Any, ...]:
        if not name:
            return gr.skip(), gr.skip(), None
        with told():
            card = desk.worker.library.card(name, desk.chosen(model))
        weight = 1.0 if card.preferred_weight is None else card.preferred_weight
        return mix.added(tuple(rows), card.name, weight), structure + 1, None

    add_lora.input(
        added, [add_lora, rows, structure, desk.model], [rows, structure, add_lora], api_visibility="private"
    )
    normalise.click(
        lambda rows, structure: (mix.normalised(tuple(rows)), structure + 1),
        [rows, structure],
        [rows, structure],
        api_visibility="private",
    )

    def tags_taken(prompt: str, rows: mix.Rows, structure: int) -> tuple[Any, ...]:
        with told():
            text, fresh = mix.taken_from(prompt, tuple(rows))
        return text, fresh, structure + 1

    take.click(tags_taken, [prompt, rows, structure], [prompt, rows, structure], api_visibility="private")

    # -- asking ------------------------------------------------------------------------------------------

    for button, make, kind in (
        (generate, lambda got, form: Asked(drafts_of(form), ()), "compose"),
        (who_did, lambda got, form: left_out(form), "leave-one-out"),
    ):
        button.click(
            asker(desk, fields, make, kind),
            fields.components | {desk.browser, desk.model},
            viewer.job,
            trigger_mode="multiple",
            concurrency_limit=None,
            show_progress="hidden",
            api_visibility="private",
        )

    def kept_seed(job: str, browser: str | None, request: gr.Request) -> Any:
        view = desk.worker.view(job, who(browser, request)) if job else None
        return view.pictures[0].seed if view is not None and view.pictures else gr.skip()

    reuse_seed.click(kept_seed, [viewer.job, desk.browser], seed, api_visibility="private")
    return fields, viewer


# -- the mix's rows -------------------------------------------------------------------------------------------


def _rows(desk: Desk, rows: gr.State, structure: gr.State, prompt: gr.Textbox) -> None:
    """The rows, drawn from their one value; edits write back into it and draw nothing."""

    @gr.render(  # type: ignore[untyped-decorator]
        inputs=[rows, desk.model], triggers=[structure.change, desk.model.change], show_progress="hidden"
    )
    def draw(held: mix.Rows, model: str) -> None:
        if not held:
            gr.Markdown("None yet: the model alone.", elem_classes="small-note")
        cards = {card.name.casefold(): card for card in desk.worker.library.cards()}
        for place, row in enumerate(held):
            _row(
                desk.worker.home,
                rows,
                structure,
                prompt,
                place,
                row,
                cards.get(row.name.casefold()),
                last=place == len(held) - 1,
            )


def _row(
    home: Home,
    rows: gr.State,
    structure: gr.State,
    prompt: gr.Textbox,
    place: int,
    row: mix.Row,
    card: Card | None,
    *,
    last: bool,
) -> None:
    triggers = () if card is None else tuple(card.triggers)
    with gr.Group(elem_classes=["mix-row"] if row.on else ["mix-row", "off"]):
        with gr.Row(equal_height=False):
            gr.HTML(_thumb(home, card, row.name) + _name(row, card), elem_classes="mix-head", container=False)
            up = gr.Button("Up", elem_classes="icon-button", interactive=place > 0, min_width=50, size="sm")
            down = gr.Button(
                "Down", elem_classes="icon-button", interactive=not last, min_width=60, size="sm"
            )
            gone = gr.Button("Remove", elem_classes="icon-button", min_width=70, size="sm")
        with gr.Row():
            on = gr.Checkbox(row.on, label=f"Use {row.name}", interactive=True, min_width=120, scale=1)
            weight = gr.Slider(
                min(mix.LOWEST, row.weight), max(mix.HIGHEST, row.weight), row.weight, step=0.05,
                label=f"{row.name}: strength", interactive=True, scale=3, min_width=180,
            )  # fmt: skip
        with gr.Accordion(
            "Text encoder, blocks, trigger words", open=row.text_weight is not None or bool(row.preset)
        ):
            with gr.Row():
                text = gr.Textbox(
                    "" if row.text_weight is None else f"{row.text_weight:g}",
                    label="Text-encoder strength",
                    interactive=True,
                    placeholder="as strength",
                    min_width=140,
                )
                preset = gr.Dropdown(
                    [(label, key) for key, label in mix.PRESETS.items()],
                    value=row.preset if row.preset in mix.PRESETS else "",
                    label="Blocks",
                    interactive=True,
                    min_width=140,
                )
            words_in = gr.Button(f"Add its words: {', '.join(triggers)}", visible=bool(triggers), size="sm")

    def edit(control: Any, name: str) -> None:
        control.input(
            lambda held, value: mix.changed(tuple(held), place, **{name: value}),
            [rows, control],
            rows,
            show_progress="hidden",
            trigger_mode="always_last",
            concurrency_limit=None,
            api_visibility="private",
            key=(
                "edit",
                name,
                place,
            ),  # the same event when the rows are drawn anew, so that no click is lost
        )

    for control, name in ((on, "on"), (weight, "weight"), (preset, "preset")):
        edit(control, name)
    gr.on(
        [text.blur, text.submit],
        lambda held, value: mix.changed(tuple(held), place, text_weight=_strength(value)),
        [rows, text],
        rows,
        show_progress="hidden",
        queue=False,
        api_visibility="private",
        key=("text_weight", place),
    )

    def restructure(button: gr.Button, name: str, change: Callable[[mix.Rows], mix.Rows]) -> None:
        button.click(
            lambda held, number: (change(tuple(held)), number + 1),
            [rows, structure],
            [rows, structure],
            show_progress="hidden",
            api_visibility="private",
            key=(name, place),
        )

    restructure(up, "up", lambda held: mix.moved(held, place, -1))
    restructure(down, "down", lambda held: mix.moved(held, place, 1))
    restructure(gone, "remove", lambda held: mix.removed(held, place))
    words_in.click(
        lambda text: words.with_triggers(text, triggers), prompt, prompt, show_progress="hidden",
        api_visibility="private",
    )  # fmt: skip


def _settings(desk: Desk, method: gr.Radio, values: gr.State, structure: gr.State) -> None:
    """The method's settings, from its knobs."""

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


def _control(setting: method_room.Setting, value: Any) -> Any:
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


def _strength(text: str) -> float | None:
    """What was written as a text-encoder strength; None for nothing, which is "as strength"."""
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError as error:
        raise gr.Error(
            f"text-encoder strength {text!r} must be a number, or empty", print_exception=False
        ) from error


# -- texts ----------------------------------------------------------------------------------------------------


def _thumb(home: Home, card: Card | None, name: str) -> str:
    file = None if card is None else thumb(card, home)
    if file is None:
        return '<span class="none" role="presentation"></span>'
    return f'<img src="{address(file)}" alt="{escape(name, quote=True)}">'


def _name(row: mix.Row, card: Card | None) -> str:
    said = "not in the library" if card is None else ", ".join(card.triggers[:3]) or card.category
    liked = (
        "" if card is None or card.preferred_weight is None else f" · recommended {card.preferred_weight:g}"
    )
    return f'<div class="row-name">{escape(row.name)}<small>{escape(said)}{liked}</small></div>'


def _gauge(rows: mix.Rows) -> str:
    total = mix.total(rows)
    kind = "gauge high" if total > GAUGE else "gauge"
    hint = " · strong: LoRAs may fight" if total > GAUGE else ""
    return (
        f'<div class="{kind}"><span>Total strength {total:.2f}{hint}</span>'
        f'<span class="bar"><i style="width:{min(100 * total / GAUGE, 100):.0f}%"></i></span></div>'
    )


def _cost(form: Form, state: ModelState) -> str:
    """The method's cost and its schedule; what speaks against it, where something does."""
    defaults = state.defaults
    steps = form.steps or (defaults.steps if defaults else 20)
    guidance = form.guidance if form.guidance >= 0 else defaults.guidance_scale if defaults else 7.0
    members = mix.uses_of(form.rows)
    try:
        plans = method_room.schedule(
            method_room.built(form.method, form.method_values), members, steps, guidance
        )
    except ComposerError as error:
        return f'<p class="small-note">{escape(str(error))}</p>'
    names = [use.adapter for use in members.uses]
    return f'<p class="small-note">{method_room.cost(plans)}</p>{method_room.timeline(plans, names)}'


def _has_tags(prompt: str) -> bool:
    try:
        return bool(take_tags(prompt)[1])
    except StudioError:
        return False


def _triggers(desk: Desk, rows: mix.Rows, model: str) -> list[str]:
    names = {row.name.casefold() for row in rows}
    return [word for card in desk.fitting(model) if card.name.casefold() in names for word in card.triggers]


def _with_example(form: Form, state: ModelState) -> Form:
    """An empty prompt draws the model's first example."""
    if form.prompt.strip() or not state.examples:
        return form
    return replace(form, prompt=state.examples[0])
