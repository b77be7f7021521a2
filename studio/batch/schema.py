"""The JSON schema of a job file, for editors and other programs.

It is made from what the program knows (methods, schedulers, bounds), and shipped as `jobs.schema.json` beside this
file; a test holds the two together. The program itself does not read it: `Request` is the gate, and says more.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

from composers import Knob, methods
from composers.plan import TextMode, Use
from pipelines.families.family import Cut
from pipelines.request import FARTHEST, LARGEST_SIDE, MOST_STEPS, Request
from pipelines.schedulers import MODEL_OWN, scheduler_names
from studio.batch.plan import VARIANTS
from studio.batch.values import MOST_VALUES, WHOLE

FILE = Path(__file__).with_name("jobs.schema.json")
Schema = dict[str, Any]

_BOUNDS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**64 - 1),
    "steps": (1, MOST_STEPS),
    "width": (1, LARGEST_SIDE),
    "height": (1, LARGEST_SIDE),
    "clip_skip": (0, 100),
    "reuse": (1, 100),
    "count": (1, MOST_VALUES),
    "guidance_scale": (0, 1000),
    "guidance_rescale": (0, 1),
    "strength": (0, 1),
}
_SAID = {
    "prompt": "What to draw: A1111's weights and <lora:…> tags, {red|blue} choices, __wildcards__.",
    "negative_prompt": "What to keep out.",
    "adapters": "The mix: {name: strength} or a list; strengths may be lists or ranges.",
    "composer": "The method, as in switch:interval=3, or an object with its settings.",
    "seed": "Without one, the job gets its own, the same in every run.",
    "steps": "Sampling steps.",
    "guidance_scale": "Classifier-free guidance; 1 or less means none.",
    "guidance_rescale": "0 … 1.",
    "width": "Pixels.",
    "height": "Pixels.",
    "scheduler": "A scheduler by name; A1111's names and other aliases are understood too.",
    "init_image": "A picture to start from; the path counts from the job file.",
    "strength": "How far from the initial image.",
    "clip_skip": "Text-encoder layers to skip.",
    "text_mode": "Which adapters the text encoder sees.",
    "reuse": "Steps between full passes, where deep features may be reused.",
    "cut": "Where shallow passes cut the UNet.",
    "original_size": "SDXL's size conditioning: [height, width].",
    "crop": "SDXL's crop conditioning: [top, left].",
    "target_size": "SDXL's target size: [height, width].",
    "name": "For the file's name and messages; says nothing of the picture.",
    "model": "Name, folder, .safetensors file or hub id.",
    "count": "So many pictures, their seeds rising.",
    "variants": "Whether choices in the prompt are drawn by the seed, or all of them rendered.",
}


def schema() -> Schema:
    """The schema: a list of jobs, an object with defaults and jobs, or one job (a line of a .jsonl file)."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "LoRA Studio jobs",
        "anyOf": [
            {"type": "array", "items": {"$ref": "#/$defs/job"}},
            {
                "type": "object",
                "properties": {
                    "defaults": {"$ref": "#/$defs/job"},
                    "jobs": {"type": "array", "items": {"$ref": "#/$defs/job"}},
                },
                "required": ["jobs"],
                "additionalProperties": False,
            },
            {"$ref": "#/$defs/job"},
            {
                "type": "object",
                "properties": {"defaults": {"$ref": "#/$defs/job"}},
                "required": ["defaults"],
                "additionalProperties": False,
            },
        ],
        "$defs": {"job": _job(), "mix": _mix(), "numbers": _numbers(), "method": _method()},
    }


def _job() -> Schema:
    fields = [field.name for field in dataclasses.fields(Request) if field.init and field.name != "_"]
    properties = {name: _field(name) for name in (*fields, "name", "model", "count", "variants")}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _field(name: str) -> Schema:
    """A value, or what stands for several (see `studio.batch.values`)."""
    choices = [_one(name)]
    if name in _BOUNDS:
        choices.append({"$ref": "#/$defs/numbers"})
    if name != "adapters":
        choices.append({"type": "array", "items": {"anyOf": list(choices)}, "minItems": 1})
    several = {"type": "array", "items": {"anyOf": [choices[0], {"type": "null"}]}, "minItems": 1}
    choices.append(
        {"type": "object", "properties": {"any": several}, "required": ["any"], "maxProperties": 1}
    )
    said = {"description": _SAID[name]} if name in _SAID else {}
    return {**said, "anyOf": [*choices, {"type": "null"}]}


def _one(name: str) -> Schema:
    """One value of a field."""
    if name in _BOUNDS:
        low, high = _BOUNDS[name]
        return {"type": "integer" if name in WHOLE else "number", "minimum": low, "maximum": high}
    if name == "adapters":
        return {"$ref": "#/$defs/mix"}
    if name == "composer":
        return {"$ref": "#/$defs/method"}
    if name in ("original_size", "crop", "target_size"):
        side = {"type": "integer", "minimum": -FARTHEST if name == "crop" else 0, "maximum": FARTHEST}
        return {"type": "array", "items": side, "minItems": 2, "maxItems": 2}
    if name == "text_mode":
        return {"enum": list(get_args(TextMode))}
    if name == "cut":
        return {"enum": list(get_args(Cut))}
    if name == "variants":
        return {"enum": list(VARIANTS)}
    if name == "scheduler":
        return {"type": "string", "examples": [*scheduler_names(), MODEL_OWN]}
    if name in ("prompt", "negative_prompt", "name", "model", "init_image"):
        return {"type": "string"}
    return {}


def _numbers() -> Schema:
    return {
        "type": "string",
        "description": "A number or a range: 5, 1-5, 1-9 (+2), 0-1 [5], or several with commas.",
    }


def _mix() -> Schema:
    strength = {"anyOf": [{"type": "number"}, {"$ref": "#/$defs/numbers"}, {"type": "null"}]}
    strengths = {"anyOf": [strength, {"type": "array", "items": strength, "minItems": 1}]}
    use = {field.name: {} for field in dataclasses.fields(Use)} | {
        "adapter": {"type": "string", "description": "Name, or path of the file."},
        "weight": strengths,
        "text_weight": strengths,
        "pinned": {"type": "boolean", "description": "Active in every lane: LCM and its like."},
        "band": {"enum": ["high", "low", None]},
        "blocks": {"description": "[[block, factor], …]; others are at 0."},
        "schedule": {"description": "[[start, factor], …], starts as fractions of the steps."},
    }
    entry = {"type": "object", "properties": use, "required": ["adapter"], "additionalProperties": False}
    return {
        "anyOf": [
            {"type": "object", "additionalProperties": strengths},
            {"type": "array", "items": {"anyOf": [{"type": "string"}, entry]}},
        ]
    }


def _method() -> Schema:
    objects = []
    for name, kind in methods().items():
        settings: Schema = {"method": {"const": name}}
        for field in dataclasses.fields(kind):
            knob: Knob | None = field.metadata.get("knob")
            one: Schema = {} if knob is None else {"title": knob.label, "description": knob.help}
            one |= {"default": field.default} if knob is not None else {}
            settings[field.name] = one
        objects.append(
            {
                "type": "object",
                "description": kind.summary,
                "properties": settings,
                "required": ["method"],
                "additionalProperties": False,
            }
        )
    return {"anyOf": [{"type": "string", "examples": list(methods())}, *objects]}


def written() -> str:
    """The schema as its file holds it."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(written(), encoding="utf-8")
