"""The routes of A1111's calls. The guard decides who may make them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import fastapi
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from pipelines import StudioError
from pipelines.errors import RequestError
from pipelines.home.plain import read_json, reading
from pipelines.memory import give_back
from studio.jobs import Worker
from studio.jobs.owner import owner_of
from studio.web.door.guard import LOGIN
from studio.web.sdapi import lists, options, pictures
from studio.web.sdapi.options import Options
from studio.web.waiting import Waits

FIXED: Mapping[str, Callable[[], Any]] = {
    "samplers": lists.samplers,
    "schedulers": lists.schedulers,
    "scripts": lists.scripts,
    "script-info": lists.script_info,
    "cmd-flags": lambda: {"api": True, "nowebui": False, "share": False},
    **dict.fromkeys(
        ("upscalers", "latent-upscale-modes", "prompt-styles", "hypernetworks", "face-restorers", "realesrgan-models",
         "extensions"),
        list,
    ),
}  # fmt: skip
"""Lists that are always the same; most are empty, since nothing of their kind is offered."""
FRESH = "refresh-checkpoints", "refresh-vae", "refresh-embeddings"
"""Lists that are fresh whenever they are asked for."""
_STOP = "a client cannot stop this studio; stop it on its own computer"
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("server-kill", "server-restart", "server-stop"), _STOP),
    **dict.fromkeys(("extra-single-image", "extra-batch-images"), "upscaling is not offered here"),
    "interrogate": "describing pictures is not offered here",
    **dict.fromkeys(("create/embedding", "create/hypernetwork"), "this is not offered here"),
    **dict.fromkeys(("train/embedding", "train/hypernetwork"), "training is not offered by this call"),
}
"""Calls of A1111's that are refused, and why."""


def router(worker: Worker) -> fastapi.APIRouter:
    """All calls, for the server to mount."""
    routes = fastapi.APIRouter(prefix="/sdapi/v1", default_response_class=JSONResponse)
    set_by: dict[str, Options] = {}
    answered = partial(_answered, worker)
    waits = Waits()

    def of(request: fastapi.Request) -> tuple[str, Options]:
        owner = owner_of(request.scope.get(LOGIN))
        return owner, set_by.setdefault(owner, Options())

    @routes.post("/txt2img")
    async def txt2img(request: fastapi.Request) -> JSONResponse:
        return await answered(_drawn(worker, request, *of(request), with_image=False))

    @routes.post("/img2img")
    async def img2img(request: fastapi.Request) -> JSONResponse:
        return await answered(_drawn(worker, request, *of(request), with_image=True))

    @routes.get("/progress")
    async def progress(request: fastapi.Request, skip_current_image: bool = False) -> JSONResponse:
        owner, _ = of(request)
        return await answered(run_in_threadpool(pictures.progress, worker, owner, not skip_current_image))

    @routes.post("/interrupt")
    async def interrupt(request: fastapi.Request) -> JSONResponse:
        owner, _ = of(request)
        await run_in_threadpool(pictures.interrupt, worker, owner)
        return JSONResponse({})

    @routes.get("/options")
    async def get_options(request: fastapi.Request) -> JSONResponse:
        _, own = of(request)
        return JSONResponse(await run_in_threadpool(options.shown, worker, own))

    @routes.post("/options")
    async def set_options(request: fastapi.Request) -> JSONResponse:
        async def setting() -> None:
            owner, own = of(request)
            await options.change(worker, own, await _body(request), owner, waits)

        return await answered(setting())

    @routes.get("/sd-models")
    async def models() -> JSONResponse:
        return await answered(run_in_threadpool(lists.models, worker))

    @routes.get("/sd-vae")
    async def vaes() -> JSONResponse:
        return await answered(run_in_threadpool(lists.vaes, worker))

    @routes.get("/sd-modules")
    async def modules() -> JSONResponse:
        return await answered(run_in_threadpool(lists.vaes, worker))

    @routes.get("/embeddings")
    async def embeddings() -> JSONResponse:
        return await answered(run_in_threadpool(lists.embeddings, worker))

    @routes.get("/memory")
    async def memory() -> JSONResponse:
        return await answered(run_in_threadpool(lists.memory))

    @routes.get("/loras")
    async def loras() -> fastapi.Response:
        try:
            listed = await run_in_threadpool(lists.loras, worker)
        except StudioError as error:
            return await answered(_refusal(error))
        return fastapi.Response(listed, media_type="application/json")

    for name, listed in FIXED.items():
        routes.add_api_route(f"/{name}", _fixed(listed), methods=["GET"], name=name)

    @routes.post("/refresh-loras")
    async def refresh_loras() -> JSONResponse:
        return await answered(run_in_threadpool(lists.refresh, worker.library))

    @routes.post("/unload-checkpoint")
    async def unload_checkpoint() -> JSONResponse:
        return await answered(run_in_threadpool(give_back))

    @routes.post("/reload-checkpoint")
    async def reload_checkpoint(request: fastapi.Request) -> JSONResponse:
        owner, own = of(request)
        return await answered(options.reload(worker, own, owner, waits))

    @routes.post("/skip")
    async def skip(request: fastapi.Request) -> JSONResponse:
        owner, _ = of(request)
        await run_in_threadpool(pictures.skip, worker, owner)
        return JSONResponse(None)

    for name in FRESH:
        routes.add_api_route(f"/{name}", _fixed(lambda: None), methods=["POST"], name=name)
    for name, why in REFUSED.items():
        routes.add_api_route(f"/{name}", _refusing(worker, name, why), methods=["POST"], name=name)

    @routes.post("/png-info")
    async def png_info(request: fastapi.Request) -> JSONResponse:
        async def read() -> dict[str, Any]:
            body = await _body(request)
            return await run_in_threadpool(pictures.png_info, body)

        return await answered(read())

    return routes


def _fixed(listed: Callable[[], Any]) -> Callable[[], Awaitable[JSONResponse]]:
    async def answer() -> JSONResponse:
        return JSONResponse(listed())

    return answer


def _refusing(worker: Worker, name: str, why: str) -> Callable[[], Awaitable[JSONResponse]]:
    async def answer() -> JSONResponse:
        return await _answered(worker, _refusal(RequestError(f"{name}: {why}")))

    return answer


async def _drawn(
    worker: Worker, request: fastapi.Request, owner: str, own: Options, *, with_image: bool
) -> dict[str, Any]:
    return await pictures.render(worker, await _body(request), owner, own, with_image=with_image)


async def _answered(worker: Worker, work: Any) -> JSONResponse:
    """The answer with the work's result, or with its error in A1111's format."""
    try:
        return JSONResponse(await work)
    except StudioError as error:
        told = worker.discreet(str(error)).encode("utf-8", "backslashreplace").decode()
        content = {"error": type(error).__name__, "detail": told, "body": "", "errors": told}
        return JSONResponse(content, status_code=422)


async def _refusal(error: StudioError) -> None:
    raise error


async def _body(request: fastapi.Request) -> dict[str, Any]:
    """The body. Its numbers are finite and its texts whole, so that the answer can hold them."""
    sent = await request.body()

    def read() -> Any:
        with reading("the body", RequestError, "send JSON"):
            return read_json(sent.decode("utf-8-sig"), "the body")

    body = await run_in_threadpool(read)
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    return body
