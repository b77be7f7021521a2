"""The Compose page: a prompt, a mix, a method, and pictures as they come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from composers import methods
from pipelines import StudioError
from studio.drafts.fields import BY_NAME, Place, of_kind
from studio.jobs.inputs import with_kept_input
from studio.web.door.events import login_of
from studio.web.form import mix
from studio.web.form.components import OWN, Fields, control, picture_control
from studio.web.form.form import OWN_METHOD, VALUES, Form, composed, left_out, row_sweep
from studio.web.form.job_file import FILE, job_file, written
from studio.web.form.kept import kept
from studio.web.parts import method_settings, mix_rows, scrub, words
from studio.web.parts.desk import Desk, who, whose_files
from studio.web.parts.job_viewer import Viewer
from studio.web.parts.live import SMALL_MODEL, Live
from studio.web.parts.mix_rows import MixStates
from studio.web.parts.submit import asker, with_example
from studio.web.parts.summary import Summary
from studio.web.parts.vocabulary import VocabularyPanel

OWN_VAE = (OWN, "")
PROMPT_HINT = (
    "(word:1.2) weighs, <lora:name:0.8> adds a LoRA; both complete as you type. Ctrl+Enter draws, Ctrl+↑/↓ changes a "
    "weight, Esc stops."
)


@dataclass(frozen=True)
class Buttons:
    """The page's buttons."""

    generate: gr.Button
    who_did: gr.Button
    reuse_seed: gr.Button
    clear: gr.Button
    job_file: gr.Button
    job_file_ready: gr.DownloadButton
    normalise: gr.Button
    take_tags: gr.Button


def add(desk: Desk, strip: gr.HTML) -> tuple[Fields, Viewer, gr.Button]:
    """Draws the page into the current blocks. strip: the strip of the first screen (`studio.web.parts.showcase`).

    Returns the form's components, the viewer, and the Generate button. The caller makes the button interactive once the
    page knows its owner.
    """
    states = MixStates.fresh()
    controls: dict[str, Any] = {}

    def shown(name: str, **look: Any) -> Any:
        controls[name] = control(BY_NAME[name], **look)
        return controls[name]

    def all_of(place: Place) -> None:
        """Draws the controls of a place: two in a row, or three where they are for pairs of numbers."""
        fields = [field for field in VALUES if field.place == place]
        for pairs, abreast in ((False, 2), (True, 3)):
            names = [field.name for field in fields if (field.kind == "pair") == pairs]
            for start in range(0, len(names), abreast):
                with gr.Row():
                    for name in names[start : start + abreast]:
                        shown(name)

    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=340):
            prompt = shown(
                "prompt",
                lines=3,
                placeholder="What to draw; empty draws the model's first example",
                info=PROMPT_HINT,
            )
            unknown = gr.HTML(elem_id="unknown", container=False)
            with gr.Row():
                surprise = gr.Button("Surprise me", size="sm", visible=False, elem_id="surprise")
                take_tags = gr.Button("Turn tags into rows", size="sm", visible=False)
            vocabulary = VocabularyPanel.drawn(surprise)
            shown("negative_prompt", lines=1, info=None, elem_id="negative")
            completions = gr.HTML(container=False, elem_classes="unseen")
            triggers = gr.HTML(container=False, elem_classes="unseen")
            gr.Markdown("### LoRAs")
            add_lora = gr.Dropdown(
                [], value=None, label="Add a LoRA", info="those that fit the model", elem_id="add-lora"
            )
            mix_rows.add(desk, states, prompt)
            with gr.Row():
                gauge = gr.HTML(container=False, elem_id="gauge")
                normalise = gr.Button(
                    "Normalise to 1", size="sm", scale=0, min_width=130, elem_id="normalise"
                )
            live_on = gr.Checkbox(True, label="Live draft", info=SMALL_MODEL, elem_id="live-on")
            method = gr.Radio(list(methods()), value=OWN_METHOD, label="Method", elem_id="method")
            method_values = gr.State({})
            method_settings.add(desk, method, method_values, states.structure)
            cost = gr.HTML(container=False, elem_id="cost")
            with gr.Accordion("Size, steps, sampler", open=False):
                all_of("sampling")
            with gr.Accordion("Start from a picture", open=False) as panel:
                with gr.Row():
                    images = {field.name: picture_control(field) for field in of_kind("picture")}
                all_of("start")
            with gr.Accordion("Advanced", open=False):
                all_of("advanced")
                vae = gr.Dropdown(
                    [OWN_VAE],
                    value="",
                    label="VAE",
                    info=_vae_info(desk),
                    allow_custom_value=True,
                    elem_id="vae",
                )
        with gr.Column(scale=7, min_width=340, elem_id="results"):
            with gr.Row(elem_id="actions"):
                generate = gr.Button(
                    "Generate", variant="primary", scale=3, interactive=False, elem_id="generate"
                )
                stop = gr.Button("Stop", scale=1, elem_id="stop")
            with gr.Row():
                shown("seed", info=f"-1: {BY_NAME['seed'].nothing}")
                count = gr.Slider(1, 16, 1, step=1, label="Pictures", elem_id="count")
            live = Live(live_on, gr.HTML(elem_id="draft", container=False))
            viewer = Viewer.drawn(desk, stop)
            scrub.add(desk, viewer, "compose")
            with gr.Row():
                reuse_seed = gr.Button("Keep this seed", size="sm", min_width=120)
                who_did = gr.Button("Who did this?", size="sm", min_width=120, elem_id="who-did-this")
                as_file = gr.Button("Turn into a job file", size="sm", min_width=120, elem_id="form-job-file")
                clear = gr.Button("Clear the form", size="sm", min_width=120, elem_id="clear-form")
                ready = gr.DownloadButton("jobs.yaml", visible="hidden", elem_id="form-job-file-ready")
            with gr.Accordion("One mix, four methods, one pass"):
                strip.render()  # type: ignore[no-untyped-call]
    fields = Fields(
        controls,
        method,
        method_values,
        states.rows,
        states.structure,
        images,
        panel,
        count,
        vae,
        gr.State(Form()),
    )
    buttons = Buttons(generate, who_did, reuse_seed, clear, as_file, ready, normalise, take_tags)
    Summary(gauge, cost, unknown, take_tags, triggers).wire(desk, fields)
    vocabulary.wire(desk, prompt)
    live.wire(desk, fields, states, viewer)
    _follow_model(desk, viewer, fields, live, vocabulary, add_lora, completions)
    _edit_mix(desk, states, prompt, add_lora, buttons)
    _ask(desk, fields, states, viewer, buttons)
    _keep(desk, fields, buttons)
    return fields, viewer, generate


def _follow_model(
    desk: Desk, viewer: Viewer, fields: Fields, live: Live, vocabulary: VocabularyPanel, add_lora: gr.Dropdown,
    completions: gr.HTML,
) -> None:  # fmt: skip
    """Updates what depends on the model, whenever another one is ready."""

    def for_model(model: str) -> dict[Any, Any]:
        state = desk.worker.model_state()
        fitting = desk.fitting(model)
        return {
            **vocabulary.for_model(state),
            **live.for_model(state),
            add_lora: gr.Dropdown(choices=[card.name for card in fitting], value=None),
            completions: words.lora_completions(fitting) + words.word_completions(state.vocabulary),
            fields.prompt: gr.Textbox(
                placeholder=f"{state.examples[0]}" if state.examples else "What to draw"
            ),
            fields.vae: gr.Dropdown(
                choices=[OWN_VAE, *((entry.name, entry.name) for entry in desk.worker.home.vaes())]
            ),
        }

    outputs = [
        *vocabulary.components,
        live.on,
        live.panel,
        add_lora,
        completions,
        fields.prompt,
        fields.vae,
    ]
    viewer.on_model(for_model, desk.model, outputs)


def _edit_mix(
    desk: Desk, states: MixStates, prompt: gr.Textbox, add_lora: gr.Dropdown, buttons: Buttons
) -> None:
    """Wires what changes the mix from outside its rows."""

    def added(name: str | None, held: mix.MixRows, structure: int, model: str) -> tuple[Any, ...]:
        if not name:
            return gr.skip(), gr.skip(), None
        card = desk.worker.library.card(name, desk.chosen(model))
        weight = 1.0 if card.preferred_weight is None else card.preferred_weight
        rows = mix.added(tuple(held), card.name, weight)
        # One choice may arrive twice. Drawing the rows a second time would undo edits made in between.
        return rows, structure + (rows != tuple(held)), None

    add_lora.input(
        added,
        [add_lora, states.rows, states.structure, desk.model],
        [states.rows, states.structure, add_lora],
        api_visibility="private",
    )

    def normalised(held: mix.MixRows, structure: int, settled: int) -> tuple[Any, ...]:
        return mix.normalised(desk.preferring(tuple(held))), structure + 1, settled + 1

    buttons.normalise.click(
        normalised,
        [states.rows, states.structure, states.settled],
        [states.rows, states.structure, states.settled],
        api_visibility="private",
    )

    def tags_taken(prompt: str, held: mix.MixRows, structure: int) -> tuple[Any, ...]:
        text, fresh = mix.taken_from(prompt, tuple(held))
        return text, fresh, structure + 1

    buttons.take_tags.click(
        tags_taken,
        [prompt, states.rows, states.structure],
        [prompt, states.rows, states.structure],
        api_visibility="private",
    )


def _ask(desk: Desk, fields: Fields, states: MixStates, viewer: Viewer, buttons: Buttons) -> None:
    """Wires the buttons that submit the form, or write it as a job file."""
    for event, make, kind in (
        (buttons.generate.click, lambda got, form: composed(form), "compose"),
        (buttons.who_did.click, lambda got, form: left_out(form), "leave-one-out"),
        (states.swept.change, lambda got, form: row_sweep(form, got[states.swept][0]), "sweep"),
    ):
        event(
            asker(desk, fields, make, kind),
            fields.components | {states.swept, desk.browser, desk.model},
            viewer.job,
            trigger_mode="multiple",
            concurrency_limit=None,
            show_progress="hidden",
            api_visibility="private",
        )

    def kept_seed(got: dict[Any, Any], request: gr.Request) -> Any:
        view = desk.worker.view(got[viewer.job], who(got[desk.browser], request)) if got[viewer.job] else None
        if view is None or not view.pictures:
            return gr.skip()
        return fields.with_seed(view.pictures[0].seed, got[fields.brought])

    buttons.reuse_seed.click(
        kept_seed,
        {viewer.job, desk.browser, fields.brought},
        [fields.controls["seed"], fields.brought],
        api_visibility="private",
    )

    def as_file(got: dict[Any, Any], request: gr.Request) -> str:
        form = with_example(fields.read(got), desk.worker.model_state())
        kept = [with_kept_input(draft, desk.worker.home) for draft in composed(form).drafts]
        models = [desk.chosen(got[desk.model])] * len(kept)
        place = desk.files.place(FILE, whose_files(request))
        return written(job_file(kept, models, form.vae, paths=desk.worker.trust.paths), place)

    buttons.job_file.click(
        as_file, fields.components | {desk.model}, buttons.job_file_ready, api_visibility="private"
    ).then(
        None,
        js="() => setTimeout(() => document.querySelector('#form-job-file-ready').click(), 100)",
        api_visibility="private",
    )


def _keep(desk: Desk, fields: Fields, buttons: Buttons) -> None:
    """Has the browser keep the form over a reload, until it is cleared."""
    pictures = dict.fromkeys(fields.images.values())  # their files are on the server
    kept_fields = fields.components - pictures.keys()

    def keep(got: dict[Any, Any], request: gr.Request) -> Any:
        if not got[desk.opened]:  # the kept form was not put back yet
            return gr.skip()
        try:
            form = fields.read({**got, **pictures})
        except StudioError:  # a value is only half typed
            return gr.skip()
        cards = desk.worker.library.glance(wait=0, again=False).cards
        return kept(form, got[desk.model], login_of(request), cards)

    gr.on(
        [component.change for component in [*kept_fields, desk.model]],
        keep,
        kept_fields | {desk.model, desk.opened},
        desk.form,
        queue=False,
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
    )
    buttons.clear.click(
        lambda structure: fields.filled(Form(), structure),
        fields.structure,
        fields.changed,
        show_progress="hidden",
        api_visibility="private",
    )


def _vae_info(desk: Desk) -> str:
    folder = (
        f"from {desk.worker.home.path / 'vae'}" if desk.worker.trust.paths else "from the studio's folder"
    )
    return folder + (", or the path of one" if desk.worker.trust.paths else "")
