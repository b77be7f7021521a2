"""The studio's functions for programs: for `gradio_client`, plain HTTP, and MCP. They are typed and documented, and use
the same words as all fronts.

They submit jobs and look at them, as the pages do. Waiting for a picture never holds up anybody else.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import quote

import gradio as gr
from gradio.components.api_component import Api
from gradio.context import Context
from gradio.events import api as offer
from starlette.concurrency import run_in_threadpool

from composers.registry import methods as all_methods
from composers.shown import shown
from pipelines.adapters import Inspection, inspect_file
from pipelines.bounds import LONGEST_PROMPT, MOST_ADAPTERS, check_text
from pipelines.errors import RequestError
from pipelines.home import Home
from pipelines.request import SEEDS
from studio.drafts.draft import MOST_PICTURES, Draft, counted
from studio.drafts.entries import plain_draft
from studio.jobs import JobView, Worker
from studio.jobs.owner import owner_of
from studio.library.card import Card
from studio.library.fit import Fit, fit_of
from studio.pictures.restore import restore
from studio.rendering.opening import Opening, model_name
from studio.web.arguments import Argument, draft_of, method_of, uploaded, with_fields
from studio.web.door.events import login_of

LOOK_EVERY = 0.1
"""Seconds between two looks at a job."""
LONGEST_WAIT = 3600.0
"""Most seconds that a call waits for a job."""

COMPARED = ["merge", "switch", "composite", "cmlora"]
COUNT = Argument("count", int, "Pictures, with rising seeds.", 1)
MODEL = Argument("model", str, "A name of `models`; empty is the default one.", "")
WAIT_SECONDS = Argument(
    "wait_seconds", float, "How long to wait for the pictures; 0 returns the queued job at once.", 600.0
)
MIX = Argument("loras", list[str], 'Names with strengths, as in ["nilo-fox=0.8", "kimono"].')
METHODS = Argument(
    "methods",
    list[str] | None,
    'As in ["merge", "switch:interval=3", "composite", "cmlora"], which is the default.',
    None,
)


def add(worker: Worker) -> None:
    """Adds the functions to the page that is being built."""
    for function in Functions(worker).all():
        offer(checked(function), api_name=function.__name__, queue=False, concurrency_limit=None)
    assert Context.root_block is not None
    _fill_in(Context.root_block)


def _fill_in(pages: gr.Blocks) -> None:
    """Lets callers that give arguments by place leave out the last ones; Gradio itself would refuse the short list."""
    preprocess = pages.preprocess_data

    async def preprocess_data(block_fn: Any, inputs: list[Any], *rest: Any, **named: Any) -> Any:
        left = block_fn.inputs[len(inputs) :]
        if all(isinstance(block, Api) for block in block_fn.inputs):
            inputs = [*inputs, *(block.value for block in left)]
        return await preprocess(block_fn, inputs, *rest, **named)

    pages.preprocess_data = preprocess_data  # type: ignore[method-assign]


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function behind a check of its arguments, since Gradio passes on whatever was sent, of any type and size.

    An argument that does not fit the function's annotations raises RequestError, which reaches the caller as usual.
    """
    hints = get_type_hints(function)
    parameters = inspect.signature(function).parameters
    names = list(parameters)
    defaults = {name: one.default for name, one in parameters.items() if one.default is not one.empty}

    def judged(values: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        given = {**dict(zip(names, values, strict=False)), **named}
        return defaults | {name: _as_said(name, value, hints[name]) for name, value in given.items()}

    if inspect.iscoroutinefunction(function):

        @wraps(function)
        async def later(*values: Any, **named: Any) -> Any:
            return await function(**judged(values, named))

        return later

    @wraps(function)
    def now(*values: Any, **named: Any) -> Any:
        return function(**judged(values, named))

    return now


def _as_said(name: str, value: Any, kind: Any) -> Any:
    """The value, if it is of that kind and within bounds. Raises RequestError otherwise."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if value is None and NoneType in kinds:
        return None
    if gr.Request in kinds or dict[str, Any] in kinds:
        return value
    if list[str] in kinds:
        if not isinstance(value, list) or len(value) > MOST_ADAPTERS:
            raise RequestError(f"{name}={shown(value)} must be a list of at most {MOST_ADAPTERS} texts")
        return [
            check_text(f"{name}, entry {place}", one, LONGEST_PROMPT) for place, one in enumerate(value, 1)
        ]
    if list[int] in kinds:
        if not isinstance(value, list) or len(value) != 2:
            raise RequestError(
                f"{name}={shown(value)} must be a list of two whole numbers, as in [1024, 768]"
            )
        return [_as_said(name, one, int) for one in value]
    if str in kinds or get_origin(kind) is Literal:
        return check_text(name, value, LONGEST_PROMPT)
    if bool in kinds:
        if not isinstance(value, bool):
            raise RequestError(f"{name}={shown(value)} must be true or false")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not -(2**64) <= value <= 2**64:
        raise RequestError(f"{name}={shown(value)} must be a number in -2**64 … 2**64")
    if int in kinds:
        if value != int(value):
            raise RequestError(f"{name}={shown(value)} must be a whole number")
        return int(value)
    return float(value)


class Functions:
    """The functions, over one worker. The door passes on what they raise (`studio.web.door.events`)."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def all(self) -> list[Any]:
        worker = self._worker

        @with_fields(COUNT, MODEL, WAIT_SECONDS)
        async def compose(request: gr.Request | None = None, **said: Any) -> dict[str, Any]:
            """Draw pictures with a mix of LoRAs.

            What is left out is as the model says.

            Returns:
                The job: its id, state, message, and the pictures with their files, addresses, and records.
            """
            drafts = _counted(draft_of(said), said["count"])
            return await _submitted(worker, request, drafts, [], "compose", said)

        @with_fields(MIX, METHODS, MODEL, WAIT_SECONDS, without=("method",))
        async def compare(request: gr.Request | None = None, **said: Any) -> dict[str, Any]:
            """Draw one mix by several methods, at one seed and in shared passes.

            What is left out is as the model says.

            Returns:
                The job, one picture a method, labelled by it.
            """
            names = said["methods"] or COMPARED
            [base] = _counted(draft_of(said), 1)
            drafts = [base.with_value("composer", method_of(name)) for name in names]
            return await _submitted(worker, request, drafts, names, "compare", said)

        async def job(
            id: str, wait_seconds: float = 0.0, first: int = 1, request: gr.Request | None = None
        ) -> dict[str, Any]:
            """One of your jobs: its state, its place in the queue, and its pictures.

            Args:
                id: as `compose` and `compare` give it.
                wait_seconds: how long to wait until it is over; 0 tells how it stands now.
                first: the number of the first picture to return; at most 499 follow it.

            Returns:
                The job, as `compose` returns it.
            """
            return await _waited(worker, id, _owner(request), wait_seconds, first)

        def cancel(id: str, request: gr.Request | None = None) -> bool:
            """Stop one of your jobs within one step; its finished pictures are kept.

            Args:
                id: the job.

            Returns:
                Whether there was anything to stop.
            """
            return worker.cancel(id, _owner(request))

        def library(search: str = "", model: str = "", fitting_only: bool = False) -> list[dict[str, Any]]:
            """The LoRAs that can be mixed, with their trigger words and preferred strengths.

            Args:
                search: words that must stand in name, title, type, category, tags or triggers.
                model: a name of `models`, for whether they fit; empty is the default one.
                fitting_only: leave out those that do not fit.

            Returns:
                One object a file; `misfit` says why one does not fit, and is empty where it does.
            """
            fit = _fit(worker.home, model)
            found = worker.library.search(search, fit=fit, fitting_only=fitting_only)
            return [_card(card, fit) for card in found]

        def inspect(name: str) -> dict[str, Any]:
            """What one LoRA file is: type, rank, layers, the family it was made for, metadata, trigger words.

            Args:
                name: as `library` gives it.

            Returns:
                All that its header and the notes beside it say.
            """
            return inspection_to_dict(inspect_file(worker.home.find_lora(name, paths=False).path))

        def picture_info(picture: dict[str, Any]) -> dict[str, Any]:
            """What a picture was made with: by LoRA Studio, A1111, ComfyUI, InvokeAI and others.

            Args:
                picture: an uploaded file, as `gradio_client.handle_file` gives it.

            Returns:
                The settings, the model, what of it is missing here, and notes.
            """
            found = restore(uploaded("picture", picture), worker.home, worker.library)
            return {
                "program": found.program,
                "settings": plain_draft(found.draft),
                "model": found.model,
                "missing": [str(one) for one in found.missing],
                "notes": list(found.notes),
            }

        def models() -> list[dict[str, Any]]:
            """The models that can be chosen.

            Returns:
                One object a model: name, base family, whether it can be used and is the default, size in bytes.
            """
            return [
                {
                    "name": model.name,
                    "base": model.base,
                    "usable": model.usable,
                    "default": model.default,
                    "embedded": model.embedded,
                    "bytes": model.size,
                }
                for model in worker.models()
            ]

        def methods() -> list[dict[str, Any]]:
            """The composition methods, with what each does.

            Returns:
                One object a method: name and summary.
            """
            return [{"name": name, "summary": kind.summary} for name, kind in all_methods().items()]

        return [compose, compare, job, cancel, library, inspect, picture_info, models, methods]


def _owner(request: gr.Request | None) -> str:
    return owner_of(login_of(request))


def _counted(draft: Draft, count: int) -> list[Draft]:
    return counted(draft, count, random.randrange(SEEDS) if draft.seed is None else draft.seed)


async def _submitted(
    worker: Worker,
    request: gr.Request | None,
    drafts: Sequence[Draft],
    labels: Sequence[str],
    kind: str,
    said: Mapping[str, Any],
) -> dict[str, Any]:
    owner = _owner(request)
    model = said["model"] or None

    def submit() -> str:
        return worker.submit(owner, drafts, model=model, kind=kind, labels=labels)

    return await _waited(worker, await run_in_threadpool(submit), owner, said["wait_seconds"])


async def _waited(worker: Worker, id: str, owner: str, seconds: float, first: int = 1) -> dict[str, Any]:
    until = time.monotonic() + min(seconds, LONGEST_WAIT)
    version = -1
    while True:
        if worker.version != version:
            version = worker.version
            head = await run_in_threadpool(worker.head, id, owner)
            if head is None or head.state.over:
                break
        if time.monotonic() >= until:
            break
        await asyncio.sleep(LOOK_EVERY)
    return await run_in_threadpool(_job_of, worker, id, owner, first)


def _job_of(worker: Worker, id: str, owner: str, first: int) -> dict[str, Any]:
    view = worker.view(id, owner, first=min(max(first - 1, 0), MOST_PICTURES))
    if view is None:
        raise RequestError(f"you have no job {shown(id)}")
    return job_to_dict(view, paths=worker.trust.paths)


def job_to_dict(view: JobView, *, paths: bool = True) -> dict[str, Any]:
    """A job as JSON can hold it. A picture's `url` is its address on this server; `file` is its path on this computer,
    or None unless `paths`."""
    return {
        "id": view.id,
        "state": str(view.state),
        "message": view.message,
        "error": view.error,
        "position": view.position,
        "seconds_left": view.seconds_left,
        "pictures": [
            {
                "label": picture.label,
                "state": str(picture.state),
                "seed": picture.seed,
                "step": picture.step,
                "steps": picture.count,
                "file": None if picture.file is None or not paths else str(picture.file),
                "url": None if picture.file is None else f"/gradio_api/file={quote(str(picture.file))}",
                "error": picture.error,
                "record": picture.record,
            }
            for picture in view.pictures
        ],
    }


def inspection_to_dict(seen: Inspection) -> dict[str, Any]:
    """What a file says of itself, without its path on this computer."""
    said = {name: value for name, value in seen.to_dict().items() if name != "path"}
    preview = seen.sidecars.preview
    return {**said, "preview": None if preview is None else preview.name}


def _fit(home: Home, model: str) -> Fit | None:
    return fit_of(model_name(Opening(model or None), home), home, paths=False)


def _card(card: Card, fit: Fit | None) -> dict[str, Any]:
    return {
        "name": card.name,
        "title": card.title,
        "type": list(card.kinds),
        "category": card.category,
        "made_for": card.made_for or card.family_label,
        "triggers": list(card.triggers),
        "preferred_weight": card.preferred_weight,
        "misfit": card.misfit(fit),
    }
