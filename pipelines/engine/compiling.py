"""Regional compilation: a UNet's repeated blocks through torch.compile, for exact shapes."""

from __future__ import annotations

from typing import Any

import torch

MOST_SHAPES = 256
"""Compiled versions of a block: one for each width, number of rows and number of tokens that it meets."""


def compile_blocks(unet: Any, backend: str = "inductor") -> None:
    """Compile the repeated blocks in place; each new shape is compiled when it is met first.

    Settings of torch that this changes for the whole process: the limit of versions is raised to `MOST_SHAPES`, and
    guards by recursive dict tags are switched off. Before torch 2.12, which does the same, they crash the process
    once a compiled model has been let go (https://github.com/pytorch/pytorch/pull/181873).
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MOST_SHAPES)
    config.use_recursive_dict_tags_for_guards = False
    unet.compile_repeated_blocks(fullgraph=True, dynamic=False, backend=backend)
