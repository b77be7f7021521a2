"""The cost model chooses what its formulas say, and calibration is done once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from composers import CMLoRA, Merge, Mix, Step, Switch, Use
from pipelines import Request, StudioPipeline, assets
from pipelines.denoise import steady, uses_of
from pipelines.engine import calibration
from pipelines.engine.calibration import rates_of
from pipelines.engine.engine import MEMORY_SHARE
from pipelines.engine.planner import LOW_RANK, MEASURED, Estimate, Load, Planner, Rates, Work, estimates
from pipelines.engine.products.factors import Form, made_in_passing
from pipelines.engine.products.graphs import Reruns
from pipelines.engine.residency.packing import Ranks
from pipelines.engine.residency.table import Table
from pipelines.features import passes_of

LAYER = Work(rows=16, tokens=1024, in_width=1280, out_width=1280)
PAIR = Mix((Use("a"), Use("b")))
LOAD = Load(rows=16, groups=8, cells=64 * 64, steady=30, room=1e12)


def costs(lane: int, pool: int, groups: int = 8) -> dict[str, Estimate]:
    found = estimates([LAYER] * 100, Ranks("attention", groups, lane, pool), groups, MEASURED["cuda"], 2)
    return {each.form: each for each in found}


def test_costs_grow_with_what_they_are_made_of() -> None:
    small, large = costs(16, 48), costs(256, 512)
    assert small["lane-packed"].step < large["lane-packed"].step
    assert small["lane-packed"].step < small["pool"].step
    assert small["dense"].step == large["dense"].step
    assert small["dense"].bytes == 100 * 8 * 1280 * 1280 * 2
    assert large["pool"].bytes == 100 * 512 * (1280 + 1280) * 2
    assert costs(16, 16, 1)["pool"].bytes == costs(16, 16, 1)["lane-packed"].bytes


def test_keys_and_values_of_texts_cost_nothing_while_the_mix_stays() -> None:
    every_call, once = (
        estimates([LAYER], Ranks(kind, 8, 48, 96), 8, MEASURED["cuda"], 2) for kind in ("attention", "text")
    )
    for own, other in zip(every_call, once, strict=True):
        assert (own.form, own.bytes) == (other.form, other.bytes)
        assert other.step == 0
        assert other.once == own.once + own.step


def test_weights_made_in_passing_cost_the_same_whatever_the_picture() -> None:
    """From some size on a picture's tokens no longer count in what a low-rank form costs; the pool's always do."""
    rates, ranks = MEASURED["cuda"], Ranks("attention", 8, 48, 96)

    def steps(tokens: int) -> dict[Form, float]:
        work = Work(rows=16, tokens=tokens, in_width=640, out_width=640)
        return {each.form: each.step for each in estimates([work], ranks, 8, rates, 2)}

    assert made_in_passing(2 * 4096, 640, 640)
    assert not made_in_passing(2 * 1024, 640, 640)
    assert steps(4096)["lane-packed"] == steps(8192)["lane-packed"] < 0.3 * steps(4096)["pool"]
    assert steps(1024)["lane-packed"] > steps(256)["lane-packed"]


def test_a_mix_stays_while_lanes_that_run_one_way_keep_their_uses() -> None:
    """CMLoRA's one dominant lane runs in full and changes, though the lanes together never do."""
    a, b = [(Use("a"),)], [(Use("b"),)]
    turns = [a, a, b, b, b, a]
    assert [steady(turns, step) for step in range(6)] == [2, 2, 3, 3, 3, 1]
    assert steady([a, [], a, [], b], 2) == 2
    composer = CMLoRA(interval=2).resolved(PAIR, 12)
    plans = [composer.plan(Step(index, 12, 1.0), PAIR) for index in range(12)]
    together, in_full = (
        uses_of(plans, passes_of(plans, remembering=remembering), shallow=False)
        for remembering in (False, True)
    )
    assert steady(together, 6) == 12
    assert steady(in_full, 6) == 2


@pytest.mark.parametrize(
    ("load", "form"),
    [
        (LOAD, "dense"),
        (replace(LOAD, steady=9), "lane-packed"),
        (replace(LOAD, room=1e9), "lane-packed"),
        (replace(LOAD, room=1.0), "lane-packed"),
    ],
)
def test_whole_weights_are_for_mixes_that_stay_and_fit(load: Load, form: str) -> None:
    assert Planner().choose(list(costs(48, 96).values()), load) == form


def test_a_device_is_calibrated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter([Rates(1e9, 1e8, 1e10, 1e-6, 1e-5)])
    monkeypatch.setattr(calibration, "measure", lambda device, dtype: next(made))
    first = rates_of(torch.device("cpu"), torch.float32, tmp_path)
    assert rates_of(torch.device("cpu"), torch.float32, tmp_path) == first
    (file,) = (tmp_path / "engine").iterdir()
    assert json.loads(file.read_text())["gemm"] == 1e9


def test_rates_are_those_of_a_computer() -> None:
    rates = calibration.measure(torch.device("cpu"), torch.float32)
    assert 1e7 < rates.low_rank < 1e14
    assert 1e7 < rates.gemm < 1e14
    assert 1e7 < rates.bandwidth < 1e13
    assert 1e-8 < rates.launch < 1e-2
    assert 1e-8 < rates.host < 1e-2


def test_a_product_of_higher_rank_fills_its_tiles_up_to_the_large_one() -> None:
    rates = MEASURED["cuda"]
    assert rates.product(LOW_RANK) == pytest.approx(rates.low_rank)
    assert rates.low_rank < rates.product(4 * LOW_RANK) < 4 * rates.low_rank
    assert rates.product(100_000) == pytest.approx(rates.gemm, rel=0.01)


@pytest.mark.parametrize(
    ("cells", "measured"),
    [
        (128, {"lane-packed": 22, "pool": 43, "dense": 2}),
        (64, {"lane-packed": 6.3, "pool": 13, "dense": 2.8}),
    ],
    ids=["1024 px", "512 px"],
)
def test_costs_of_sdxl_are_near_those_measured(
    sdxl_table: Table, cells: int, measured: dict[Form, float]
) -> None:
    """Milliseconds a step beyond the base, on an H100, 8 mixes of 3 LoRAs of rank 16 out of 24."""
    load = replace(LOAD, cells=cells**2)
    found = {
        each.form: 1000 * each.step
        for each in Planner(MEASURED["cuda"]).estimates(sdxl_table, Ranks("attention", 8, 48, 384), load)
    }
    for form, milliseconds in measured.items():
        assert 0.5 * milliseconds < found[form] < 1.2 * milliseconds, form


@pytest.fixture(scope="module")
def sdxl_table() -> Table:
    """SDXL's layers at full size, without their weights."""
    kind: Any = diffusers.UNet2DConditionModel
    with torch.device("meta"):
        unet = kind.from_config(kind.load_config(assets.root() / "configs" / "sdxl" / "unet"))
    return Table(torch.nn.Module.to(unet, torch.bfloat16))


@pytest.fixture
def pipe(sdxl_folder: Path, make_lora: Callable[..., Path]) -> StudioPipeline:
    pipe = StudioPipeline.from_pretrained(sdxl_folder)
    for seed, name in enumerate("ab"):
        pipe.load_lora_weights(make_lora(sdxl_folder, name, seed=seed, rank=2 + seed, where="attn"), name)
    return pipe


def test_a_plan_says_what_runs(pipe: StudioPipeline) -> None:
    both = {"a": 1.0, "b": 0.5}
    asked = [
        Request("a fox", adapters=both, steps=12, width=32, height=32),
        Request("a fox", adapters={"a": 1.0}, steps=12, width=32, height=32),
        Request("a fox", adapters=both, composer=Switch(interval=3), steps=12, width=64, height=32),
    ]
    first, second = pipe.plan(asked)
    assert (first.width, first.pictures, first.rows, first.steady) == (32, 2, 4, 12)
    assert (second.width, second.pictures, second.rows, second.steady) == (64, 1, 2, 3)
    assert [(kind.ranks.kind, kind.ranks.lane, kind.ranks.pool) for kind in first.kinds] == [
        ("attention", 5, 5),
        ("text", 5, 5),
    ]
    assert {kind.chosen for kind in first.kinds} == {"pool"}  # on a CPU: both dense products, no gather
    pipe.model.engine.recorder_for = lambda device: Reruns()
    pipe.optimize(form="dense")
    chosen = [kind.chosen for kind in pipe.plan(asked)[0].kinds]
    assert chosen == ["dense", "lane-packed"]  # keys and values of a text are computed once a mix
    assert pipe.plan(Request("a fox", composer=Merge()))[0].kinds == ()


def test_kinds_of_layers_share_the_room(
    sdxl_folder: Path, make_lora: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole weights of one kind alone fit, of two kinds do not: the second takes another form. Keys and values of the
    texts, which never take whole weights, need their room as well."""
    pipe = StudioPipeline.from_pretrained(sdxl_folder)
    pipe.load_lora_weights(make_lora(sdxl_folder, "wide", seed=1, rank=2, where=""), "wide")
    engine = pipe.model.engine
    engine.recorder_for = lambda device: Reruns()
    engine.reset()
    engine.planner = Planner(
        Rates(gemm=1e15, low_rank=1e6, bandwidth=1e15, launch=0, host=0)
    )  # dense is cheapest
    asked = Request("a fox", adapters={"wide": 1.0}, steps=12, width=32, height=32)

    def chosen(room: float) -> dict[str, str]:
        monkeypatch.setattr(type(engine), "_total_memory", lambda own: room / MEMORY_SHARE)
        return {
            kind.ranks.kind: kind.chosen for kind in pipe.plan(asked)[0].kinds if kind.ranks.kind != "text"
        }

    kinds = pipe.plan(asked)[0].kinds
    room = sum(each.bytes for kind in kinds for each in kind.estimates if each.form == kind.chosen)
    assert set(chosen(1e12).values()) == {"dense"}
    assert chosen(room) == chosen(1e12)
    forms = list(chosen(room - 1).values())
    assert forms[:-1] == ["dense"] * (len(forms) - 1)
    assert forms[-1] != "dense"
