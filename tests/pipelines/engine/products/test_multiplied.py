"""FLoRA's lanes beside LoRA's and plain ones in one call, against merged weights and against each alone."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from composers import Composite, Use
from pipelines import Request, StudioPipeline
from pipelines.adapters import Hadamard
from pipelines.checkpoints import load_checkpoint
from pipelines.engine.engine import Engine
from pipelines.engine.products import multiplied
from pipelines.engine.reference import merged
from pipelines.engine.residency.bank import FormChoice
from pipelines.engine.unet_call import UNetCall, forward
from pipelines.model import Model
from studio.commands.plan import spell

from ...lanes import assert_within_own_noise, relative, row_of, unet_inputs
from ..test_stages import call, staged

ROWS = [
    (Use("multiplied"),),
    (),
    (Use("added", 0.8),),
    (Use("multiplied", 0.6), Use("added", -0.5)),
    (Use("multiplied", 0.3), Use("wide", 0.7)),
    (Use("wide", -0.4, blocks=(("up_blocks.1", 1.0), ("up_blocks.1.resnets", 0.5))), Use("added")),
]


@pytest.fixture(scope="session")
def floras(
    tmp_path_factory: pytest.TempPathFactory, make_flora: Callable[..., Path]
) -> Callable[[Path], dict[str, Path]]:
    """Per model folder: "multiplied" on attention, rank 1, and "wide" on every layer and the text, rank 3."""
    made: dict[Path, dict[str, Path]] = {}

    def of(folder: Path) -> dict[str, Path]:
        if folder not in made:
            home = tmp_path_factory.mktemp("floras")
            made[folder] = {
                "multiplied": make_flora(
                    folder, home / "multiplied.safetensors", rank=1, where="attn", text=False
                ),
                "wide": make_flora(folder, home / "wide.safetensors", rank=3, where="", text=True),
            }
        return made[folder]

    return of


@pytest.fixture
def model(
    model_folder: Path, make_lora: Callable[..., Path], floras: Callable[..., dict[str, Path]]
) -> Model:
    model = Model(load_checkpoint(model_folder))
    for name, file in floras(model_folder).items():
        model.load_adapter(file, name)
    model.load_adapter(make_lora(model_folder, "added", seed=2, rank=2, where=""), "added")
    return model


FORMS: list[tuple[multiplied.FloraForm | None, FormChoice]] = [
    (None, "auto"),
    ("products", "pool"),
    ("weights", "lane-packed"),
    (None, "dense"),
]
"""How weights are multiplied (None: as is cheaper), and how LoRA is added beside."""


@torch.inference_mode()
def test_every_lane_equals_its_merged_weights_and_itself_alone(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = unet_inputs(model, len(ROWS))
    plain = model.unet(**row_of(inputs, 0)).sample
    alone = [
        merged(model.unet, "unet", model.bank.adapters, uses)(**row_of(inputs, row)).sample
        for row, uses in enumerate(ROWS)
    ]
    for form, lora in FORMS:
        model.bank.form = lora
        with monkeypatch.context() as patch:
            if form is not None:
                patch.setattr(multiplied.Multiplied, "form", lambda self, tokens, form=form: form)
            with model.bank.active("unet", ROWS):
                together = model.unet(**inputs).sample
            beside = (
                "lane-packed" if lora == "dense" else lora
            )  # whole weights leave no place for multiplied ones
            assert lora == "auto" or model.bank.forms("unet") == tuple(sorted((beside, "multiplied")))
            assert "multiplied" in model.bank.forms("unet")
            assert relative(together[0], plain[0]) > 1e-2
            for row, uses in enumerate(ROWS):
                assert relative(together[row], alone[row][0]) < 1e-5, (form, lora, uses)
                with model.bank.active("unet", [uses]):
                    single = model.unet(**row_of(inputs, row)).sample
                assert relative(together[row], single[0]) < 1e-5, (form, lora, uses)


@torch.inference_mode()
def test_text_encoders_take_it_too(model: Model) -> None:
    for component, encoder in model.checkpoint.text_encoders.items():
        ids = torch.randint(0, 1000, (3, 77), generator=torch.Generator().manual_seed(1))
        rows = [(Use("wide", 0.7),), (), (Use("wide", 0.4), Use("added", -0.3))]
        with model.bank.active(component, rows):
            together = encoder(ids)[0]
        for row, uses in enumerate(rows):
            reference = merged(encoder, component, model.bank.adapters, uses)
            assert relative(together[row], reference(ids[row : row + 1])[0][0]) < 1e-5


@pytest.mark.parametrize(
    ("model_folder", "dtype"), [("sd", torch.bfloat16), ("sdxl", torch.float16)], indirect=["model_folder"]
)
@torch.inference_mode()
def test_half_precision_stays_within_its_own_noise(model: Model, dtype: torch.dtype) -> None:
    assert_within_own_noise(model, ROWS, dtype)


@torch.inference_mode()
def test_loading_and_unloading_leave_no_trace(
    model: Model, model_folder: Path, floras: Callable[..., dict[str, Path]]
) -> None:
    inputs = row_of(unet_inputs(model, 1), 0)
    size, before = model.bank.bytes, model.unet(**inputs).sample
    with model.bank.active("unet", [(Use("wide"),)]):
        mixed = model.unet(**inputs).sample
    adapter = model.bank.adapters["wide"]
    for _ in range(5):
        model.bank.unload("wide")
        assert model.bank.bytes < size
        model.bank.load(adapter)
        assert model.bank.bytes == size
    assert torch.equal(model.unet(**inputs).sample, before)
    with model.bank.active("unet", [(Use("wide"),)]):
        assert torch.equal(model.unet(**inputs).sample, mixed)


@torch.inference_mode()
def test_both_forms_are_the_papers_equations_at_every_geometry() -> None:
    """Linear with and without tokens and bias; 1x1, 3x3 and strided convolutions; lanes of different rank."""
    torch.manual_seed(0)
    layers: list[tuple[nn.Linear | nn.Conv2d, Tensor]] = [
        (nn.Linear(6, 10), torch.randn(4, 7, 6)),
        (nn.Linear(6, 10, bias=False), torch.randn(4, 7, 6)),
        (nn.Linear(6, 10), torch.randn(4, 6)),
        (nn.Linear(6, 10, bias=False), torch.randn(4, 2, 3, 6)),
        (nn.Conv2d(6, 10, 1), torch.randn(4, 6, 5, 4)),
        (nn.Conv2d(6, 10, 3, 2, 1, bias=False), torch.randn(4, 6, 8, 8)),
        (nn.Conv2d(6, 10, 3, 1, 1), torch.randn(4, 6, 8, 8)),
    ]
    factors = {
        "one": Hadamard(torch.randn(1, 6), torch.randn(10, 1)),
        "three": Hadamard(torch.randn(3, 6), torch.randn(10, 3), 1 / 3),
    }
    rows = {name: multiplied.RankRows.of(factor, torch.zeros(0)) for name, factor in factors.items()}
    lanes = [[("three", 1.0)], [], [("one", 1.0)], [("one", 0.5), ("three", -0.25)]]
    for some in (lanes, [lanes[0], lanes[2], lanes[3], lanes[0]]):
        gathered = multiplied.gather(rows, some)
        assert gathered is not None
        for layer, x in layers:
            for form in ("products", "weights"):
                call = multiplied.linear if isinstance(layer, nn.Linear) else multiplied.conv2d
                found = call(layer, x, gathered, form)  # type: ignore[arg-type]
                for place, lane in enumerate(some):
                    twin = copy.deepcopy(layer)
                    for name, weight in lane:
                        twin.weight += weight * factors[name].change(layer.weight)
                    assert relative(found[place], twin(x[place : place + 1])[0]) < 1e-5, (layer, form)


def test_the_cheaper_form_is_taken() -> None:
    """Measured on one CPU thread: products for few tokens, weights for many or for higher ranks."""

    def form(inputs: int, outputs: int, rank: int, tokens: int) -> multiplied.FloraForm:
        factors = (torch.zeros(1, rank, inputs), torch.zeros(1, rank, outputs))
        return multiplied.Multiplied(1, None, None, *factors).form(tokens)

    assert [form(256, 256, rank, 1) for rank in (1, 4, 32)] == ["products"] * 3
    assert [form(96, 96, rank, 256) for rank in (1, 2, 16)] == ["weights"] * 3
    assert [form(256, 128, rank, 77) for rank in (2, 16)] == ["weights"] * 2


def test_pictures_with_flora_lora_and_neither_share_their_calls(
    model_folder: Path, make_lora: Callable[..., Path], floras: Callable[..., dict[str, Path]]
) -> None:
    pipe = StudioPipeline.from_pretrained(model_folder)
    for name, file in floras(model_folder).items():
        assert pipe.load_lora_weights(file, name).kind == "FLoRA"
    pipe.load_lora_weights(make_lora(model_folder, "added", seed=2, rank=2, where=""), "added")
    mixes = [{"multiplied": 1.0}, {}, {"added": 0.7}, {"wide": 0.8, "added": 0.4}]
    requests = [Request("a fox", adapters=mix, seed=3, steps=3, width=32, height=32) for mix in mixes]
    requests.append(
        Request(
            "a fox",
            adapters={"wide": 1.0, "added": 1.0},
            composer=Composite(),
            seed=3,
            steps=3,
            width=32,
            height=32,
        )
    )
    together = pipe(requests, output_type="latent")
    assert all(record.shared for record in together.records)
    for request, image in zip(requests, together.images, strict=True):
        alone = pipe(request, output_type="latent").images[0]
        assert relative(image, alone) < 1e-4
    assert relative(together.images[0], together.images[1]) > 1e-2


# -- recorded: whole weights in a stage's buffers ----------------------------------------------------------


@pytest.fixture
def pipe(
    model_folder: Path, make_lora: Callable[..., Path], floras: Callable[..., dict[str, Path]]
) -> StudioPipeline:
    pipe = StudioPipeline.from_pretrained(model_folder)
    for name, file in floras(model_folder).items():
        pipe.load_lora_weights(file, name)
    pipe.load_lora_weights(make_lora(model_folder, "added", seed=2, rank=2, where=""), "added")
    return staged(pipe)


def assert_merged(pipe: StudioPipeline, own: UNetCall, found: Tensor, row: int) -> None:
    twin = merged(pipe.model.unet, "unet", pipe.model.bank.adapters, own.uses[row])
    assert relative(found[row], forward(twin, own).prediction[row]) < 1e-5, own.uses[row]


@torch.inference_mode()
def test_lanes_are_recorded_as_whole_weights(pipe: StudioPipeline) -> None:
    engine, own = pipe.model.engine, call(pipe, ROWS)
    for _ in range(3):  # on the buffers, recorded, replayed
        found = engine.run(own).prediction
        for row in range(0, own.rows, 2):
            assert_merged(pipe, own, found, row)
    assert (engine.stats.layer_by_layer, engine.stats.captures, engine.stats.replays) == (0, 1, 2)
    assert engine.stats.notes == {}


@torch.inference_mode()
def test_changes_of_mix_and_adapter_record_nothing(
    pipe: StudioPipeline, model_folder: Path, floras: Callable[..., dict[str, Path]]
) -> None:
    engine, draw = pipe.model.engine, random.Random(1)
    everything = (Use("multiplied", 0.5), Use("wide", 0.5), Use("added", 0.5))
    for _ in range(2):
        engine.run(call(pipe, [everything] * 3))
    captures = engine.stats.captures
    for turn in range(12):
        mixes = [
            tuple(replace(use, weight=round(draw.uniform(0, 1), 2)) for use in draw.sample(everything, size))
            for size in (3, draw.randint(0, 3), draw.randint(0, 2))
        ]
        if turn % 6 == 3:
            adapter = pipe.model.bank.adapters["wide"]
            pipe.model.bank.unload("wide")
            pipe.model.bank.load(adapter)
        own = call(pipe, mixes, seed=turn)
        found = engine.run(own).prediction
        if turn % 6 in (0, 3):
            for row in (0, 2, 4):
                assert_merged(pipe, own, found, row)
    assert (engine.stats.captures, engine.stats.layer_by_layer) == (captures, 0)


@torch.inference_mode()
def test_where_whole_weights_do_not_serve_layers_run_one_by_one_and_say_why(
    pipe: StudioPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, own = pipe.model.engine, call(pipe, ROWS[:3])
    expected = engine.run(own).prediction
    assert engine.stats.layer_by_layer == 0

    def alone(own: UNetCall, why: str) -> None:
        before = engine.stats.layer_by_layer
        assert relative(engine.run(own).prediction, expected) < 1e-5
        assert engine.stats.layer_by_layer == before + 1
        assert why in engine.stats.why

    alone(replace(own, steady=3), "changes within 10 steps")
    pipe.model.bank.form = "lane-packed"
    alone(own, "in the form 'lane-packed'")
    pipe.model.bank.form = "auto"
    monkeypatch.setattr(Engine, "_total_memory", lambda own: 1e3)
    alone(replace(own, steady=30), "memory is too small")
    engine.run(call(pipe, [(Use("added"),)]))
    assert engine.stats.why == ""


def test_a_plan_says_that_they_are_whole_weights(pipe: StudioPipeline) -> None:
    request = Request("a fox", adapters={"multiplied": 1.0}, steps=12, width=32, height=32)
    [plan] = pipe.plan(request)
    assert [(kind.ranks.kind, kind.chosen) for kind in plan.kinds] == [("attention", "dense")]
    assert plan.note == "adapters change the whole weights of text layers row by row"
    [short] = pipe.plan(replace(request, steps=4))
    assert short.kinds == ()
    assert short.note.startswith(
        "adapters change the whole weights of attention and text layers row by row; adapters that are more than low "
        "rank run"
    )
    assert short.note in spell(short)
    assert "no adapter" not in spell(short)


@pytest.mark.parametrize("model_folder", ["sdxl"], indirect=True)
@torch.inference_mode()
def test_all_groups_are_multiplied_at_once(pipe: StudioPipeline) -> None:
    """As many operations write eight groups' whole weights as write two groups'."""
    engine, seen = pipe.model.engine, []
    for groups in (2, 8):
        engine.run(call(pipe, [(Use("wide", 0.1 * place), Use("added")) for place in range(groups)]))
        stage = engine.stages[-1]
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            stage._place(tuple((Use("wide", -1 - 0.1 * place), Use("added")) for place in range(groups)))
        found = {event.key: event.count for event in profile.key_averages()}
        layers = sum(len(packing.acting) for packing in stage.packings.values())
        assert found["aten::baddbmm"] == layers
        seen.append([found.get(f"aten::{name}", 0) for name in ("cat", "mul", "bmm")])
    assert seen[0] == seen[1]


@torch.inference_mode()
def test_equal_forms_share_a_recording_whatever_multiplies(
    sdxl_folder: Path, make_flora: Callable[..., Path], make_lora: Callable[..., Path], tmp_path: Path
) -> None:
    """FLoRA on convolutions alone, and LoRA on all layers as whole weights: the buffers are the same."""
    pipe = StudioPipeline.from_pretrained(sdxl_folder)
    file = make_flora(sdxl_folder, tmp_path / "conv.safetensors", rank=1, where="conv", text=False)
    pipe.load_lora_weights(file, "conv")
    pipe.load_lora_weights(make_lora(sdxl_folder, "added", seed=2, rank=2, where=""), "added")
    engine = staged(pipe, "dense").model.engine
    for mix in ((Use("added"),), (Use("added"), Use("conv", 0.5))):
        own = call(pipe, [mix])
        for _ in range(2):
            found = engine.run(own).prediction
        assert_merged(pipe, own, found, 0)
    assert (engine.stats.captures, engine.stats.layer_by_layer) == (1, 0)


def test_a_plan_says_in_which_form_changes_are_added_beside_multiplied_weights(pipe: StudioPipeline) -> None:
    engine = staged(pipe, "dense").model.engine
    own = replace(call(pipe, [(Use("wide", 0.5), Use("added"))]), steady=3)
    engine.run(own)
    kinds, _ = engine.explain(own.uses, own.shape, own.steady)
    assert {kind.chosen for kind in kinds} == set(pipe.model.bank.forms("unet")) - {"multiplied"}
