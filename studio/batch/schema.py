"""The JSON schema of a job file, for editors and other programs.

It is made from what the program knows (methods, schedulers, bounds), and shipped as `jobs.schema.json` beside this
file; a test keeps the two equal. The program itself does not read it: Request judges values, and gives better messages.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from composers import Knob, methods
from composers.plan import Use
from pipelines.schedulers import MODEL_OWN, scheduler_names
from studio.batch.plan import VARIANTS
from studio.batch.values import MOST_VALUES, PAIRS, REAL, WHOLE
from studio.drafts.draft import NEW_SEED
from studio.drafts.fields import BY_NAME, NAMES, Field

FILE = Path(__file__).with_name("jobs.schema.json")
Schema = dict[str, Any]

_SAID = {
    "prompt": "What to draw: A1111's weights and <lora:…> tags, {red|blue} choices, __wildcards__.",
    "adapters": "The mix: {name: strength} or a list; strengths may be lists or ranges.",
    "composer": "The method, as in switch:interval=3, or an object with its settings.",
    "seed": "Without one, or with -1, the job gets its own, the same in every run.",
    "init_image": "A picture to start from; the path counts from the job file.",
    "mask": "Which part of that picture is drawn anew: white is, black is kept. The path counts from the job file.",
    "name": "For the file's name and messages; says nothing of the picture.",
    "model": "Name, folder, .safetensors file or hub id.",
    "count": "So many pictures, their seeds rising.",
    "variants": "Whether choices in the prompt are drawn by the seed, or all of them rendered.",
}
"""Descriptions of fields that can be more in a job file than the field's own help says."""


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
    properties = {name: _field(name) for name in (*NAMES, "name", "model", "count", "variants")}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _field(name: str) -> Schema:
    """The schema of a field: a single value, or what stands for several (see `studio.batch.values`)."""
    one = _one_of_job(name) if name not in BY_NAME else _one(BY_NAME[name])
    choices = [one]
    if name in (*WHOLE, *REAL):
        choices.append({"$ref": "#/$defs/numbers"})
    if name in PAIRS:
        choices.append({"type": "string", "description": "The two numbers as text, as in 1024,768."})
    if name != "adapters":
        choices.append({"type": "array", "items": {"anyOf": list(choices)}, "minItems": 1})
    several = {"type": "array", "items": {"anyOf": [choices[0], {"type": "null"}]}, "minItems": 1}
    choices.append(
        {"type": "object", "properties": {"any": several}, "required": ["any"], "maxProperties": 1}
    )
    said = _SAID.get(name) or BY_NAME[name].knob.help
    return {"description": said, "anyOf": [*choices, {"type": "null"}]}


def _one(field: Field) -> Schema:
    """The schema of one value of a request's field."""
    knob = field.knob
    bounds = {"minimum": knob.low, "maximum": knob.high}
    bounds = {name: bound for name, bound in bounds.items() if bound is not None}
    if field.name == "seed":
        bounds["minimum"] = NEW_SEED
    match field.kind:
        case "mix":
            return {"$ref": "#/$defs/mix"}
        case "method":
            return {"$ref": "#/$defs/method"}
        case "pair":
            return {"type": "array", "items": {"type": "integer", **bounds}, "minItems": 2, "maxItems": 2}
        case "choice":
            return {"enum": list(knob.choices)}
        case "scheduler":
            return {"type": "string", "examples": [*scheduler_names(), MODEL_OWN]}
        case "truth":
            return {"type": "boolean"}
        case "whole" | "real":
            return {"type": "integer" if field.kind == "whole" else "number", **bounds}
        case _:
            return {"type": "string"}


def _one_of_job(name: str) -> Schema:
    """The schema of one value of a field that only jobs have."""
    if name == "count":
        return {"type": "integer", "minimum": 1, "maximum": MOST_VALUES}
    return {"enum": list(VARIANTS)} if name == "variants" else {"type": "string"}


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
        "text_scheduled": {"type": "boolean", "description": "The schedule acts on the text encoder too."},
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
    """The text of the schema's file."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(written(), encoding="utf-8")
