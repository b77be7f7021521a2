"""Reads what A1111's front ends send: https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/API.

What is passed over and what is refused stands in `studio.web.sdapi.neutral`. Numbers may be texts, and null is a field
left out. Other programs of this API have fields of their own, which are read too: `clip_skip`, in A1111's count, and
stable-diffusion.cpp's `lora`, a list of {"path": name, "multiplier": strength}.

Fields of a request that A1111 has a name for are mapped by the table of fields (`studio.drafts.fields`). All others,
new ones included, go into our own script, as an object with the names that requests files use:

    "alwayson_scripts": {"LoRA Studio": {"args": ["switch:interval=3", {"reuse": 3, "crop": [0, 64]}]}}

The script's arguments are a method, an object, or both. The object wins over A1111's own fields, which front ends
always send. So {"negative_prompt": ""} has the empty text encoded, while an empty field of A1111's says nothing.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from composers.registry import methods
from composers.shown import shown
from pipelines.bounds import LONGEST_NAME, LONGEST_PROMPT, STRONGEST, check_text
from pipelines.errors import RequestError
from pipelines.home.plain import read_json
from pipelines.request import SEEDS
from pipelines.schedulers import adds_noise, canonical, named, without_noise
from studio.drafts.draft import Draft, Wanted, counted
from studio.drafts.entries import read_draft
from studio.drafts.fields import BY_NAME, FIELDS, Field
from studio.drafts.picture_file import LARGEST_FILE
from studio.web.sdapi.inpainting import is_inverted, mask_of, mask_values
from studio.web.sdapi.neutral import PICTURES, check_fields, is_off
from studio.web.sdapi.settings import CLIP_SKIP, read_settings, skip_of, skip_values
from studio.web.sdapi.values import asks_nothing, number, text, truth, whole, whole_number

MOST_AT_ONCE = 1000
"""Most pictures of one call."""
LONGEST_PICTURE = 4 * LARGEST_FILE // 3 + 100
"""Most characters of a picture as base64 text."""
OUR_SCRIPT = "LoRA Studio"
"""The script's name in `alwayson_scripts`; upper and lower case are the same."""
USUAL_STRENGTH = 0.75
"""A1111's default strength for an initial image."""
EXTRA = "<sd_cpp_extra_args>", "</sd_cpp_extra_args>"
"""What stands around fields that stable-diffusion.cpp's clients write into the prompt, as a JSON object."""

_ELSEWHERE = {
    "prompt": "the field prompt",
    "seed": "the field seed",
    "init_image": "the field init_images of /sdapi/v1/img2img",
    "mask": "the field mask of /sdapi/v1/img2img",
}
"""Fields of a request that our script does not take, and the field of A1111's that says each."""
_MAPPED = tuple(field for field in FIELDS if field.call)
_WITHOUT_ETA = "LCM", "TCD", "DDPM"
"""Samplers that add noise and that A1111 gives no `eta`."""
_LORA = "path", "multiplier", "is_high_noise"
"""Fields of an entry of `lora`."""


@dataclass(frozen=True)
class ImageCall:
    """One txt2img or img2img call. draft: of its first picture, with a seed. init_image, mask: as base64 text.

    prompt: as it was sent, with its LoRA tags. inverted: the mask's black is drawn. resize: how the initial image gets
    the right size: 0 stretches it, 1 crops it. override: settings for this call.
    """

    draft: Draft
    prompt: str
    count: int
    init_image: str | None
    mask: str | None
    inverted: bool
    resize: int
    override: Mapping[str, Any]
    send_images: bool
    save_images: bool

    def drafts(self, images: Mapping[str, Path]) -> list[Draft]:
        """A draft for each picture, with rising seeds. images: the files of initial image and mask."""
        return counted(replace(self.draft, images=images), self.count, self.draft.values["seed"])


def read_asked(body: Mapping[str, Any], *, with_image: bool) -> ImageCall:
    """The call of a body. Raises RequestError and ComposerError for whatever cannot be done, and PromptError."""
    body = _with_extra(body)
    check_fields(body)
    image = _image(body) if with_image else None
    for name in PICTURES:
        if not with_image and not asks_nothing(body.get(name)):
            raise RequestError(f"{name} belongs to /sdapi/v1/img2img")
    mask = mask_of(body)
    resize = whole(body, "resize_mode", 0)
    if with_image and resize not in (0, 1):
        raise RequestError(f"resize_mode={shown(resize)} is not offered; 0 stretches, 1 crops")
    batch, times = whole(body, "batch_size", 1), whole(body, "n_iter", 1)
    count = batch * times
    if min(batch, times) < 1 or count > MOST_AT_ONCE:
        raise RequestError(f"batch_size x n_iter is {shown(count)}; it must lie in 1 … {MOST_AT_ONCE}")
    override = _settings(body)
    script = _script(body)
    _refuse_two_skips(override, script)
    values = {field.name: _value(field, body, with_image=with_image) for field in _MAPPED}
    values["scheduler"] = _with_noise(body, _scheduler(body))
    said = {name: value for name, value in values.items() if value is not None}
    if mask is not None:
        said |= mask_values(body)
    if "clip_skip" not in script.values:
        said |= skip_values(override.get(CLIP_SKIP))
    return ImageCall(
        Draft({**said, **script.values}, (*script.wanted, *_loras(body))),
        said["prompt"],
        count,
        image,
        mask,
        mask is not None and is_inverted(body),
        resize,
        override,
        truth(body, "send_images", True),
        truth(body, "save_images", False),
    )


def _image(body: Mapping[str, Any]) -> str:
    images = body.get("init_images")
    if not isinstance(images, list) or len(images) != 1 or not isinstance(images[0], str):
        raise RequestError("init_images must be a list with one picture in it, as base64 text")
    return images[0]


def _with_extra(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The body with the fields that stand in its prompt as further fields. Raises RequestError."""
    prompt = body.get("prompt")
    begin, end = EXTRA
    if not isinstance(prompt, str) or begin not in prompt:
        return body
    check_text("prompt", prompt, LONGEST_PROMPT)
    before, _, rest = prompt.partition(begin)
    held, found, after = rest.partition(end)
    fields = read_json(held, f"prompt: {begin}") if found else None
    if not isinstance(fields, dict) or begin in after or "prompt" in fields:
        raise RequestError(
            f"prompt: {begin} must stand once, around an object with fields, and be closed by {end}"
        )
    return {**body, **fields, "prompt": f"{before}{after}".strip()}


def _settings(body: Mapping[str, Any]) -> dict[str, Any]:
    """The settings for this call, with the field `clip_skip` as one of them. Below 1, that field says nothing."""
    found = read_settings(body.get("override_settings") or {})
    count = whole_number(body.get("clip_skip"))
    if count is None or (isinstance(count, int) and not isinstance(count, bool) and count in (0, -1)):
        return found
    skip_of(count, "clip_skip")
    if found.setdefault(CLIP_SKIP, count) != count:
        raise RequestError(
            f"clip_skip={shown(count)} and {CLIP_SKIP}={shown(found[CLIP_SKIP])} differ; leave one of them out"
        )
    return found


def _with_noise(body: Mapping[str, Any], scheduler: str | None) -> str | None:
    """The sampler with as much noise as is asked for: `eta` 0 makes it the one that adds none. Raises RequestError for
    another measure: `eta` and `s_noise` are 1 for those that add any, and DDIM's eta is 0."""
    eta = number(body.get("eta"))
    if scheduler is None or not adds_noise(scheduler):
        if scheduler is not None and scheduler.startswith("DDIM") and eta not in (None, 0):
            raise RequestError(
                f"eta={shown(body['eta'])}: {scheduler} adds no noise here; leave the field out"
            )
        return scheduler
    if number(body.get("s_noise")) not in (None, 1):
        raise RequestError(f"s_noise={shown(body['s_noise'])}: {scheduler} adds noise at 1 alone here")
    if eta in (None, 1) or (eta == 0 and scheduler in _WITHOUT_ETA):
        return scheduler
    plain = without_noise(scheduler) if eta == 0 else None
    if plain is None:
        raise RequestError(f"eta={shown(body['eta'])}: {scheduler} adds noise at 1 alone here")
    return plain


def _scheduler(body: Mapping[str, Any]) -> str | None:
    """Our name of the sampler, or None. A1111 gives solver and spacing separately; here they are one name. Without a
    spacing it takes "Automatic"."""
    name = text(body, "sampler_name") or text(body, "sampler_index")
    spacing = text(body, "scheduler")
    if name:
        return canonical(named(name, spacing or "Automatic"))
    euler = canonical(named("Euler", spacing))
    return None if euler == "Euler" else euler


def _value(field: Field, body: Mapping[str, Any], *, with_image: bool) -> Any:
    """The value of A1111's own field; None says nothing. Request judges it later."""
    if field.name == "seed":
        seed = whole(body, field.call, -1)
        return random.randrange(SEEDS) if seed == -1 else seed
    if field.kind in ("prompt", "text"):
        said = text(body, field.call, LONGEST_PROMPT if field.kind == "prompt" else LONGEST_NAME)
        return said if said or field.name == "prompt" else None
    value = body.get(field.call)
    if field.kind in ("whole", "real"):
        value = whole_number(value) if field.kind == "whole" else number(value)
    if field.name == "strength":
        return None if not with_image else USUAL_STRENGTH if value is None else value
    return tuple(value) if field.kind == "pair" and isinstance(value, list) else value


def _loras(body: Mapping[str, Any]) -> list[Wanted]:
    """The LoRAs of the field `lora`, by names of the library. The strengths of entries with one path are added up."""
    entries = body.get("lora")
    if asks_nothing(entries):
        return []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RequestError('lora must be a list of objects, as in [{"path": "fox", "multiplier": 0.8}]')
    found: dict[str, Wanted] = {}
    for place, entry in enumerate(entries):
        where = f"lora[{place}]"
        for name, value in entry.items():
            if name not in _LORA and not asks_nothing(value):
                raise RequestError(f"{where}: unknown field {shown(name)}; it takes {', '.join(_LORA)}")
        if truth(entry, "is_high_noise", False):
            raise RequestError(f"{where}: is_high_noise=true: no model here has such a part; leave it out")
        path = text(entry, "path").replace("\\", "/").removesuffix(".safetensors").strip()
        strength = number(entry.get("multiplier"))
        strength = 1.0 if strength is None else strength
        if not path:
            raise RequestError(f"{where}: path must name a LoRA; /sdapi/v1/loras lists them")
        if (
            isinstance(strength, bool)
            or not isinstance(strength, int | float)
            or not abs(strength) <= STRONGEST
        ):
            most = f"{STRONGEST:g}"
            raise RequestError(f"{where}: multiplier={shown(strength)} must be a number in -{most} … {most}")
        before = found.get(path.casefold(), Wanted(path, 0.0, named=True))
        assert before.weight is not None
        found[path.casefold()] = replace(before, weight=before.weight + strength)
    return list(found.values())


def _script(body: Mapping[str, Any]) -> Draft:
    """The draft of what our own script says. Raises RequestError for any other script."""
    scripts = body.get("alwayson_scripts") or {}
    if not isinstance(scripts, Mapping):
        raise RequestError("alwayson_scripts must be an object")
    found = []
    for name, script in scripts.items():
        args = script.get("args") if isinstance(script, Mapping) else None
        if name.lower() == OUR_SCRIPT.lower():
            found.append(_read_args(args))
        elif not is_off(name, args, body):
            raise RequestError(
                f"alwayson_scripts: the script {shown(name)} is not here; leave it out. {OUR_SCRIPT!r} takes a "
                f"method: {', '.join(methods())}; and an object with fields of a request"
            )
    if len(found) > 1:
        raise RequestError(
            f"alwayson_scripts: {OUR_SCRIPT!r} stands there {len(found)} times; once is enough"
        )
    return found[0] if found else Draft()


def _read_args(args: object) -> Draft:
    """The draft of the script's arguments: [method], [object] or [method, object]. The object is read like an entry of
    a requests file."""
    where = f"alwayson_scripts: {OUR_SCRIPT}"
    match args:
        case [str() as method]:
            return read_draft({"composer": method}, where)
        case [dict() as entry]:
            pass
        case [str() as method, dict() as entry]:
            if entry.get("composer") is not None:
                raise RequestError(f"{where}: the method is given twice; leave composer out of the object")
            entry = {**entry, "composer": method}
        case _:
            raise RequestError(
                f"{where}: args must be a method, an object with fields of a request, or both, as in "
                '["switch:interval=3", {"reuse": 3, "text_mode": "first"}]'
            )
    for name, place in _ELSEWHERE.items():
        if name in entry:
            raise RequestError(
                f"{where}: {name} is said by {place}; the object takes every other field of a request: "
                f"{', '.join(other for other in BY_NAME if other not in _ELSEWHERE)}"
            )
    return read_draft(entry, where)


def _refuse_two_skips(override: Mapping[str, Any], script: Draft) -> None:
    """Raises RequestError where one call gives two different clip skips. A1111 counts from 1, we from 0."""
    count = override.get(CLIP_SKIP)
    skip = script.values.get("clip_skip")
    if count is not None and skip is not None and (skip_of(count) or 0) != skip:
        raise RequestError(
            f"{CLIP_SKIP}={shown(count)} skips {count - 1} layers, and clip_skip={shown(skip)} of {OUR_SCRIPT} skips "
            "another number; leave one of them out"
        )
