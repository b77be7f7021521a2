"""Checks what clients send before Gradio opens any file in it, passes on errors, and keeps its queue going.

`run`, `api`, `call`, `call/v2`, `queue/join` and MCP all end in `Blocks.process_api`; nothing that a client sends is
opened before that. Whatever goes out passes `Blocks.postprocess_data`.

A StudioError that a handler raises becomes the message that the client sees, so handlers need not convert it.
"""

from __future__ import annotations

import os
from asyncio import Queue as AsyncQueue
from html import escape
from typing import Any

import gradio as gr
from gradio.utils import LRUCache
from starlette.concurrency import run_in_threadpool

from pipelines import StudioError
from studio.jobs.owner import owner_of
from studio.web.door.claims import Claims
from studio.web.door.files import Files, harmless
from studio.web.door.guard import LOGIN

MOST_SESSIONS = 2_000
"""Sessions whose messages are kept until their pages fetch them, as in Gradio."""
NOBODY = "nobody"
"""The owner of an event without a request. This owner has no files."""


class Mailboxes(LRUCache[str, AsyncQueue[Any]]):
    """Session -> the messages that its page will fetch. Gradio drops the oldest session's when there are too many, and
    its queue would end, for everybody, when it then has a message for that session. Here such a message is lost."""

    def __init__(self) -> None:
        super().__init__(MOST_SESSIONS)

    def __getitem__(self, session: str) -> AsyncQueue[Any]:
        return super().__getitem__(session) if session in self else AsyncQueue()


def login_of(request: Any) -> str | None:
    """The name by which a request is logged in; None without a login. request: Gradio's, or Starlette's, as MCP gives
    it."""
    plain = request.request if isinstance(request, gr.Request) else request
    return None if plain is None else plain.scope.get(LOGIN)


def confine(pages: gr.Blocks, files: Files, claims: Claims | None) -> None:
    """Lets no event of these pages open a file that is not its owner's. A StudioError becomes its message, which is
    escaped for pages: they show messages as HTML.

    claims: None where nobody logs in.
    """
    pages.has_launched = (
        True  # as `launch()` does: Gradio checks paths only then, and mounting does not set it
    )
    for block in pages.blocks.values():
        block.GRADIO_CACHE = str(files.made)
    gr.set_static_paths([str(folder) for folder in files.shown])  # never copied
    _check_inputs(pages, files, named=claims is not None)
    _check_outputs(pages)
    _replace(pages._queue, "pending_messages_per_session", Mailboxes())
    if claims is not None:
        _claim_events(pages, claims)


def _check_inputs(pages: gr.Blocks, files: Files, *, named: bool) -> None:
    process = pages.process_api

    async def process_api(block_fn: Any, inputs: list[Any], *rest: Any, **named_rest: Any) -> dict[str, Any]:
        request = named_rest.get("request", rest[1] if len(rest) > 1 else None)
        login = login_of(request[0] if isinstance(request, list) and request else request)
        owner = (owner_of(login) if login else NOBODY) if named else None
        try:
            known = await run_in_threadpool(files.admitted, inputs, owner)
            return await process(block_fn, known, *rest, **named_rest)
        except StudioError as error:
            said = str(error) if _is_for_programs(block_fn) else escape(str(error), quote=False)
            raise gr.Error(files.discreet(said), duration=None, print_exception=False) from error
        except gr.Error as error:
            error.message = files.discreet(error.message)
            raise

    _replace(pages, "process_api", process_api)


def _is_for_programs(function: Any) -> bool:
    """Whether programs call this function, which read messages as plain text. Pages show messages as HTML."""
    return getattr(function, "api_visibility", "private") != "private"


def _check_outputs(pages: gr.Blocks) -> None:
    process = pages.postprocess_data

    async def postprocess_data(block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        return await process(block_fn, _harmless(predictions), state)

    _replace(pages, "postprocess_data", postprocess_data)


def _harmless(predictions: Any) -> Any:
    """The predictions made harmless, also the values in components by which handlers change the page."""
    if isinstance(predictions, dict):
        return {key: _harmless(one) for key, one in harmless(predictions).items()}
    if isinstance(predictions, list | tuple):
        return type(predictions)(_harmless(one) for one in harmless(predictions))
    if isinstance(predictions, gr.blocks.Block) and "value" in predictions.constructor_args:
        predictions.constructor_args["value"] = harmless(predictions.constructor_args["value"])
    return harmless(predictions)


def _claim_events(pages: gr.Blocks, claims: Claims) -> None:
    """Lets only the login that began an event fetch its results, whose address contains the event's id."""
    push = pages._queue.push

    async def claimed(body: Any, request: Any, username: str | None) -> Any:
        success, event, state = await push(body, request, username)
        login = login_of(request)
        if success and login is not None:
            claims.belongs(event, login)
        return success, event, state

    _replace(pages._queue, "push", claimed)


def _replace(owner: object, name: str, value: object) -> None:
    assert hasattr(owner, name), f"Gradio has no {name} any more"
    setattr(owner, name, value)


def keep_made_files_at_home(files: Files) -> None:
    """Sets Gradio's folder for blocks that are made later, while the pages are open. It applies to the whole process,
    so only a server should call this."""
    os.environ["GRADIO_TEMP_DIR"] = str(files.made)
