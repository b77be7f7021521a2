"""The arguments of the functions by which programs ask for pictures, made from the table of a request's fields.

A new field of Request becomes an argument with its own name. It comes after those that may be given by place (`FIRST`).
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import gradio as gr

from composers.plan import Composer
from composers.registry import parse as parse_composer
from composers.registry import spell
from pipelines.bounds import check_text
from pipelines.errors import RequestError
from studio.drafts.draft import Draft, Wanted
from studio.drafts.entries import LONGEST_METHOD
from studio.drafts.fields import FIELDS, Field, Kind
from studio.drafts.flags import parse_lora
from studio.drafts.input_images import InputImage

Function = TypeVar("Function", bound=Callable[..., Any])

FIRST = (
    "prompt", "loras", "methods", "negative_prompt", "method", "seed", "steps", "guidance_scale", "width", "height",
    "sampler", "count", "model", "wait_seconds",
)  # fmt: skip
"""Programs may give these by place, in this order. Never add a name here: new arguments follow these."""
_WORDS = {
    "prompt": "What to draw; <lora:name:0.8> tags and (word:1.2) weights are understood.",
    "loras": 'Names with strengths, as in ["nilo-fox=0.8", "kimono"]; see `library`.',
    "method": "How the LoRAs are combined, as in switch:interval=3; see `methods`.",
}
"""Texts that describe a field better here than the table does."""
_TYPES: Mapping[Kind, Any] = {
    "whole": int,
    "real": float,
    "truth": bool,
    "pair": list[int],
    "mix": list[str],
    "picture": dict[str, Any],
}
"""Kind of a field -> the type of its values in JSON. Values of all other kinds are texts."""


@dataclass(frozen=True)
class Argument:
    """One argument. type: its annotation. default: `inspect.Parameter.empty` where it must be given."""

    name: str
    type: Any
    help: str
    default: Any = inspect.Parameter.empty


def with_fields(*own: Argument, without: Collection[str] = ()) -> Callable[[Function], Function]:
    """A decorator that gives a function the signature, annotations and docstring of one that takes the fields of a
    request, further arguments, and `request`. Gradio, MCP and `studio.web.api.checked` read these.

    The function itself takes its arguments by name. own: further arguments; one with the name of a field replaces it.
    without: names of fields that the function does not take. Its own docstring has a summary, and a part "Returns:".
    """
    named = {argument.name: argument for argument in (*map(_argument, FIELDS), *own)}
    arguments = sorted((one for one in named.values() if one.name not in without), key=_place)
    parameters = [_parameter(one.name, one.type, one.default) for one in arguments]
    parameters.append(_parameter("request", gr.Request | None, None))

    def described(function: Function) -> Function:
        returned = inspect.get_annotations(function, eval_str=True)["return"]
        function.__annotations__ = {
            **{parameter.name: parameter.annotation for parameter in parameters},
            "return": returned,
        }
        function.__signature__ = inspect.Signature(parameters, return_annotation=returned)  # type: ignore[attr-defined]
        summary, _, returns = (inspect.getdoc(function) or "").partition("Returns:")
        lines = "".join(f"    {argument.name}: {argument.help}\n" for argument in arguments)
        function.__doc__ = f"{summary}Args:\n{lines}\nReturns:{returns}"
        return function

    return described


def _parameter(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind)


def _place(argument: Argument) -> int:
    return FIRST.index(argument.name) if argument.name in FIRST else len(FIRST)


def _argument(field: Field) -> Argument:
    default = _default(field)
    help = _WORDS.get(field.argument) or f"{field.knob.help}{_left_out(field)}"
    return Argument(field.argument, _type(field, default), help, default)


def _default(field: Field) -> Any:
    if field.setting.default is dataclasses.MISSING:
        return inspect.Parameter.empty
    if isinstance(field.default, Composer):
        return spell(field.default)
    if field.kind == "mix":
        return None
    return list(field.empty) if isinstance(field.empty, tuple) else field.empty


def _type(field: Field, default: Any) -> Any:
    if field.kind == "choice":
        literal: Any = Literal
        return literal[(*([""] if field.optional else []), *field.knob.choices)]
    kind = _TYPES.get(field.kind, str)
    return kind | None if default is None else kind


def _left_out(field: Field) -> str:
    """Says what the default means, for a field whose default stands for "nothing said"."""
    if not field.optional:
        return ""
    empty = {"": "Empty", None: "null"}.get(field.empty, field.empty)
    return f" {f'{empty:g}' if isinstance(empty, float) else empty}: {field.nothing}."


def draft_of(said: Mapping[str, Any]) -> Draft:
    """The draft of what the arguments say. Raises RequestError, ComposerError and PromptError."""
    values: dict[str, Any] = {}
    wanted: tuple[Wanted, ...] = ()
    images: dict[str, InputImage] = {}
    for field in FIELDS:
        value: Any = said.get(field.argument)
        if not _says_something(field, value):
            continue
        if field.kind == "mix":
            wanted = tuple(map(parse_lora, value))
        elif field.kind == "picture":
            images[field.name] = uploaded(field.argument, value)
        elif field.kind == "method":
            values[field.name] = method_of(value)
        else:
            values[field.name] = tuple(value) if field.kind == "pair" else value
    return Draft(values, wanted, images)


def _says_something(field: Field, value: Any) -> bool:
    """Whether the argument says anything. For a field that may be None, a number below its range does not: as
    guidance_scale=-1."""
    if value is None or (value == field.empty and field.setting.default is not dataclasses.MISSING):
        return False
    low = field.knob.low
    return not (field.kind == "real" and field.optional and low is not None and value < low)


def method_of(text: str) -> Composer:
    """The method of a text such as switch:interval=3. Raises RequestError and ComposerError."""
    return parse_composer(check_text("method", text, LONGEST_METHOD))


def uploaded(name: str, value: object) -> Path:
    """The uploaded file that an argument names. The door has made sure that it is the sender's
    (`studio.web.door.files`).

    Raises RequestError.
    """
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(path, str):
        raise RequestError(f"{name} must be an uploaded file, as gradio_client.handle_file gives it")
    return Path(path)
