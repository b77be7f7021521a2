"""The B-LoRA page: trains on pictures while rendering goes on, and draws one picture's content in another's style."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines import StudioError
from pipelines.adapters import inspect_file
from studio.jobs import Lesson, TrainingView, Worker
from studio.web.form import blora
from studio.web.parts.desk import Desk, plain, who

CAVEAT = (
    "A B-LoRA is learned from **one picture**. Content and style sit in different blocks of the model, so one part "
    "can be taken from each. On the built-in model a picture takes about a minute; on SDXL it takes a GPU and a while."
)
NOTHING = ("none", "")


@dataclass(frozen=True)
class _Learner:
    """The controls for one picture to train on."""

    picture: gr.Image
    prompt: gr.Textbox
    name: gr.Textbox
    button: gr.Button


@dataclass(frozen=True)
class _Learning:
    """The controls for training, and what shows how it goes."""

    learners: tuple[_Learner, ...]
    steps: gr.Slider
    said: gr.HTML
    samples: gr.Gallery
    stop: gr.Button

    @classmethod
    def drawn(cls) -> _Learning:
        """Draws it into the current blocks."""
        gr.Markdown("### Learn from pictures")
        with gr.Row():
            learners = (_learner("Content", "A [c]"), _learner("Style", "[s] style"))
        steps = gr.Slider(
            0,
            1000,
            0,
            step=10,
            label="Steps",
            info="0: the recipe's own (220 on a small model, 1000 on SDXL)",
        )
        said = gr.HTML(elem_id="training-said", elem_classes="live", container=False)
        samples = gr.Gallery(
            label="As they stand",
            columns=2,
            height=220,
            object_fit="contain",
            visible=False,
            preview=False,
        )
        stop = gr.Button("Stop training", visible=False, elem_id="training-stop")
        return cls(learners, steps, said, samples, stop)


@dataclass(frozen=True)
class _Mixing:
    """The controls for mixing content and style. job: holds the id of the job that is shown, "" for none."""

    content: gr.Dropdown
    style: gr.Dropdown
    content_strength: gr.Slider
    style_strength: gr.Slider
    prompt: gr.Textbox
    seed: gr.Number
    matrix: gr.Checkbox
    draw: gr.Button
    status: gr.HTML
    pictures: gr.Gallery
    job: gr.State

    @classmethod
    def drawn(cls) -> _Mixing:
        """Draws it into the current blocks."""
        gr.Markdown("### Mix content and style")
        with gr.Row():
            content = gr.Dropdown(choices=[NOTHING], value="", label="Content of", elem_id="blora-content")
            style = gr.Dropdown(choices=[NOTHING], value="", label="Style of", elem_id="blora-style")
        with gr.Row():
            content_strength = gr.Slider(0, 2, 1, step=0.05, label="Content strength")
            style_strength = gr.Slider(0, 2, 1, step=0.05, label="Style strength")
        prompt = gr.Textbox(label="Prompt", lines=2, elem_id="blora-prompt")
        with gr.Row():
            seed = gr.Number(value=7, label="Seed", precision=0, minimum=0)
            matrix = gr.Checkbox(label="A small matrix of strengths", value=False)
        draw = gr.Button("Draw", variant="primary", elem_id="blora-draw")
        status = gr.HTML(elem_id="blora-status", elem_classes="live", container=False)
        pictures = gr.Gallery(
            label="Pictures", columns=len(blora.MATRIX), object_fit="contain", elem_id="blora-pictures"
        )
        return cls(
            content, style, content_strength, style_strength, prompt, seed, matrix, draw, status, pictures,
            gr.State(""),
        )  # fmt: skip


def add(desk: Desk) -> None:
    """Draws the page into the current blocks."""
    gr.Markdown(CAVEAT)
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            learning = _Learning.drawn()
        with gr.Column(min_width=320):
            mixing = _Mixing.drawn()
    _learn(desk, learning)
    _mix(desk, mixing)
    _look(desk, learning, mixing)


def _learn(desk: Desk, learning: _Learning) -> None:
    """Wires the buttons that begin and stop trainings."""

    def learn(
        picture: str | None, words: str, name: str, wanted: float, browser: str | None, request: gr.Request
    ) -> str:
        if not picture:
            raise gr.Error("drop a picture first")
        lesson = Lesson(Path(picture), words, name, steps=int(wanted) or None)
        desk.trainings.start(who(browser, request), lesson, model=desk.worker.model_state().source or None)
        return plain(f"{name} is in the queue")

    def stop_all(browser: str | None, request: gr.Request) -> None:
        owner = who(browser, request)
        for view in desk.trainings.views(owner):
            desk.trainings.cancel(view.id, owner)

    for learner in learning.learners:
        learner.picture.upload(
            lambda picture: blora.free_name(Path(picture), bloras(desk.worker)) if picture else "",
            learner.picture,
            learner.name,
            api_visibility="private",
        )
        learner.button.click(
            learn,
            [learner.picture, learner.prompt, learner.name, learning.steps, desk.browser],
            learning.said,
            api_visibility="private",
            trigger_mode="multiple",
            concurrency_limit=None,
        )
    learning.stop.click(stop_all, desk.browser, queue=False, api_visibility="private")


def _mix(desk: Desk, mixing: _Mixing) -> None:
    """Wires the controls that draw one picture's content in another's style."""

    def suggest(content: str, style: str) -> str:
        return blora.suggested(_triggers(desk.worker, content), _triggers(desk.worker, style))

    def submit(
        content: str,
        style: str,
        content_strength: float,
        style_strength: float,
        prompt: str,
        seed: float,
        matrix: bool,
        browser: str | None,
        request: gr.Request,
    ) -> str:
        pairing = blora.Pairing(prompt, content, style, content_strength, style_strength, int(seed))
        asked, labels = blora.drafts(pairing, matrix=matrix)
        return desk.worker.submit(
            who(browser, request),
            asked,
            model=desk.worker.model_state().source or None,
            kind="blora",
            labels=labels,
        )

    for part in (mixing.content, mixing.style):
        part.input(suggest, [mixing.content, mixing.style], mixing.prompt, api_visibility="private")
    mixing.draw.click(
        submit,
        [
            mixing.content,
            mixing.style,
            mixing.content_strength,
            mixing.style_strength,
            mixing.prompt,
            mixing.seed,
            mixing.matrix,
            desk.browser,
        ],
        mixing.job,
        api_visibility="private",
        trigger_mode="multiple",
        concurrency_limit=None,
    )


def _look(desk: Desk, learning: _Learning, mixing: _Mixing) -> None:
    """Shows every second how trainings and pictures go."""
    seen = gr.State(-1)

    def look(job: str, seen: int, browser: str | None, request: gr.Request) -> tuple[Any, ...]:
        owner = who(browser, request)
        views = desk.trainings.views(owner)[:6]
        at_work = any(not view.state.over for view in views)
        learned = sum(view.file is not None for view in views)
        names = [NOTHING, *((name, name) for name in bloras(desk.worker))] if learned != seen else []
        fresh = gr.Dropdown(choices=names) if names else gr.skip()
        status, drawn = _job(desk.worker, job, owner)
        return (
            plain("", [blora.told(view) for view in views]) if views else "",
            gr.Gallery(value=_samples(views), visible=bool(_samples(views))),
            gr.Button(visible=at_work),
            fresh,
            fresh,
            learned,
            status,
            drawn,
        )

    gr.Timer(1.0).tick(
        look,
        [mixing.job, seen, desk.browser],
        [
            learning.said,
            learning.samples,
            learning.stop,
            mixing.content,
            mixing.style,
            seen,
            mixing.status,
            mixing.pictures,
        ],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )


def bloras(worker: Worker) -> list[str]:
    """The names of all LoRAs in the home whose files say that they are B-LoRAs."""
    found = []
    for entry in worker.home.loras():
        try:
            seen = inspect_file(entry.path)
        except StudioError:
            continue  # a broken file; the library says what is wrong with it
        if seen.metadata.raw.get("lora_studio.method") == "B-LoRA" or entry.path.stem.casefold().startswith(
            "b-"
        ):
            found.append(entry.name)
    return sorted(found, key=str.casefold)


def _learner(part: str, words: str) -> _Learner:
    with gr.Column(min_width=150):
        picture = gr.Image(
            type="filepath",
            image_mode=None,  # the file itself: Gradio would decode it
            label=f"{part} picture",
            height=180,
            sources=["upload", "clipboard"],
        )
        prompt = gr.Textbox(
            words, label="Its name in prompts", info="with a word that the model does not know"
        )
        name = gr.Textbox("", label="Name of the LoRA")
        button = gr.Button(f"Learn {part.lower()}")
    return _Learner(picture, prompt, name, button)


def _samples(views: Sequence[TrainingView]) -> list[tuple[str, str]]:
    return [
        (str(view.sample), f"{view.name}, step {view.step}")
        for view in views
        if view.sample is not None and view.sample.is_file()
    ]


def _job(worker: Worker, job: str, owner: str) -> tuple[Any, Any]:
    """A sentence about the job, and its pictures that are done or in the making."""
    view = worker.view(job, owner) if job else None
    if view is None:
        return "", gr.skip()
    files = [(str(picture.file or picture.preview), picture.label) for picture in view.pictures]
    files = [(file, label) for file, label in files if file != "None"]
    return plain(view.error or view.message), files


def _triggers(worker: Worker, name: str) -> Sequence[str]:
    if not name:
        return ()
    return inspect_file(worker.home.find_lora(name, paths=False).path).metadata.triggers
