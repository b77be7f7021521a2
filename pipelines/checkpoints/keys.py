"""The keys of a checkpoint by part, whatever program has named them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pipelines import assets
from pipelines.checkpoints.components import read_json
from pipelines.checkpoints.stored import listed
from pipelines.checkpoints.unet_layout import first_conv, original_names, outline_of, unet_shapes
from pipelines.checkpoints.weights import WeightsHeader
from pipelines.errors import ModelError
from pipelines.families.family import FAMILIES, Family

Shape = tuple[int, ...]

UNET, VAE = "unet", "vae"
LONGEST_NAME = 200
"""Most characters of a key. Real ones have some hundred."""

_WRAPPED = r"(?:(?:model|state_dict|pipe|pipeline|generator)\.)*"
_FIRST_ENCODER = (
    r"(?:conditioner\.embedders\.0|text_encoders?\.clip_[lh]|cond_stage_model\.clip_[lh]|clip_[lh]|text_encoder|"
    r"cond_stage_model)\.(?!clip_)"
)
_SECOND_ENCODER = (
    r"(?:conditioner\.embedders\.1|(?:text_encoders?|cond_stage_model)\.clip_g|clip_g|text_encoder_2)\."
)
_ROOTS = {
    UNET: re.compile(_WRAPPED + r"(?:diffusion_model|unet)\."),
    VAE: re.compile(_WRAPPED + r"(?:first_stage_model|vae)\."),
    "text_encoder": re.compile(_WRAPPED + _FIRST_ENCODER),
    "text_encoder_2": re.compile(_WRAPPED + _SECOND_ENCODER),
}
"""Part -> how its keys begin."""
_BARE = re.compile(
    _WRAPPED
    + r"(?=(?:time_embed|label_emb|input_blocks|middle_block|output_blocks|out\.[02]|conv_in|down_blocks|"
    r"mid_block|up_blocks|conv_norm_out|conv_out|time_embedding|add_embedding)\.)"
)
"""How the keys of a UNet begin that stand without its name."""
_EMA = re.compile(rf"{_WRAPPED}model_ema\.(?:diffusion_model)?(?=\w)")
_WRAPPER = re.compile(r"(^|\.)(?:module|_orig_mod|_forward_module)\.")


class SortedKeys:
    """A file's keys by part: key -> the name within the part."""

    def __init__(self, header: WeightsHeader) -> None:
        self.header = header
        self.parts: dict[str, dict[str, str]] = {}
        self.ema: dict[str, str] = {}
        self.rest: dict[str, str] = {}
        self.is_ema = False

    @classmethod
    def of(cls, file: str, keys: Iterable[str], header: WeightsHeader) -> SortedKeys:
        found = cls(header)
        taken: dict[tuple[str, str], str] = {}
        for key in keys:
            part, name = _place(plain_key(key))
            if (part, name) in taken:
                raise ModelError(
                    f"{file} holds one weight twice, as {listed([taken[part, name]])} and {listed([key])}; use another "
                    "copy"
                )
            taken[part, name] = key
            if part == "ema":
                found.ema[name] = key
            elif part:
                found.parts.setdefault(part, {})[key] = name
            else:
                found.rest[key] = name
        if not found.parts.get(UNET) and found.ema:
            found._take_ema()
        return found

    def shapes(self, part: str) -> dict[str, Shape]:
        return {name: self.header.shapes[key] for key, name in self.parts.get(part, {}).items()}

    def _take_ema(self) -> None:
        """Make the averaged copy the UNet, in a file without any other. Its names are the original code's, without
        dots."""
        for family in FAMILIES.values():
            config = shipped_config(family, UNET)
            names = original_names(unet_shapes(outline_of(config))).values()
            with_dots = {name.replace(".", ""): name for name in names}
            bare = {name.replace(".", ""): key for name, key in self.ema.items()}
            known = {key: with_dots[name] for name, key in bare.items() if name in with_dots}
            if len(known) == len(with_dots):
                self.parts[UNET] = known
                self.is_ema = True
                return


def refuse_long(name: str, header: WeightsHeader) -> None:
    """Raises ModelError for a key that is longer than any model's."""
    longest = max(header.shapes, key=len, default="")
    if len(longest) > LONGEST_NAME:
        raise ModelError(
            f"{name} is no model: a key of it has {len(longest)} characters, {listed([longest])}"
        )


def unet_inside(header: WeightsHeader) -> bool:
    """Whether a file holds the weights of a UNet itself."""
    shapes = {}
    for key, shape in header.shapes.items():
        part, name = _place(plain_key(key)) if len(key) <= LONGEST_NAME else ("", "")
        if part == UNET:
            shapes[name] = shape
    return first_conv(shapes) is not None


def plain_key(key: str) -> str:
    """A key without what wrappers of training and compiling put into it."""
    while (shorter := _WRAPPER.sub(r"\1", key)) != key:
        key = shorter
    return key


def _place(name: str) -> tuple[str, str]:
    """(the part of a key, its name there). "ema" is the averaged copy, "" is none."""
    if match := _EMA.match(name):
        return "ema", name[match.end() :]
    for part, root in _ROOTS.items():
        if match := root.match(name):
            return part, name[match.end() :]
    if match := _BARE.match(name):
        return UNET, name[match.end() :]
    return "", re.sub(rf"^{_WRAPPED}", "", name)


def shipped_config(family: Family, part: str) -> dict[str, Any]:
    """The configuration of a family's published part, which ships with the program."""
    return read_json(assets.root() / "configs" / family.name / part / "config.json")
