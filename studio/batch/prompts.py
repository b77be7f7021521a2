"""Reads a line of a prompt file: a prompt followed by options, as in A1111's script "Prompts from file".

    a fox in a red hat --steps 20 --seed 3 --lora fox=0.8
    --prompt "a fox" --negative_prompt "blurry" --cfg_scale 5 --sampler_name "Euler a"

Options may have A1111's names or those of the command line, with `_` or `-`. Numbers may be ranges: --seed 1-4. A line
that begins with # is a comment.
"""

from __future__ import annotations

import math
import re
from typing import Any

from composers.shown import shown
from pipelines.errors import RequestError
from studio.batch.problems import nearest
from studio.drafts.draft import NEW_SEED, Wanted
from studio.drafts.fields import FIELDS
from studio.drafts.flags import parse_lora

_OPTION = re.compile(r"(?:^|\s)--(?=[A-Za-z])")

SPELLINGS = {
    **{option: field.name for field in FIELDS for option in field.options},
    **{name: name for name in ("model", "variants", "name", "count")},
    "sd_model": "model",
}
"""Name of a field in lines of prompts and above tables -> the job's field."""
OPTIONS = {
    **{option: name for option, name in SPELLINGS.items() if name != "adapters"},
    **{name: name for name in ("n_iter", "batch_size", "size", "lora")},
}
"""Option -> the job's field. The last four are combined from several options, or split into several fields."""
HEADINGS = {**SPELLINGS, "lora": "adapters", "loras": "adapters", "size": "size"}
"""Heading of a table -> the job's field; `size` is split into two."""

MOST_OPTIONS = 200
"""Most options of one line."""
NO_MEANING = ("styles", "subseed", "subseed_strength", "seed_resize_from_h", "seed_resize_from_w", "restore_faces",
              "tiling", "sampler_index", "outpath_samples", "outpath_grids", "do_not_save_samples",
              "do_not_save_grid", "prompt_for_display")  # fmt: skip


def read_line(line: str) -> dict[str, Any]:
    """The fields of one line. Raises RequestError."""
    prompt, *options = _OPTION.split(line)
    if len(options) > MOST_OPTIONS:
        raise RequestError(f"{len(options)} options are more than one line may have ({MOST_OPTIONS})")
    fields: dict[str, Any] = {"prompt": prompt.strip()} if prompt.strip() else {}
    repeats: list[str] = []
    loras: list[Wanted] = []
    for option in options:
        name, _, value = option.strip().partition(" ")
        name, equals, rest = name.partition("=")
        key, text = name.lower().replace("-", "_"), _unquoted(f"{rest} {value}" if equals else value)
        _check(name, key, text)
        if key == "lora":
            loras.append(parse_lora(text))
        elif key in ("n_iter", "batch_size"):
            repeats.append(_count(name, text))
        elif key == "size":
            fields["width"], fields["height"] = size_of(text)
        elif OPTIONS[key] in fields:
            raise RequestError(f"--{name}: {OPTIONS[key]} is given twice; keep one")
        elif key != "seed" or text != str(NEW_SEED):
            fields[OPTIONS[key]] = text
    if repeats:
        fields["count"] = math.prod(map(int, repeats))
    if loras:
        fields["adapters"] = [plain_wanted(wanted) for wanted in loras]
    return fields


def _check(name: str, key: str, text: str) -> None:
    if key in NO_MEANING:
        raise RequestError(f"--{name} means nothing here; take it out")
    if key not in OPTIONS:
        raise RequestError(f"unknown option --{name[:40]}; {nearest(key, OPTIONS)}")
    if not text:
        raise RequestError(f"--{name} needs a value, as in --{name} …; or take it out")


def plain_wanted(wanted: Wanted) -> dict[str, Any]:
    """An adapter as an entry of `adapters` in a job file."""
    strengths = {"weight": wanted.weight, "text_weight": wanted.text_weight}
    return {
        "adapter": wanted.adapter,
        **{key: value for key, value in strengths.items() if value is not None},
        **({"pinned": True} if wanted.pinned else {}),
    }


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _count(name: str, text: str) -> str:
    if not re.fullmatch(r"\d{1,9}", text) or int(text) < 1:
        raise RequestError(f"--{name} {text[:40]}: it must be a whole number above 0")
    return text


def size_of(text: str) -> tuple[str, str]:
    """(width, height) of "512x768". Raises RequestError."""
    width, _, height = map(str.strip, text.lower().replace("\u00d7", "x").partition("x"))
    if not (width.isdecimal() and height.isdecimal()):
        raise RequestError(f"size {shown(text)}: it must be WxH in pixels, as in 512x768")
    return width, height
