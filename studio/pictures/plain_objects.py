"""Objects of JSON in which the settings lie side by side under names that speak for themselves, whatever wrote them:
Easy Diffusion, Draw Things, Civitai's generator, TensorArt, artroom, pages that run diffusers."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from composers.shown import shown
from pipelines.errors import StudioError
from pipelines.home.plain import check_plain, read_json
from studio.drafts.picture_file import MOST_SAID
from studio.pictures.foreign import Foreign
from studio.pictures.loras import AIR
from studio.pictures.taking import GUIDANCE, MODEL_HASH, PROMPT, SAMPLER, SEED, STEPS, Taking

EASY = ("use_stable_diffusion_model", "num_inference_steps", "Stable Diffusion model")
LONGEST_LIST = 10_000
"""Most characters of a list in Python's spelling."""
FEWEST = 2
"""Settings that an object needs beside its prompt, to be taken for settings."""
_NOTHING = ("version", "app_version", "software", "date", "created_at", "generation_time", "timestamp", "profile",
            "session_id", "output_format", "output_quality", "num_outputs", "image_count", "extra", "app",
            "used_random_seed", "vram_usage_level", "stream_progress_updates", "stream_image_progress",
            "metadata_output_format", "workflow_id", "remix_of_id", "work_engine")  # fmt: skip


def read(said: Mapping[str, Any], software: str = "") -> Foreign | None:
    """What the object says; None where it does not look like settings. software: what else in the picture names as its
    program."""
    extra = said.get("extraMetadata")  # Civitai's generator keeps its graph beside it
    if isinstance(extra, str):
        try:
            extra = read_json(extra, "it", most=MOST_SAID, finite=False)
        except StudioError:
            return None
    if isinstance(extra, Mapping):
        return _read(_with_types(extra, said), "Civitai")
    if software == "Draw Things" or ("c" in said and "uc" in said):
        return _read(_without_doubles(said), "Draw Things")
    return _read(
        said, "Easy Diffusion" if any(name in said for name in EASY) else software or "another program"
    )


def _with_types(extra: Mapping[str, Any], graph: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of Civitai's generator with the kinds of its resources, which its graph tells by their names there:
    urn:air:sdxl:lora:civitai:1@2."""
    kinds = {named["version"]: named["type"] for text in _texts(graph) if (named := AIR.fullmatch(text))}
    rows = extra.get("resources")
    if not isinstance(rows, list):
        return extra
    typed = [
        {"type": kinds[version], **row}
        if isinstance(row, Mapping) and (version := str(row.get("modelVersionId"))) in kinds
        else row
        for row in rows
    ]
    return {**extra, "resources": typed}


def _texts(said: object) -> Iterator[str]:
    """All texts in an object of JSON, however deep; its reader bounds both."""
    pending = [said]
    while pending:
        one = pending.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, Mapping | list):
            pending.extend(one.values() if isinstance(one, Mapping) else one)


def read_easy(texts: Mapping[str, str]) -> Foreign | None:
    """What Easy Diffusion writes as one PNG text for each setting."""
    if not any(name in texts for name in EASY):
        return None
    return _read({key: _python(text) for key, text in texts.items()}, "Easy Diffusion")


def _read(said: Mapping[str, Any], program: str) -> Foreign | None:
    taking = Taking(said)
    groups = (STEPS, GUIDANCE, SEED, SAMPLER, ("width", "size", "resolution"))
    if not taking.has(*PROMPT) or sum(taking.has(*names) for names in groups) < FEWEST:
        return None
    values = taking.values()
    values |= _clip_skip(taking, program)
    loras = taking.loras
    listed = taking.any("loras", "lora", "use_lora_model", "lora_model", "lora_models")
    loras.take(listed, taking.any("lora_alpha", "lora_strength", "lora_weights", "loraweights"))
    for one in _rows(taking.any("models")):  # TensorArt's, of all kinds
        if "lora" in str(one.get("type", "")).lower():
            loras.take([one])
        else:
            loras.ignored.append(f"model {shown(one.get('modelFileName', one.get('name', one)))}")
    if (resources := taking.any("resources", "civitai_resources")) is not None and not loras.take_resources(
        _named(resources)
    ):
        loras.ignored.append(f"resources {shown(resources)}")
    start = taking.any("init_image", "init_img", "source_image") is not None
    strength = taking.real("strength", "denoise", "denoising_strength", "prompt_strength")
    start = start or (strength is not None and 0 < strength < 1)  # 0 where there is no picture
    if start and strength is not None:
        values["strength"] = strength
    taking.pass_over(*_NOTHING)
    name = taking.model()
    digest = taking.text(*MODEL_HASH) or ""
    vae = taking.vae()
    return Foreign(
        program,
        values,
        tuple(loras.wanted),
        name or loras.model,
        digest,
        notes=taking.notes(),
        hashes=loras.hashes,
        from_picture=start,
        vae=vae,
    )


def _clip_skip(taking: Taking, program: str) -> dict[str, Any]:
    if program != "Easy Diffusion":
        return taking.clip_skip("a1111")
    said = taking.any("clip_skip")  # on or off; on skips one layer
    if said not in (None, "False", True, "True"):
        taking.unread["clip_skip"] = f"{shown(said)} must be true or false"
    return {"clip_skip": 1, "clip_skip_as": "a1111"} if said in (True, "True") else {}


def _without_doubles(said: Mapping[str, Any]) -> dict[str, Any]:
    """Draw Things says all twice: at first for people, then as `v2` for itself. Only there are its LoRAs."""
    again = said.get("v2")
    whole = {key: value for key, value in said.items() if key != "v2"}
    if isinstance(again, Mapping):
        if again.get("loras") and "loras" not in said:
            whole["loras"] = again["loras"]
            whole.pop("lora", None)
        size = again.get("width"), again.get("height")
        if "size" not in said and all(isinstance(side, int) for side in size):
            whole["width"], whole["height"] = size
        if isinstance(again.get("clipSkip"), int):
            whole.setdefault("clip_skip", again["clipSkip"])
    return whole


def _rows(said: object) -> list[Mapping[str, Any]]:
    return [one for one in said if isinstance(one, Mapping)] if isinstance(said, list) else []


def _named(resources: object) -> object:
    """Civitai's resources, each taken for a LoRA where it has a strength and no type."""
    if not isinstance(resources, list):
        return resources
    return [
        {"type": "lora" if "strength" in one or "weight" in one else "checkpoint", **one}
        if isinstance(one, Mapping)
        else one
        for one in resources
    ]


def _python(text: str) -> Any:
    """A list or a truth value in Python's spelling; any other text as it is."""
    if text in ("None", "True", "False"):
        return {"None": None, "True": True, "False": False}[text]
    if not text.startswith("[") or len(text) > LONGEST_LIST:
        return text
    try:
        found = ast.literal_eval(text)
        check_plain(found, "it", longest=LONGEST_LIST, most=1_000, deepest=3)
    except (ValueError, SyntaxError, MemoryError, RecursionError, StudioError):
        return text
    return found
