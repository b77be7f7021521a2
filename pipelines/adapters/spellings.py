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
_OPEN_CLIP = {
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    **{f"self_attn.{one}_proj": f"attn.{one}_proj" for one in "qkv"},
}
_JOINED = ("q_proj", "k_proj", "v_proj")  # in the order of their rows in OpenCLIP's in_proj


@dataclass(frozen=True)
class LayerNames:
    """All spellings of all layers: component -> spelling, with underscores in place of dots -> the model's own names.

    The names are one, or the three of a query, a key and a value, where a file has them joined.
    """

    spelled: Mapping[str, Mapping[str, tuple[str, ...]]]

    def find(self, address: Address) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The (component, modules) pairs that an address may mean; () where the model has no such layer."""
        path = address.path.replace(".", "_")
        found = ((component, self.spelled.get(component, {}).get(path)) for component in address.components)
        return tuple((component, modules) for component, modules in found if modules is not None)


def layer_names(model: ModelLayers) -> LayerNames:
    """All spellings of a model's layers."""
    spelled = {}
    for component, targets in model.components.items():
        spellings = dict(_unet_spellings(targets) if component == UNET else _text_spellings(targets))
        spelled[component] = {spelling.replace(".", "_"): modules for spelling, modules in spellings.items()}
        assert len(spelled[component]) == len(spellings), "two layers share one flattened name"
    return LayerNames(spelled)


def _unet_spellings(modules: Iterable[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for spelling, module in unet_spellings(modules):
        yield spelling, (module,)


def _text_spellings(modules: Iterable[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The spellings of text encoder layers, with and without `text_model.`: transformers and files have used both.

    OpenCLIP's names are among them (https://github.com/mlfoundations/open_clip), whose in_proj joins three layers.
    """
    modules = set(modules)
    for module in modules:
        bare = module.removeprefix("text_model.")
        for spelling in (bare, f"text_model.{bare}"):
            yield spelling, (module,)
            if attention := _SELF_ATTENTION.fullmatch(spelling):
                yield f"{attention[1]}.to_{attention[2]}", (module,)
        layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", bare)
        if layer is None or layer[2] not in _OPEN_CLIP:
            continue
        names: dict[str, tuple[str, ...]] = {_OPEN_CLIP[layer[2]]: (module,)}
        joined = tuple(module.removesuffix("q_proj") + one for one in _JOINED)
        if module.endswith(".q_proj") and modules.issuperset(joined):
            names |= {"attn.in_proj": joined, "attn.in_proj_weight": joined}
        for name, meant in names.items():
            yield f"transformer.resblocks.{layer[1]}.{name}", meant
            yield f"resblocks.{layer[1]}.{name}", meant
