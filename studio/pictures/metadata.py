"""What a picture says about itself: two PNG text chunks, written and read.

`parameters` is A1111's convention, which every tool understands (`studio.pictures.a1111`). `lora-studio` is ours, JSON:

    {"version": 1, "request": {every field, as resolved}, "adapters": {name: {"sha256", "size", …}},
     "setup": {"vae", "low_memory"}, "record": {what was applied and what it cost}}

Only what was applied is written. Initial images are not stored, only their size and hash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from composers.registry import parse as parse_composer
from composers.shown import shown
from pipelines import Record, Request
from pipelines.bounds import LONGEST_NAME, MOST_ADAPTERS
from pipelines.errors import RequestError, StudioError
from pipelines.home.files import write_whole
from pipelines.schedulers import MODEL_OWN
from pipelines.text.tags import write_tag
from studio.drafts import picture_file
from studio.drafts.draft import Draft
from studio.drafts.entries import LONGEST_METHOD, checked, plain_request, read_draft
from studio.drafts.plain import read_json
from studio.drafts.shelf import Known
from studio.library.hashes import short_hash
from studio.pictures import a1111

CHUNK = "lora-studio"
PARAMETERS = "parameters"
VERSION = 1
MOST_TOLD = 40
"""Settings of another program that are named one by one."""


@dataclass(frozen=True)
class Setup:
    """What decides a picture and is neither in its request nor in its record."""

    vae: str | None = None
    low_memory: bool = False


@dataclass(frozen=True)
class Remembered:
    """What a picture says it was made with.

    ours: by our own chunk, so completely; else by A1111's text. model, model_hash: "" where it does not say.
    known: adapter's name in lower case -> its hash. init_image: its mark, where there was one.
    record: as it was written, {} in a foreign picture. notes: what could not be taken over.
    """

    draft: Draft
    ours: bool
    model: str = ""
    model_hash: str = ""
    known: Mapping[str, Known] = field(default_factory=dict)
    setup: Setup = field(default_factory=Setup)
    init_image: Mapping[str, Any] | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


# -- writing ---------------------------------------------------------------------------------------------


def save_picture(
    image: Image.Image,
    file: Path,
    *,
    request: Request,
    record: Record,
    adapters: Mapping[str, Path],
    setup: Setup | None = None,
    force: bool = False,
) -> Path:
    """Write a finished picture with all it should say; returns where it is.

    request: the resolved one. adapters: name -> file of those that are loaded.
    """
    texts = chunks(request, record, adapters, setup or Setup())
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text.encode("utf-8", "replace").decode("utf-8"))
    return write_whole(file, lambda path: image.save(path, format="PNG", pnginfo=info), force=force)


def chunks(request: Request, record: Record, adapters: Mapping[str, Path], setup: Setup) -> dict[str, str]:
    """The texts by the names of their chunks."""
    applied = {use.name: {"sha256": use.sha256} for use in record.adapters}
    content = {
        "version": VERSION,
        "request": plain_request(request),
        "adapters": {
            name: {**known, "size": adapters[name].stat().st_size, "short_hash": short_hash(adapters[name])}
            for name, known in applied.items()
        },
        "setup": {"vae": setup.vae, "low_memory": setup.low_memory},
        "record": record.to_dict(),
    }
    return {
        PARAMETERS: a1111.write(_parameters(request, record, adapters)),
        CHUNK: json.dumps(content, allow_nan=False),
    }


def _parameters(request: Request, record: Record, adapters: Mapping[str, Path]) -> a1111.Parameters:
    tags = " ".join(write_tag(use) for use in request.uses)
    return a1111.Parameters(
        prompt=f"{request.prompt} {tags}".strip(),
        negative_prompt=request.negative_prompt,
        steps=record.steps,
        sampler=record.scheduler,
        cfg_scale=record.guidance_scale,
        cfg_rescale=record.guidance_rescale or None,
        seed=record.seed,
        size=(record.width, record.height),
        model=record.model,
        model_hash=record.model_hash,
        clip_skip=None if record.clip_skip is None else record.clip_skip + 1,
        denoising=record.strength,
        composition=record.composer if record.adapters else None,
        text_mode=None if record.text_mode == "merged" else record.text_mode,
        lora_hashes={use.name: short_hash(adapters[use.name]) for use in record.adapters},
        version=f"{CHUNK} {record.versions.get(CHUNK, '')}".strip(),
    )


# -- reading ---------------------------------------------------------------------------------------------


def read_texts(file: Path) -> dict[str, str]:
    """The text chunks of a picture. Raises RequestError where it is none, or too large (see `studio.pictures`)."""
    return picture_file.texts(file, file.name)


def read_picture(file: Path) -> Remembered:
    """What a picture says it was made with. Raises RequestError where it says nothing that can be understood."""
    texts = read_texts(file)
    if CHUNK in texts:
        return _ours(file.name, texts[CHUNK])
    if PARAMETERS in texts:
        return _foreign(file.name, a1111.read(texts[PARAMETERS]))
    if "workflow" in texts or "prompt" in texts:
        raise RequestError(
            f"{file.name} holds a ComfyUI workflow, which is not read; give --prompt and --lora yourself"
        )
    raise RequestError(
        f"{file.name} does not say how it was made (it has neither a {CHUNK!r} nor a {PARAMETERS!r} text); give the "
        "file as it was saved, messengers and image hosts strip it"
    )


def _ours(name: str, text: str) -> Remembered:
    try:
        content = read_json(text, f"its {CHUNK!r} text", most=picture_file.MOST_SAID)
        if content["version"] > VERSION:
            raise RequestError(
                f"{name} was written by a newer LoRA Studio; update with pip install -U lora-studio"
            )
        setup, record, request = content["setup"], content["record"], content["request"]
        mark = request.pop("init_image", None)  # never a path: a picture may not name files of this computer
        vae = setup["vae"]
        return Remembered(
            draft=read_draft(request, name),
            ours=True,
            model=_name(record["model"]),
            model_hash=_name(record["model_hash"]),
            known=_known(content["adapters"]),
            setup=Setup(None if vae is None else _name(vae), bool(setup["low_memory"])),
            init_image=mark if isinstance(mark, dict) else None,
            record=record,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, StudioError) and str(error).startswith(name):
            raise
        raise RequestError(
            f"{name}: its {CHUNK!r} text is damaged ({shown(error)}); use an untouched copy"
        ) from error


def _name(said: object) -> str:
    """Of a file, or a hash. Raises ValueError for anything else."""
    if not isinstance(said, str) or len(said) > LONGEST_NAME:
        raise ValueError(f"{shown(said)} is no name")
    return said


def _known(adapters: Mapping[str, Any]) -> dict[str, Known]:
    """The hashes and sizes of the picture's adapters, by their names in lower case. Raises ValueError."""
    if len(adapters) > MOST_ADAPTERS:
        raise ValueError(f"{len(adapters)} adapters are more than {MOST_ADAPTERS}")
    for said in adapters.values():
        if not isinstance(said["size"], int | None):
            raise ValueError(f"{shown(said['size'])} is no size of a file")
    return {
        _name(key).casefold(): Known(_name(said["sha256"]), said["size"]) for key, said in adapters.items()
    }


def _foreign(name: str, said: a1111.Parameters) -> Remembered:
    values: dict[str, Any] = {
        "prompt": said.prompt,
        "negative_prompt": said.negative_prompt or None,
        "steps": said.steps,
        "guidance_scale": said.cfg_scale,
        "guidance_rescale": said.cfg_rescale,
        "seed": said.seed,
        "scheduler": None if said.sampler == MODEL_OWN else said.sampler,
        "clip_skip": None if said.clip_skip in (None, 1) else said.clip_skip - 1,
        "text_mode": said.text_mode,
    }
    if said.size is not None:
        values["width"], values["height"] = said.size
    if said.denoising is not None:
        values["strength"] = said.denoising
    notes = [
        "made by another program, whose noise and rounding differ: expect a similar picture, not the same"
    ]
    if said.ignored:
        told = [key[:60] for key in said.ignored[:MOST_TOLD]]
        more = len(said.ignored) - len(told)
        notes.append(f"not taken over: {', '.join(told)}{f' and {more} more' if more else ''}")
    if said.composition is not None and len(said.composition) <= LONGEST_METHOD:
        try:
            values["composer"] = parse_composer(said.composition)
        except StudioError as error:
            notes.append(f"composition not taken over: {error}")
    return Remembered(
        draft=checked(Draft({key: value for key, value in values.items() if value is not None}, where=name)),
        ours=False,
        model=(said.model or "")[:LONGEST_NAME],
        model_hash=(said.model_hash or "")[:LONGEST_NAME],
        known={key.casefold(): Known(digest) for key, digest in said.lora_hashes.items()},
        init_image={} if said.denoising is not None and "Hires upscale" not in said.ignored else None,
        notes=tuple(notes),
    )
