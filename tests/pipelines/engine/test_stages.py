"""Stages, on the CPU with reruns in place of CUDA graphs: static buffers hold whatever mix comes, and nothing is
recorded twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from composers import Composite, Switch
from pipelines import Request, StudioPipeline
from pipelines.engine.bank import FormChoice
from pipelines.engine.graphs import Reruns

MIXES = [
    {"attention": 0.8},
    {"wide": 0.5, "conv": 1.0},
    {},
    {"attention": 0.3, "wide": 0.7, "conv": -0.5},
]


@pytest.fixture
def pipe(model_folder: Path, make_lora: Callable[..., Path]) -> StudioPipeline:
    pipe = StudioPipeline.from_pretrained(model_folder)
    for name, rank, where in (("attention", 4, "attn"), ("wide", 3, ""), ("conv", 2, "conv")):
        pipe.load_lora_weights(make_lora(model_folder, name, seed=rank, rank=rank, where=where), name)
    return pipe


def staged(pipe: StudioPipeline, form: FormChoice = "auto") -> StudioPipeline:
    pipe.model.engine.recorder_for = lambda device: Reruns()
    pipe.model.bank.form = form
    pipe.model.engine.reset()
    return pipe


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def requests(steps: int = 4) -> list[Request]:
    size = {"steps": steps, "width": 32, "height": 32}
    return [
        *(Request("a fox", adapters=mix, seed=seed, **size) for seed, mix in enumerate(MIXES)),
        Request("a long prompt, " * 40, adapters=MIXES[3], composer=Composite(), seed=7, **size),
        Request("a bear", adapters=MIXES[3], composer=Switch(interval=1), seed=8, **size),
        Request("a bear", adapters=MIXES[3], composer=Composite(), reuse=2, seed=9, **size),
        Request("a cat", adapters=MIXES[0], guidance_scale=1.0, seed=10, **size),
    ]


@pytest.mark.parametrize("form", ["auto", "lane-packed", "pool", "dense"])
def test_stages_draw_what_layers_one_by_one_draw(pipe: StudioPipeline, form: FormChoice) -> None:
    asked = requests()
    expected = pipe(asked, output_type="latent").images
    assert pipe.model.engine.stats.replays == 0
    staged(pipe, form)
    for _ in range(2):
        found = pipe(asked, output_type="latent").images
        for one, other in zip(found, expected, strict=True):
            assert relative(one, other) < 1e-4
    stats = pipe.model.engine.stats
    assert 0 < stats.captures < stats.replays
