"""Whether an adapter fits a model, as far as headers tell; only loading is the proof."""

from __future__ import annotations

from dataclasses import dataclass

from composers.shown import shown
from pipelines.adapters.inspection import Inspection
from pipelines.checkpoints.components import read_json
from pipelines.checkpoints.folders import folder_family
from pipelines.checkpoints.single_file import examine
from pipelines.errors import ModelError
from pipelines.families.family import FAMILIES, FamilyName
from pipelines.home import Entry, Home
from pipelines.home.files import is_folder
from pipelines.home.plain import reading


@dataclass(frozen=True)
class Fit:
    """What an adapter must be to fit a model: its family, and the width of the text embeddings that it expects."""

    model: Entry
    family: FamilyName
    width: int

    @property
    def small(self) -> bool:
        """Whether the model is narrower than the published ones of its family, whose adapters then do not fit."""
        return self.width != FAMILIES[self.family].context_width

    def misfit(self, made_for: str | None, text_width: int | None, family: str, label: str) -> str:
        """Why a readable adapter does not fit the model; "" where nothing speaks against it.

        made_for: the embedded model that an embedded adapter is made for. text_width, family, label: of the adapter,
        as `inspect_file` finds them.
        """
        if made_for is not None:
            return "" if made_for == self.model.name else f"made for {made_for}; this is {self.model.name}"
        fits = family in (self.family, "unknown") if text_width is None else text_width == self.width
        return "" if fits else self._said("" if family == "unknown" else label)

    def _said(self, label: str) -> str:
        small = "the small built-in model" if self.model.embedded else "a small model"
        here = (
            f"{self.model.name}, {small}"
            if self.small
            else f"{self.model.name} ({FAMILIES[self.family].label})"
        )
        if not label:
            return f"made for another model than {here}. Load the one it was made for"
        return f"made for {label}; this is {here}. Load a checkpoint of {label}"

    def takes(self, entry: Entry, seen: Inspection) -> bool:
        return not self.misfit(entry.model, seen.text_width, seen.origin.family, seen.origin.label)


def fit_of(model: str, home: Home, *, paths: bool = True) -> Fit:
    """What an adapter must be to fit the model, by its header. paths: whether a path may stand for a name.

    Raises ModelError for a model that is not here or cannot be used, and NoAnswer where its folder does not answer.
    """
    entry = home.find_model(model, paths=paths)
    if entry is None:
        raise ModelError(f"{model} is on the hub; its LoRAs can be listed once it is in a models folder")
    return fit_of_entry(entry)


def fit_of_entry(entry: Entry) -> Fit:
    """As `fit_of`, for a model that was found already."""
    if not is_folder(entry.path):
        family = examine(entry.path).family
        return Fit(entry, family.name, family.context_width)
    with reading(entry.name, ModelError, "copy or download the model again"):
        family = folder_family(entry.path, read_json(entry.path / "model_index.json"))
    width = read_json(entry.path / "unet" / "config.json").get("cross_attention_dim")
    if type(width) is not int:
        raise ModelError(
            f"{entry.name}: its UNet's cross_attention_dim is {shown(width)}, where a whole number belongs; copy or "
            "download the model again"
        )
    return Fit(entry, family.name, width)
