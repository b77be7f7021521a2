"""Clip skip draws what the program that counted it draws: the judge is stock diffusers, given each prompt's states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines import Request, StudioPipeline
from pipelines.errors import RequestError
from pipelines.families.family import SD2, FamilyName
from pipelines.schedulers import make_scheduler
from pipelines.text.clip_skip import Counting, layers_skipped

from ..lanes import relative

PROMPTS = ("a fox in a red hat", "a blurry hat")


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(f"{request.param}_folder")
    return found


@pytest.fixture(scope="module")
def pipe(folder: Path) -> StudioPipeline:
    return StudioPipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def judge(folder: Path, stock: Callable[[Path], Any]) -> Any:
    return stock(folder)


def states(judge: Any, text: str, layer: int) -> tuple[Tensor, Tensor | None]:
    """The states of that layer, -1 is the last; those of SD1.x with the final norm. And SDXL's pooled states."""
    found, pooled = [], None
    for name in ("", "_2") if hasattr(judge, "text_encoder_2") else ("",):
        encoder, tokenizer = getattr(judge, f"text_encoder{name}"), getattr(judge, f"tokenizer{name}")
        ids = tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            output = encoder(ids, output_hidden_states=True)
            hidden = output.hidden_states[layer]
            if hasattr(judge, "text_encoder_2"):
                pooled = getattr(output, "text_embeds", pooled)
            else:
                hidden = getattr(encoder, "text_model", encoder).final_layer_norm(hidden)
        found.append(hidden)
    return torch.cat(found, -1), pooled


def drawn(judge: Any, positive: int, negative: int) -> Tensor:
    """The latents of stock diffusers, with these layers of the two prompts."""
    (plus, pooled), (minus, negative_pooled) = (
        states(judge, text, layer) for text, layer in zip(PROMPTS, (positive, negative), strict=True)
    )
    more = {} if pooled is None else {
        "pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": negative_pooled,
    }  # fmt: skip
    judge.scheduler = make_scheduler("Euler", judge.scheduler)
    latents: Tensor = judge(
        prompt_embeds=plus, negative_prompt_embeds=minus, num_inference_steps=3, guidance_scale=5.0, width=32,
        height=32, generator=torch.Generator("cpu").manual_seed(7), output_type="latent", **more,
    ).images[0]  # fmt: skip
    return latents


LAYERS: dict[tuple[str, Counting, int], tuple[int, int]] = {
    ("sd", "diffusers", 1): (-2, -1),
    ("sd", "a1111", 0): (-1, -1),
    ("sd", "a1111", 1): (-2, -2),
    ("sd", "forge", 2): (-3, -3),
    ("sd", "comfyui", 1): (-2, -2),
    ("sdxl", "diffusers", 1): (-3, -2),
    ("sdxl", "a1111", 1): (-2, -2),
    ("sdxl", "a1111", 50): (-2, -2),
    ("sdxl", "forge", 0): (-2, -2),
    ("sdxl", "forge", 1): (-2, -2),
    ("sdxl", "forge", 2): (-3, -3),
    ("sdxl", "comfyui", 0): (-1, -1),
    ("sdxl", "comfyui", 1): (-2, -2),
    ("sdxl", "comfyui", 2): (-3, -3),
}
"""Family, who counted, layers skipped -> the layer of the positive and of the negative prompt. -1 is the last one."""


def test_each_prompt_gets_the_layer_that_the_program_gives_it(
    pipe: StudioPipeline, judge: Any, folder: Path
) -> None:
    family = folder.name.removeprefix("random-")
    cases = {key: layers for key, layers in LAYERS.items() if key[0] == family}
    assert cases
    requests = [
        Request(
            PROMPTS[0], negative_prompt=PROMPTS[1], seed=7, steps=3, guidance_scale=5.0, width=32, height=32,
            scheduler="Euler", clip_skip=skip, clip_skip_as=counting,
        )
        for _, counting, skip in cases
    ]  # fmt: skip
    expected = {layers: drawn(judge, *layers) for layers in set(cases.values())}
    result = pipe(requests, output_type="latent")
    for own, record, (key, layers) in zip(result.images, result.records, cases.items(), strict=True):
        near = {other: relative(own, latents) < 1e-4 for other, latents in expected.items()}
        assert near == {other: other == layers for other in expected}, key
        told = any("A1111 has no clip skip" in note for note in record.notes)
        assert told == (key[:2] == ("sdxl", "a1111") and key[2] > 0)
        assert (record.clip_skip, record.clip_skip_as) == (key[2], key[1])


@pytest.mark.parametrize(
    ("counting", "skipped"), [("diffusers", 2), ("a1111", None), ("forge", 2), ("comfyui", 1)]
)
def test_sd2_counts_as_the_program_does(counting: Counting, skipped: int | None) -> None:
    """ComfyUI's text encoder of SD2.x has one layer more than diffusers', which it does not use."""
    assert layers_skipped(2, counting, SD2.name, "positive") == skipped


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("counting", ["diffusers", "a1111", "forge", "comfyui"])
def test_nothing_said_is_the_usual_layer(counting: Counting, family: FamilyName) -> None:
    assert layers_skipped(None, counting, family, "positive") is None
    assert layers_skipped(None, counting, family, "negative") is None


def test_more_layers_than_there_are_fail_that_picture(pipe: StudioPipeline) -> None:
    request = Request("a fox", steps=2, clip_skip=30, clip_skip_as="forge")
    with pytest.raises(RequestError, match=r"clip skip: \d+ layers cannot be skipped"):
        pipe(request)
    pipe(replace(request, clip_skip=1), output_type="latent")
