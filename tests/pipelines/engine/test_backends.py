"""The attention kernel that was asked for runs, also in what is compiled."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from pipelines import Request, StudioPipeline
from pipelines.engine.backends import AttentionChoice
from studio.commands.flags import ATTENTION

from ..lanes import relative

FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"
STEPS = 2


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_the_unet_attends_by_the_kernel_asked_for(shallow_sdxl_folder: Path, compile: bool) -> None:
    pipe = StudioPipeline.from_pretrained(shallow_sdxl_folder)
    request = Request("a fox", seed=1, steps=STEPS, width=32, height=32)
    found, flashes = {}, {}
    choices: tuple[AttentionChoice, ...] = ("auto", "math") if compile else ("auto", "math", "flash")
    for choice in choices:
        pipe.model.engine.optimize(graphs=False, compile=compile, attention=choice, backend="aot_eager")
        found[choice] = pipe(request, output_type="latent").images[0]  # what compiles does so here
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            pipe(request, output_type="latent")
        flashes[choice] = sum(event.count for event in seen.key_averages() if event.key == FLASH)
        assert relative(found[choice], found["auto"]) < 1e-5
    layers = len(pipe.model.bank.tables["unet"].attention)
    assert flashes["auto"] - flashes["math"] == STEPS * layers  # the rest: text encoders
    assert flashes.get("flash", flashes["auto"]) == flashes["auto"]


def test_the_command_line_knows_them_all() -> None:
    assert get_args(AttentionChoice) == ATTENTION
