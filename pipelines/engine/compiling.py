"""Regional compilation: a UNet's repeated blocks through torch.compile, for exact shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")
"""diffusers' classes of the blocks in which a UNet spends its time."""
MOST_SHAPES = 256
"""Compiled versions of a block: one for each width, number of rows and number of tokens that it meets."""


def compile_blocks(unet: nn.Module, backend: str = "inductor") -> None:
    """Compile the repeated blocks in place; each new shape is compiled when it is met first.

    Settings of torch that this changes for the whole process: the limit of versions is raised to `MOST_SHAPES`, and
    guards by recursive dict tags are switched off. Before torch 2.12, which does the same, they crash the process
    once a compiled model has been let go (https://github.com/pytorch/pytorch/pull/181873).
    """
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MOST_SHAPES)
    config.use_recursive_dict_tags_for_guards = False
    for block in _blocks(unet):
        block.compile(fullgraph=True, dynamic=False, backend=backend)


def part_blocks(unet: nn.Module) -> None:
    """Run the blocks as they come again, in place."""
    for block in _blocks(unet):
        block._compiled_call_impl = None


def _blocks(unet: nn.Module) -> Iterator[nn.Module]:
    """The repeated blocks, and the norms between them (of a stack of transformer blocks, and of the output)."""
    for module in unet.modules():
        name = type(module).__name__
        if name in BLOCKS:
            yield module
        elif name in ("Transformer2DModel", "UNet2DConditionModel"):
            norm = module.norm if name == "Transformer2DModel" else module.conv_norm_out
            if isinstance(norm, nn.GroupNorm):
                yield norm
