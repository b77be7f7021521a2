"""Each key of a checkpoint is sorted into a part of the model, or among what no picture needs, or it is refused.

The header alone decides, before any tensor is read. So lists, forms and loading say the same of a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from pipelines.checkpoints import clip_layout, other_kinds, vae_layout
from pipelines.checkpoints.keys import UNET, VAE, Shape, SortedKeys, plain_key, refuse_long, shipped_config
from pipelines.checkpoints.matching import Spell, matched
from pipelines.checkpoints.stored import MARK, Storage, Weight, listed, storage_of
from pipelines.checkpoints.unet_layout import (
    UnknownLayout,
    config_of,
    first_conv,
    is_diffusers,
    original_names,
    outline,
    unet_shapes,
)
from pipelines.checkpoints.weights import WeightsHeader
from pipelines.errors import ModelError
from pipelines.families.family import SD1, SD2, SDXL, Family

MARKS = ("v_pred", "ztsnr")
"""Marks of a checkpoint that hold nothing."""


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
    refuse_long(name, header)
    storage = storage_of(name, header)
    sorted_keys = SortedKeys.of(name, (key for key in keys if key not in storage.beside), header)
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


def _refuse_another_task(name: str, first: Shape, keys: SortedKeys) -> None:
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
    refuse_long(name, header)
    storage = storage_of(name, header)
    keys = SortedKeys.of(name, (key for key in header.shapes if key not in storage.beside), header)
    own = keys.parts.get(VAE) or keys.rest
    if not any(re.search(r"(^|\.)decoder\.conv_in\.weight$", inner) for inner in own.values()):
        raise ModelError(f"{name} holds no VAE; choose a file with a VAE's encoder and decoder")
    weights, unknown = _vae_weights(name, "a VAE", own, header, config)
    if unknown:
        raise ModelError(
            f"the VAE {name} has weights that are not understood ({len(unknown)}): {listed(unknown)}; use another copy"
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


class _Judge:
    """Sorts the names within the parts."""

    def __init__(self, file: str, header: WeightsHeader, storage: Storage, keys: SortedKeys) -> None:
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
            config = config_of(seen, shipped_config(family, UNET))
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
        for own in parts.values():
            self.storage.check(weight.key for weight in own.weights.values())
        return Contents(
            family=family,
            parts=parts,
            storage=self.storage,
            smaller=seen.name,
            sgm=any(plain_key(key).startswith("conditioner.") for key in self.header.shapes),
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
        config = shipped_config(family, part)
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
        config = shipped_config(family, VAE)
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
                f"{self.file} looks like {family.label}, but holds weights that are not understood "
                f"({len(self.unknown)}): {listed(self.unknown)}. Without them the picture would be another; use a "
                "plain copy of the model"
            )

    @staticmethod
    def _harmless(key: str, name: str) -> bool:
        return name in MARKS or other_kinds.LEFT_OUT.fullmatch(name) is not None

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if self.scalars:
            notes.append(f"left out of its file, as it holds no weight: {listed(self.scalars)}")
        if unscaled := self.storage.unscaled:
            notes.append(
                f"its mark {MARK} says that weights in 8 bits have scales, but {len(unscaled)} have none and are "
                f"read at scale 1: {listed(unscaled)}"
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
