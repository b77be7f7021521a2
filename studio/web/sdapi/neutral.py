"""Which fields of a call are read, which are passed over, and which are refused.

Front ends send every field that they know, mostly with values that ask for nothing; these are passed over. A field that
asks for something that this studio does not do is refused by name, never ignored.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from composers.shown import shown
from pipelines.bounds import LONGEST_NAME, LONGEST_PROMPT
from pipelines.errors import RequestError
from pipelines.home.plain import check_plain
from studio.drafts.fields import FIELDS
from studio.web.sdapi.values import asks_nothing, number

MOST_SAID = 10_000
"""Most values of one field."""
MOST_FIELDS = 500
"""Most fields of a call: more than all clients together send."""

READ = (
    *(field.call for field in FIELDS if field.call), "sampler_name", "sampler_index", "scheduler", "batch_size",
    "n_iter", "clip_skip", "lora", "init_images", "mask", "resize_mode", "override_settings", "alwayson_scripts",
    "send_images", "save_images",
)  # fmt: skip
PICTURES = ("init_images", "mask")
"""Fields whose texts are pictures; their length is judged when they are read."""
INDIFFERENT = (
    "do_not_save_samples", "do_not_save_grid", "override_settings_restore_afterwards", "include_init_images",
    "force_task_id", "comments", "session_hash", "sampler_noise_scheduler_override", "script_args", "subseed",
    "hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_steps", "hr_resize_x", "hr_resize_y", "hr_checkpoint_name",
    "hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt", "hr_cfg", "hr_distilled_cfg",
    "hr_denoising_strength", "hr_additional_modules", "distilled_cfg_scale", "distilled_cfg",
    "firstphase_width", "firstphase_height", "mask_blur", "mask_blur_x", "mask_blur_y", "mask_round",
    "mask_expansion", "use_sharp_mask", "inpainting_fill", "inpaint_full_res", "inpaint_full_res_padding",
    "inpainting_mask_invert", "seed_enable_extras", "refiner_switch_at", "image_cfg_scale",
    "initial_noise_multiplier", "full_quality", "s_tmin", "s_tmax",
    # of SillyTavern, and of Auto-Photoshop, which replaces its shortcuts before it sends
    "url", "auth", "original_prompt", "original_negative_prompt", "mode", "uniqueDocumentId", "use_prompt_shortcut",
    "prompt_shortcut_ui_dict",
)  # fmt: skip
"""Fields that only matter with other fields, which are refused themselves; and what clients send for themselves."""
REFUSED: Mapping[str, tuple[str, tuple[object, ...]]] = {
    "enable_hr": ("hires fix", ()),
    "latent_mask": ("a mask of latents; send mask", ()),
    "mask_image": ("that name; A1111's is mask", ()),
    "extra_images": ("reference pictures", ()),
    "styles": ("prompt styles", ()),
    "subseed_strength": ("variation seeds", ()),
    "seed_resize_from_h": ("resizing seeds", (-1,)),
    "seed_resize_from_w": ("resizing seeds", (-1,)),
    "restore_faces": ("face restoration", ()),
    "tiling": ("tiling", ()),
    "refiner_checkpoint": ("the refiner", ()),
    "disable_extra_networks": ("switching LoRA tags off", ()),
    "firstpass_image": ("hires fix", ()),
    "script_name": ("scripts", ()),
    "infotext": ("reading settings from an infotext; send the fields", ()),
    "eta": ("eta", (1,)),
    "s_churn": ("noise churn", ()),
    "s_noise": ("noise churn", (1,)),
    "s_min_uncond": ("skipping the negative prompt", ()),
    "cfg_end": ("guidance for a part of the steps", (1,)),
    "batch_count": ("that name; A1111's is n_iter", (1,)),
}
"""Field -> what it asks for, and its values, besides 0 and those that ask for nothing, which are neutral."""


def check_fields(body: Mapping[str, Any]) -> None:
    """Raises RequestError for a field that asks for what is not done here, for one that nobody knows, unless it asks
    for nothing, and for values that are too long, too many or no plain ones."""
    if len(body) > MOST_FIELDS:
        raise RequestError(f"{len(body)} fields are more than a call has; leave out what it does not need")
    known = (*READ, *INDIFFERENT, *REFUSED)
    for name, value in body.items():
        if name in READ:
            if name not in PICTURES:
                _check(name, value)
        elif name in REFUSED:
            what, neutral = REFUSED[name]
            if not (asks_nothing(value) or number(value) in (0, *neutral)):
                raise RequestError(f"{name}={shown(value)}: not offered here ({what}); leave the field out")
        else:
            _check(name, value)
            if name not in INDIFFERENT and not (asks_nothing(value) or _is_zero(name, value)):
                near = difflib.get_close_matches(name[:LONGEST_NAME], known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else "it means nothing here, so leave it out"
                raise RequestError(f"unknown field {shown(name)}={shown(value)}; {hint}")


def _check(name: str, value: object) -> None:
    check_plain([name, value], name, longest=LONGEST_PROMPT, most=MOST_SAID)


def _is_zero(name: str, value: object) -> bool:
    """Whether an unknown field is 0, which asks for nothing unless the name is a misspelt one."""
    return number(value) == 0 and not difflib.get_close_matches(name[:LONGEST_NAME], READ, n=1, cutoff=0.8)


# -- scripts ---------------------------------------------------------------------------------------------


def is_off(name: str, args: object, body: Mapping[str, Any]) -> bool:
    """Whether a script of another program asks for nothing: it has no arguments, its first one is false, or each of
    its units is off. A1111's own Sampler and Seed ask for nothing where they repeat the call's fields."""
    if not args:
        return True
    if isinstance(args, Mapping):  # Gradio's form of a list: {"0": first, …}
        args = list(args.values()) if all(str(name).isdigit() for name in args) else [args]
    if not isinstance(args, list):
        return False
    if args[0] is False or (isinstance(args[0], str) and args[0].strip().lower() == "false"):
        return True
    if name.lower() in _REPEATING:
        return _REPEATING[name.lower()](args, body)
    args = [None if _is_off_by_name(name, one) else one for one in args]
    units = [one for one in args if isinstance(one, dict)]
    if name.lower() == "adetailer" and units:  # [on, not for img2img, unit, …]
        return all(one and asks_nothing(one) for one in units)
    return all(asks_nothing(one) and one != {} for one in args)  # a unit of ControlNet without fields is on


def _is_off_by_name(name: str, unit: object) -> bool:
    """Whether an object has a switch that is called as its script, and that is off."""
    switches = unit.items() if isinstance(unit, Mapping) else ()
    return any(str(key).lower() == name.lower() and asks_nothing(value) for key, value in switches)


def _repeats(args: Sequence[Any], body: Mapping[str, Any], *names: str) -> bool:
    return all(number(said) == number(body.get(name)) for said, name in zip(args, names, strict=False))


_REPEATING = {
    "sampler": lambda args, body: _repeats(args, body, "steps", "sampler_name", "scheduler"),
    "seed": lambda args, body: (
        _repeats(
            args, {"seed": -1, **{key: value for key, value in body.items() if value is not None}}, "seed"
        )
        and all(asks_nothing(one) for one in args[1:2])
    ),
}
"""A1111's own scripts, in lower case -> whether they say no more than the fields of the call."""
