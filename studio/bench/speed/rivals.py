"""How rivals run the same rows: without adapters, merged picture by picture, or through diffusers and peft.

    base                 all rows in one call, no adapters: nobody can beat this without a faster base
    peft set_adapters    diffusers as documented: set_adapters, then a call, lane after lane (a lane is a row and its
                         negative twin). For Composite and Switch this is the released code's scheme; CMLoRA runs every
                         lane in full
    peft adapter_names   peft's mixed batch: all rows in one call, every mix made one adapter beforehand
    fused                a merged model a picture, picture after picture; fusing and unfusing shared out over a run.
                         A merged model is as fast as the plain one, so the plain one is timed

Each in one of these modes: "eager"; "graph", the call replayed as a CUDA graph; "compiled", the same with its repeated
blocks through torch.compile (without a GPU: compiled alone); and "kernels", of ours and the base only, that with our
kernels.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from composers import Use
from pipelines.adapters import Adapter
from pipelines.engine.compiling import compile_blocks
from pipelines.engine.products.graphs import Recorder
from pipelines.engine.products.layers import use_kernels
from studio.bench.speed.bed import Bed, Inputs
from studio.bench.speed.timing import Captured, seconds_of
from studio.bench.speed.workload import SUFFIXES, WorkloadRow

Mode = Literal["eager", "graph", "compiled", "kernels"]
MODES: tuple[Mode, ...] = ("eager", "graph", "compiled", "kernels")
RUN_STEPS = 30
"""Steps over which the cost of fusing a picture's mix is spread."""


def pairs(rows: Sequence[WorkloadRow]) -> Iterator[slice]:
    """The pairs of a positive row and its negative twin, which are adjacent and share their adapters."""
    for first in range(0, len(rows), 2):
        assert rows[first].uses == rows[first + 1].uses
        yield slice(first, first + 2)


def cut(arguments: Mapping[str, Any], rows: slice) -> dict[str, Any]:
    """The arguments of a call over some of the rows."""
    return {
        key: value[rows] if isinstance(value, Tensor) else cut(value, rows)
        for key, value in arguments.items()
    }


class Base:
    """The model without adapters."""

    def __init__(self, bed: Bed, inputs: Inputs, recorder: Recorder | None) -> None:
        self._bed = bed
        self._inputs = inputs
        self._recorder = recorder
        self._compiled: dict[Mode, Any] = {}

    def together(self, rows: Sequence[WorkloadRow], mode: Mode) -> Callable[[], Tensor]:
        """A function that runs all rows in one call and returns predictions [rows, channels, h, w]."""
        return self._call(self._inputs.of(rows), mode)

    def fused(self, rows: Sequence[WorkloadRow], mode: Mode) -> Callable[[], Tensor]:
        """A function that runs each pair in a call of its own; fusing is not included."""
        whole = self._inputs.of(rows)
        buffer = _cloned(cut(whole, slice(0, 2)))
        call = self._call(buffer, mode)

        def run() -> Tensor:
            found = []
            for pair in pairs(rows):
                _fill(buffer, cut(whole, pair))
                found.append(call().clone())
            return torch.cat(found)

        return run

    def _call(self, arguments: Mapping[str, Any], mode: Mode) -> Callable[[], Tensor]:
        unet = self._bed.unet
        if mode in ("compiled", "kernels"):
            if mode not in self._compiled:
                self._compiled[mode] = self._bed.twin()
                use_kernels(self._compiled[mode], mode == "kernels")
                compile_blocks(self._compiled[mode])
            unet = self._compiled[mode]
        call = partial(_predict, unet, arguments)
        if mode == "eager" or self._recorder is None:
            return call
        return Captured.by(self._recorder, call)


def _predict(unet: Any, arguments: Mapping[str, Any]) -> Tensor:
    found: Tensor = unet(**arguments, return_dict=False)[0]
    return found


def _cloned(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value.clone() if isinstance(value, Tensor) else _cloned(value)
        for key, value in arguments.items()
    }


def _fill(buffer: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Writes the values into the buffer's tensors in place, where a captured graph reads them."""
    for key, value in values.items():
        if isinstance(value, Tensor):
            buffer[key].copy_(value)
        else:
            _fill(buffer[key], value)


class Peft:
    """The model with the bed's adapters, as diffusers and peft hold them. It has its own weights, since fusing changes
    them."""

    def __init__(self, bed: Bed, inputs: Inputs) -> None:
        self._inputs = inputs
        self._suffixes = list(SUFFIXES[bed.layers])
        self.unet: Any = copy.deepcopy(bed.unet)
        self.add_seconds = [
            seconds_of(partial(self._add, adapter.name, bed.rank, [(adapter, 1.0)]), bed.device)
            for adapter in bed.adapters.values()
        ]
        self._bed = bed
        self._mixed: dict[tuple[Use, ...], str] = {}

    def use_inputs(self, inputs: Inputs) -> None:
        self._inputs = inputs

    def one_by_one(self, rows: Sequence[WorkloadRow]) -> Callable[[], Tensor]:
        """A function that calls set_adapters and then the UNet, for every pair."""
        whole = self._inputs.of(rows)

        def run() -> Tensor:
            found = []
            for pair in pairs(rows):
                self.set_mix(rows[pair.start].uses)
                found.append(_predict(self.unet, cut(whole, pair)))
            return torch.cat(found)

        return run

    def mixed_batch(self, rows: Sequence[WorkloadRow]) -> Callable[[], Tensor]:
        """A function that makes one call with `adapter_names`. Each mix is made into one adapter now, before anything
        is timed."""
        for uses in dict.fromkeys(row.uses for row in rows):
            if uses not in self._mixed:
                name = f"mix{len(self._mixed)}"
                parts = [(self._bed.adapters[use.adapter], use.weight) for use in uses]
                self._add(name, self._bed.rank * len(uses), parts)
                self._mixed[uses] = name
        names = [self._mixed[row.uses] for row in rows]
        whole = self._inputs.of(rows)

        def run() -> Tensor:
            with _adapter_names(self.unet, names):
                return _predict(self.unet, whole)

        return run

    def set_mix(self, uses: Sequence[Use]) -> None:
        self.unet.set_adapters([use.adapter for use in uses], [use.weight for use in uses])

    def fuse(self, uses: Sequence[Use]) -> None:
        """What a merged model costs a picture once in a run: fusing its mix, and unfusing it."""
        self.set_mix(uses)
        self.unet.fuse_lora()
        self.unet.unfuse_lora()

    def _add(self, name: str, rank: int, parts: Sequence[tuple[Adapter, float]]) -> None:
        """Adds one adapter of peft's in which these stand side by side, each at its strength."""
        from peft import LoraConfig

        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=self._suffixes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # peft warns of every adapter after the first
            self.unet.add_adapter(config, name)
        self.unet.eval()
        modules = dict(self.unet.named_modules())
        with torch.no_grad():
            for path in parts[0][0].layers:
                layer = modules[path.removeprefix("unet.")]
                downs, ups = [], []
                for adapter, weight in parts:
                    [factor] = adapter.layers[path].low_rank
                    downs.append(factor.down)
                    ups.append(factor.up * weight)
                layer.lora_A[name].weight.copy_(torch.cat(downs))
                layer.lora_B[name].weight.copy_(torch.cat(ups, dim=1))


@contextmanager
def _adapter_names(unet: nn.Module, names: list[str]) -> Iterator[None]:
    """While the block runs, peft's layers get each row's adapter name, as they do in a call of PeftModel."""
    from peft.tuners.lora import LoraLayer

    def tell(module: object, positional: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return positional, {**named, "adapter_names": names}

    hooks = [
        module.register_forward_pre_hook(tell, with_kwargs=True)
        for module in unet.modules()
        if isinstance(module, LoraLayer)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
