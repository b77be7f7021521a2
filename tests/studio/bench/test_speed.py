"""`lora-studio bench speed`: every way does the same work, and the workloads are what their names say."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines.engine.engine import Engine
from pipelines.engine.products.attention import join_weights
from pipelines.engine.products.graphs import CudaGraphs, Reruns
from pipelines.home import Home
from studio import cli
from studio.bench.speed import ratios, targets
from studio.bench.speed.bed import Bed, Inputs, load_unet
from studio.bench.speed.changes import Changes, random_changes
from studio.bench.speed.order import every_axis_in_turn
from studio.bench.speed.ours import Ours
from studio.bench.speed.profile import kind_of, profiled
from studio.bench.speed.rivals import Base
from studio.bench.speed.run import Bench, Budget, Measured, SpeedOutcome
from studio.bench.speed.timing import Captured, Timing
from studio.bench.speed.ways import SpeedWay
from studio.bench.speed.workload import CMLORA_STEPS, Layers, Method, Workload

SMALL = Workload(cells=8, images=2, members=2, rank=2)
BASE = SpeedWay("base", "eager")
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
        SpeedWay("studio", "eager", "lane-packed"),
        SpeedWay("studio", "eager", "pool"),
        SpeedWay("studio", "eager", "dense"),
        SpeedWay("peft set_adapters", "eager"),
        SpeedWay("peft adapter_names", "eager"),
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
    run = Engine.run
    monkeypatch.setattr(Engine, "run", lambda own, call: run(own, replace(call, uses=((),) * call.rows)))
    [outcome] = bench.measure(SMALL, [SpeedWay("studio", "eager", "auto")], 1).outcomes
    assert outcome.difference is not None
    assert outcome.difference > 0.01


def test_no_way_moves_the_weights_that_all_share(bench: Bench) -> None:
    """A recording of the base would read what lies there later."""
    twin = bench.bed.twin()
    before = [weight.data_ptr() for weight in bench.bed.unet.parameters()]
    join_weights(twin)
    Ours(bench.bed, "lane-packed", "eager")
    assert [weight.data_ptr() for weight in bench.bed.unet.parameters()] == before
    assert [weight.data_ptr() for weight in twin.parameters()] == before


def test_the_base_is_one_model_however_it_is_called(bench: Bench) -> None:
    rows = SMALL.steps()[0]
    base = Base(bench.bed, Inputs(bench.bed.unet, 2, 8), None)
    with torch.inference_mode():
        assert torch.allclose(base.together(rows, "eager")(), base.fused(rows, "eager")(), atol=1e-4)


@pytest.mark.gpu
def test_a_captured_call_keeps_what_it_reads() -> None:
    def captured() -> Callable[[], torch.Tensor]:
        read = torch.full((2**24,), 2.0, device="cuda")  # large enough to be memory of its own
        return Captured.by(CudaGraphs(torch.device("cuda")), lambda: read + 1)

    replay = captured()
    gc.collect()
    torch.cuda.empty_cache()
    assert (replay() == 3).all()


def test_a_profile_says_what_a_step_is_made_of(bench: Bench) -> None:
    rows = SMALL.steps()[0]
    run = Base(bench.bed, Inputs(bench.bed.unet, 2, 8), None).together(rows, "eager")
    with torch.inference_mode():
        once = profiled(run, 1, torch.device("cpu"))
        thrice = profiled(lambda: [run() for _ in range(3)], 3, torch.device("cpu"))
    parts = {part.kind: part for part in once.parts}
    assert {"convolution", "products", "attention", "norms"} <= set(parts)
    assert {part.kind: part.launches for part in thrice.parts} == {
        kind: part.launches for kind, part in parts.items()
    }
    layers = sum(isinstance(layer, torch.nn.Conv2d) for layer in bench.bed.unet.modules())
    assert parts["convolution"].launches >= layers
    assert once.seconds > 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT", "products"),
        ("product_kernel", "products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "products"),
        ("sm90_xmma_fprop_implicit_gemm_indexed_bf16bf16_bf16f32", "convolution"),
        ("void cudnn::engines_precompiled::nchwToNhwcKernel<__nv_bfloat16>", "layout"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128>>", "attention"),
        ("void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<c10::BFloat16>", "norms"),
        ("triton_red_fused_add_native_layer_norm_view_3", "norms"),
        ("triton_poi_fused_gelu_mul_split_transpose_5", "element by element"),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>",
            "element by element",
        ),
        ("Memcpy DtoD (Device -> Device)", "copies"),
    ],
)
def test_kernels_are_known_by_their_names(name: str, kind: str) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize(("method", "steps"), [("switch", 2), ("composite", 1), ("cmlora", CMLORA_STEPS)])
def test_methods_run_in_all_ways_that_can(bench: Bench, method: Method, steps: int) -> None:
    work = replace(SMALL, method=method)
    assert len(work.steps()) == steps
    measured = bench.measure(work, [SpeedWay("studio", "eager", "auto"), SpeedWay("fused", "eager")], 1)
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
    [outcome] = late.measure(SMALL, [SpeedWay("base", "eager")], 1, compare=False).outcomes
    assert outcome.timing is None
    assert "budget" in outcome.note


def test_gates_see_a_slow_studio_and_a_wrong_one() -> None:
    def measured(rival: float, difference: float) -> Measured:
        seconds = {ratios.STUDIO: 1.0, **dict.fromkeys(ratios.LEAST, rival)}
        outcomes = tuple(
            SpeedOutcome(way, Timing((value,)), difference=difference if way == ratios.STUDIO else None)
            for way, value in seconds.items()
        )
        return Measured("m", ratios.WORK, "float32", outcomes, None, 0)

    assert ratios.broken_ratios(measured(3.1, 1e-6)) == []
    assert len(ratios.broken_ratios(measured(2.5, 1e-6))) == 1
    assert len(ratios.broken_ratios(measured(0.5, 1e-6))) == 3
    assert len(ratios.broken_ratios(measured(3.1, 1e-4))) == 1


def test_random_changes_are_exact_and_make_nothing_anew(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's stages and recordings, without a GPU: a replay does the work again on the same buffers."""
    monkeypatch.setattr("pipelines.engine.engine.cuda_graphs", lambda device: Reruns())
    monkeypatch.setattr("studio.bench.speed.changes._bytes", lambda device: bytes_of_new_tensors())
    gc.freeze()  # what there is so far
    changes = random_changes(bench.bed, 21, 1, 8, "lane-packed", "graph")
    gc.unfreeze()
    assert (changes.count, changes.adapters_changed) == (21, 5)
    assert (changes.recompiles, changes.captures, changes.replays) == (0, 0, 21)
    assert 0 < changes.worst < EXACT
    assert 0 < changes.bytes_late <= changes.bytes_early


def bytes_of_new_tensors() -> int:
    tensors = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
    return sum(
        {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values()
    )


def test_targets_are_ratios_of_one_run_and_say_what_was_left_out() -> None:
    def section(**seconds: float) -> Measured:
        ways = {"base": BASE, "ours": SpeedWay("studio", "eager", "pool"), "peft": targets.RELEASED}
        outcomes = tuple(
            SpeedOutcome(ways[name], Timing((value,)), value / seconds["base"], 1e-3)
            for name, value in seconds.items()
        )
        return Measured("m", SMALL, "bfloat16", outcomes, 1e-3, 0)

    large = section(base=0.2, ours=0.202, peft=2.0)
    names = ("small", "linear", "composite large", "composite small", "float32")
    sections = {"large": large, **dict.fromkeys(names, Measured("m", SMALL, "bfloat16", (), None, 0))}
    course = targets.Course(sections, Changes(200, 50, 0, 1, 200, 0, 0, 1e-3, 0.1), None)
    found = {target.name: target for target in targets.targets(course)}
    assert found["overhead, memory allowing, large"].measured == pytest.approx(1.01)
    assert found["overhead, memory allowing, large"].met is True
    assert found["against diffusers + peft as documented, large"].measured == pytest.approx(9.9, abs=0.01)
    assert found["overhead, memory allowing, small"].met is None
    assert found["recompiles and captures over 200 random changes"].met is False
    assert found["the base itself, ms a step, large"].measured == pytest.approx(200)
    assert "studio pool eager 202.0 ms" in targets.table(course)


def test_full_moves_along_one_axis_at_a_time() -> None:
    points = every_axis_in_turn(([128], [8, 4], ["a"]), ((), (1, 8), ("a", "b")))
    assert points == [(128, 8, "a"), (128, 1, "a"), (128, 8, "b")]


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
