"""Every method end to end against its equations, written out in plain torch on stock diffusers.

The reference is a loop over steps and lanes with one UNet call each. Adapters are added to the weights from the tensors
of their files. It shares no code with the methods, the plans, the engine and the fold. All pictures of one model are
rendered in one session, so that a row that goes to a wrong picture, lane or step shows too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call

from composers import (
    BLora,
    CMLoRA,
    Composer,
    Composite,
    Merge,
    Mix,
    Plan,
    Schedule,
    Step,
    Switch,
    Use,
    guided,
    methods,
)
from composers.plan import settings
from pipelines import Request, StudioPipeline
from pipelines.schedulers import make_scheduler

from ..random_models import save_sdxl
from .lanes import relative

pytestmark = pytest.mark.usefixtures("no_faults")

WIDTH, HEIGHT = 32, 24  # pixels
MILD = 0.4
"""How strong the adapters are: enough to show, and weak enough that six steps do not blow up rounding."""
PROMPT, NEGATIVE = "a fox in a red hat", "a crown, a pig"


# -- the reference ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One adapter set that predicts by itself at one step, and its share in the picture's prediction.

    names: the adapters that act. fresh: it is evaluated in full, and not on the deep features of an earlier step.
    oldest: the age in steps up to which such features may be read.
    """

    share: float
    names: tuple[str, ...]
    fresh: bool = True
    oldest: int = 0


Turns = Callable[[int, int], list[Part]]
"""(step, number of steps) -> what predicts at that step."""


def moment(use: Use, step: int, steps: int) -> float:
    """The strength at a step: the weight times the last factor of the schedule whose start has come."""
    found = use.weight
    for start, factor in use.schedule.points if use.schedule else ():
        begins = start if start >= 1 else start * steps
        if step >= begins - 1e-6:
            found = use.weight * factor
    return found


def block(use: Use, module: str) -> float:
    """The factor of the innermost block that holds the module."""
    found = 0.0 if use.blocks else 1.0
    for name, factor in sorted(use.blocks, key=lambda pair: len(pair[0])):
        if module == name or module.startswith(name + "."):
            found = factor
    return found


class Reference:
    """Stock diffusers and the adapters' files: one picture, the slow way."""

    def __init__(self, judge: Any, files: Mapping[str, Path]) -> None:
        self.judge = judge
        self.changes = {name: self._changes(load_file(file)) for name, file in files.items()}
        self.levels = 2 if hasattr(judge, "text_encoder_2") else 1  # of the UNet, that a shallow pass runs

    def _changes(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """ "unet.layer" -> the change of its weight: alpha / rank * B A, or W * (B A) - W."""
        found = {}
        for key, first in tensors.items():
            layer, _, part = key.rpartition(".lora_A.weight" if ".lora_A." in key else ".flora_in.weight")
            if part or not layer:
                continue
            weight = self._weight(layer)
            if ".lora_A." in key:
                alpha = float(tensors.get(f"{layer}.alpha", torch.tensor(len(first))))
                product = tensors[f"{layer}.lora_B.weight"].flatten(1) @ first.flatten(1)
                found[layer] = alpha / len(first) * product.reshape(weight.shape)
            else:
                product = tensors[f"{layer}.flora_out.weight"] @ first
                found[layer] = weight * product.reshape(product.shape + (1,) * (weight.dim() - 2)) - weight
        return found

    def _weight(self, layer: str) -> Tensor:
        component, _, module = layer.partition(".")
        weight: Tensor = getattr(self.judge, component).get_parameter(f"{module}.weight").detach()
        return weight

    def merged(self, component: str, strengths: Mapping[Use, float]) -> dict[str, Tensor]:
        """Weight name -> W + sum of strength * block factor * dW. Blocks are the UNet's."""
        found: dict[str, Tensor] = {}
        for use, value in strengths.items():
            for layer, change in self.changes[use.adapter].items():
                owner, _, module = layer.partition(".")
                if owner == component:
                    before = found.get(f"{module}.weight", self._weight(layer))
                    factor = block(use, module) if owner == "unet" else 1.0
                    found[f"{module}.weight"] = before + value * factor * change
        return found

    def texts(self, request: Request, uses: list[Use]) -> dict[str, Any]:
        """What the UNet reads of the prompts, [negative, positive], with these adapters on the text encoders."""
        strengths = {use: use.weight if use.text_weight is None else use.text_weight for use in uses}
        judge = copy.copy(self.judge)
        for name in ("text_encoder", "text_encoder_2"):
            if hasattr(judge, name):
                setattr(judge, name, copy.deepcopy(getattr(judge, name)))
                for key, weight in self.merged(name, strengths).items():
                    getattr(judge, name).get_parameter(key).copy_(weight)
        found = judge.encode_prompt(
            request.prompt,
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            negative_prompt=request.negative_prompt,
            clip_skip=request.clip_skip,
        )
        texts: dict[str, Any] = {"encoder_hidden_states": torch.cat([found[1], found[0]])}
        if len(found) == 4:
            own = (HEIGHT, WIDTH)
            sizes = (*(request.original_size or own), *request.crop, *(request.target_size or own))
            ids = torch.tensor([sizes] * 2, dtype=torch.float32)
            texts["added_cond_kwargs"] = {"text_embeds": torch.cat([found[3], found[2]]), "time_ids": ids}
        return texts

    @torch.inference_mode()
    def latents(self, request: Request, turns: Turns) -> Tensor:
        """The latents after the last step, [channels, h, w]."""
        assert request.steps is not None
        assert request.seed is not None
        assert request.guidance_scale is not None
        uses = {use.adapter: use for use in request.uses}
        pinned = tuple(use.adapter for use in request.uses if use.pinned)
        members = tuple(use.adapter for use in request.uses if not use.pinned)
        steps, guidance = request.steps, request.guidance_scale
        scheduler = make_scheduler(request.scheduler, self.judge.scheduler)
        scheduler.set_timesteps(steps)
        generator = torch.Generator().manual_seed(request.seed)
        latents = (
            torch.randn((1, 4, HEIGHT // 2, WIDTH // 2), generator=generator) * scheduler.init_noise_sigma
        )
        remembered: dict[tuple[str, ...], tuple[int, list[float], Tensor]] = {}
        texts: dict[tuple[str, ...], dict[str, Any]] = {}
        weights: dict[object, dict[str, Tensor]] = {}
        for call, timestep in enumerate(scheduler.timesteps):
            step = call // scheduler.order
            scaled = scheduler.scale_model_input(latents, timestep).expand(2, -1, -1, -1)
            prediction = torch.zeros(2, *latents.shape[1:])
            for part in turns(step, steps):
                acting = (*part.names, *pinned)
                seen = {"merged": members, "first": members[:1], "per_adapter": part.names}[request.text_mode]
                if seen not in texts:
                    texts[seen] = self.texts(request, [uses[name] for name in (*seen, *pinned)])
                now = [moment(uses[name], step, steps) for name in acting]
                if (acting, *now) not in weights:
                    strengths = {uses[name]: value for name, value in zip(acting, now, strict=True)}
                    weights[acting, *now] = self.merged("unet", strengths)
                born, then, features = remembered.get(acting, (-1, [], None))
                still = all(abs(b - a) <= 0.1 * abs(a) for a, b in zip(then, now, strict=False))
                shallow = not part.fresh and features is not None and step - born <= part.oldest and still
                found, made = self._predict(
                    weights[acting, *now], features if shallow else None, scaled, timestep, texts[seen]
                )
                if not shallow:
                    remembered[acting] = (step, now, made)
                prediction += part.share * found
            negative, positive = prediction[:1], prediction[1:]
            folded = negative + guidance * (positive - negative) if guidance > 1 else positive
            if guidance > 1 and request.guidance_rescale:
                level = folded * positive.std() / folded.std()
                folded = request.guidance_rescale * level + (1 - request.guidance_rescale) * folded
            drawn = {"generator": generator} if request.scheduler == "Euler a" else {}
            latents = scheduler.step(folded, timestep, latents, **drawn).prev_sample
        return latents[0]

    def _predict(
        self,
        weights: Mapping[str, Tensor],
        deep: Tensor | None,
        scaled: Tensor,
        timestep: Tensor,
        texts: Mapping[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """The UNet's prediction, and its deep features. deep: put in place of those that this call would make."""
        made: list[Tensor] = []

        def put(module: object, inputs: object, output: Tensor) -> Tensor | None:
            made.append(output)
            return deep

        hook = self.judge.unet.up_blocks[-1 - self.levels].register_forward_hook(put)
        try:
            call = functional_call(self.judge.unet, dict(weights), (scaled, timestep), dict(texts))
        finally:
            hook.remove()
        return call.sample, made[0]


# -- the methods' equations ------------------------------------------------------------------------------


def merge(names: str, every: int = 1) -> Turns:
    """W + sum w_i dW_i. every: deep features are made at every so many steps."""
    return lambda step, _: [Part(1.0, tuple(names), step % every == 0, every)]


def switch(names: str, interval: int, *, code: bool = False) -> Turns:
    """Adapter floor(s / interval) mod k; the released code has max(s - 1, 0) for s."""

    def turns(step: int, steps: int) -> list[Part]:
        passed = max(step - 1, 0) if code else step
        return [Part(1.0, (names[passed // interval % len(names)],))]

    return turns


def composite(names: str, every: int = 1) -> Turns:
    """The mean of the adapters' own predictions."""
    return lambda step, _: [Part(1 / len(names), (name,), step % every == 0, every) for name in names]


def cmlora(
    high: str,
    low: str = "",
    *,
    refresh: str = "dominant_every_step",
    interval: int = 0,
    partition: float = 120 / 220,
    decay: bool = False,
    late_from: int | None = None,
) -> Turns:
    """The turns, shares and caching of Zou et al. as `composers.cmlora` states them.

    late_from: the step at which the late phase of the released code begins; None is the method without its faults.
    """
    names, n, released = high + low, len(high) or len(low), late_from is not None
    in_turn = refresh == "every_step_in_turn" and not released

    def refreshes(steps: int) -> list[int]:
        if in_turn or interval == 1:
            return list(range(steps))
        if interval:
            return [step for step in range(steps) if step % interval == 0]
        early, middle = int(0.375 * steps), int(0.875 * steps)
        return [*range(0, early, 2), *range(early, middle, 3), *range(middle, steps, 2)]

    def dominant(step: int, steps: int) -> int:
        passed = sum(at <= step for at in refreshes(steps)) - 1
        if released:
            return passed % n if step < (late_from or 0) or not low or not high else passed % n + 1
        return passed % (n if step < round(partition * steps) else len(names))

    def weight(step: int, steps: int) -> float:
        leads = [dominant(at, steps) for at in range(step + 1)]
        changes = sum(a != b for a, b in pairwise(leads)) if decay else 0
        return max(1.0, len(names) - 0.5 - sum(0.5**j for j in range(changes)))

    def is_fresh(place: int, step: int, steps: int) -> bool:
        due, leads = step in refreshes(steps), place == dominant(step, steps)
        if interval == 1 or refresh == "uncached" or (released and not interval):
            return True
        if released:
            return due and leads and (step < (late_from or 0) or not low)
        return {
            "dominant_only": due and leads,
            "dominant_every_step": leads,
            "every_step_in_turn": leads,
            "all": due,
        }[refresh]

    def turns(step: int, steps: int) -> list[Part]:
        lead, c = dominant(step, steps), weight(step, steps)
        oldest = steps if released else len(names) * (1 if in_turn else interval or 3)
        return [
            Part(
                (c if place == lead else 1.0) / (c + len(names) - 1),
                (name,),
                is_fresh(place, step, steps),
                oldest,
            )
            for place, name in enumerate(names)
        ]

    return turns


@dataclass(frozen=True)
class Uneven(Composer):
    """A method of our own with a share for each adapter: what `guided` promises to any method."""

    name: ClassVar[str] = "uneven"
    summary: ClassVar[str] = "for this test"

    def plan(self, step: Step, mix: Mix) -> Plan:
        shares = (0.6, 0.3, 0.1)
        lanes = [mix.lane(mix.uses[: place + 1], share) for place, share in enumerate(shares)]
        return guided(lanes, step)


def uneven(names: str) -> Turns:
    """The first adapter at 0.6, the first two at 0.3, all three at 0.1."""
    return lambda step, _: [
        Part(share, tuple(names[: place + 1])) for place, share in enumerate((0.6, 0.3, 0.1))
    ]


# -- the pictures ----------------------------------------------------------------------------------------

A = Use("a", 0.9)
B = Use("b", -0.7, text_weight=0.4, schedule=Schedule(((0.3, 0.5), (0.7, 1.6))))
C = Use(
    "c", 0.8, text_weight=0.0, blocks=(("up_blocks", 0.5), ("up_blocks.1.resnets", 0.0), ("mid_block", 1.7))
)
F = Use("f", 0.6)
"""a: of rank 4 and alpha 6, on attention. b: of rank 3, everywhere. c: of rank 2, on convolutions. f: a FLoRA."""
HIGH = [Use("a", 0.9, band="high"), Use("c", 0.7, band="high")]
LOW = Use("b", -0.6, band="low")


def ask(composer: Composer, *uses: Use, **settings: Any) -> Request:
    usual = {"seed": 3, "steps": 6, "guidance_scale": 4.0, "scheduler": "Euler", "negative_prompt": NEGATIVE}
    return Request(PROMPT, composer=composer, adapters=uses, width=WIDTH, height=HEIGHT, **(usual | settings))


def cm(seed: int, turns: Turns, *uses: Use, steps: int = 9, **settings: Any) -> tuple[Request, Turns]:
    return ask(CMLoRA(**settings), *uses, seed=seed, steps=steps), turns


SDXL: dict[str, tuple[Request, Turns]] = {
    "merge": (ask(Merge(), A, B, C), merge("abc")),
    "merge, ancestral, unguided, cropped": (
        ask(
            Merge(),
            A,
            B,
            scheduler="Euler a",
            guidance_scale=1.0,
            original_size=(40, 30),
            crop=(3, 5),
            target_size=(20, 28),
        ),
        merge("ab"),
    ),
    "merge, rescaled, Heun": (ask(Merge(), B, C, guidance_rescale=0.7, scheduler="Heun"), merge("bc")),
    "merge, FLoRA and LoRA": (ask(Merge(), F, C, B), merge("fcb")),
    "merge, pinned": (ask(Merge(), Use("c", 0.8, pinned=True), A), merge("a")),
    "merge, reuse": (ask(Merge(), A, C, reuse=3, steps=7), merge("ac", 3)),
    "merge, reuse, a strength that moves": (ask(Merge(), A, B, reuse=4, steps=7), merge("ab", 4)),
    "merge, schedule by step numbers": (
        ask(Merge(), Use("a", 0.9, schedule=Schedule(((2, 0.3), (5, -1.0))))),
        merge("a"),
    ),
    "switch": (ask(Switch(interval=2), A, B, C, steps=7), switch("abc", 2)),
    "switch, as released": (
        ask(Switch(interval=2, convention="code"), C, A, B, steps=8, text_mode="first"),
        switch("cab", 2, code=True),
    ),
    "composite": (ask(Composite(), A, B, C), composite("abc")),
    "composite, a prompt for each adapter": (
        ask(Composite(), A, F, C, text_mode="per_adapter", negative_prompt=None, clip_skip=1),
        composite("afc"),
    ),
    "composite, unguided": (ask(Composite(), A, B, guidance_scale=0.5), composite("ab")),
    "composite, pinned": (ask(Composite(), A, Use("f", 0.5, pinned=True), C, scheduler="DPM++ 2M"), composite("ac")),
    "composite, reuse, Heun": (ask(Composite(), A, C, reuse=2, steps=5, scheduler="Heun"), composite("ac", 2)),
    "unequal shares": (ask(Uneven(), A, B, C), uneven("abc")),
    "unequal shares, a prompt for each": (
        ask(Uneven(), C, A, B, text_mode="per_adapter", guidance_rescale=0.4),
        uneven("cab"),
    ),
    "cmlora": cm(4, cmlora("ac", "b"), LOW, *HIGH),
    "cmlora, early low band": cm(5, cmlora("ac", "b", partition=0.3), LOW, *HIGH, partition=0.3),
    "cmlora, decay": cm(6, cmlora("acb", decay=True), *HIGH, B, decay=True),
    "cmlora, interval 2": cm(7, cmlora("ac", "b", interval=2), *HIGH, LOW, interval=2),
    "cmlora, uncached": cm(8, cmlora("ac", "b", refresh="uncached"), *HIGH, LOW, refresh="uncached"),
    "cmlora, all": cm(9, cmlora("ac", "b", refresh="all"), LOW, *HIGH, refresh="all"),
    "cmlora, dominant only": cm(
        10, cmlora("ac", "b", refresh="dominant_only"), LOW, *HIGH, refresh="dominant_only", steps=10
    ),
    "cmlora, in turn": cm(
        11, cmlora("ac", "b", refresh="every_step_in_turn"), LOW, *HIGH, refresh="every_step_in_turn"
    ),
    "cmlora, as released": cm(
        12, cmlora("ac", "b", interval=2, late_from=121), LOW, *HIGH, interval=2, compat="release"
    ),
    "cmlora, as released online": cm(
        13, cmlora("ac", "b", interval=2, late_from=1), LOW, *HIGH, interval=2, compat="release_online"
    ),
}  # fmt: skip
BLORA: dict[str, tuple[Request, Turns, tuple[Use, ...]]] = {
    "blora": (
        ask(BLora(content="b", style="a"), A, Use("b", 0.7)),
        merge("ab"),
        (
            Use("a", 0.9, 0.0, blocks=(("up_blocks.0.attentions.1", 1.0),)),
            Use("b", 0.7, 0.0, blocks=(("up_blocks.0.attentions.0", 1.0),)),
        ),
    ),
    "blora, squared": (
        ask(BLora(alpha_mode="square"), Use("b", 1.3), Use("a", 0.6)),
        merge("ba"),
        (
            Use("b", 1.69, 0.0, blocks=(("up_blocks.0.attentions.0", 1.0),)),
            Use("a", 0.36, 0.0, blocks=(("up_blocks.0.attentions.1", 1.0),)),
        ),
    ),
}
"""The request, the turns, and the uses that the method's equations make of the request's."""
SD: dict[str, tuple[Request, Turns]] = {
    "merge": (ask(Merge(), B, F, C), merge("bfc")),
    "composite": (ask(Composite(), A, B, C, negative_prompt=None), composite("abc")),
    "switch": (ask(Switch(interval=1), B, A), switch("ba", 1)),
    "cmlora": cm(14, cmlora("ac", "b"), LOW, *HIGH, steps=6),
    "merge, reuse": (ask(Merge(), A, C, reuse=3), merge("ac", 3)),
}


# -- the tests -------------------------------------------------------------------------------------------


class Bench:
    """One model: every picture rendered in one session, and the reference."""

    def __init__(
        self,
        folder: Path,
        stock: Callable[[Path], Any],
        files: Mapping[str, Path],
        requests: Mapping[str, Request],
    ) -> None:
        pipe = StudioPipeline.from_pretrained(folder)
        for name, file in files.items():
            pipe.load_lora_weights(file, adapter_name=name)
        images = pipe(list(requests.values()), output_type="latent").images
        self.rendered: dict[str, Tensor] = dict(zip(requests, images, strict=True))
        self.reference = Reference(stock(folder), files)


@pytest.fixture(scope="module")
def files(
    make_lora: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], dict[str, Path]]:
    def made(folder: Path) -> dict[str, Path]:
        home = tmp_path_factory.mktemp("equations")
        found = {name: home / f"{name}.safetensors" for name in "abcf"}
        for seed, (name, rank, where) in enumerate((("a", 4, "attn"), ("b", 3, ""), ("c", 2, "conv"))):
            tensors = load_file(make_lora(folder, name, seed=seed, rank=rank, where=where))
            for key in tensors:
                if ".lora_B." in key:
                    tensors[key] *= MILD
            layers = [key.removesuffix(".lora_A.weight") for key in tensors if ".lora_A." in key]
            alphas = {f"{layer}.alpha": torch.tensor(6.0) for layer in layers} if name == "a" else {}
            save_file(tensors | alphas, found[name])
        tensors = load_file(found["a"])
        flora: dict[str, Tensor] = {}
        one = torch.tensor([[1.0], [0], [0], [0]])
        for key in tensors:
            layer, _, part = key.rpartition(".lora_")
            if part == "A.weight":
                flora[f"{layer}.flora_in.weight"] = one + MILD * tensors[key].flatten(1)
            elif part == "B.weight":
                flora[f"{layer}.flora_out.weight"] = one.T + tensors[key].flatten(1)
        save_file(flora, found["f"], {"flora.version": "1"})
        return found

    return made


@pytest.fixture(scope="module")
def sdxl(
    tmp_path_factory: pytest.TempPathFactory,
    stock: Callable[[Path], Any],
    files: Callable[[Path], dict[str, Path]],
) -> Bench:
    folder = save_sdxl(tmp_path_factory.mktemp("models") / "plain-sdxl", (16, 32, 32), 1, (1, 1, 1))
    requests = {name: case[0] for name, case in [*SDXL.items(), *BLORA.items()]}
    return Bench(folder, stock, files(folder), requests)


@pytest.fixture(scope="module")
def sd(sd_folder: Path, stock: Callable[[Path], Any], files: Callable[[Path], dict[str, Path]]) -> Bench:
    return Bench(sd_folder, stock, files(sd_folder), {name: request for name, (request, _) in SD.items()})


def test_every_method_and_every_way_of_cmlora_is_under_test() -> None:
    composers = [request.composer for request, *_ in [*SDXL.values(), *BLORA.values()]]
    assert set(methods().values()) <= {type(composer) for composer in composers}
    ways = [composer for composer in composers if isinstance(composer, CMLoRA)]
    for name in ("refresh", "compat"):
        [knob] = [one.knob for one in settings(CMLoRA) if one.name == name]
        assert {getattr(composer, name) for composer in ways} == set(knob.choices)


@pytest.mark.parametrize("case", SDXL)
def test_a_method_on_sdxl_equals_its_equations(sdxl: Bench, case: str) -> None:
    assert relative(sdxl.rendered[case], sdxl.reference.latents(*SDXL[case])) < 2e-5


@pytest.mark.parametrize("case", SD)
def test_a_method_on_sd_equals_its_equations(sd: Bench, case: str) -> None:
    assert relative(sd.rendered[case], sd.reference.latents(*SD[case])) < 2e-5


@pytest.mark.parametrize("case", BLORA)
def test_blora_equals_a_merge_of_the_blocks_that_its_equations_name(sdxl: Bench, case: str) -> None:
    request, turns, uses = BLORA[case]
    as_merged = ask(Merge(), *uses, seed=request.seed)
    assert relative(sdxl.rendered[case], sdxl.reference.latents(as_merged, turns)) < 2e-5
