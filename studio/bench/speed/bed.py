"""A test bed: one model and its adapters, which all ways share."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipelines import assets
from pipelines.adapters import Adapter, AdapterMetadata, LoadReport, LowRank
from pipelines.checkpoints import load_checkpoint
from pipelines.engine.planner import TEXT_TOKENS
from pipelines.engine.products.attention import join_weights
from pipelines.engine.unet_call import UNetCall
from pipelines.home import Home
from studio.bench.speed.workload import SUFFIXES, Layers, WorkloadRow, adapter_name

RANDOM = {"sdxl": "sdxl", "sd15": "sd1"}
"""Models that are made here from a published configuration, with random weights: values do not affect times."""


@dataclass
class Bed:
    """unet: without lanes and without peft's adapters; it is never changed. adapters: by name, random, all of one rank.

    Its weights have the engine's memory layout. All ways share them, and none may move weights that another has
    recorded.
    """

    model: str
    unet: Any
    layers: Layers
    rank: int
    adapters: dict[str, Adapter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        join_weights(self.unet)

    @property
    def device(self) -> torch.device:
        return self._weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self._weight.dtype

    def hold(self, count: int) -> None:
        """Makes the first `count` adapters, where they do not exist yet."""
        for index in range(len(self.adapters), count):
            self.adapters[adapter_name(index)] = random_adapter(self.unet, index, self.layers, self.rank)

    @property
    def _weight(self) -> Tensor:
        weight: Tensor = next(self.unet.parameters())
        return weight

    def twin(self) -> Any:
        """A copy of the UNet with its own modules, which shares the weights in memory."""
        shared = [*self.unet.parameters(), *self.unet.buffers()]
        return copy.deepcopy(self.unet, {id(tensor): tensor for tensor in shared})


@dataclass(frozen=True)
class Machine:
    """Where models are measured, and where they come from."""

    home: Home
    device: torch.device
    dtype: torch.dtype

    def unet(self, model: str, dtype: torch.dtype | None = None) -> Any:
        """The model's UNet on the device, in the usual dtype unless another is given. Raises ModelError."""
        return load_unet(model, self.home, self.device, dtype or self.dtype)


def load_unet(model: str, home: Home, device: torch.device, dtype: torch.dtype) -> Any:
    """The UNet of `sdxl` or `sd15` with random weights, or of any model by name, path or hub id.

    Raises ModelError for a model that is not there.
    """
    if model not in RANDOM:
        return load_checkpoint(model, dtype=dtype, home=home).unet.to(device).eval()
    import diffusers

    kind: Any = diffusers.UNet2DConditionModel
    torch.manual_seed(0)
    with torch.device(device):
        unet = kind.from_config(kind.load_config(assets.root() / "configs" / RANDOM[model] / "unet"))
    return nn.Module.to(unet, dtype).eval()


def touched(unet: nn.Module, layers: Layers) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers that an adapter of this kind touches, by name."""
    ends = tuple(f".{suffix}" for suffix in SUFFIXES[layers])
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name.endswith(ends)
    }


def random_adapter(unet: nn.Module, index: int, layers: Layers, rank: int) -> Adapter:
    """An adapter with random factors in the UNet's dtype. They are strong enough to be seen, and weak enough for mixes
    to stay finite."""
    name = adapter_name(index)
    generator = torch.Generator(next(unet.parameters()).device).manual_seed(1000 + index)
    factors = {}
    for path, module in touched(unet, layers).items():
        out, *inner = module.weight.shape
        ones = [1] * (len(inner) - 1)
        down = _noise(generator, module.weight, rank, *inner) / math.prod(inner) ** 0.5
        up = _noise(generator, module.weight, out, rank, *ones) * (0.2 / rank**0.5)
        factors[f"unet.{path}"] = LowRank(down, up, 1.0)
    report = LoadReport(name, "", "LoRA", "", "", "", {}, {}, (rank, rank), None, "random", "")
    return Adapter(name, factors, AdapterMetadata(), report)


def _noise(generator: torch.Generator, like: Tensor, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device).to(like.dtype)


class Inputs:
    """The UNet's inputs. Every picture has its own latents, timestep and two prompts."""

    def __init__(self, unet: Any, images: int, cells: int) -> None:
        like = next(unet.parameters())
        config = unet.config

        generator = torch.Generator(like.device).manual_seed(0)
        noise = partial(_noise, generator, like)
        self._sample = noise(images, config.in_channels, cells, cells)
        self._timestep = torch.linspace(20, 980, images, device=like.device)
        self._text = noise(images, 2, TEXT_TOKENS, config.cross_attention_dim)
        self._texts = [list(pair) for pair in self._text]  # the engine identifies a text by its tensor
        self._pooled: Tensor | None = None
        if config.addition_embed_type == "text_time":
            width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            self._pooled = noise(images, 2, width)
            self._sizes = torch.tensor([8.0 * cells, 8.0 * cells, 0, 0, 8.0 * cells, 8.0 * cells]).to(like)

    def of(self, rows: Sequence[WorkloadRow]) -> dict[str, Any]:
        """The arguments of a UNet call over these rows, in diffusers' names."""
        call = self.call(rows)
        arguments: dict[str, Any] = {
            "sample": call.latents,
            "timestep": call.timesteps,
            "encoder_hidden_states": call.text,
        }
        if call.pooled is not None:
            arguments["added_cond_kwargs"] = {"text_embeds": call.pooled, "time_ids": call.sizes}
        return arguments

    def call(self, rows: Sequence[WorkloadRow]) -> UNetCall:
        """The same call in the engine's form, with all rows in full."""
        device = self._sample.device
        images = torch.tensor([row.image for row in rows], dtype=torch.long, device=device)
        roles = torch.tensor([row.negative for row in rows], dtype=torch.long, device=device)
        return UNetCall(
            latents=self._sample[images],
            timesteps=self._timestep[images],
            text=self._text[images, roles],
            mask=None,
            pooled=None if self._pooled is None else self._pooled[images, roles],
            sizes=None if self._pooled is None else self._sizes.expand(len(rows), 6).contiguous(),
            uses=tuple(row.uses for row in rows),
            texts=tuple(self._texts[row.image][row.negative] for row in rows),
        )
