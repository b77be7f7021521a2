"""A1111's settings: those that a call overrides (`override_settings`), and those that are set for later calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from composers.shown import shown
from pipelines.bounds import LONGEST_NAME, check_text
from pipelines.errors import RequestError
from studio.web.sdapi.values import asks_nothing, number, whole_number

MODEL, VAE, CLIP_SKIP = "sd_model_checkpoint", "sd_vae", "CLIP_stop_at_last_layers"
OPTIONS = (MODEL, VAE, CLIP_SKIP)
"""The settings that can be changed, for one call or for all later ones."""
MODULES = "forge_additional_modules"
"""Forge's setting for VAE and text encoders: a list of files. One that is a VAE here is taken."""
NO_VAE = "", "automatic", "none"
"""Names, in lower case, that stand for the model's own VAE."""
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "samples_format": ("png",),
    "enable_pnginfo": (True,),
    "eta_ancestral": (1,),
    "emphasis": ("Original",),
    "randn_source": ("GPU", "CPU"),
    "forge_unet_storage_dtype": ("Automatic",),
    "k_sched_type": ("Automatic",),
    "sd_noise_schedule": ("Default",),
    "s_noise": (1,),
    "uni_pc_order": (2,),
    "uni_pc_variant": ("bh2",),
    "uni_pc_skip_type": ("time_uniform",),
    "uni_pc_lower_order_final": (True,),
    "comma_padding_backtrack": (20,),
    "extra_networks_default_multiplier": (1,),
    "beta_dist_alpha": (0.6,),
    "beta_dist_beta": (0.6,),
}
"""Setting -> its values that change nothing here."""
_INDIFFERENT = (
    "forge_preset", "sd_checkpoint_hash", "hide_samplers", "hide_schedulers", "sd_vae_overrides_per_model_preferences",
    "batch_cond_uncond", "sd_checkpoints_limit", "sd_checkpoint_cache", "do_not_show_images", "lora_preferred_name",
    "forge_inference_memory", "forge_async_loading", "forge_pin_shared_memory", "face_restoration_model",
    "code_former_weight", "jpeg_quality", "webp_lossless",
)  # fmt: skip
"""Settings that change no picture here: memory, lists, and what belongs to things that are not offered."""
_OF_FILES = "outdir_", "save_", "samples_", "grid_", "live_preview", "show_progress", "directories_"
"""How settings begin that tell how A1111 saves and shows pictures. They do not change pictures that are sent."""


def read_settings(said: object) -> dict[str, Any]:
    """The settings among `OPTIONS` that an object says, each checked; null ones and those that change nothing are left
    out. Raises RequestError for one that would change something, and cannot be changed."""
    if not isinstance(said, Mapping):
        raise RequestError('settings must be an object, as in {"sd_model_checkpoint": "name"}')
    found: dict[str, Any] = {}
    for name, value in said.items():
        if name in OPTIONS:
            if value is not None:
                found[name] = _read(name, value)
        elif name == MODULES:
            modules = value if isinstance(value, list) else [value]
            modules = [one for one in modules if not asks_nothing(one)]
            if len(modules) > 1:
                raise RequestError(f"{MODULES}={shown(modules)}: one VAE can be chosen; leave the others out")
            for one in modules:
                found[VAE] = check_text(MODULES, one, LONGEST_NAME)
        elif not _changes_nothing(name, value):
            raise RequestError(
                f"the setting {shown(name)} cannot be changed; those that can: {', '.join(OPTIONS)}"
            )
    return found


def _read(name: str, value: object) -> Any:
    if name != CLIP_SKIP:
        return check_text(name, value, LONGEST_NAME)
    skip_of(value)
    return whole_number(value)


def _changes_nothing(name: str, value: object) -> bool:
    neutral = _NEUTRAL.get(name, ())
    if name in _INDIFFERENT or (name.startswith(_OF_FILES) and not neutral):
        return True
    return asks_nothing(value) or number(value) in (0, *neutral) or value in neutral


def skip_of(count: object, name: str = CLIP_SKIP) -> int | None:
    """The layers of the text encoder that A1111's count skips: it counts from 1, which skips none; None for 1 and where
    nothing is said. Raises RequestError."""
    value = whole_number(count)
    if value is None or (value == 1 and not isinstance(value, bool)):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RequestError(f"{name}={shown(count)} must be a whole number above 0")
    return value - 1


def skip_values(count: object) -> dict[str, Any]:
    """A request's fields for A1111's count of clip skip; {} where nothing is skipped. Raises RequestError."""
    skip = skip_of(count)
    return {} if skip is None else {"clip_skip": skip, "clip_skip_as": "a1111"}


def count_of(skip: int | None) -> int:
    """A1111's count for so many layers."""
    return (skip or 0) + 1
