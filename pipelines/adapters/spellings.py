"""From the names that files use to the names of one model's layers.

Kohya's flattened names cannot be taken apart by rule, because "_" stands for "." and for itself. So every name that a
file might use is listed beforehand, from the model's own layers, and looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pipelines.adapters.keys import UNET, Address
from pipelines.adapters.terms import ModelLayers
from pipelines.families.unet_names import unet_spellings

_SELF_ATTENTION = re.compile(r"(.+\.self_attn)\.(q|k|v|out)_proj")


@dataclass(frozen=True)
class LayerNames:
    """All spellings of all layers: component -> spelling -> the model's own name.

    flat: the spellings with underscores in place of dots. dotted: all others.
    """

    dotted: Mapping[str, Mapping[str, str]]
    flat: Mapping[str, Mapping[str, str]]

    def find(self, address: Address) -> tuple[tuple[str, str], ...]:
        """The (component, module) pairs that an address may mean; () where the model has no such layer."""
        table = self.flat if address.flat else self.dotted
        found = ((component, table.get(component, {}).get(address.path)) for component in address.components)
        return tuple((component, module) for component, module in found if module is not None)


def layer_names(model: ModelLayers) -> LayerNames:
    """All spellings of a model's layers."""
    dotted, flat = {}, {}
    for component, targets in model.components.items():
        spellings = unet_spellings(targets) if component == UNET else _text_spellings(targets)
        dotted[component] = dict(spellings)
        flat[component] = {
            spelling.replace(".", "_"): module for spelling, module in dotted[component].items()
        }
        assert len(flat[component]) == len(dotted[component]), "two layers share one flattened name"
    return LayerNames(dotted, flat)


def _text_spellings(modules: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The spellings of text encoder layers, with and without `text_model.`: transformers and files have used both."""
    for module in modules:
        bare = module.removeprefix("text_model.")
        for spelling in (bare, f"text_model.{bare}"):
            yield spelling, module
            if attention := _SELF_ATTENTION.fullmatch(spelling):
                yield f"{attention[1]}.to_{attention[2]}", module
