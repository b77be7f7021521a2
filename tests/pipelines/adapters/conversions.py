"""Files of every type to convert, and what a converted one does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from pipelines.adapters import Adapter, read_adapter
from pipelines.adapters.conversion import Conversion, convert

from .test_zoo import CLOSE, LYCORIS, PEFT, Base, by_lycoris, by_peft, inputs


def changed(module: nn.Module, factors: Any) -> dict[str, Tensor]:
    """The parameters of a layer after an adapter."""
    found = {"weight": module.weight + factors.change(module.weight)}
    shift = factors.shift
    if shift is not None:
        found["bias"] = shift if module.bias is None else module.bias + shift
    return found


def drawn(module: nn.Module, factors: Any, x: Tensor) -> Tensor:
    return torch.func.functional_call(module, changed(module, factors), (x,))


def assert_alike(ours: Adapter, other: Adapter, base: Base, close: float = CLOSE) -> None:
    """Both change the same layers in the same way."""
    assert set(ours.layers) == set(other.layers)
    for name, factors in ours.layers.items():
        module = base.module(name)
        x = inputs(module)
        wanted, got = drawn(module, factors, x), drawn(module, other.layers[name], x)
        assert (got - wanted).norm() <= close * wanted.norm(), name


def merged(model: nn.Module, component: str, adapter: Adapter) -> nn.Module:
    """A copy of a model with an adapter in its weights."""
    found = copy.deepcopy(model)
    for name, factors in adapter.layers.items():
        part, _, module = name.partition(".")
        if part == component:
            layer = found.get_submodule(module)
            for parameter, value in changed(layer, factors).items():
                getattr(layer, parameter).data = value
    return found


Saved = Callable[[str], Path]


@pytest.fixture
def saved(base: Base, tmp_path: Path) -> Saved:
    """A file that LyCORIS wrote, or a folder of PEFT ("peft LoHa")."""

    def make(name: str) -> Path:
        if name.startswith("peft "):
            name = name.removeprefix("peft ")
            by_peft(base.unet, name, PEFT[name][2]).save_pretrained(tmp_path / "original")
            return tmp_path / "original"
        tensors, _ = by_lycoris(base, LYCORIS[name])
        safetensors.torch.save_file(tensors, tmp_path / "original.safetensors", {"modelspec.title": "Fox"})
        return tmp_path / "original.safetensors"

    return make


def converted(path: Path, base: Base, to: Any, **how: Any) -> tuple[Conversion, Path]:
    out = path.parent / ("converted-peft" if to == "peft" else f"converted-{to}.safetensors")
    return convert(path, out, base.layers, to, **how), out


def read_all(done: Conversion, base: Base) -> Adapter:
    """All that was written, as one adapter."""
    read = [read_adapter(file, base.layers, "fox") for file in done.files if file.suffix == ".safetensors"]
    layers = {name: factors for one in read for name, factors in one.layers.items()}
    return Adapter("fox", layers, read[0].metadata, read[0].report)
