"""What the B-LoRA page asks for, as plain values. No gradio, no device.

A B-LoRA is trained on one picture. Then its content blocks are mixed with another one's style blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from composers import BLora
from pipelines.errors import RequestError
from pipelines.training.run import literal
from studio.drafts.draft import Draft, Wanted
from studio.jobs import JobState, TrainingView

MATRIX = (0.4, 0.7, 1.0, 1.3)
"""The strengths in the small matrix, of both content and style."""


@dataclass(frozen=True)
class Pairing:
    """One mix of two B-LoRAs. content, style: their names, "" for none; both may be the same."""

    prompt: str
    content: str
    style: str
    content_strength: float = 1.0
    style_strength: float = 1.0
    seed: int | None = None


def suggested(content: Sequence[str], style: Sequence[str]) -> str:
    """A prompt made of the trigger words of both, in the paper's form: "A [c] in [s] style"."""
    subject = content[0] if content else "a picture"
    if not style:
        return subject
    look = style[0] if style[0].endswith("style") else f"{style[0]} style"
    return f"{subject} in {look}"


def drafts(pairing: Pairing, *, matrix: bool) -> tuple[list[Draft], list[str]]:
    """The pictures to ask for, with their labels: one, or, with `matrix`, one for each pair of strengths, at one seed.

    Raises RequestError where no B-LoRA is chosen.
    """
    if not (pairing.content or pairing.style):
        raise RequestError("choose a B-LoRA for the content, for the style, or for both")
    if not matrix:
        return [_draft(pairing, pairing.content_strength, pairing.style_strength)], [""]
    cells = [(content, style) for content in MATRIX for style in MATRIX]
    labels = [f"content {content:g}, style {style:g}" for content, style in cells]
    return [_draft(pairing, *cell) for cell in cells], labels


def _draft(pairing: Pairing, content: float, style: float) -> Draft:
    """One picture. If one adapter is both content and style, it has the strength of its content."""
    wanted = [Wanted(pairing.content, content)] if pairing.content else []
    if pairing.style and pairing.style != pairing.content:
        wanted.append(Wanted(pairing.style, style))
    values = {
        "prompt": pairing.prompt,
        "composer": BLora(content=pairing.content, style=pairing.style),
        "seed": pairing.seed,
    }
    return Draft({name: value for name, value in values.items() if value is not None}, tuple(wanted))


def word_of(prompt: str) -> str:
    """The trained name as prompts must write it, with escaped brackets: "A [v]" -> "A \\[v\\]". Plain brackets would
    change the weight of words."""
    return literal(prompt)


def told(view: TrainingView) -> str:
    """The state of a training, in a sentence."""
    match view.state:
        case JobState.QUEUED:
            return f"{view.name}: waits, place {view.position} in the queue"
        case JobState.RUNNING if view.step == 0:
            return f"{view.name}: loading {view.model} …"
        case JobState.RUNNING:
            left = "" if view.seconds_left is None else f", about {_duration(view.seconds_left)} left"
            return f"{view.name}: step {view.step} of {view.steps}, loss {view.loss or 0:.4f}{left}"
        case JobState.DONE:
            return f"{view.name}: trained; write {word_of(view.prompt)} in prompts"
        case JobState.FAILED:
            return f"{view.name}: {view.error}"
        case JobState.CANCELLED:
            return f"{view.name}: stopped; nothing of it was kept"


def progress_of(view: TrainingView) -> float:
    """The share of a training that is done, 0 … 1."""
    return view.step / view.steps if view.steps else 0.0


def free_name(picture: Path, taken: Sequence[str]) -> str:
    """A name for the adapter that is trained on a picture: that of its file, changed where it is taken."""
    stem = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in picture.stem)
    base = f"b-{stem.strip('-')[:40].lower() or 'picture'}"
    used = {name.casefold() for name in taken}
    number = 1
    name = base
    while name.casefold() in used:
        number += 1
        name = f"{base}-{number}"
    return name


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
