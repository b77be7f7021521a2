"""A job as a page shows it: a line of state, a bar, and its pictures. Only what has changed is sent again."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from studio.jobs import JobState, JobView, PictureView


@dataclass(frozen=True)
class Shown:
    """What the page shows.

    line: state, progress bar and problems as HTML, with the text that is read aloud (`static/status.js`). pictures:
    files with captions, of finished pictures and of those in the making.
    """

    line: str
    pictures: tuple[tuple[str, str], ...]
    at_work: bool


def only_new(values: Sequence[Any], marks: Sequence[Hashable], seen: str) -> tuple[Any, ...]:
    """The values whose marks the page has not seen, `gr.skip()` for the others, and last, all marks that it will have
    seen.

    A browser redraws whatever it is sent, which takes time. The page itself holds the marks that it has seen, in a
    hidden box, so that a value is sent again if an answer was lost.
    """
    now = [f"{hash(mark):x}" for mark in marks]
    shown = [
        value if mark != old else gr.skip()
        for value, mark, old in zip(values, now, [*seen.split(), *[""] * len(now)], strict=False)
    ]
    return (*shown, " ".join(now))


NOTHING = Shown("", (), False)


def shown(view: JobView | None) -> Shown:
    """What the page shows of a job; nothing for None."""
    if view is None:
        return NOTHING
    at_work = not view.state.over
    tally = view.tally
    done = tally.step
    count = tally.count + tally.total - tally.known
    bar = (
        f'<div class="progress"><i style="width:{100 * done / max(count, 1):.0f}%"></i></div>'
        if at_work
        else ""
    )
    steps = f", step {done} of {count}" if view.state is JobState.RUNNING and done else ""
    problems = "".join(f"<p><strong>{escape(line)}</strong></p>" for line in view.error.splitlines())
    rows = f" · {view.unet_rows} UNet rows" if view.unet_rows and not at_work else ""
    finished = f"{view.state}, {tally.done} of {tally.total} done. {view.error}".strip()
    line = (
        f'<div data-said="{escape(finished, quote=True)}"><strong>{escape(str(view.state))}</strong>: '
        f"{escape(view.message)}{steps}{rows}</div>{bar}{problems}"
    )
    pictures = [
        (file, _caption(picture)) for picture in view.pictures if (file := _file(picture)) is not None
    ]
    return Shown(line, tuple((str(file), caption) for file, caption in pictures), at_work)


def _file(picture: PictureView) -> Path | None:
    file = picture.file or picture.preview
    return file if file is not None and file.is_file() else None


def _caption(picture: PictureView) -> str:
    """The text below a picture, which is also read aloud: first what is particular to it, then its prompt."""
    name = picture.label or f"seed {picture.seed}"
    if picture.state is not JobState.DONE:
        name += f" (step {picture.step} of {picture.count})"
    return f"{name} · {picture.prompt}"
