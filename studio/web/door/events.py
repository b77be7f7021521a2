"""What Gradio does with a client's files, checked where every road meets: before an event's inputs are opened.

`run`, `api`, `call`, `call/v2`, `queue/join` and MCP all end in `Blocks.process_api`, and nothing of what a client
sends is opened before. What comes out passes `Blocks.postprocess_data`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr
from starlette.concurrency import run_in_threadpool

from pipelines import StudioError
from studio.jobs.owner import owner_of
from studio.web.door.claims import Claims
from studio.web.door.files import Files, harmless
from studio.web.door.guard import LOGIN

NOBODY = "nobody"
"""Whose an event is that no request stands behind: it owns no file."""


def login_of(request: Any) -> str | None:
    """The name by which a request is logged in: Gradio's own request, or Starlette's, as MCP hands it over."""
    asked = request.request if isinstance(request, gr.Request) else request
    return None if asked is None else asked.scope.get(LOGIN)


def confine(pages: gr.Blocks, files: Files, claims: Claims | None) -> None:
    """Lets no event of these pages open a file that is not its owner's, and tells a StudioError as it is said.

    claims: None where nobody logs in.
    """
    pages.has_launched = True  # as `launch()` says; Gradio checks paths only then, and mounting leaves it out
    for block in pages.blocks.values():
        block.GRADIO_CACHE = str(files.made)
    gr.set_static_paths([str(folder) for folder in files.shown])  # never copied
    _check_inputs(pages, files, named=claims is not None)
    _check_outputs(pages)
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
    """Whether its messages are read as they are; pages take them for HTML."""
    return getattr(function, "api_visibility", "private") != "private"


def _check_outputs(pages: gr.Blocks) -> None:
    process = pages.postprocess_data

    async def postprocess_data(block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        return await process(block_fn, _harmless(predictions), state)

    _replace(pages, "postprocess_data", postprocess_data)


def _harmless(predictions: Any) -> Any:
    """Values, and those inside of the components by which handlers change what is on the page."""
    if isinstance(predictions, dict):
        return {key: _harmless(one) for key, one in harmless(predictions).items()}
    if isinstance(predictions, list | tuple):
        return type(predictions)(_harmless(one) for one in harmless(predictions))
    if isinstance(predictions, gr.blocks.Block) and "value" in predictions.constructor_args:
        predictions.constructor_args["value"] = harmless(predictions.constructor_args["value"])
    return harmless(predictions)


def _claim_events(pages: gr.Blocks, claims: Claims) -> None:
    """An event's results are told to the login that began it: its id stands in an address."""
    push = pages._queue.push

    async def claimed(body: Any, request: Any, username: str | None) -> Any:
        success, event, state = await push(body, request, username)
        login = login_of(request)
        if success and login is not None:
            claims.belongs(event, login)
        return success, event, state

    _replace(pages._queue, "push", claimed)


def _replace(owner: object, name: str, function: Callable[..., Any]) -> None:
    assert hasattr(owner, name), f"Gradio has no {name} any more"
    setattr(owner, name, function)


def keep_made_files_at_home(files: Files) -> None:
    """For blocks that are made later, while the pages are open. Of the whole process, so a server's alone."""
    os.environ["GRADIO_TEMP_DIR"] = str(files.made)
