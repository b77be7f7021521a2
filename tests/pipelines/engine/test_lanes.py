"""Lane layers against the slow, obvious reference: each lane's mix merged into a copy of the weights."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from composers import Use
from pipelines.adapters import Adapter, AdapterMetadata, LoadReport, LowRank, read_adapter
from pipelines.checkpoints import load_checkpoint
from pipelines.engine.products import factors
from pipelines.engine.products.factors import Factors
from pipelines.engine.products.layers import together, unwrap, wrap
from pipelines.engine.reference import merged
from pipelines.engine.residency.bank import Bank, FormChoice
from pipelines.model import Model

from ..lanes import assert_within_own_noise, relative, row_of, unet_inputs

FORMS: tuple[FormChoice, ...] = ("auto", "lane-packed", "pool", "dense")
ROWS = [
    (Use("attention"), Use("wide", 0.5)),
    (),
    (Use("conv", -1.2),),
    (
        Use("wide", 0.7, blocks=(("up_blocks.1", 0.5), ("up_blocks.1.resnets", 0.0))),
        Use("conv"),
        Use("attention", 0.3),
    ),
]


@pytest.fixture
def model(model_folder: Path, make_lora: Callable[..., Path]) -> Model:
    """A model of each family with three adapters of different rank and reach resident."""
    model = Model(load_checkpoint(model_folder))
    for name, rank, where in (("attention", 4, "attn"), ("wide", 3, ""), ("conv", 2, "conv")):
        model.load_adapter(make_lora(model_folder, name, seed=rank, rank=rank, where=where), name)
    return model


def choose(bank: Bank, form: FormChoice) -> None:
    bank.form = form
    bank.to(torch.device("cpu"))  # what was selected in another form is forgotten


@torch.inference_mode()
def test_every_lane_equals_its_merged_weights(model: Model) -> None:
    inputs = unet_inputs(model, len(ROWS))
    alone = [
        merged(model.unet, "unet", model.bank.adapters, uses)(**row_of(inputs, row)).sample
        for row, uses in enumerate(ROWS)
    ]
    for form in FORMS:
        choose(model.bank, form)
        with model.bank.active("unet", ROWS):
            together = model.unet(**inputs).sample
        assert form == "auto" or model.bank.forms("unet") == (form,)
        for row, expected in enumerate(alone):
            assert relative(together[row], expected[0]) < 1e-5, (form, row)


@torch.inference_mode()
def test_text_encoders_take_adapters_row_by_row(model: Model) -> None:
    rows = [(Use("attention", 0.7),), (), (Use("wide", 0.4), Use("attention", -0.3))]
    for component, encoder in model.checkpoint.text_encoders.items():
        ids = torch.randint(0, 1000, (3, 77), generator=torch.Generator().manual_seed(1))
        alone = [
            merged(encoder, component, model.bank.adapters, uses)(ids[row : row + 1])[0]
            for row, uses in enumerate(rows)
        ]
        for form in FORMS:
            choose(model.bank, form)
            with model.bank.active(component, rows):
                together = encoder(ids)[0]
            assert form == "auto" or model.bank.forms(component) == (form,)
            for row, expected in enumerate(alone):
                assert relative(together[row], expected[0]) < 1e-5, (component, form, row)


@pytest.mark.parametrize(
    ("model_folder", "dtype"), [("sd", torch.bfloat16), ("sdxl", torch.float16)], indirect=["model_folder"]
)
@torch.inference_mode()
def test_half_precision_stays_within_its_own_noise(model: Model, dtype: torch.dtype) -> None:
    assert_within_own_noise(model, ROWS, dtype)


@torch.inference_mode()
def test_nothing_stays_active_and_base_weights_are_never_touched(model: Model, model_folder: Path) -> None:
    untouched = load_checkpoint(model_folder).unet
    inputs = unet_inputs(model, len(ROWS))
    with model.bank.active("unet", ROWS):
        changed = model.unet(**inputs).sample
    plain = model.unet(**inputs).sample
    assert torch.equal(plain, untouched(**inputs).sample)
    assert relative(changed[0], plain[0]) > 1e-3
    assert torch.equal(changed[1], plain[1])
    for name, parameter in model.unet.named_parameters():
        assert torch.equal(parameter, untouched.get_parameter(name)), name


@torch.inference_mode()
def test_an_error_inside_leaves_no_adapter_active(model: Model) -> None:
    inputs = unet_inputs(model, 1)
    before = model.unet(**inputs).sample
    with pytest.raises(ZeroDivisionError), model.bank.active("unet", [(Use("wide"),)]):
        raise ZeroDivisionError
    assert torch.equal(model.unet(**inputs).sample, before)


@torch.inference_mode()
def test_shuffling_the_rows_shuffles_the_result(model: Model) -> None:
    inputs = unet_inputs(model, len(ROWS))
    order = [2, 0, 3, 1]
    with model.bank.active("unet", ROWS):
        straight = model.unet(**inputs).sample
    mixed = {
        key: value[order] if isinstance(value, Tensor) else {k: v[order] for k, v in value.items()}
        for key, value in inputs.items()
    }
    with model.bank.active("unet", [ROWS[place] for place in order]):
        shuffled = model.unet(**mixed).sample
    assert relative(shuffled, straight[order]) < 1e-5


def living_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(item), Tensor) for item in gc.get_objects())


def test_load_and_unload_leave_no_trace(
    model: Model, model_folder: Path, make_lora: Callable[..., Path]
) -> None:
    """A hundred rounds: base weights bit-identical, the other adapters' factors too, and memory flat."""
    before = {name: parameter.clone() for name, parameter in model.unet.named_parameters()}
    factors = {
        path: model.bank.adapters["wide"].delta(path)
        for path in list(model.bank.adapters["wide"].layers)[:20]
    }
    size = model.bank.bytes
    adapter = read_adapter(
        make_lora(model_folder, "passing", seed=9, rank=5, where=""), model.layers, "passing"
    )
    model.bank.load(adapter)
    model.bank.unload("passing")
    alive = living_tensors()
    for _ in range(100):
        model.bank.load(adapter)
        assert model.bank.bytes > size
        model.bank.unload("passing")
    assert living_tensors() == alive
    assert model.bank.bytes == size
    for name, parameter in model.unet.named_parameters():
        assert torch.equal(parameter, before[name]), name
    for path, delta in factors.items():
        assert torch.equal(model.bank.adapters["wide"].delta(path), delta)


@torch.inference_mode()
def test_unloading_one_adapter_leaves_the_others_as_they_were(model: Model) -> None:
    inputs = unet_inputs(model, 1)
    for gone in ("attention", "wide"):
        with model.bank.active("unet", [(Use("conv", 0.8),)]):
            before = model.unet(**inputs).sample
        model.bank.unload(gone)
        with model.bank.active("unet", [(Use("conv", 0.8),)]):
            assert torch.equal(model.unet(**inputs).sample, before)


@pytest.mark.parametrize("at", range(3))
def test_an_adapter_that_memory_does_not_hold_leaves_no_rows(
    model: Model,
    model_folder: Path,
    make_lora: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    at: int,
) -> None:
    """Memory runs out at one of the pools, when those before have taken their rows."""
    bank = model.bank
    taken, resident = bank.bytes, set(bank.adapters)
    file = make_lora(model_folder, "late", seed=9, rank=24, where="")
    adapter = read_adapter(file, model.layers, "late")
    growing = iter([True] * at + [False])

    def cat(parts: list[Tensor]) -> Tensor:
        if not next(growing):
            raise torch.OutOfMemoryError("no memory left")
        return torch.cat(parts)

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.engine.residency.rows.torch", SimpleNamespace(cat=cat))
        with pytest.raises(torch.OutOfMemoryError):
            bank.load(adapter)
    assert (bank.bytes, set(bank.adapters)) == (taken, resident)
    bank.load(adapter)
    bank.unload("late")
    assert bank.bytes == taken


def test_wrapped_models_keep_their_names_and_can_be_unwrapped(model: Model, model_folder: Path) -> None:
    plain = load_checkpoint(model_folder).unet
    assert list(model.unet.state_dict()) == list(plain.state_dict())
    twin = copy.deepcopy(model.unet)
    unwrap(twin)
    assert {type(module) for module in twin.modules()} == {type(module) for module in plain.modules()}


@pytest.mark.parametrize("compiled", [False, True])
@torch.inference_mode()
def test_weights_made_in_passing_give_what_low_rank_parts_give(
    monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    """Three layers over one input, with and without bias, for groups of many tokens."""
    layers = nn.ModuleList([nn.Linear(6, 8, bias=bias) for bias in (True, False, True)])
    wrap(layers)
    stack, ups = torch.randn(2, 3 * 4, 6), torch.randn(3, 2, 4, 8)
    for place, layer in enumerate(layers):
        down = stack[:, place * 4 : (place + 1) * 4]
        layer.slot.acting = Factors(down, ups[place], None, stack, place)  # type: ignore[union-attr]
    x = torch.randn(4, 50, 6)
    assert factors.made_in_passing(2 * 50, 6, 8)

    def run(passing: bool) -> list[Tensor]:
        monkeypatch.setattr(factors, "made_in_passing", lambda tokens, inner, outer: passing)
        torch.compiler.reset()
        call = torch.compile(together, backend="aot_eager", fullgraph=True) if compiled else together
        found: list[Tensor] = call(list(layers), x)
        return found

    for own, expected in zip(run(True), run(False), strict=True):
        assert relative(own, expected) < 1e-6


def test_a_product_with_weights_made_in_passing_is_a_sound_operation() -> None:
    x, weight = torch.randn(4, 5, 6), torch.randn(8, 6)
    down, up = torch.randn(2, 3, 6), torch.randn(2, 3, 8)
    torch.library.opcheck(factors._merging_product, (x, weight, down, up))
    torch.library.opcheck(factors._grouped_product, (x, torch.randn(2, 8, 6)))


def test_strided_and_plain_convolutions_alike() -> None:
    """Every geometry a UNet has: 1x1, 3x3, stride 2."""
    torch.manual_seed(0)
    for kernel, stride, padding in ((1, 1, 0), (3, 1, 1), (3, 2, 1)):
        net = nn.Sequential(nn.Conv2d(6, 10, kernel, stride, padding))
        factor_down, factor_up = torch.randn(3, 6, kernel, kernel), torch.randn(10, 3, 1, 1)
        for form in FORMS:
            wrapped = copy.deepcopy(net)
            bank = Bank({"unet": wrapped}, form)
            bank.load(_one_layer("unet.0", factor_down, factor_up))
            x = torch.randn(2, 6, 8, 8)
            with torch.inference_mode(), bank.active("unet", [(Use("one", 0.5),), (Use("one", 2.0),)]):
                found = wrapped(x)
            for row, weight in enumerate((0.5, 2.0)):
                whole = merged(net, "unet", bank.adapters, (Use("one", weight),))
                assert relative(found[row], whole(x[row : row + 1])[0].detach()) < 1e-5


def _one_layer(path: str, down: Tensor, up: Tensor) -> Adapter:
    report = LoadReport("one", "", "LoRA", "", "", "", {}, {}, (3, 3), None, "fp32", sha256="")
    return Adapter("one", {path: LowRank(down, up, 0.25)}, AdapterMetadata(), report)
