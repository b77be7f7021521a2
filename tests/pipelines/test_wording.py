"""Prompts that change over the steps, and prompts joined by AND, against a plain loop over stock diffusers' parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from composers import Composite, Use
from pipelines import Request, StudioPipeline
from pipelines.errors import RequestError

from .lanes import relative

STEPS = 4
Said = Callable[[int], Sequence[tuple[str, float]]]


@pytest.fixture(scope="module")
def pipe(sd_folder: Path, make_lora: Callable[..., Path]) -> StudioPipeline:
    pipe = StudioPipeline.from_pretrained(sd_folder)
    for name in ("one", "two"):
        pipe.load_lora_weights(make_lora(sd_folder, name, seed=len(name), rank=2, where="attn"))
    return pipe


@pytest.fixture(scope="module")
def judge(sd_folder: Path, stock: Any) -> Any:
    return stock(sd_folder)


def ask(prompt: str, **settings: Any) -> Request:
    return Request(
        prompt, **({"seed": 7, "steps": STEPS, "guidance_scale": 5.0, "scheduler": "DDIM"} | settings)
    )


def latents(pipe: StudioPipeline, *requests: Request) -> list[Tensor]:
    return pipe(requests, output_type="latent").images


@torch.no_grad()
def plain(
    judge: Any,
    pipe: StudioPipeline,
    said: Said,
    unsaid: Callable[[int], str],
    guidance: float,
    before: Callable[[int], None] = lambda step: None,
) -> Tensor:
    """u + g sum_i w_i (c_i - u), step by step: [channels, h, w]. said: step -> (text, weight). unsaid: the negative.
    before: called before each step."""
    from pipelines.schedulers import make_scheduler

    def encoded(text: str) -> Tensor:
        return judge.encode_prompt(text, "cpu", 1, False)[0]

    scheduler = make_scheduler("DDIM", judge.scheduler)
    scheduler.set_timesteps(STEPS)
    x = torch.randn((1, *pipe.model.latent_shape(32, 32)), generator=torch.Generator().manual_seed(7))
    x = x * scheduler.init_noise_sigma
    for index, timestep in enumerate(scheduler.timesteps):
        before(index)
        x_in = scheduler.scale_model_input(x, timestep)

        def predicted(text: str, x_in: Tensor = x_in, timestep: Tensor = timestep) -> Tensor:
            return judge.unet(x_in, timestep, encoder_hidden_states=encoded(text)).sample

        u = predicted(unsaid(index))
        found = u + guidance * sum(weight * (predicted(text) - u) for text, weight in said(index))
        x = scheduler.step(found, timestep, x).prev_sample
    return x[0]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a [fox:hat:0.25] here", lambda step: [("a fox here" if step <= 1 else "a hat here", 1.0)]),
        ("a [fox|hat]", lambda step: [("a hat" if step == 2 else "a fox", 1.0)]),
        ("a fox AND a hat :0.4", lambda step: [("a fox", 1.0), ("a hat", 0.4)]),
        ("a fox AND a hat :-0.4", lambda step: [("a fox", 1.0), ("a hat", -0.4)]),
        ("a fox:0.3 AND [a hat:a fox:1] :0.7", lambda step: [("a fox", 0.3), ("a hat" if step <= 1 else "a fox", 0.7)]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_the_latents_are_those_of_the_equation(
    pipe: StudioPipeline, judge: Any, prompt: str, said: Said, guidance: float
) -> None:
    own = latents(pipe, ask(prompt, negative_prompt="[red:red hat:2]", guidance_scale=guidance))[0]
    expected = plain(judge, pipe, said, lambda step: "red" if step <= 2 else "red hat", guidance)
    assert relative(own, expected) < 1e-4


def test_an_adapter_in_an_edit_acts_on_both_models_while_its_words_stand(
    pipe: StudioPipeline, stock: Any, sd_folder: Path, make_lora: Callable[..., Path]
) -> None:
    judge = stock(sd_folder)
    judge.load_lora_weights(make_lora(sd_folder, "one", seed=3, rank=2, where="attn"), adapter_name="one")
    on = lambda step: judge.set_adapters(["one"], [0.8 if step > 1 else 0.0])  # noqa: E731
    own, throughout, unet_alone = latents(
        pipe,
        ask("a fox [in <lora:one:0.8> red:0.25]", negative_prompt="hat"),
        ask("a fox [in red:0.25] <lora:one:0.8>", negative_prompt="hat"),
        ask("a fox [in red:0.25] <lora:one:0.8:step=0@0,1@0.26>", negative_prompt="hat"),
    )
    says: Said = lambda step: [("a fox in red" if step > 1 else "a fox", 1.0)]  # noqa: E731
    expected = plain(judge, pipe, says, lambda step: "hat", 5.0, on)
    assert relative(own, expected) < 1e-4
    assert relative(throughout, expected) > 1e-3
    assert relative(unet_alone, expected) > 1e-3


def test_one_prompt_said_twice_is_that_prompt(pipe: StudioPipeline) -> None:
    plain, joined, empty = latents(
        pipe, ask("a fox"), ask("a fox:0.5 AND a fox:0.5"), ask("a fox AND a hat:0")
    )
    assert torch.equal(joined, plain)
    assert torch.equal(empty, plain)


def test_each_picture_of_a_batch_says_its_own(pipe: StudioPipeline) -> None:
    mix = (Use("one", 0.8), Use("two", -0.5))
    requests = [
        ask("a fox"),
        ask("a [fox:hat:0.5]", adapters=mix, composer=Composite()),
        ask("a fox AND a hat :1.3", adapters=mix, composer=Composite()),
        ask("a fox AND a hat AND red :0.2", guidance_scale=1.0),
        ask("[a|b] AND [fox:2]", reuse=2),
    ]
    together = latents(pipe, *requests)
    for request, own in zip(requests, together, strict=True):
        assert relative(own, latents(pipe, request)[0]) < 5e-5, request.prompt


def test_each_part_of_a_prompt_is_a_lane(pipe: StudioPipeline) -> None:
    plain, joined = pipe([ask("a fox"), ask("a fox AND a hat AND red")], output_type="latent").records
    assert plain.unet_rows == 2 * STEPS
    assert joined.unet_rows == 4 * STEPS


def test_one_picture_takes_only_so_many_rows() -> None:
    many = " AND ".join(f"a {place}" for place in range(60))
    mix = tuple(Use(name) for name in "abcde")
    request = ask(many, adapters=mix, composer=Composite(), negative_prompt="")
    with pytest.raises(RequestError, match="305 UNet rows a step"):
        request.plans()
