"""Stages, on the CPU with reruns in place of CUDA graphs: static buffers hold whatever mix comes, and nothing is
recorded twice."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from composers import Composite, Switch, Use
from pipelines import Request, StudioPipeline
from pipelines.adapters import read_adapter
from pipelines.engine.engine import Engine
from pipelines.engine.products.graphs import Reruns
from pipelines.engine.reference import merged
from pipelines.engine.residency.bank import FormChoice
from pipelines.engine.residency.packing import DensePacking
from pipelines.engine.unet_call import UNetCall, forward

from ..lanes import relative

MIXES = [
    {"attention": 0.8},
    {"wide": 0.5, "conv": 1.0},
    {},
    {"attention": 0.3, "wide": 0.7, "conv": -0.5},
]


@pytest.fixture
def pipe(sdxl_folder: Path, make_lora: Callable[..., Path]) -> StudioPipeline:
    return open_pipe(sdxl_folder, make_lora)


def open_pipe(model_folder: Path, make_lora: Callable[..., Path]) -> StudioPipeline:
    pipe = StudioPipeline.from_pretrained(model_folder)
    for name, rank, where in (("attention", 4, "attn"), ("wide", 3, ""), ("conv", 2, "conv")):
        pipe.load_lora_weights(make_lora(model_folder, name, seed=rank, rank=rank, where=where), name)
    return pipe


def staged(pipe: StudioPipeline, form: FormChoice = "auto") -> StudioPipeline:
    pipe.model.engine.recorder_for = lambda device: Reruns()
    pipe.model.bank.form = form
    pipe.model.engine.reset()
    return pipe


def requests() -> list[Request]:
    """Every method, with and without guidance, a long prompt, and reuse of features."""
    size = {"steps": 3, "width": 32, "height": 32}
    return [
        *(Request("a fox", adapters=mix, seed=seed, **size) for seed, mix in enumerate(MIXES)),
        Request("a long prompt, " * 40, adapters=MIXES[3], composer=Composite(), seed=7, **size),
        Request("a bear", adapters=MIXES[3], composer=Switch(interval=1), seed=8, **size),
        Request("a bear", adapters=MIXES[3], composer=Composite(), reuse=2, seed=9, **size),
        Request("a cat", adapters=MIXES[0], guidance_scale=1.0, seed=10, **size),
    ]


@pytest.mark.parametrize(("family", "form"), [("sd", "auto"), ("sdxl", "dense")])
def test_stages_draw_what_layers_one_by_one_draw(
    request: pytest.FixtureRequest, make_lora: Callable[..., Path], family: str, form: FormChoice
) -> None:
    pipe, asked = open_pipe(request.getfixturevalue(f"{family}_folder"), make_lora), requests()
    expected = pipe(asked, output_type="latent").images
    assert pipe.model.engine.stats.replays == 0
    staged(pipe, form)
    rehearsed, replayed = (pipe(asked, output_type="latent").images for _ in range(2))
    for first, second, other in zip(rehearsed, replayed, expected, strict=True):
        assert relative(first, other) < 1e-4
        assert torch.equal(first, second)
    stats = pipe.model.engine.stats
    assert 0 < stats.captures <= stats.replays


CELLS = 4


def call(
    pipe: StudioPipeline, mixes: Sequence[tuple[Use, ...]], *, seed: int = 0, twins: int = 2
) -> UNetCall:
    """A call with one guidance pair for each mix, steady for long."""
    generator = torch.Generator().manual_seed(seed)
    config = pipe.model.unet.config
    rows = twins * len(mixes)
    text = torch.randn((rows, 7, config.cross_attention_dim), generator=generator)
    sized = pipe.model.checkpoint.family.size_conditioned
    return UNetCall(
        torch.randn((rows, 4, CELLS, CELLS), generator=generator),
        torch.linspace(20, 980, rows),
        text,
        None,
        torch.randn((rows, 32), generator=generator) if sized else None,
        torch.full((rows, 6), 32.0) if sized else None,
        uses=tuple(mix for mix in mixes for _ in range(twins)),
        texts=tuple(text.unbind()),
        steady=20,
    )


def random_mix(draw: random.Random) -> tuple[Use, ...]:
    names = draw.sample(["attention", "wide", "conv"], draw.randint(1, 3))
    blocks = (("up_blocks.1", 1.0),) if draw.random() < 0.2 else ()
    return tuple(Use(name, round(draw.uniform(-1, 1), 2), blocks=blocks) for name in names)


@pytest.mark.parametrize(
    ("form", "turns", "most"),
    [
        ("lane-packed", 30, 2),
        ("pool", 15, 2),
        ("dense", 15, 2),
        pytest.param("lane-packed", 200, 3, marks=pytest.mark.slow),
    ],
)
def test_changes_record_and_compile_nothing(
    shallow_sdxl_folder: Path, make_lora: Callable[..., Path], form: FormChoice, turns: int, most: int
) -> None:
    """Mixes, strengths, numbers of pictures (up to `most`) and resident adapters change; after each, a row is checked
    against merged weights; the compile counter and the recordings stand still, and so does the memory."""
    pipe = staged(open_pipe(shallow_sdxl_folder, make_lora), form)
    engine = pipe.model.engine
    engine.optimize(graphs=True, compile=True, backend="eager")
    passing = read_adapter(
        make_lora(shallow_sdxl_folder, "passing", seed=5, rank=4, where=""), pipe.model.layers, "passing"
    )
    everything = tuple(Use(name, 0.5) for name in ("attention", "wide", "conv"))
    for pictures in (*range(1, most + 1), *range(1, most + 1)):
        engine.run(call(pipe, [everything] * pictures))
    captures, recompiles, size = engine.stats.captures, engine.stats.recompiles, stage_bytes(engine)
    assert captures == most
    assert recompiles > 0

    draw = random.Random(1)
    for turn in range(turns):
        mixes = [random_mix(draw) for _ in range(draw.randint(1, most))]
        mixes[0] = (*mixes[0][:1], Use("wide", 0.3)) if mixes[0][0].adapter != "wide" else mixes[0]
        mixes[0] = tuple(
            {use.adapter: use for use in (*mixes[0], *everything)}.values()
        )  # every kind of layer
        if turn % 20 == 10:
            pipe.model.bank.load(passing)
            mixes[-1] = (*mixes[-1][:2], Use("passing", 0.4))
        own = call(pipe, mixes, seed=turn)
        found = engine.run(own).prediction
        if turn % 40 in (10, 25):
            row = len(mixes) - 1
            twin = merged(pipe.model.unet, "unet", pipe.model.bank.adapters, mixes[row])
            with torch.inference_mode():
                expected = forward(twin, own).prediction
            assert relative(found[2 * row], expected[2 * row]) < 1e-5
        if turn % 20 == 10:
            pipe.model.bank.unload("passing")
    assert engine.stats.layer_by_layer == 0
    assert engine.stats.replays == turns + most
    assert (engine.stats.captures, engine.stats.recompiles) == (captures, recompiles)
    assert stage_bytes(engine) == size


@pytest.mark.parametrize("form", ["lane-packed", "pool", "dense"])
def test_adapters_of_different_reach_come_and_go(
    sdxl_folder: Path, make_lora: Callable[..., Path], form: FormChoice
) -> None:
    """A stage holds every layer of a kind, also those of widths that no resident adapter reaches."""
    pipe = staged(StudioPipeline.from_pretrained(sdxl_folder), form)
    reaches = {
        "middle": "mid_block.attentions",
        "query": "to_q",
        "resnets": "up_blocks.0.resnets",
        "time": "time_emb",
    }
    for seed, (name, where) in enumerate(reaches.items()):
        pipe.load_lora_weights(make_lora(sdxl_folder, name, seed=seed, where=where, text=False), name)
        mix = (Use(name, 0.7),)
        twin = merged(pipe.model.unet, "unet", pipe.model.bank.adapters, mix)
        for turn in range(3):
            own = call(pipe, [mix, ()], seed=turn)
            found = pipe.model.engine.run(own).prediction
            with torch.inference_mode():
                expected = forward(twin, own).prediction
            assert relative(found[:2], expected[:2]) < 1e-5
        pipe.unload_lora_weights(name)
    assert pipe.model.engine.stats.layer_by_layer == 0


def stage_bytes(engine: Engine) -> int:
    return sum(stage.bytes for stage in engine.stages)


def test_whole_weights_stay_seated_when_others_leave(pipe: StudioPipeline) -> None:
    """A picture that leaves does not make those behind it merge their weights anew."""
    engine = staged(pipe, "dense").model.engine
    a, b, c = (
        tuple(Use(name, 0.5) for name in names) for names in (("wide",), ("wide", "conv"), ("attention",))
    )
    first = call(pipe, [a, b, c])
    for _ in range(2):
        expected = engine.run(first).prediction
    written = spy_on_dense(engine)
    rows = slice(2, 6)
    later = first.on({name: tensor[rows] for name, tensor in first.tensors().items()})
    later = replace(later, uses=first.uses[rows], texts=first.texts[rows])
    padded = replace(first, uses=(*later.uses, *first.uses[:2]), texts=(*later.texts, *first.texts[:2]))
    padded = padded.on(
        {name: torch.cat([tensor[rows], tensor[:2]]) for name, tensor in first.tensors().items()}
    )
    found = engine.run(padded).prediction
    assert relative(found, torch.cat([expected[rows], expected[:2]])) < 1e-5
    assert written == []


@torch.inference_mode()
def test_whole_weights_of_neighbours_are_written_by_one_product_a_layer(pipe: StudioPipeline) -> None:
    engine = staged(pipe, "dense").model.engine

    def mixes(*strengths: float) -> list[tuple[Use, ...]]:
        return [(Use("attention", strength),) for strength in strengths]

    engine.run(call(pipe, mixes(0.1, 0.2, 0.3)))
    [stage] = engine.stages
    packing = stage.packings["attention"]
    assert isinstance(packing, DensePacking)
    for changed, products in (
        (mixes(0.4, 0.5, 0.6), 1),
        (mixes(0.7, 0.5, 0.8), 2),
        (mixes(0.7, 0.5, 0.9), 1),
    ):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            stage._place(tuple(changed))
        written = sum(event.count for event in seen.key_averages() if event.key == "aten::baddbmm")
        assert written == products * len(packing.acting)


def spy_on_dense(engine: Engine) -> list[Sequence[int] | None]:
    """The seats that whole weights are written to from now on."""
    seen: list[Sequence[int] | None] = []
    for stage in engine.stages:
        for packing in stage.packings.values():
            if not isinstance(packing, DensePacking):
                continue
            fill = packing.fill

            def spied(pools, draft, seats=None, fill=fill):  # type: ignore[no-untyped-def]
                seen.append(seats)
                fill(pools, draft, seats)

            packing.fill = spied  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("recorded", [False, True])
def test_text_keys_are_computed_once_while_text_and_mix_stay(pipe: StudioPipeline, recorded: bool) -> None:
    if recorded:
        staged(pipe)
    request = Request("a fox", adapters=MIXES[0], seed=1, steps=6, width=32, height=32)
    pipe(request)
    assert pipe.model.engine.stats.text_rows == 2
    assert bool(pipe.model.engine.stats.replays) == recorded
    pipe(replace(request, composer=Switch(interval=1), adapters={"wide": 1.0, "conv": 1.0}))
    # Each step's adapter differs from the last one's; recorded, each has buffers of its own, as they reach other kinds
    # of layers, and these keep its keys.
    turns = 2 if recorded else 6
    assert pipe.model.engine.stats.text_rows == 2 + 2 * turns


@torch.inference_mode()
def test_recorded_text_keys_follow_text_and_mix(pipe: StudioPipeline) -> None:
    engine = staged(pipe).model.engine
    first = call(pipe, [(Use("wide", 0.2),)])
    stronger = replace(first, uses=((Use("wide", 0.9),),) * 2)
    other = replace(first, text=first.text.flip(0), texts=first.texts[::-1])
    for own, computed in ((first, 2), (first, 0), (stronger, 2), (other, 2), (other, 0), (first, 2)):
        rows = engine.stats.text_rows
        found = engine.run(own).prediction
        assert engine.stats.text_rows == rows + computed
        twin = merged(pipe.model.unet, "unet", pipe.model.bank.adapters, own.uses[0])
        assert relative(found, forward(twin, own).prediction) < 1e-5
    assert engine.stats.captures == 1


def test_text_keys_stay_where_adapters_do_not_reach_them(pipe: StudioPipeline) -> None:
    staged(pipe)
    request = Request("a fox", adapters={"conv": 1.0}, seed=1, steps=3, width=32, height=32)
    pipe(request)
    rows = pipe.model.engine.stats.text_rows
    mixes = [(Use("conv", strength),) for strength in (0.2, 0.4, 0.6)]
    first = call(pipe, mixes[:1])
    for mix in mixes:
        pipe.model.engine.run(replace(first, uses=(mix, mix)))
    assert pipe.model.engine.stats.text_rows == rows + 2


def test_what_cannot_be_recorded_runs_layer_by_layer_and_says_why(pipe: StudioPipeline) -> None:
    class Refusing:
        def record(self, work: Callable[[], object]) -> NoReturn:
            raise RuntimeError("this operation cannot be captured\nmore")

    request = Request("a fox", adapters=MIXES[0], seed=1, steps=4, width=32, height=32)
    expected = pipe(request, output_type="latent")
    pipe.model.engine.recorder_for = lambda device: Refusing()
    pipe.model.engine.reset()
    found = pipe(request, output_type="latent")
    assert relative(found.images[0], expected.images[0]) < 1e-5
    (note,) = found.records[0].notes
    assert note == "no CUDA graph for 2 rows of 16 x 16 latents: this operation cannot be captured"
    assert expected.records[0].notes == ()


def test_after_warming_up_nothing_is_recorded(pipe: StudioPipeline) -> None:
    staged(pipe)
    asked = [
        Request("a fox", adapters=MIXES[3], seed=seed, steps=5, width=32, height=32) for seed in range(2)
    ]
    told: list[tuple[int, int]] = []
    pipe.warm_up(asked, lambda done, of: told.append((done, of)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    captures = pipe.model.engine.stats.captures
    assert captures == 1
    pipe([replace(request, adapters=MIXES[3] | {"wide": 0.1}, seed=9) for request in asked])
    assert pipe.model.engine.stats.captures == captures
