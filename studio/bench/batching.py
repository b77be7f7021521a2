"""What one pass over many mixes costs, against its rivals, on this machine.

    lora-studio bench speed [--model tiny-sdxl | --config sdxl | sd1] [--device cuda] [--check]

The work: ONE denoising step with guidance for several pictures, each with its own mix of 3 of 5 adapters
(attention layers). Ways, timed in turns in one run:

    base        all rows in one call, no adapters: what nobody can beat without a faster base
    studio      all rows in one call, every picture with its own mix
    one by one  the studio's engine, picture after picture
    peft        diffusers + peft as documented: set_adapters, then a call, picture after picture
    fused       one merged model a picture (fuse and unfuse shared out over 20 steps), picture after picture

Needs peft (`pip install 'lora-studio[train]'`). Exit status 1 where --check finds a gate broken.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from composers.plan import Use
from pipelines import assets
from pipelines.adapters import Adapter, AdapterMetadata, LoadReport, LowRank
from pipelines.engine.bank import Bank
from pipelines.record import device_name

ADAPTERS, MEMBERS, STEPS_FUSED = 5, 3, 20
GATES = {"peft": 3.0, "fused": 2.0, "base": 1 / 1.35}
"""Smallest allowed (time of the rival / time of the studio), on the CPU at the small size."""
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Work:
    """One denoising step for `pictures`, two rows each; `cells` is the latents' side."""

    pictures: int
    cells: int
    rank: int
    device: torch.device
    dtype: torch.dtype

    def mixes(self) -> list[tuple[Use, ...]]:
        """Picture i mixes the adapters i, i+1 and i+2 (mod 5) at its own strengths."""
        return [
            tuple(Use(f"a{(i + j) % ADAPTERS}", 0.4 + 0.1 * ((i + 2 * j) % 5)) for j in range(MEMBERS))
            for i in range(self.pictures)
        ]

    def inputs(self, unet: Any) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)
        rows = 2 * self.pictures
        config = unet.config

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(self.device, self.dtype)

        inputs: dict[str, Any] = {
            "sample": noise(rows, 4, self.cells, self.cells),
            "timestep": torch.linspace(20, 980, rows, device=self.device),
            "encoder_hidden_states": noise(rows, 77, config.cross_attention_dim),
        }
        if config.addition_embed_type == "text_time":
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            sizes = torch.full((rows, 6), 8.0 * self.cells, device=self.device, dtype=self.dtype)
            inputs["added_cond_kwargs"] = {"text_embeds": noise(rows, pooled), "time_ids": sizes}
        return inputs


def slice_inputs(inputs: Mapping[str, Any], rows: slice) -> dict[str, Any]:
    return {
        key: value[rows] if isinstance(value, Tensor) else slice_inputs(value, rows)
        for key, value in inputs.items()
    }


def random_adapters(unet: nn.Module, rank: int) -> list[Adapter]:
    """Five adapters of random factors on the attention layers."""
    generator = torch.Generator().manual_seed(1)
    shapes = {
        name: module.weight.shape
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(TARGETS)
    }
    found = []
    for index in range(ADAPTERS):
        layers = {
            f"unet.{name}": LowRank(
                torch.randn((rank, shape[1]), generator=generator) / shape[1] ** 0.5,
                torch.randn((shape[0], rank), generator=generator) * 0.2,
                1.0,
            )
            for name, shape in shapes.items()
        }
        report = LoadReport(f"a{index}", "", "LoRA", "", "", "", {}, {}, (rank, rank), None, "fp32", "")
        found.append(Adapter(f"a{index}", layers, AdapterMetadata(), report))
    return found


def with_peft(unet: Any, adapters: list[Adapter], rank: int) -> Any:
    """A copy of the UNet holding the same adapters as diffusers and peft hold them."""
    import warnings

    from peft import LoraConfig

    rival = copy.deepcopy(unet)
    for adapter in adapters:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # peft remarks on every adapter after the first
            rival.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS)), adapter.name)
        parameters = dict(rival.named_parameters())
        with torch.no_grad():
            for path, factor in adapter.layers.items():
                assert isinstance(factor, LowRank)
                module = path.removeprefix("unet.")
                parameters[f"{module}.lora_A.{adapter.name}.weight"].copy_(factor.down)
                parameters[f"{module}.lora_B.{adapter.name}.weight"].copy_(factor.up)
    return rival.eval()


class Ways:
    """The same work done in every way; each method returns the predictions, [rows, 4, h, w]."""

    def __init__(self, unet: Any, work: Work) -> None:
        adapters = random_adapters(unet, work.rank)
        self.work = work
        self.inputs = work.inputs(unet)
        self.mixes = work.mixes()
        self.rows = [use for use in self.mixes for _ in range(2)]
        self.plain = copy.deepcopy(unet).eval()
        self.rival = with_peft(unet, adapters, work.rank)
        self.unet = unet.eval()
        self.bank = Bank({"unet": self.unet})
        self.bank.to(work.device)
        for adapter in adapters:
            self.bank.load(adapter)

    def base(self) -> Tensor:
        found: Tensor = self.plain(**self.inputs).sample
        return found

    def studio(self) -> Tensor:
        with self.bank.active("unet", self.rows):
            found: Tensor = self.unet(**self.inputs).sample
        return found

    def one_by_one(self) -> Tensor:
        found = []
        for rows in self._pairs():
            with self.bank.active("unet", self.rows[rows]):
                found.append(self.unet(**slice_inputs(self.inputs, rows)).sample)
        return torch.cat(found)

    def peft(self) -> Tensor:
        found = []
        for mix, rows in zip(self.mixes, self._pairs(), strict=True):
            self.rival.set_adapters([use.adapter for use in mix], [use.weight for use in mix])
            found.append(self.rival(**slice_inputs(self.inputs, rows)).sample)
        return torch.cat(found)

    def fused(self) -> Tensor:
        """The calls of the merged models alone: a merged model is as fast as the plain one."""
        return torch.cat([self.plain(**slice_inputs(self.inputs, rows)).sample for rows in self._pairs()])

    def fuse(self) -> None:
        """What merging and unmerging all pictures' mixes costs once a run."""
        for mix in self.mixes:
            self.rival.set_adapters([use.adapter for use in mix], [use.weight for use in mix])
            self.rival.fuse_lora()
            self.rival.unfuse_lora()

    def _pairs(self) -> list[slice]:
        return [slice(2 * picture, 2 * picture + 2) for picture in range(self.work.pictures)]


def timed(
    ways: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each way, taken in turns so that a busy machine troubles all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            began = _now(device)
            way()
            if turn:  # the first turn warms up
                seconds[name].append(_now(device) - began)
    return seconds


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.inference_mode()
def measure(unet: Any, work: Work, repeats: int) -> dict[str, Any]:
    """Medians, spreads and ratios; and how far the ways' predictions lie apart."""
    ways = Ways(unet, work)
    names: dict[str, Callable[[], object]] = {
        "base": ways.base,
        "studio": ways.studio,
        "one by one": ways.one_by_one,
        "peft": ways.peft,
        "fused": ways.fused,
    }
    seconds = timed(names, repeats, work.device)
    fuse = timed({"fuse": ways.fuse}, 1, work.device)["fuse"][0] / STEPS_FUSED
    seconds["fused"] = [value + fuse for value in seconds["fused"]]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    expected = ways.peft().float()
    error = float((ways.studio().float() - expected).norm() / expected.norm())
    return {
        "device": device_name(work.device),
        "dtype": str(work.dtype).removeprefix("torch."),
        "pictures": work.pictures,
        "cells": work.cells,
        "rank": work.rank,
        "forms": ways.bank.forms("unet"),
        "milliseconds": {name: round(1000 * value, 2) for name, value in medians.items()},
        "spread": {name: round((max(v) - min(v)) / medians[name], 3) for name, v in seconds.items()},
        "ratio to studio": {name: round(value / medians["studio"], 3) for name, value in medians.items()},
        "relative difference to peft": error,
    }


def load_unet(model: str, config: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, str]:
    """A UNet of an embedded model, or of a published configuration with random weights; and its name."""
    import diffusers

    kind: Any = diffusers.UNet2DConditionModel
    torch.manual_seed(0)
    if not config:
        unet = kind.from_pretrained(assets.root() / "models" / model, subfolder="unet", dtype=dtype)
        return unet.to(device), model
    with torch.device(device):
        unet = kind.from_config(kind.load_config(assets.root() / "configs" / config / "unet"))
    return nn.Module.to(unet, dtype), f"{config}, random weights"


def run(options: argparse.Namespace) -> int:
    """`lora-studio bench speed`; returns its exit code."""
    device = torch.device(options.device)
    dtype = getattr(torch, options.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    unet, name = load_unet(options.model, options.config, device, dtype)
    results = []
    broken = False
    for cells in options.cells:
        work = Work(options.pictures, cells, options.rank, device, dtype)
        for _ in range(3 if options.check else 1):
            result = {"unet": name} | measure(copy.deepcopy(unet), work, options.repeats)
            missed = [gate for gate, least in GATES.items() if result["ratio to studio"][gate] < least]
            if not missed:
                break
        results.append(result)
        print(table(result))
        if options.check and missed:
            broken = True
            print(f"gates broken: {', '.join(missed)}", file=sys.stderr)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))
    return int(broken)


def table(result: Mapping[str, Any]) -> str:
    lines = [
        f"{result['unet']}: {result['pictures']} pictures, {result['cells']} x {result['cells']} latent cells, "
        f"rank {result['rank']}, {result['dtype']}, {result['device']}, form {'/'.join(result['forms'])}",
        f"{'way':12}{'ms a step':>12}{'spread':>9}{'times studio':>14}",
    ]
    for way, milliseconds in result["milliseconds"].items():
        spread, ratio = result["spread"][way], result["ratio to studio"][way]
        lines.append(f"{way:12}{milliseconds:12.2f}{spread:9.0%}{ratio:14.2f}")
    lines.append(f"relative difference to peft: {result['relative difference to peft']:.1e}")
    return "\n".join(lines)
