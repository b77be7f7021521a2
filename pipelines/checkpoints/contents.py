"""Each key of a checkpoint is sorted into a part of the model, or among what no picture needs, or it is refused.

The header alone decides, before any tensor is read. So lists, forms and loading say the same of a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pipelines import assets
from pipelines.checkpoints import clip_layout, other_kinds, vae_layout
from pipelines.checkpoints.components import read_json
from pipelines.checkpoints.stored import Storage, Turn, Weight, listed, storage_of
from pipelines.checkpoints.unet_layout import (
    UnknownLayout,
    config_of,
    first_conv,
    is_diffusers,
    original_names,
    outline,
    outline_of,
    unet_shapes,
)
from pipelines.checkpoints.weights import WeightsHeader
from pipelines.errors import ModelError
from pipelines.families.family import FAMILIES, SD1, SD2, SDXL, Family

Shape = tuple[int, ...]
Spell = Callable[[str, Shape], Iterator[tuple[str, Shape, Turn]]]
"""How a part spells a stored weight: (its name in the part, shape, what is done to the tensor), once or more."""

UNET, VAE = "unet", "vae"
MARKS = ("v_pred", "ztsnr")
"""Marks of a checkpoint that hold nothing."""

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


@dataclass(frozen=True)
class Part:
    """One part of the model in a file. config: diffusers' or transformers'. weights: name -> where the weight is."""

    config: Mapping[str, Any]
    weights: Mapping[str, Weight]


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds.

    parts: "unet", the text encoders' names, and "vae" if it has one. smaller: the published name of a UNet that was
    made smaller, else "". sgm: the text encoders stand where the later original code has them. marks: those of `MARKS`
    that it has. notes: what was left out, or taken in place of the usual.
    """

    family: Family
    parts: Mapping[str, Part]
    storage: Storage
    smaller: str
    sgm: bool
    marks: frozenset[str]
    notes: tuple[str, ...]


def contents_of(name: str, header: WeightsHeader) -> Contents:
    """Sort a checkpoint's keys. name: the file's, to be shown. Raises ModelError for what is no whole model, with its
    right name, and where a weight is missing or is not understood."""
    keys = header.shapes
    storage = storage_of(name, header)
    sorted_keys = _Sorted.of(name, (key for key in keys if key not in storage.beside), header)
    first = first_conv(sorted_keys.shapes(UNET))
    if first is None:
        what = other_kinds.without_unet(keys)
        raise ModelError(
            f"{name} {what or 'is not a checkpoint that is understood'}; as a model, SD1.x, SD2.x and SDXL checkpoints "
            "can be used"
        )
    try:
        _refuse_another_task(name, first, sorted_keys)
        return _Judge(name, header, storage, sorted_keys).contents()
    except ModelError as error:
        if what := other_kinds.foreign(keys):
            raise ModelError(
                f"{name} is, or holds, {what}; as a model, plain SD1.x, SD2.x and SDXL checkpoints can be used"
            ) from error
        raise


def unet_inside(header: WeightsHeader) -> bool:
    """Whether a file holds the weights of a UNet itself."""
    shapes = {}
    for key, shape in header.shapes.items():
        part, name = _place(_plain(key))
        if part == UNET:
            shapes[name] = shape
    return first_conv(shapes) is not None


def _refuse_another_task(name: str, first: Shape, keys: _Sorted) -> None:
    channels = next(iter(first[1:]), 0)
    if channels != 4:
        what = other_kinds.CHANNELS.get(channels, f"takes {channels} input channels")
        raise ModelError(f"{name} {what}, which is not supported; use a plain text-to-image checkpoint")
    if any(rest in other_kinds.EDM for rest in keys.rest.values()):
        raise ModelError(
            f"{name} is an EDM model (Playground 2.5, CosXL), which is not supported; use another model"
        )


def vae_of(name: str, header: WeightsHeader, config: Mapping[str, Any]) -> tuple[Part, Storage]:
    """The VAE in a file of its own, or in a whole checkpoint. config: diffusers' configuration of it.

    Raises ModelError for a file without one, and where a weight of it is missing or is not understood.
    """
    storage = storage_of(name, header)
    keys = _Sorted.of(name, (key for key in header.shapes if key not in storage.beside), header)
    own = keys.parts.get(VAE) or keys.rest
    if not any(re.search(r"(^|\.)decoder\.conv_in\.weight$", inner) for inner in own.values()):
        raise ModelError(f"{name} holds no VAE; choose a file with a VAE's encoder and decoder")
    weights, unknown = _vae_weights(name, "a VAE", own, header, config)
    if unknown:
        raise ModelError(
            f"the VAE {name} has {len(unknown)} weights that are not understood: {listed(unknown)}; use another copy"
        )
    storage.check(weight.key for weight in weights.values())
    return Part(config, weights), storage


def _vae_weights(
    file: str, kind: str, names: Mapping[str, str], header: WeightsHeader, config: Mapping[str, Any]
) -> tuple[dict[str, Weight], list[str]]:
    levels = vae_layout.levels_of(names.values(), config)
    return matched(
        file,
        kind,
        names,
        header.shapes,
        vae_layout.vae_shapes(config),
        lambda name, shape: vae_layout.plain_names(name, shape, levels),
        lambda name: bool(vae_layout.LEFT_OUT.fullmatch(name) or other_kinds.LEFT_OUT.fullmatch(name)),
    )


class _Sorted:
    """A file's keys by part: key -> the name within the part."""

    def __init__(self, header: WeightsHeader) -> None:
        self.header = header
        self.parts: dict[str, dict[str, str]] = {}
        self.ema: dict[str, str] = {}
        self.rest: dict[str, str] = {}
        self.is_ema = False

    @classmethod
    def of(cls, file: str, keys: Iterable[str], header: WeightsHeader) -> _Sorted:
        found = cls(header)
        taken: dict[tuple[str, str], str] = {}
        for key in keys:
            part, name = _place(_plain(key))
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
            config = _config(family, UNET)
            names = original_names(unet_shapes(outline_of(config))).values()
            with_dots = {name.replace(".", ""): name for name in names}
            bare = {name.replace(".", ""): key for name, key in self.ema.items()}
            known = {key: with_dots[name] for name, key in bare.items() if name in with_dots}
            if len(known) == len(with_dots):
                self.parts[UNET] = known
                self.is_ema = True
                return


class _Judge:
    """Sorts the names within the parts."""

    def __init__(self, file: str, header: WeightsHeader, storage: Storage, keys: _Sorted) -> None:
        self.file, self.header, self.storage, self.keys = file, header, storage, keys
        self.unknown: list[str] = []

    def contents(self) -> Contents:
        shapes = self.keys.shapes(UNET)
        encoders = [part for part in _SAID if part in self.keys.parts]
        if not encoders:
            raise self._unet_only("no text encoder")
        self._refuse_refiner(shapes, encoders)
        try:
            seen = outline(shapes)
        except UnknownLayout as error:
            raise self._odd(str(error)) from error
        family = self._family(seen.added, seen.context, encoders)
        try:
            config = config_of(seen, _config(family, UNET))
        except UnknownLayout as error:
            raise self._odd(str(error), family) from error
        expected = unet_shapes(seen)
        spelled = {} if is_diffusers(shapes) else {old: new for new, old in original_names(expected).items()}
        parts = {
            UNET: self._part(
                UNET,
                family,
                config,
                expected,
                lambda name, shape: iter([(spelled.get(name, name), shape, "")]),
            )
        }
        if lacking := [_SAID[part] for part in family.text_encoders if part not in encoders]:
            raise self._unet_only(f"no {lacking[0]}")
        for part in family.text_encoders:
            parts[part] = self._encoder(part, family)
        if VAE in self.keys.parts:
            parts[VAE] = self._vae(family)
        self._rest(family)
        for part in parts.values():
            self.storage.check(weight.key for weight in part.weights.values())
        return Contents(
            family=family,
            parts=parts,
            storage=self.storage,
            smaller=seen.name,
            sgm=any(_plain(key).startswith("conditioner.") for key in self.header.shapes),
            marks=frozenset(self.keys.rest.values()) & frozenset(MARKS),
            notes=self._notes(),
        )

    def _refuse_refiner(self, shapes: Mapping[str, Shape], encoders: list[str]) -> None:
        sized = {"label_emb.0.0.weight", "add_embedding.linear_1.weight"} & shapes.keys()
        if sized and encoders == ["text_encoder"] and self._is_open_clip("text_encoder"):
            raise ModelError(
                f"{self.file} is the SDXL refiner, which is not supported; use an SDXL base model"
            )

    def _family(self, added: int | None, context: int, encoders: list[str]) -> Family:
        if added is not None:
            return SDXL
        if encoders == ["text_encoder"] and self._is_open_clip("text_encoder"):
            return SD2
        return SD2 if context == SD2.context_width else SD1

    def _is_open_clip(self, part: str) -> bool:
        return clip_layout.is_open_clip(self.keys.shapes(part))

    def _unet_only(self, lacking: str) -> ModelError:
        vae = "" if VAE in self.keys.parts else " and no VAE"
        return ModelError(
            f"{self.file} has {lacking}{vae} inside that is understood: it holds a UNet, not a whole model. Use a "
            "complete checkpoint, or put this UNet into a copy of its model's diffusers folder, as "
            "unet/diffusion_pytorch_model.safetensors"
        )

    def _encoder(self, part: str, family: Family) -> Part:
        config = _config(family, part)
        shapes = self.keys.shapes(part)
        expected = clip_layout.clip_shapes(config, projected=part == "text_encoder_2")
        beyond = ""
        if family is SD2:
            plain = {
                new: shape
                for name, old in shapes.items()
                for new, shape, _ in clip_layout.plain_names(name, old)
            }
            beyond = clip_layout.last_layer(plain, config)
        return self._part(
            part,
            family,
            config,
            expected,
            clip_layout.plain_names,
            lambda name: (
                bool(clip_layout.LEFT_OUT.fullmatch(name)) or (bool(beyond) and name.startswith(beyond))
            ),
        )

    def _vae(self, family: Family) -> Part:
        config = _config(family, VAE)
        weights, unknown = _vae_weights(
            self.file, f"a {family.label} model", self.keys.parts[VAE], self.header, config
        )
        self.unknown += unknown
        return Part(config, weights)

    def _part(
        self,
        part: str,
        family: Family,
        config: Mapping[str, Any],
        expected: Mapping[str, Shape],
        spell: Spell,
        left_out: Callable[[str], bool] = lambda name: False,
    ) -> Part:
        weights, unknown = matched(
            self.file,
            f"a {family.label} model",
            self.keys.parts[part],
            self.header.shapes,
            expected,
            spell,
            left_out,
        )
        self.unknown += unknown
        return Part(config, weights)

    def _rest(self, family: Family) -> None:
        """Raises ModelError for keys that no part has, unless they are known to be of no use."""
        known = {"text_encoder", "text_encoder_2"} - set(family.text_encoders)
        for part in known & set(self.keys.parts):
            self.unknown += self.keys.parts[part]
        rest = [key for key, name in self.keys.rest.items() if not self._harmless(key, name)]
        self.scalars = [key for key in rest if prod(self.header.shapes[key]) <= 1]
        self.unknown += [key for key in rest if key not in self.scalars]
        if self.unknown:
            raise ModelError(
                f"{self.file} looks like {family.label}, but {len(self.unknown)} of its weights are not understood: "
                f"{listed(self.unknown)}. Without them the picture would be another; use a plain copy of the model"
            )

    @staticmethod
    def _harmless(key: str, name: str) -> bool:
        return name in MARKS or other_kinds.LEFT_OUT.fullmatch(name) is not None

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if self.scalars:
            count = len(self.scalars)
            notes.append(
                f"{count} {'entry' if count == 1 else 'entries'} of its file that hold no weights were left out: "
                f"{listed(self.scalars)}"
            )
        if self.keys.is_ema:
            notes.append("its file holds averaged (EMA) weights only, which are used")
        return tuple(notes)

    def _odd(self, why: str, family: Family | None = None) -> ModelError:
        looks = f"a {family.label} model" if family else "a UNet"
        return ModelError(
            f"{self.file} looks like {looks} of another layout, which is not supported: {why}. Use its diffusers "
            "folder, or a checkpoint of the published size"
        )


_SAID = {"text_encoder": "text encoder", "text_encoder_2": "second text encoder"}


def matched(
    file: str,
    kind: str,
    names: Mapping[str, str],
    stored: Mapping[str, Shape],
    expected: Mapping[str, Shape],
    spell: Spell,
    left_out: Callable[[str], bool],
) -> tuple[dict[str, Weight], list[str]]:
    """(name -> where the weight is, for all that are expected; the keys that are not understood).

    file, kind: what the file is called, and what it should be. names: key -> name within the part, as stored. stored:
    key -> shape. Raises ModelError where weights are missing, stand there twice, or have another shape.
    """
    weights: dict[str, Weight] = {}
    unknown = []
    for key, name in names.items():
        for plain, shape, turn in spell(name, stored[key]):
            if plain in weights:
                raise ModelError(
                    f"{file} holds one weight twice, as {listed([weights[plain].key])} and {listed([key])}; use "
                    "another copy"
                )
            if plain in expected:
                weights[plain] = Weight(key, shape, turn)
            elif not left_out(plain):
                unknown.append(key)
                break
    if missing := [name for name in expected if name not in weights]:
        odd = f" ({len(unknown)} others are not understood: {listed(unknown)})" if unknown else ""
        raise ModelError(
            f"{file} lacks weights that {kind} has: {len(missing)} of {len(expected)}, such as {listed(missing)}{odd}; "
            "use a complete copy"
        )
    for name, weight in weights.items():
        if weight.shape != expected[name]:
            label = kind.removeprefix("a ").removesuffix(" model")
            raise ModelError(
                f"{file} looks like {label} but cannot be loaded: {listed([weight.key])} has the shape "
                f"{list(stored[weight.key])}, where {list(expected[name])} belongs. Try another copy of the model"
            )
    return weights, unknown


def _plain(key: str) -> str:
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


def _config(family: Family, part: str) -> dict[str, Any]:
    return read_json(_configs(family) / part / "config.json")


def _configs(family: Family) -> Path:
    return assets.root() / "configs" / family.name
