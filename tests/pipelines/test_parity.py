"""The judge is stock diffusers: the same seed, prompt, scheduler and adapters give the same latents."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline
from PIL import Image
from torch import Tensor

from composers import Composite, Merge, Switch, Use
from pipelines import Request, StudioPipeline
from pipelines.schedulers import make_scheduler, set_steps

from .lanes import relative

pytestmark = pytest.mark.usefixtures("no_faults")

ADAPTERS = {"attention": ("attn", 4), "wide": ("", 3), "conv": ("conv", 2)}
SCHEDULERS = ["Euler", "Euler a", "DDIM", "DPM++ 2M Karras", "DPM++ 2M SDE", "UniPC", "Heun", "LCM", "PNDM"]
STEPS = 4


@pytest.fixture(scope="module")
def loras(make_lora: Callable[..., Path]) -> Callable[[Path], dict[str, Path]]:
    def files(folder: Path) -> dict[str, Path]:
        return {
            name: make_lora(folder, name, seed=rank, rank=rank, where=where)
            for name, (where, rank) in ADAPTERS.items()
        }

    return files


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(f"{request.param}_folder")
    return found


@pytest.fixture(scope="module")
def pipe(folder: Path, loras: Callable[[Path], dict[str, Path]]) -> StudioPipeline:
    pipe = StudioPipeline.from_pretrained(folder)
    for name, file in loras(folder).items():
        pipe.load_lora_weights(file, adapter_name=name)
    return pipe


@pytest.fixture(scope="module")
def judge(folder: Path, stock: Any) -> Any:
    return stock(folder)


@pytest.fixture(scope="module")
def judge_with_adapters(folder: Path, stock: Any, loras: Callable[[Path], dict[str, Path]]) -> Any:
    """Stock diffusers with every adapter loaded through peft."""
    judge = stock(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # peft remarks on every adapter after the first
        for name, file in loras(folder).items():
            judge.load_lora_weights(file, adapter_name=name)
    return judge


def stock_latents(judge: Any, request: Request, weights: dict[str, float] | None = None) -> Tensor:
    """The latents stock diffusers makes for a Merge request, [channels, h, w]."""
    if weights is not None:
        judge.enable_lora()
        judge.set_adapters(list(weights), list(weights.values()))
    own = judge.scheduler
    judge.scheduler = make_scheduler(request.scheduler, own)
    settings: dict[str, Any] = {"guidance_rescale": request.guidance_rescale}
    if request.clip_skip is not None:
        settings["clip_skip"] = request.clip_skip
    try:
        return judge(
            request.prompt,
            negative_prompt=request.negative_prompt,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            width=request.width or 32,
            height=request.height or 32,
            generator=torch.Generator("cpu").manual_seed(request.seed or 0),
            output_type="latent",
            **settings,
        ).images[0]
    finally:
        judge.scheduler = own


def ask(prompt: str = "a fox in a red hat", **settings: Any) -> Request:
    return Request(prompt, **({"seed": 7, "steps": STEPS, "guidance_scale": 5.0} | settings))


def latents(pipe: StudioPipeline, *requests: Request) -> list[Tensor]:
    return pipe(requests, output_type="latent").images


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_without_adapters(pipe: StudioPipeline, judge: Any, scheduler: str) -> None:
    request = ask(scheduler=scheduler)
    assert relative(latents(pipe, request)[0], stock_latents(judge, request)) < 1e-4


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance_scale": 1.0},
        {"guidance_scale": 0.0},
        {"negative_prompt": "a hat"},
        {"negative_prompt": ""},
        {"width": 48, "height": 24},
        {"guidance_rescale": 0.7},
    ],
    ids=str,
)
def test_every_setting_means_what_it_means_in_diffusers(
    pipe: StudioPipeline, judge: Any, settings: dict[str, Any]
) -> None:
    request = ask(**settings)
    assert relative(latents(pipe, request)[0], stock_latents(judge, request)) < 1e-4


@pytest.mark.parametrize("scheduler", ["Euler a", "DPM++ 2M", "Heun"])
@pytest.mark.parametrize(
    "weights", [{"attention": 0.8}, {"attention": 0.8, "wide": -0.5, "conv": 1.2}], ids=len
)
def test_merge_equals_peft_at_the_same_scales(
    pipe: StudioPipeline, judge_with_adapters: Any, scheduler: str, weights: dict[str, float]
) -> None:
    request = ask(scheduler=scheduler, adapters=weights)
    expected = stock_latents(judge_with_adapters, request, weights)
    assert relative(latents(pipe, request)[0], expected) < 1e-4
    assert relative(latents(pipe, ask(scheduler=scheduler))[0], expected) > 1e-2


def test_pictures_equal_diffusers_pictures(pipe: StudioPipeline, judge: Any) -> None:
    request = ask()
    own = judge(
        request.prompt,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        width=32,
        height=32,
        generator=torch.Generator("cpu").manual_seed(7),
        output_type="np",
    ).images[0]
    assert abs(pipe(request, output_type="np").images[0] - own).max() < 1e-4
    tensor = pipe(request, output_type="pt").images[0]
    assert tensor.shape == (3, 32, 32)
    assert abs(tensor.permute(1, 2, 0).numpy() - own).max() < 1e-4
    assert pipe(request).images[0].size == (32, 32)


@pytest.mark.parametrize(
    ("scheduler", "strength"), [("Euler a", 0.5), ("Heun", 0.7), ("DPM++ 2M", 1.0), ("DDIM", 0.3)]
)
def test_image_to_image(
    pipe: StudioPipeline, judge: Any, folder: Path, scheduler: str, strength: float
) -> None:
    picture = Image.effect_noise((32, 32), 80).convert("RGB")
    kind = StableDiffusionXLImg2ImgPipeline if "xl" in folder.name else StableDiffusionImg2ImgPipeline
    stock = kind(**judge.components, **({} if "xl" in folder.name else {"requires_safety_checker": False}))
    stock.set_progress_bar_config(disable=True)
    stock.scheduler = make_scheduler(scheduler, judge.scheduler)
    settings: dict[str, Any] = {"num_inference_steps": 8, "guidance_scale": 5.0}
    generator = torch.Generator("cpu").manual_seed(7)
    expected = stock(
        "a fox", image=picture, strength=strength, generator=generator, output_type="latent", **settings
    ).images[0]
    request = ask("a fox", steps=8, scheduler=scheduler, init_image=picture, strength=strength)
    assert relative(latents(pipe, request)[0], expected) < 1e-4


@contextmanager
def counted_calls(pipe: StudioPipeline) -> Iterator[list[int]]:
    """The rows of every UNet call made within."""
    calls: list[int] = []
    hook = pipe.model.unet.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape[0]))
    try:
        yield calls
    finally:
        hook.remove()


def test_ten_different_requests_in_one_pass(pipe: StudioPipeline, judge_with_adapters: Any) -> None:
    """Different mixes, methods, steps, schedulers and guidance: equal to stock diffusers where it can render them,
    else to single renders; one UNet call a round."""
    merges = [
        ask(seed=1, adapters={"attention": 0.8}),
        ask("a bear", seed=2, adapters={"wide": 0.6, "conv": 0.5}, guidance_scale=2.0),
        ask("the beach", seed=3, scheduler="Euler a", adapters={"conv": -1.0}),
        ask("a crown", seed=4, scheduler="Heun", steps=4, adapters={"attention": 1.0, "wide": 0.2}),
        ask("a fox", seed=5, scheduler="DPM++ 2M SDE", steps=9, guidance_scale=1.0, adapters={"wide": 1.0}),
        ask("a pig", seed=6, scheduler="LCM", steps=4, adapters={"attention": 0.5}),
    ]
    pair = {"attention": 0.8, "conv": 1.0}
    others = [
        ask(seed=7, adapters=pair, composer=Switch(interval=2)),
        ask(seed=8, adapters=pair, composer=Composite(), scheduler="UniPC"),
        ask(
            seed=9,
            adapters=[Use("wide", 1.0, blocks=(("mid_block", 1.0),))],
            composer=Merge(),
            negative_prompt="x",
        ),
        ask("word, " * 60, seed=10, steps=7),
    ]
    with counted_calls(pipe) as calls:
        together = latents(pipe, *merges, *others)
    for request, found in zip(merges, together, strict=False):
        weights = {use.adapter: use.weight for use in request.uses}
        assert relative(found, stock_latents(judge_with_adapters, request, weights)) < 1e-4
    for request, found in zip(others, together[len(merges) :], strict=True):
        assert relative(found, latents(pipe, request)[0]) < 1e-4
    rounds = max(
        len(set_steps(make_scheduler(r.scheduler, judge_with_adapters.scheduler), r.steps or 0))
        for r in merges
    )
    assert len(calls) == rounds
    assert calls[0] == 2 * 9 + 1 + 2  # nine guided lanes pairs (Composite has two), one unguided


def test_composite_in_one_call_equals_sequential_calls(pipe: StudioPipeline) -> None:
    """Each adapter predicts alone, u and c are averaged, guidance once, one scheduler step."""
    weights = {"attention": 0.8, "wide": 0.5, "conv": 1.0}
    request = ask(adapters=weights, composer=Composite(), scheduler="Euler")
    with counted_calls(pipe) as calls:
        found = latents(pipe, request)[0]
    assert calls == [2 * len(weights)] * STEPS

    model = pipe.model
    scheduler = make_scheduler("Euler", model.checkpoint.scheduler)
    timesteps = set_steps(scheduler, STEPS)
    session_request = request.resolved(model.facts)
    texts = _texts(pipe, session_request)
    state = (
        torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(7)) * scheduler.init_noise_sigma
    )
    for timestep in timesteps:
        scaled = scheduler.scale_model_input(state, timestep)
        predictions = {"positive": [], "negative": []}  # type: dict[str, list[Tensor]]
        for name, weight in weights.items():
            for role, kept in predictions.items():
                with torch.inference_mode(), model.bank.active("unet", [(Use(name, weight),)]):
                    kept.append(model.unet(scaled, timestep, **texts[role]).sample)
        positive, negative = (torch.stack(predictions[role]).mean(0) for role in ("positive", "negative"))
        state = scheduler.step(negative + 5.0 * (positive - negative), timestep, state).prev_sample
    assert relative(found, state[0]) < 1e-4


def _texts(pipe: StudioPipeline, request: Request) -> dict[str, dict[str, Any]]:
    """role -> the UNet's text inputs for a resolved request, all its lanes having one prompt a role."""
    from pipelines.text.encoder import TextAsk

    uses = request.plans()[0].lanes[0].prompt.text_uses
    asks = {"positive": TextAsk(request.prompt, uses), "negative": TextAsk(request.negative_prompt, uses)}
    inputs: dict[str, dict[str, Any]] = {}
    for role, text in asks.items():
        [embedding] = pipe.model.encode_text([text])
        inputs[role] = {"encoder_hidden_states": embedding.tokens[None]}
        if embedding.pooled is not None:
            sizes = torch.tensor([[32.0, 32, 0, 0, 32, 32]])
            inputs[role]["added_cond_kwargs"] = {"text_embeds": embedding.pooled[None], "time_ids": sizes}
    return inputs


def test_composite_without_guidance_averages(pipe: StudioPipeline) -> None:
    pair = {"attention": 0.8, "conv": 1.0}
    both = latents(
        pipe, ask(adapters=pair, composer=Composite(), guidance_scale=1.0, steps=1, scheduler="Euler")
    )[0]
    # over one Euler step the latents are linear in the prediction, so the average shows in them
    singles = latents(
        pipe,
        *(
            ask(
                adapters=[
                    Use(name, weight if name == own else 0.0, text_weight=weight)
                    for name, weight in pair.items()
                ],
                guidance_scale=1.0,
                steps=1,
                scheduler="Euler",
            )
            for own in pair
        ),
    )
    assert relative(both, torch.stack(singles).mean(0)) < 1e-5


def test_identical_adapters_several_times_equal_one(
    folder: Path, loras: Callable[[Path], dict[str, Path]]
) -> None:
    pipe = StudioPipeline.from_pretrained(folder)
    for name in ("one", "two", "three"):
        pipe.load_lora_weights(loras(folder)["attention"], adapter_name=name)
    kept = {"text_mode": "first"}
    single = latents(pipe, ask(adapters={"one": 0.8}, **kept))[0]
    thrice = {"one": 0.8, "two": 0.8, "three": 0.8}
    for composer in (Composite(), Switch(interval=1)):
        assert relative(latents(pipe, ask(adapters=thrice, composer=composer, **kept))[0], single) < 1e-5


def test_a_b_a(pipe: StudioPipeline) -> None:
    first, other = ask(adapters={"attention": 0.8}), ask(adapters={"wide": 1.0}, composer=Composite())
    before = latents(pipe, first)[0]
    latents(pipe, other)
    assert torch.equal(latents(pipe, first)[0], before)


def test_a_pinned_adapter_acts_in_every_lane(pipe: StudioPipeline) -> None:
    """Switch over one member with a pinned adapter is the merge of both."""
    pinned = [Use("attention", 0.8), Use("wide", 0.5, pinned=True)]
    found = latents(pipe, ask(adapters=pinned, composer=Switch()))[0]
    merge = latents(pipe, ask(adapters={"attention": 0.8, "wide": 0.5}))[0]
    assert relative(found, merge) < 1e-5


def test_a_schedule_ends_an_adapters_part(pipe: StudioPipeline) -> None:
    tag = "a fox <lora:attention:te=0:unet=0.8{}>"
    never, early, whole = latents(
        pipe,
        ask("a fox", scheduler="Euler"),
        ask(tag.format(":stop=0.2"), scheduler="Euler"),
        ask(tag.format(""), scheduler="Euler"),
    )
    assert relative(early, never) > 1e-3
    assert relative(early, whole) > 1e-3
    assert relative(early, whole) < relative(never, whole)
