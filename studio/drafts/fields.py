"""The one table of a request's fields: what each is called on every front, and how its values are written as text.

What a field is (label, help, range, choices) stands with the field, in `pipelines.request.Request`. The fronts are made
from this table: the command line's flags, the columns and the schema of job files, the options of prompt files, the
axes of grids, the controls of the web form, the arguments for programs, A1111's calls, and the settings line in a
picture. A new field of Request appears on all of them under its own name, and in the settings line under its label.
`_NAMES` lists only the exceptions. No torch, no gradio.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from composers.plan import Knob, Setting
from composers.shown import shown
from pipelines.errors import RequestError
from pipelines.request import PROMPTS, SETTINGS

Kind: TypeAlias = Literal[
    "prompt", "text", "scheduler", "whole", "real", "truth", "choice", "pair", "mix", "method", "picture"
]
"""Kinds of values. truth: True or False; pair: two whole numbers; mix: adapters; picture: an initial image."""
Place: TypeAlias = Literal["page", "sampling", "start", "advanced"]
"""Where the web form shows a field: among the sampling settings, with the picture to start from, or among the advanced
ones. page: the page places it by hand."""

_KINDS: dict[str, Kind] = {
    "str": "text",
    "int": "whole",
    "float": "real",
    "bool": "truth",
    "tuple[int, int]": "pair",
    "Composer": "method",
    "Image.Image": "picture",
    "Mapping[str, float] | Sequence[Use]": "mix",
}
_PAIR = re.compile(r"\s*+([+-]?\d{1,9}+)(?:\s*+[,x]\s*+|\s++)([+-]?\d{1,9}+)\s*+")
_TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class FieldNames:
    """The names of a field on fronts that do not use its own name.

    flags: its flags on the command line, the one that help shows first; None for its own name, () where commands define
    it by hand. options: further names in prompt files. axis: its names as an axis of a grid. argument: its name for
    programs (`studio.web.arguments`). call: A1111's name in /sdapi bodies; "" where it has none. setting: its key in a
    picture's settings line; None for its label, "" where the line expresses it in another way. most: the end of its
    slider; where it is None, only the range 0 … 1 makes a slider. place: see `Place`. nothing: what it means to leave
    the field out.
    """

    flags: tuple[str, ...] | None = None
    options: tuple[str, ...] = ()
    axis: tuple[str, ...] = ()
    argument: str = ""
    call: str = ""
    setting: str | None = None
    most: float | None = None
    place: Place = "advanced"
    nothing: str = "the model's own"


_NAMES: Mapping[str, FieldNames] = {
    "prompt": FieldNames(flags=(), call="prompt", setting="", place="page"),
    "negative_prompt": FieldNames(
        flags=("--negative", "--negative-prompt"), call="negative_prompt", setting="", place="page"
    ),
    "adapters": FieldNames(flags=(), argument="loras", setting="", place="page"),
    "composer": FieldNames(
        flags=(), axis=("method", "composer"), argument="method", setting="Composition",
        place="page",
    ),
    "seed": FieldNames(call="seed", place="page", nothing="a new one each time"),
    "steps": FieldNames(call="steps", most=150, place="sampling"),
    "guidance_scale": FieldNames(
        flags=("--guidance", "--cfg-scale", "--guidance-scale"), axis=("guidance", "cfg"), call="cfg_scale",
        setting="CFG scale", place="sampling",
    ),
    "guidance_rescale": FieldNames(setting="CFG Rescale"),
    "width": FieldNames(call="width", setting="", place="sampling"),
    "height": FieldNames(call="height", setting="", place="sampling"),
    "scheduler": FieldNames(
        flags=("--scheduler", "--sampler"), options=("sampler_name",), axis=("sampler", "scheduler"),
        argument="sampler", place="sampling",
    ),
    "init_image": FieldNames(setting="", place="start"),
    "strength": FieldNames(options=("denoising_strength",), call="denoising_strength", setting="", place="start"),
    "mask": FieldNames(setting="", place="start"),
    "mask_blur": FieldNames(most=64, place="start"),
    "mask_content": FieldNames(place="start"),
    "mask_area": FieldNames(place="start"),
    "mask_padding": FieldNames(most=256, place="start"),
    "clip_skip": FieldNames(setting=""),
    "reuse": FieldNames(nothing="off"),
    "original_size": FieldNames(nothing="the picture's own"),
    "target_size": FieldNames(nothing="the picture's own"),
}  # fmt: skip


@dataclass(frozen=True)
class Field:
    """One field of a request with all its names, those that equal its own included. See `FieldNames`.

    axes: as `FieldNames.axis`. key: as `FieldNames.setting`.
    """

    setting: Setting
    kind: Kind
    flags: tuple[str, ...]
    options: tuple[str, ...]
    axes: tuple[str, ...]
    argument: str
    call: str
    key: str
    most: float | None
    place: Place
    nothing: str

    @property
    def name(self) -> str:
        """The field's name in Request. Job files, the database and our text in a picture use it."""
        return self.setting.name

    @property
    def knob(self) -> Knob:
        return self.setting.knob

    @property
    def default(self) -> Any:
        """Request's default; "" for the prompt, which has none."""
        return "" if self.setting.default is dataclasses.MISSING else self.setting.default

    @property
    def optional(self) -> bool:
        """Whether the field may be None, which stands for the model's own value, or for off."""
        return self.setting.optional

    @property
    def empty(self) -> Any:
        """The value that means "nothing said" on fronts where every field needs a value.

        For a number that may be None, it is 1 below the range, or -1. For texts and methods it is "", and for a choice
        that may be None too. For all others it is the default.
        """
        if self.kind in ("whole", "real") and self.optional:
            low = -1 if self.knob.low is None else self.knob.low - 1
            return int(low) if self.kind == "whole" else float(low)
        if self.kind in ("prompt", "text", "scheduler", "method") or (
            self.kind == "choice" and self.optional
        ):
            return ""
        return self.default

    def read(self, text: str) -> Any:
        """The value of a text that somebody wrote. Raises RequestError for a text that is none.

        Whether the value lies in the field's range is judged by Request. Ranges and lists in job files are taken apart
        before this (`studio.batch.values`). Mixes, methods and pictures are read elsewhere.
        """
        word = text.strip()
        if self.kind == "pair":
            found = _PAIR.fullmatch(word)
            if found is None:
                raise RequestError(f"{self.name}={shown(text)} must be two whole numbers, as in 1024,768")
            return int(found[1]), int(found[2])
        if self.kind == "truth":
            if word.lower() not in _TRUTHS:
                raise RequestError(f"{self.name}={shown(text)} must be true or false")
            return _TRUTHS[word.lower()]
        if self.kind in ("whole", "real"):
            return self._number(word)
        if self.kind == "choice":
            return next((one for one in self.knob.choices if one.casefold() == word.casefold()), text)
        return text

    def _number(self, word: str) -> float:
        try:
            return int(word) if self.kind == "whole" else float(word)
        except ValueError as error:
            wanted = "a whole number" if self.kind == "whole" else "a number"
            raise RequestError(f"{self.name}={shown(word)} must be {wanted}") from error

    def write(self, value: Any) -> str:
        """The value as a text that `read` takes."""
        if self.kind == "pair":
            return f"{value[0]},{value[1]}"
        if self.kind == "truth":
            return "true" if value else "false"
        if isinstance(value, float):
            short = f"{value:.12g}"
            return short if float(short) == value else repr(value)
        return str(value)


def _field(setting: Setting) -> Field:
    names = _NAMES.get(setting.name, FieldNames())
    own = f"--{setting.name.replace('_', '-')}"
    flags = (own,) if names.flags is None else names.flags
    spelled = (setting.name, *(flag.removeprefix("--").replace("-", "_") for flag in flags), *names.options)
    return Field(
        setting=setting,
        kind=_kind(setting),
        flags=flags,
        options=tuple(dict.fromkeys(spelled)),
        axes=names.axis or (setting.name,),
        argument=names.argument or setting.name,
        call=names.call,
        key=setting.knob.label if names.setting is None else names.setting,
        most=names.most,
        place=names.place,
        nothing=names.nothing,
    )


def _kind(setting: Setting) -> Kind:
    if setting.knob.choices:
        return "choice"
    if setting.name in PROMPTS:
        return "prompt"
    return "scheduler" if setting.name == "scheduler" else _KINDS[setting.annotation]


FIELDS: tuple[Field, ...] = tuple(map(_field, SETTINGS))
BY_NAME: Mapping[str, Field] = {field.name: field for field in FIELDS}
NAMES: tuple[str, ...] = tuple(BY_NAME)
"""All fields, in Request's order."""


def of_kind(*kinds: Kind) -> tuple[Field, ...]:
    """The fields whose values are of these kinds, in Request's order."""
    return tuple(field for field in FIELDS if field.kind in kinds)
