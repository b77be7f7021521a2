"""`lora-studio bench speed`: every way does the same work, and the workloads are what their names say."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines.home import Home
from studio import cli
from studio.bench.speed import gates
from studio.bench.speed.bed import Bed, Inputs, load_unet
from studio.bench.speed.rivals import Base
from studio.bench.speed.run import Bench, Budget, Measured, Outcome
from studio.bench.speed.timing import Timing
from studio.bench.speed.ways import Way
from studio.bench.speed.workload import CMLORA_STEPS, Layers, Method, Workload

SMALL = Workload(cells=8, images=2, members=2, rank=2)
EXACT = 1e-5
"""Relative, in float32."""


@pytest.fixture
def bench(sdxl_folder: Path) -> Bench:
    unet = load_unet(str(sdxl_folder), Home.resolve(), torch.device("cpu"), torch.float32)
    return Bench(Bed("random-sdxl", unet, "attention", 2), Budget(600), lambda text: None)


@pytest.mark.parametrize("layers", ["attention", "linear", "conv"])
def test_every_way_gives_what_merged_weights_give(sdxl_folder: Path, layers: Layers) -> None:
    unet = load_unet(str(sdxl_folder), Home.resolve(), torch.device("cpu"), torch.float32)
    bench = Bench(Bed("random-sdxl", unet, layers, 2), Budget(600), lambda text: None)
    ways = [
        Way("studio", "eager", "lane-packed"),
        Way("studio", "eager", "pool"),
        Way("peft set_adapters", "eager"),
        Way("peft adapter_names", "eager"),
    ]
    measured = bench.measure(replace(SMALL, layers=layers), ways, 1)
    for outcome in measured.outcomes:
        assert outcome.difference is not None
        assert outcome.difference < EXACT, outcome.way.label
        assert outcome.timing is not None
    assert measured.noise is not None
    assert measured.noise < EXACT


def test_the_comparison_sees_a_way_that_leaves_the_adapters_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("studio.bench.speed.ours.Bank.load", lambda bank, adapter: None)
    [outcome] = bench.measure(SMALL, [Way("studio", "eager", "auto")], 1).outcomes
    assert outcome.difference is not None
    assert outcome.difference > 0.01


def test_the_base_is_one_model_however_it_is_called(bench: Bench) -> None:
    rows = SMALL.steps()[0]
    base = Base(bench.bed, Inputs(bench.bed.unet, 2, 8), None)
    with torch.inference_mode():
        assert torch.allclose(base.together(rows, "eager")(), base.fused(rows, "eager")(), atol=1e-4)


@pytest.mark.parametrize(("method", "steps"), [("switch", 2), ("composite", 1), ("cmlora", CMLORA_STEPS)])
def test_methods_run_in_all_ways_that_can(bench: Bench, method: Method, steps: int) -> None:
    work = replace(SMALL, method=method)
    assert len(work.steps()) == steps
    measured = bench.measure(work, [Way("studio", "eager", "auto"), Way("fused", "eager")], 1)
    studio, fused = measured.outcomes
    assert studio.timing is not None
    assert "stays the same" in fused.note
    if method != "cmlora":
        assert studio.difference is not None
        assert studio.difference < EXACT


def test_spreads_are_punicas() -> None:
    def popularity(work: Workload) -> list[int]:
        return sorted(Counter(work.mixes()).values(), reverse=True)

    work = Workload(cells=8, images=16)
    assert popularity(replace(work, spread="identical")) == [16]
    assert popularity(work) == [1] * 16
    assert len(popularity(replace(work, spread="uniform"))) <= 4
    assert popularity(replace(work, spread="skewed"))[0] > 16 / 3
    assert work.adapters == 48
    assert replace(work, pool=5).adapters == 5
    assert work.mixes(1) != work.mixes(0)


def test_a_spent_budget_leaves_ways_out_and_says_so(bench: Bench) -> None:
    late = Bench(bench.bed, Budget(-1), lambda text: None)
    [outcome] = late.measure(SMALL, [Way("base", "eager")], 1, compare=False).outcomes
    assert outcome.timing is None
    assert "budget" in outcome.note


def test_gates_see_a_slow_studio_and_a_wrong_one() -> None:
    def measured(rival: float, difference: float) -> Measured:
        seconds = {gates.STUDIO: 1.0, **dict.fromkeys(gates.LEAST, rival)}
        outcomes = tuple(
            Outcome(way, Timing((value,)), difference=difference if way == gates.STUDIO else None)
            for way, value in seconds.items()
        )
        return Measured("m", gates.WORK, "float32", outcomes, None, 0)

    assert gates.broken_gates(measured(3.1, 1e-6)) == []
    assert len(gates.broken_gates(measured(2.5, 1e-6))) == 1
    assert len(gates.broken_gates(measured(0.5, 1e-6))) == 3
    assert len(gates.broken_gates(measured(3.1, 1e-4))) == 1


def test_the_command_writes_what_it_measured(
    sdxl_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        "bench",
        "speed",
        "--model",
        str(sdxl_folder),
        "--device",
        "cpu",
        "--size",
        "64",
        "--images",
        "2",
    ]
    asked += ["--members", "2", "--rank", "2", "--repeats", "1", "--spread", "identical", "distinct"]
    files = ["--json", str(tmp_path / "speed.json"), "--plot", str(tmp_path / "speed.png")]
    assert cli.main([*asked, *files, "--quiet"]) == 0
    assert "peft adapter_names" in capsys.readouterr().out
    data = json.loads((tmp_path / "speed.json").read_text())
    assert [each["workload"]["spread"] for each in data["measured"]] == ["identical", "distinct"]
    ways = data["measured"][1]["ways"]
    assert {"base eager", "studio auto eager", "fused eager", "peft set_adapters eager"} <= ways.keys()
    assert ways["studio auto eager"]["milliseconds"] > 0
    assert (tmp_path / "speed.png").stat().st_size > 1000
