"""Draws pictures as jobs and answers as A1111 does; tells how far they are, and what a picture says of itself."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from starlette.concurrency import run_in_threadpool

from pipelines.bounds import check_pixels
from pipelines.errors import RequestError, StudioError
from pipelines.home.names import stem_of
from pipelines.home.plain import short
from pipelines.inpainting import grey
from studio.drafts import picture_file
from studio.drafts.draft import Draft
from studio.drafts.input_images import MASK
from studio.jobs import JobState, JobView, Worker
from studio.jobs.job import Tally
from studio.pictures import a1111
from studio.pictures.metadata import as_infotext, understood
from studio.pictures.texts import CHUNK, PARAMETERS, is_object, read_texts
from studio.web.sdapi.fields import LONGEST_PICTURE, ImageCall, read_asked
from studio.web.sdapi.neutral import PICTURES
from studio.web.sdapi.options import Options, model_name, vae_of
from studio.web.sdapi.settings import CLIP_SKIP, MODEL, count_of, skip_values

KIND = "sdapi"
LONGEST_HEAD = 200
"""Most characters of a prefix such as `data:image/png;base64,`."""
LOOK_EVERY = 0.05
"""Seconds between two looks at a job."""


async def render(
    worker: Worker, body: Mapping[str, Any], owner: str, own: Options, *, with_image: bool
) -> dict[str, Any]:
    """txt2img and img2img: returns A1111's answer when all pictures are drawn. Raises StudioError."""
    asked = read_asked(body, with_image=with_image)
    id = await run_in_threadpool(_submit, worker, owner, own, asked)
    version = -1
    while True:
        if worker.version != version:
            version = worker.version
            head = await run_in_threadpool(worker.head, id, owner)
            if head is None or head.state.over:
                break
        await asyncio.sleep(LOOK_EVERY)
    view = await run_in_threadpool(partial(worker.view, id, owner, most=asked.count))
    if view is None:
        raise RequestError("the job was deleted while it was being made")
    if view.state is JobState.FAILED:
        raise RequestError(view.error)
    answer = await run_in_threadpool(_result, view, asked, body)
    if not asked.save_images:
        await run_in_threadpool(worker.delete, id, owner)
    return answer


def _submit(worker: Worker, owner: str, own: Options, asked: ImageCall) -> str:
    settings = {**own.values, **asked.override}
    draft = asked.draft
    if CLIP_SKIP not in asked.override and "clip_skip" not in draft.values:
        asked = replace(
            asked, draft=replace(draft, values={**draft.values, **skip_values(settings.get(CLIP_SKIP))})
        )
    asked = replace(asked, draft=_by_names(asked.draft, worker))
    model = settings.get(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        return worker.submit(
            owner,
            asked.drafts(_images(asked, Path(folder))),
            model=model_name(model) if model else None,
            vae=vae_of(settings),
            kind=KIND,
        )


def _by_names(draft: Draft, worker: Worker) -> Draft:
    """The draft with the names of LoRAs that it gives by paths, as /sdapi/v1/loras lists them to who may see paths."""
    if not worker.trust.paths or not any(os.path.isabs(wanted.adapter) for wanted in draft.wanted):
        return draft
    names = {stem_of(entry.path.as_posix()): entry.name for entry in worker.home.loras()}
    wanted = (replace(one, adapter=names.get(stem_of(one.adapter), one.adapter)) for one in draft.wanted)
    return replace(draft, wanted=tuple(wanted))


def _images(asked: ImageCall, folder: Path) -> dict[str, Path]:
    """The files of the initial image and the mask, in the folder. Raises RequestError."""
    if asked.init_image is None:
        return {}
    images = {"init_image": _picture(asked.init_image, "init_images").convert("RGB")}
    if asked.mask is not None:
        mask = grey(_picture(asked.mask, "mask"))
        images[MASK] = ImageOps.invert(mask) if asked.inverted else mask
    size = (asked.draft.values.get("width"), asked.draft.values.get("height"))
    part = asked.mask is not None and asked.draft.values.get("mask_area") == "only masked"
    crops = (
        asked.resize == 1 and not part and all(isinstance(side, int) and 0 < side <= 16384 for side in size)
    )
    files = {}
    for name, image in images.items():
        if crops:
            check_pixels("the initial image, cropped to width and height,", *size)  # type: ignore[arg-type]
            image = ImageOps.fit(image, size)  # type: ignore[arg-type]
        files[name] = folder / f"{name}.png"
        image.save(files[name])
    return files


def _picture(text: str, where: str) -> Image.Image:
    return picture_file.upright(io.BytesIO(_bytes(text, where)), where)


def _bytes(text: str, where: str) -> bytes:
    """The bytes of base64 text, with or without a prefix such as `data:image/png;base64,`. Raises RequestError."""
    if len(text) > LONGEST_PICTURE:
        raise RequestError(
            f"{where}: {len(text) / 1e6:.0f} million characters of base64 text are more than "
            f"{LONGEST_PICTURE / 1e6:.0f} million; send a smaller picture"
        )
    start = text.find(",", 0, LONGEST_HEAD) + 1 if text.startswith("data:") else 0
    try:
        return base64.b64decode(text[start:] if start else text, validate=True)
    except ValueError as error:
        raise RequestError(
            f"{where}: no picture that can be read ({short(error)}); send it as base64 text"
        ) from error


def _result(view: JobView, asked: ImageCall, body: Mapping[str, Any]) -> dict[str, Any]:
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
        "parameters": {name: None if name in PICTURES else value for name, value in body.items()},
        "info": json.dumps(_info(view, asked, texts)),
    }


def _info(view: JobView, asked: ImageCall, texts: list[str]) -> dict[str, Any]:
    records = [picture.record for picture in view.finished if picture.record is not None]
    first = records[0] if records else {}
    negative = first.get("negative_prompt") or ""
    seeds = [record["seed"] for record in records]
    return {
        "prompt": asked.prompt,
        "all_prompts": [asked.prompt] * len(records),
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
        "clip_skip": count_of(first.get("clip_skip")),
        "index_of_first_image": 0,
        "infotexts": texts,
        "comments": "\n".join(dict.fromkeys(note for record in records for note in record.get("notes", ()))),
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(view.created)),
        "version": f"lora-studio {first.get('versions', {}).get('lora-studio', '')}".strip(),
        "interrupted": view.state is JobState.CANCELLED,
    }


def interrupt(worker: Worker, owner: str) -> None:
    """Stops all calls of the owner."""
    for id in worker.unfinished(owner, KIND):
        worker.cancel(id, owner)


def skip(worker: Worker, owner: str) -> None:
    """Stops the owner's oldest call that is not over; its pictures are drawn together."""
    for id in worker.unfinished(owner, KIND)[:1]:
        worker.cancel(id, owner)


def progress(worker: Worker, owner: str, with_image: bool) -> dict[str, Any]:
    """The progress of the owner's oldest call that is not over, in A1111's format."""
    head = next((worker.head(id, owner) for id in worker.unfinished(owner, KIND)), None)
    tally = head.tally if head is not None else Tally()
    whole = (
        tally.count / tally.known * tally.total if tally.known else 0
    )  # as if all pictures took equal steps
    now = worker.at_work(head.id, owner) if head is not None else None
    preview = now.preview if now is not None and with_image else None
    return {
        "progress": min(tally.step / whole, 1.0) if whole else 0.0,
        "eta_relative": round((head.seconds_left if head is not None else None) or 0.0, 2),
        "state": {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": head.id if head is not None else "",
            "job_count": tally.total,
            "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(head.created if head else None)),
            "job_no": tally.over,
            "sampling_step": now.step if now is not None else 0,
            "sampling_steps": now.count if now is not None else 0,
        },
        "current_image": None if preview is None else _encoded(preview),
        "textinfo": head.message if head is not None else None,
    }


def _encoded(file: Path) -> str | None:
    try:
        image = picture_file.upright(file, file.name)
    except RequestError:  # a newer preview has just replaced it
        return None
    png = io.BytesIO()
    image.save(png, format="PNG")
    return base64.b64encode(png.getvalue()).decode()


def png_info(body: Mapping[str, Any]) -> dict[str, Any]:
    image = body.get("image")
    if not isinstance(image, str) or not image:
        raise RequestError("image must be a picture as base64 text")
    texts = read_texts(io.BytesIO(_bytes(image, "image")), "image")
    info = _infotext(texts)
    said = a1111.read(info)
    parameters = a1111.pairs(info)
    if info:
        parameters = {"Prompt": said.prompt, "Negative prompt": said.negative_prompt or "", **parameters}
    return {"info": info, "items": texts, "parameters": parameters}


def _infotext(texts: Mapping[str, str]) -> str:
    """What a picture says, as A1111 writes it, whatever program made it; "" where nothing can be understood."""
    info = texts.get(PARAMETERS, "")
    if CHUNK in texts or (info and not is_object(info)):
        return info
    try:
        return as_infotext(understood("image", texts))
    except StudioError:
        return ""
