"""Reads what A1111's front ends send: https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/API.

Front ends send every field that they know, mostly with values that ask for nothing; these fields are passed over. A
field that asks for something that this studio does not do is refused by name, never ignored.

Fields of a request that A1111 has a name for are mapped by the table of fields (`studio.drafts.fields`). All others,
new ones included, go into our own script, as an object with the names that requests files use:

    "alwayson_scripts": {"LoRA Studio": {"args": ["switch:interval=3", {"reuse": 3, "crop": [0, 64]}]}}

The script's arguments are a method, an object, or both. The object wins over A1111's own fields, which front ends
always send. So {"negative_prompt": ""} has the empty text encoded, while an empty field of A1111's says nothing.
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from composers.registry import methods
from composers.shown import shown
from pipelines.bounds import LONGEST_NAME, LONGEST_PROMPT, check_text
from pipelines.errors import RequestError
from pipelines.home.plain import check_plain
from pipelines.request import SEEDS
from pipelines.schedulers import canonical
from studio.drafts.draft import Draft, counted
from studio.drafts.entries import read_draft
from studio.drafts.fields import BY_NAME, FIELDS, Field
from studio.drafts.picture_file import LARGEST_FILE

MOST_AT_ONCE = 1000
"""Most pictures of one call."""
MOST_SAID = 10_000
"""Most values of one field."""
LONGEST_PICTURE = 4 * LARGEST_FILE // 3 + 100
"""Most characters of a picture as base64 text."""
OUR_SCRIPT = "LoRA Studio"
"""The script's name in `alwayson_scripts`; upper and lower case are the same."""
USUAL_STRENGTH = 0.75
"""A1111's default strength for an initial image."""

_ELSEWHERE = {
    "prompt": "the field prompt",
    "seed": "the field seed",
    "init_image": "the field init_images of /sdapi/v1/img2img",
}
"""Fields of a request that our script does not take, and the field of A1111's that says each."""
_MAPPED = tuple(field for field in FIELDS if field.call)
_READ = (
    *(field.call for field in _MAPPED), "sampler_name", "sampler_index", "scheduler", "batch_size", "n_iter",
    "init_images", "resize_mode", "override_settings", "alwayson_scripts", "send_images", "save_images",
)  # fmt: skip
_INDIFFERENT = (
    "do_not_save_samples", "do_not_save_grid", "override_settings_restore_afterwards", "include_init_images",
    "force_task_id", "comments", "session_hash", "sampler_noise_scheduler_override", "script_args", "subseed",
    "hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y", "hr_checkpoint_name",
    "hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt", "hr_cfg", "hr_additional_modules",
    "firstphase_width", "firstphase_height", "mask_blur", "mask_blur_x", "mask_blur_y", "mask_round",
    "inpainting_fill", "inpaint_full_res", "inpaint_full_res_padding", "inpainting_mask_invert",
    "seed_enable_extras", "refiner_switch_at", "image_cfg_scale", "initial_noise_multiplier",
)  # fmt: skip
"""Fields that only matter with other fields, which are refused themselves."""
_REFUSED: Mapping[str, tuple[str, tuple[object, ...]]] = {
    "enable_hr": ("hires fix", ()),
    "mask": ("inpainting", ()),
    "latent_mask": ("inpainting", ()),
    "styles": ("prompt styles", ()),
    "subseed_strength": ("variation seeds", ()),
    "seed_resize_from_h": ("resizing seeds", (-1,)),
    "seed_resize_from_w": ("resizing seeds", (-1,)),
    "restore_faces": ("face restoration", ()),
    "tiling": ("tiling", ()),
    "refiner_checkpoint": ("the refiner", ("None",)),
    "disable_extra_networks": ("switching LoRA tags off", ()),
    "firstpass_image": ("hires fix", ()),
    "script_name": ("scripts", ()),
    "infotext": ("reading settings from an infotext; send the fields", ()),
    "eta": ("eta", (1, 1.0)),
    "s_churn": ("noise churn", ()),
    "s_tmin": ("noise churn", ()),
    "s_tmax": ("noise churn", ()),
    "s_noise": ("noise churn", (1, 1.0)),
    "s_min_uncond": ("skipping the negative prompt", ()),
}
"""Field -> what it asks for, and its values, besides None, False, 0 and empty ones, that ask for nothing."""
_SCHEDULES = {"automatic": "", "uniform": "", "normal": "", "karras": " Karras", "sgm_uniform": " SGM Uniform",
              "sgm uniform": " SGM Uniform"}  # fmt: skip
CLIP_SKIP = "CLIP_stop_at_last_layers"
OPTIONS = ("sd_model_checkpoint", "sd_vae", CLIP_SKIP)
"""The settings that can be changed, for one call or for all later ones."""


@dataclass(frozen=True)
class ImageCall:
    """One txt2img or img2img call. draft: of its first picture, with a seed; init_image: as base64 text.

    prompt: as it was sent, with its LoRA tags. resize: how the initial image gets the right size: 0 stretches it,
    1 crops it. override: settings for this call.
    """

    draft: Draft
    prompt: str
    count: int
    init_image: str | None
    resize: int
    override: Mapping[str, Any]
    send_images: bool
    save_images: bool

    def drafts(self, init_image: Path | None) -> list[Draft]:
        """A draft for each picture, with rising seeds."""
        return counted(replace(self.draft, init_image=init_image), self.count, self.draft.values["seed"])


def read_asked(body: Mapping[str, Any], *, with_image: bool) -> ImageCall:
    """The call of a body. Raises RequestError and ComposerError for whatever cannot be done, and PromptError."""
    _refuse(body, with_image=with_image)
    images = body.get("init_images") or []
    if with_image and (not isinstance(images, list) or len(images) != 1 or not isinstance(images[0], str)):
        raise RequestError("init_images must be a list with one picture in it, as base64 text")
    batch, times = _whole(body, "batch_size", 1), _whole(body, "n_iter", 1)
    count = batch * times
    if min(batch, times) < 1 or count > MOST_AT_ONCE:
        raise RequestError(f"batch_size x n_iter is {shown(count)}; it must lie in 1 … {MOST_AT_ONCE}")
    override = body.get("override_settings") or {}
    check_options(override)
    script = _script(body)
    _refuse_two_skips(override, script)
    values = {field.name: _value(field, body, with_image=with_image) for field in _MAPPED}
    values["scheduler"] = _scheduler(body)
    said = {name: value for name, value in values.items() if value is not None}
    return ImageCall(
        Draft({**said, **script.values}, script.wanted),
        said["prompt"],
        count,
        images[0] if with_image else None,
        _whole(body, "resize_mode", 0),
        override,
        bool(body.get("send_images", True)),
        bool(body.get("save_images", False)),
    )


def check_options(options: object) -> None:
    """Raises RequestError for settings that cannot be changed."""
    if not isinstance(options, Mapping):
        raise RequestError('settings must be an object, as in {"sd_model_checkpoint": "name"}')
    for name in options:
        if name not in OPTIONS:
            raise RequestError(
                f"the setting {shown(name)} cannot be changed; those that can: {', '.join(OPTIONS)}"
            )
    for name in ("sd_model_checkpoint", "sd_vae"):
        if options.get(name) is not None:
            check_text(name, options[name], LONGEST_NAME)
    clip_skip(options)


def clip_skip(options: Mapping[str, Any]) -> int | None:
    """How many text-encoder layers to skip, or None. A1111 counts from 1, which skips none. Raises RequestError."""
    value = options.get(CLIP_SKIP)
    if value in (None, 1):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RequestError(f"{CLIP_SKIP}={shown(value)} must be a whole number above 0")
    return value - 1


def _refuse(body: Mapping[str, Any], *, with_image: bool) -> None:
    known = (*_READ, *_INDIFFERENT, *_REFUSED)
    for name, value in body.items():
        if name in _REFUSED and name not in _READ:
            what, neutral = _REFUSED[name]
            if value and value not in neutral:
                raise RequestError(f"{name}={shown(value)}: not offered here ({what}); leave the field out")
        elif name not in known:
            near = difflib.get_close_matches(name[:LONGEST_NAME], known, n=1)
            raise RequestError(f"unknown field {shown(name)}{f'; did you mean {near[0]!r}?' if near else ''}")
        elif name != "init_images":
            check_plain(value, name, longest=LONGEST_PROMPT, most=MOST_SAID)
    if not with_image and body.get("init_images"):
        raise RequestError("init_images belong to /sdapi/v1/img2img")
    if _whole(body, "resize_mode", 0) not in (0, 1):
        raise RequestError(f"resize_mode={shown(body['resize_mode'])} is not offered; 0 stretches, 1 crops")


def _scheduler(body: Mapping[str, Any]) -> str | None:
    """Our name of the sampler, or None. A1111 gives solver and spacing separately; here they are one name."""
    name = _text(body, "sampler_name") or _text(body, "sampler_index")
    spacing = _text(body, "scheduler")
    suffix = _SCHEDULES.get(spacing.lower(), f" {spacing}" if spacing else "")
    if not name:
        return None if not suffix else canonical(f"Euler{suffix}")
    return canonical(name if not suffix or name.lower().endswith(suffix.lower()) else f"{name}{suffix}")


def _value(field: Field, body: Mapping[str, Any], *, with_image: bool) -> Any:
    """The value of A1111's own field; None says nothing. Request judges it later."""
    if field.name == "seed":
        seed = _whole(body, field.call, -1)
        return random.randrange(SEEDS) if seed == -1 else seed
    if field.name == "strength":
        strength = body.get(field.call) if with_image else None
        return USUAL_STRENGTH if with_image and strength is None else strength
    if field.kind in ("prompt", "text"):
        text = _text(body, field.call, LONGEST_PROMPT if field.kind == "prompt" else LONGEST_NAME)
        return text if text or field.name == "prompt" else None
    value = body.get(field.call)
    return tuple(value) if field.kind == "pair" and isinstance(value, list) else value


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
        elif script and args:
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
    counted_from_1 = override.get(CLIP_SKIP)
    skip = script.values.get("clip_skip")
    if counted_from_1 is not None and skip is not None and counted_from_1 - 1 != skip:
        raise RequestError(
            f"{CLIP_SKIP}={shown(counted_from_1)} skips {counted_from_1 - 1} layers, and clip_skip={shown(skip)} of "
            f"{OUR_SCRIPT} skips another number; leave one of them out"
        )


def _text(body: Mapping[str, Any], name: str, longest: int = LONGEST_NAME) -> str:
    value = body.get(name)
    return "" if value is None else check_text(name, value, longest)


def _whole(body: Mapping[str, Any], name: str, default: int) -> int:
    value = body.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name}={shown(value)} must be a whole number")
    return value
