"""A model's parts as diffusers and transformers load them, and what all ways of loading have in common."""

from __future__ import annotations

import logging
import os
import re
import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from composers.shown import shown
from pipelines.errors import ModelError
from pipelines.families.family import Family
from pipelines.home import plain
from pipelines.home.answers import answered, sign
from pipelines.home.files import NoRegularFile, read_text
from pipelines.home.plain import reading
from pipelines.schedulers import Scheduler

MOST_TRAINED_STEPS = 100_000
"""Most steps of a noise schedule. Published models have a thousand."""


PREDICTIONS = "epsilon", "v_prediction", "sample"
"""What a UNet may predict, as diffusers' schedulers call it."""


@dataclass(frozen=True)
class Components:
    """The parts of one model, on the CPU.

    text_encoders, tokenizers: by the text encoder's component name. files: the weight files that they came from.
    notes: what a user should know of how they were read.
    """

    family: Family
    unet: Any
    vae: Any
    text_encoders: Mapping[str, Any]
    tokenizers: Mapping[str, Any]
    scheduler: Scheduler
    force_zeros_for_empty_prompt: bool
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a model's folder. Raises ModelError where it is missing or faulty, and NoAnswer."""
    remedy = "copy or download the model again"
    with reading(str(file), ModelError, remedy):
        try:
            text = read_text(file)
        except FileNotFoundError as error:
            raise ModelError(
                f"{file.parent} has no {file.name}; a diffusers model folder holds model_index.json and one "
                "folder each for unet, vae, text_encoder, tokenizer and scheduler"
            ) from error
    content = plain.read_json(text, str(file), error=ModelError, remedy=remedy, finite=False, mended=True)
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds no JSON object; copy or download the model again")
    return content


def refuse_other_than_files(folder: Path) -> None:
    """Raises ModelError for a pipe, a socket or a device in a model's folder or in a folder directly in it.

    Otherwise another library might open it by its name and wait for ever. Raises NoAnswer too.
    """
    answered(folder, lambda: _look_through(folder, deep=True))


def _look_through(folder: Path, *, deep: bool) -> None:
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise ModelError(f"{folder} cannot be read ({error.strerror}); copy or download it again") from error
    for entry in entries:
        sign()
        try:
            mode = entry.stat().st_mode
        except OSError:  # a link to nowhere is reported by whoever needs the file
            continue
        if stat.S_ISDIR(mode):
            if deep:
                _look_through(Path(entry.path), deep=False)
        elif not stat.S_ISREG(mode):
            raise ModelError(f"{NoRegularFile(entry.path, mode).strerror}: {entry.path}")


def vae_dtype(dtype: torch.dtype, vae_config: Mapping[str, Any]) -> torch.dtype:
    """The dtype of a VAE in a model of `dtype`: float32 for a float16 model whose VAE overflows there, else `dtype`.

    Its configuration says so as `force_upcast`; one that says nothing counts as overflowing.
    """
    return torch.float32 if dtype == torch.float16 and vae_config.get("force_upcast", True) else dtype


def make_model_scheduler(config: Mapping[str, Any], family: Family, **settings: Any) -> Scheduler:
    """The model's own scheduler, made from its configuration as diffusers' pipeline for the family would make it.

    settings: override the configuration, where the class knows them. Two entries of old configurations are corrected:
    `clip_sample` is turned off, and `steps_offset` of SD1.x and SD2.x is set to 1. A class whose package is not
    installed is replaced by Euler on the same noise schedule.
    Raises ModelError for an unknown scheduler, and for that of another kind of model.
    """
    import diffusers
    from diffusers.utils.import_utils import is_scipy_available

    name = config.get("_class_name", "")
    known = isinstance(name, str) and re.fullmatch(r"[A-Z][A-Za-z0-9]{1,60}Scheduler", name)
    scheduler_class = getattr(diffusers, name, None) if known else None
    if scheduler_class is None:
        raise ModelError(
            f"the model's scheduler {shown(name)} is unknown to diffusers {diffusers.__version__}"
        )
    if "_backends" in vars(scheduler_class):
        scheduler_class = diffusers.EulerDiscreteScheduler
    if "beta_schedule" not in scheduler_class._get_init_keys(scheduler_class):
        raise ModelError(
            f"the model's scheduler {name} is for another kind of model; use an SD1.x, SD2.x or SDXL model"
        )
    if not family.size_conditioned and config.get("steps_offset", 1) != 1:
        settings["steps_offset"] = 1
    if config.get("clip_sample"):
        settings["clip_sample"] = False
    if config.get("use_beta_sigmas") and not is_scipy_available():  # type: ignore[no-untyped-call]
        settings["use_beta_sigmas"] = False
    accepted = scheduler_class._get_init_keys(scheduler_class)
    settings = {key: value for key, value in settings.items() if key in accepted}
    steps = config.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 1 <= steps <= MOST_TRAINED_STEPS:
        raise ModelError(
            f"the model's scheduler has num_train_timesteps {shown(steps)}; it must be a whole number up to "
            f"{MOST_TRAINED_STEPS}: copy or download the model again"
        )
    predicts = config.get("prediction_type", "epsilon")
    if predicts not in PREDICTIONS:
        raise ModelError(
            f"the model's scheduler has prediction_type {shown(predicts)}, which is not supported; models that predict "
            f"{', '.join(PREDICTIONS)} can be used"
        )
    with reading(f"the model's scheduler {name}", ModelError, "copy or download the model again"):
        return scheduler_class.from_config(dict(config), **settings)


def first_line(error: Exception) -> str:
    """The first line of another library's error message, to be quoted in one of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@contextmanager
def quietly() -> Iterator[None]:
    """Within: diffusers and transformers show no progress bars, and no remarks that no user can act on."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    bars = [library for library in libraries if library.is_progress_bar_enabled()]
    levels = [library.get_verbosity() for library in libraries]
    for library in bars:
        library.disable_progress_bar()
    for library in libraries:
        library.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
        for library in bars:
            library.enable_progress_bar()
