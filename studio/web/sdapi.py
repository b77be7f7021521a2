"""A1111's calls under /sdapi/v1, so that its front ends, plug-ins and bots can use the studio.

Shapes: https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/API. A call is a job like any other: it waits in
the queue, shares UNet calls with everybody's pictures, and belongs to whoever is logged in.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import fastapi
from fastapi.responses import JSONResponse
from PIL import Image, ImageOps, UnidentifiedImageError
from starlette.concurrency import run_in_threadpool

from pipelines import StudioError
from pipelines.adapters.container import read_header
from pipelines.errors import RequestError
from pipelines.schedulers import SAMPLERS
from studio import a1111
from studio.jobs import JobState, JobView, Worker
from studio.jobs.owner import owner_of
from studio.library.scan import Library
from studio.metadata import PARAMETERS, read_texts
from studio.web.guard import LOGIN
from studio.web.sd_fields import Asked, check_options, clip_skip, read_asked

KIND = "sdapi"
LOOK_EVERY = 0.05
"""Seconds between two looks at a job."""


@dataclass
class Options:
    """What an owner has set for the calls that follow."""

    values: dict[str, Any] = field(default_factory=dict)


def router(worker: Worker) -> fastapi.APIRouter:
    """All calls. Who may make them is the guard's business."""
    routes = fastapi.APIRouter(prefix="/sdapi/v1", default_response_class=JSONResponse)
    options: dict[str, Options] = {}

    def of(request: fastapi.Request) -> tuple[str, Options]:
        owner = owner_of(request.scope.get(LOGIN))
        return owner, options.setdefault(owner, Options())

    @routes.post("/txt2img")
    async def txt2img(request: fastapi.Request) -> JSONResponse:
        return await _answered(_render(worker, request, *of(request), with_image=False))

    @routes.post("/img2img")
    async def img2img(request: fastapi.Request) -> JSONResponse:
        return await _answered(_render(worker, request, *of(request), with_image=True))

    @routes.get("/progress")
    async def progress(request: fastapi.Request, skip_current_image: bool = False) -> JSONResponse:
        owner, _ = of(request)
        return await _answered(run_in_threadpool(_progress, worker, owner, not skip_current_image))

    @routes.post("/interrupt")
    async def interrupt(request: fastapi.Request) -> JSONResponse:
        owner, _ = of(request)
        for view in worker.views(owner):
            if view.kind == KIND and not view.state.over:
                worker.cancel(view.id, owner)
        return JSONResponse({})

    @routes.get("/options")
    async def get_options(request: fastapi.Request) -> JSONResponse:
        _, own = of(request)
        return JSONResponse(_shown_options(worker, own))

    @routes.post("/options")
    async def set_options(request: fastapi.Request) -> JSONResponse:
        async def setting() -> None:
            _, own = of(request)
            changed = await _body(request)
            await run_in_threadpool(_set, worker, own, changed)

        return await _answered(setting())

    @routes.get("/samplers")
    async def samplers() -> JSONResponse:
        return JSONResponse([{"name": s.name, "aliases": list(s.aliases), "options": {}} for s in SAMPLERS])

    @routes.get("/schedulers")
    async def schedulers() -> JSONResponse:
        names = {"automatic": "Automatic", "karras": "Karras", "sgm_uniform": "SGM Uniform"}
        return JSONResponse(
            [
                {"name": name, "label": label, "aliases": None, "default_rho": -1, "need_inner_model": False}
                for name, label in names.items()
            ]
        )

    @routes.get("/upscalers")
    async def upscalers() -> JSONResponse:
        return JSONResponse([])

    @routes.get("/sd-models")
    async def models() -> JSONResponse:
        return await _answered(run_in_threadpool(_models, worker))

    @routes.get("/sd-vae")
    async def vaes() -> JSONResponse:
        return await _answered(run_in_threadpool(_vaes, worker))

    @routes.get("/loras")
    async def loras() -> JSONResponse:
        return await _answered(run_in_threadpool(_loras, worker.library))

    @routes.post("/refresh-loras")
    async def refresh_loras() -> JSONResponse:
        return await _answered(run_in_threadpool(_refreshed, worker.library))

    @routes.post("/png-info")
    async def png_info(request: fastapi.Request) -> JSONResponse:
        async def read() -> dict[str, Any]:
            body = await _body(request)
            return await run_in_threadpool(_png_info, body)

        return await _answered(read())

    return routes


async def _answered(work: Any) -> JSONResponse:
    """What it gives, or the reason why not, in A1111's shape of an error."""
    try:
        return JSONResponse(await work)
    except StudioError as error:
        content = {"error": type(error).__name__, "detail": str(error), "body": "", "errors": str(error)}
        return JSONResponse(content, status_code=422)


async def _body(request: fastapi.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    return body


# -- pictures ----------------------------------------------------------------------------------------------


async def _render(
    worker: Worker, request: fastapi.Request, owner: str, own: Options, *, with_image: bool
) -> dict[str, Any]:
    body = await _body(request)
    asked = read_asked(body, with_image=with_image)
    id = await run_in_threadpool(_submit, worker, owner, own, asked)
    version = -1
    while True:
        if worker.version != version:
            version = worker.version
            view = worker.view(id, owner)
            if view is None:
                raise RequestError("the job was deleted while it was being made")
            if view.state.over:
                break
        await asyncio.sleep(LOOK_EVERY)
    if view.state is JobState.FAILED:
        raise RequestError(view.error)
    answer = await run_in_threadpool(_result, view, asked, body)
    if not asked.save_images:
        await run_in_threadpool(worker.delete, id, owner)
    return answer


def _submit(worker: Worker, owner: str, own: Options, asked: Asked) -> str:
    settings = {**own.values, **asked.override}
    skip = clip_skip(settings)
    if skip is not None:
        asked = replace(asked, draft=asked.draft.with_value("clip_skip", skip))
    model = settings.get("sd_model_checkpoint")
    vae = settings.get("sd_vae")
    with tempfile.TemporaryDirectory() as folder:
        image = None if asked.init_image is None else _init_image(asked, Path(folder))
        return worker.submit(
            owner,
            asked.drafts(image),
            model=_model_name(worker, model) if model else None,
            vae=vae if vae not in (None, "", "Automatic", "None") else None,
            kind=KIND,
        )


def _init_image(asked: Asked, folder: Path) -> Path:
    assert asked.init_image is not None
    file = folder / "init.png"
    image = _picture(asked.init_image, "init_images")
    size = (asked.draft.values.get("width"), asked.draft.values.get("height"))
    if asked.resize == 1 and all(isinstance(side, int) and 0 < side <= 16384 for side in size):
        image = ImageOps.fit(image, size)  # type: ignore[arg-type]
    image.convert("RGB").save(file)
    return file


def _picture(text: str, where: str) -> Image.Image:
    """A picture from base64 text, with or without `data:image/png;base64,` in front. Raises RequestError."""
    try:
        image = Image.open(io.BytesIO(_bytes(text)))
        image.load()
    except (
        binascii.Error,
        ValueError,
        OSError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
    ) as error:
        raise RequestError(
            f"{where}: no picture that can be read ({error}); send it as base64 text"
        ) from error
    return ImageOps.exif_transpose(image)


def _bytes(text: str) -> bytes:
    head, comma, rest = text.partition(",")
    return base64.b64decode(rest if comma and head.startswith("data:") else text, validate=True)


def _result(view: JobView, asked: Asked, body: Mapping[str, Any]) -> dict[str, Any]:
    done = view.finished
    images = []
    texts = []
    for picture in done:
        assert picture.file is not None
        texts.append(read_texts(picture.file).get(PARAMETERS, ""))
        if asked.send_images:
            images.append(base64.b64encode(picture.file.read_bytes()).decode())
    return {
        "images": images,
        "parameters": {**body, "init_images": None} if "init_images" in body else dict(body),
        "info": json.dumps(_info(view, asked, texts)),
    }


def _info(view: JobView, asked: Asked, texts: list[str]) -> dict[str, Any]:
    records = [picture.record for picture in view.finished if picture.record is not None]
    first = records[0] if records else {}
    negative = first.get("negative_prompt") or ""
    seeds = [record["seed"] for record in records]
    return {
        "prompt": asked.draft.values["prompt"],
        "all_prompts": [asked.draft.values["prompt"]] * len(records),
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * len(records),
        "seed": seeds[0] if seeds else asked.draft.values["seed"],
        "all_seeds": seeds,
        "subseed": -1,
        "all_subseeds": [-1] * len(records),
        "subseed_strength": 0,
        "width": first.get("width"),
        "height": first.get("height"),
        "sampler_name": first.get("scheduler"),
        "cfg_scale": first.get("guidance_scale"),
        "steps": first.get("steps"),
        "batch_size": asked.count,
        "restore_faces": False,
        "sd_model_name": first.get("model"),
        "sd_model_hash": first.get("model_hash"),
        "denoising_strength": first.get("strength"),
        "clip_skip": (first.get("clip_skip") or 0) + 1,
        "index_of_first_image": 0,
        "infotexts": texts,
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(view.created)),
        "version": f"lora-studio {first.get('versions', {}).get('lora-studio', '')}".strip(),
        "interrupted": view.state is JobState.CANCELLED,
    }


def _progress(worker: Worker, owner: str, with_image: bool) -> dict[str, Any]:
    """Of the owner's oldest call that is not over."""
    running = [view for view in worker.views(owner) if view.kind == KIND and not view.state.over]
    view = worker.view(running[-1].id, owner) if running else None
    pictures = view.pictures if view is not None else ()
    steps, count = sum(p.step for p in pictures), sum(p.count for p in pictures)
    known = sum(bool(p.count) for p in pictures)
    whole = count / known * len(pictures) if known else 0  # those that wait will take as many
    now = next((p for p in pictures if p.state is JobState.RUNNING), None)
    preview = now.preview if now is not None and with_image else None
    return {
        "progress": min(steps / whole, 1.0) if whole else 0.0,
        "eta_relative": round((view.seconds_left if view is not None else None) or 0.0, 2),
        "state": {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": view.id if view is not None else "",
            "job_count": len(pictures),
            "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(view.created if view else None)),
            "job_no": sum(p.state.over for p in pictures),
            "sampling_step": now.step if now is not None else 0,
            "sampling_steps": now.count if now is not None else 0,
        },
        "current_image": None if preview is None else _encoded(preview),
        "textinfo": view.message if view is not None else None,
    }


def _encoded(file: Path) -> str | None:
    try:
        with Image.open(file) as image:
            png = io.BytesIO()
            image.save(png, format="PNG")
    except OSError:  # replaced by the next one while we looked
        return None
    return base64.b64encode(png.getvalue()).decode()


# -- what there is -----------------------------------------------------------------------------------------


def _model_name(worker: Worker, said: object) -> str:
    """A1111 says "name [hash]", "name.safetensors", or the name."""
    if not isinstance(said, str):
        raise RequestError(f"sd_model_checkpoint={said!r} must be a name; /sdapi/v1/sd-models lists them")
    return said.partition(" [")[0].strip()


def _models(worker: Worker) -> list[dict[str, Any]]:
    return [
        {
            "title": model.name,
            "model_name": model.name,
            "hash": None,
            "sha256": None,
            "filename": str(model.path),
            "config": None,
        }
        for model in worker.models()
        if model.usable
    ]


def _vaes(worker: Worker) -> list[dict[str, Any]]:
    return [{"model_name": vae.name, "filename": str(vae.path)} for vae in worker.home.vaes()]


def _loras(library: Library) -> list[dict[str, Any]]:
    found = []
    for card in library.cards():
        if card.readable:
            metadata = dict(read_header(card.path).metadata)
            found.append(
                {
                    "name": card.name,
                    "alias": card.title or card.name,
                    "path": str(card.path),
                    "metadata": metadata,
                }
            )
    return found


def _refreshed(library: Library) -> None:
    library.cards()


def _png_info(body: Mapping[str, Any]) -> dict[str, Any]:
    image = body.get("image")
    if not isinstance(image, str) or not image:
        raise RequestError("image must be a picture as base64 text")
    try:
        data = _bytes(image)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"image: no base64 text ({error})") from error
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        file.write(data)
        file.flush()
        texts = read_texts(Path(file.name))
    info = texts.pop(PARAMETERS, "")
    said = a1111.read(info)
    parameters = {key: value for key, value in a1111.pairs(info).items()}
    if info:
        parameters = {"Prompt": said.prompt, "Negative prompt": said.negative_prompt or "", **parameters}
    return {"info": info, "items": texts | ({PARAMETERS: info} if info else {}), "parameters": parameters}


# -- settings ----------------------------------------------------------------------------------------------


def _shown_options(worker: Worker, own: Options) -> dict[str, Any]:
    state = worker.model_state()
    chosen = own.values.get("sd_model_checkpoint") or state.label or state.source
    default = next((model.name for model in worker.models() if model.default), "")
    return {
        "sd_model_checkpoint": chosen or default,
        "sd_vae": own.values.get("sd_vae", "Automatic"),
        "CLIP_stop_at_last_layers": own.values.get("CLIP_stop_at_last_layers", 1),
        "samples_format": "png",
    }


def _set(worker: Worker, own: Options, changed: Mapping[str, Any]) -> None:
    """All of them, or none. A model is loaded at once; this returns when it is."""
    changed = {name: value for name, value in changed.items() if name != "samples_format" or value != "png"}
    check_options(changed)
    model = changed.get("sd_model_checkpoint")
    if model:
        name = _model_name(worker, model)
        worker.load(name).result()
        changed = {**changed, "sd_model_checkpoint": name}
    own.values.update(changed)
