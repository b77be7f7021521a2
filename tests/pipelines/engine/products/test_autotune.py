"""Products by the fastest way: the choice, and that every form takes that way, with torch in the kernels' place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from torch import Tensor

from composers import Use
from pipelines.checkpoints import load_checkpoint
from pipelines.engine.products import autotune
from pipelines.engine.products.attention import join_weights
from pipelines.engine.products.autotune import Choice, Choices, measured
from pipelines.engine.products.factors import Factors
from pipelines.engine.products.layers import KernelGEGLU, unwrap, use_kernels, wrap
from pipelines.engine.products.operands import IN_PASSING, LIBRARY, Operands, side_by_side
from pipelines.engine.reference import merged
from pipelines.engine.residency.bank import FormChoice
from pipelines.model import Model

from ...lanes import relative, row_of, unet_inputs

ROWS = [(Use("wide", 0.5),), (Use("wide", 0.5),), (Use("wide", -0.7),), (Use("wide", -0.7),)]


def ways(*names: str) -> dict[str, Callable[[], Tensor]]:
    return {name: (lambda: torch.ones(3)) for name in names}


def times(**microseconds: float) -> Callable[[Callable[[], Tensor]], float]:
    """A clock that is asked for the ways in the order given."""
    left = iter(microseconds.values())
    return lambda way: next(left) / 1e6


def test_the_fastest_way_is_kept() -> None:
    choice = measured(ways(LIBRARY, "a", "b"), times(library=100, a=90, b=70))
    assert choice.name == "b"
    assert choice.microseconds == pytest.approx({LIBRARY: 100, "a": 90, "b": 70})


def test_the_library_stays_where_the_gain_is_noise() -> None:
    assert measured(ways(LIBRARY, "a"), times(library=100, a=99)).name == LIBRARY


def test_a_broken_or_wrong_candidate_is_dropped_and_the_reason_kept() -> None:
    def broken() -> Tensor:
        raise RuntimeError("out of shared memory")

    choice = measured(
        ways(LIBRARY) | {"broken": broken, "wrong": lambda: torch.zeros(3)} | ways("right"),
        times(library=100, right=50),
    )
    assert choice.name == "right"
    assert choice.dropped["broken"] == "RuntimeError: out of shared memory"
    assert "away from the library's" in choice.dropped["wrong"]


def operands() -> Operands:
    return Operands(torch.ones(1, 2, 3), (torch.ones(4, 3),), None, None, (), None, False)


def test_a_choice_is_measured_once_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def measure(ways: object, clock: object) -> Choice:
        asked.append(1)
        return Choice(LIBRARY, {LIBRARY: 5.0}, {"a": "too large"})

    monkeypatch.setattr(autotune, "measured", measure)
    monkeypatch.setattr(Operands, "ways", lambda self: {LIBRARY: self.library})
    first = Choices(tmp_path / "engine" / "one.json")
    assert torch.equal(first.run(operands()), torch.full((1, 2, 4), 3.0))
    first.run(operands())
    second = Choices(tmp_path / "engine" / "one.json")
    second.read()
    assert second.choice(operands()) == first.choice(operands())
    assert asked == [1]


def test_a_file_that_cannot_be_read_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text("[1")
    choices = Choices(tmp_path / "one.json")
    choices.read()
    assert choices.known == {}


def test_nothing_is_measured_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(ways: object, clock: object) -> Choice:
        raise AssertionError("measured during a capture")

    monkeypatch.setattr(autotune, "measured", measure)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    choices = Choices()
    assert torch.equal(choices.run(operands()), torch.full((1, 2, 4), 3.0))
    assert choices.known == {}


def test_the_product_is_a_sound_custom_operation() -> None:
    x, weight, bias = torch.randn(4, 5, 6), torch.randn(8, 6), torch.randn(8)
    down, up = torch.randn(2, 3, 6), torch.randn(2, 3, 8)
    for geglu in (False, True):
        torch.library.opcheck(autotune.product, (x, [weight], bias, down, [up], None, geglu))


@pytest.mark.parametrize("joined", [False, True])
def test_layers_of_one_input_are_one_product(joined: bool) -> None:
    """Whether their weights lie side by side or apart, with gates as a pool has them."""
    x = torch.randn(1, 12, 6)
    weights, ups = torch.randn(3, 8, 6), torch.randn(3, 1, 4, 8)
    down, gate = torch.randn(1, 3 * 4, 6), torch.randn(2, 3 * 4)
    own = (tuple(weights), tuple(ups))
    if not joined:
        own = (tuple(part.clone() for part in weights), tuple(part.clone() for part in ups))
    assert (side_by_side(own[0]) is not None) == joined
    operands = Operands(x, own[0], None, down, own[1], gate, False)
    assert ("apart" in operands.label) != joined
    gates = gate.repeat_interleave(6, dim=0).chunk(3, dim=-1)
    shrunk = [x[0] @ part.T for part in down[0].chunk(3)]
    expected = [x[0] @ weights[part].T + (shrunk[part] * gates[part]) @ ups[part, 0] for part in range(3)]
    assert relative(operands.library()[0], torch.cat(expected, dim=-1)) < 1e-6


@pytest.mark.parametrize("geglu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_whole_weights_made_in_passing_give_the_same(
    monkeypatch: pytest.MonkeyPatch, geglu: bool, bias: bool
) -> None:
    """And with GEGLU the tiles go on with them. With torch in the kernels' place; these are compared with it in
    `test_kernels.py`."""
    kernels = pytest.importorskip("pipelines.engine.products.kernels")

    def whole(weights: Tensor, down: Tensor, ups: Tensor) -> Tensor:
        pieces = zip(weights, down.chunk(len(weights), dim=1), ups, strict=True)
        return torch.cat([weight + up.mT @ own for weight, own, up in pieces], dim=1)

    def gated(y: Tensor, bias: Tensor | None) -> Tensor:
        value, gate = (y if bias is None else y + bias).chunk(2, dim=-1)
        return value * torch.nn.functional.gelu(gate)

    def product(
        x: Tensor, weights: Tensor, bias: Tensor | None, shrunk: None, ups: None, geglu: bool, tile: object
    ) -> Tensor:
        return gated(torch.bmm(x, weights[0].mT), bias)

    tile = next(tile for tile in kernels.GATED if not tile.overlapping)
    monkeypatch.setattr(kernels, "merged", whole)
    monkeypatch.setattr(kernels, "geglu", gated)
    monkeypatch.setattr(kernels, "product", product)
    monkeypatch.setattr(kernels, "tiles", lambda x, geglu, shrinking: [tile])
    parts = 1 if geglu or bias else 3
    weights, ups = torch.randn(parts, 8, 6), torch.randn(parts, 2, 4, 8)
    operands = Operands(
        torch.randn(2, 5, 6),
        weights.unbind(),
        torch.randn(8) if bias else None,
        torch.randn(2, parts * 4, 6),
        ups.unbind(),
        None,
        geglu,
    )
    ways = {name: way for name, way in operands.ways().items() if name.startswith(IN_PASSING)}
    assert list(ways) == [IN_PASSING] + [f"{IN_PASSING}, {tile.name}"] * geglu
    for way in ways.values():
        assert relative(way(), operands.library()) < 1e-6


def test_tensors_side_by_side_are_one_without_a_copy() -> None:
    whole = torch.randn(3, 4, 5)
    joined = side_by_side(list(whole))
    assert joined is not None
    assert torch.equal(joined, whole)
    assert joined.data_ptr() == whole.data_ptr()
    assert side_by_side([whole[0], whole[2]]) is None
    assert side_by_side([whole[1], whole[0]]) is None
    assert side_by_side([whole[0], whole[1].clone()]) is None
    assert side_by_side([whole[0].T, whole[1].T]) is None
    assert side_by_side([]) is None


@torch.inference_mode()
def test_joined_weights_stay_the_layers_own(sdxl_folder: Path) -> None:
    unet = Model(load_checkpoint(sdxl_folder)).unet
    before = {name: weight.clone() for name, weight in unet.named_parameters()}
    join_weights(unet)
    attention = [attn for attn in unet.modules() if isinstance(attn, Attention)]
    for attn in attention:
        weights = [attn.to_q.weight, attn.to_k.weight, attn.to_v.weight]
        assert (side_by_side(weights) is not None) == (not attn.is_cross_attention)
    assert {name: weight.shape for name, weight in unet.named_parameters()} == {
        name: weight.shape for name, weight in before.items()
    }
    assert all(torch.equal(weight, before[name]) for name, weight in unet.named_parameters())
    twin = copy.deepcopy(unet)
    unet.to(torch.float64)
    assert all(side_by_side([attn.to_q.weight, attn.to_k.weight]) is None for attn in attention)
    assert all(torch.equal(weight, before[name]) for name, weight in twin.named_parameters())


@pytest.mark.parametrize("form", ["lane-packed", "pool", "dense"])
@torch.inference_mode()
def test_every_form_goes_through_the_product_and_equals_merged_weights(
    sdxl_folder: Path, make_lora: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, form: FormChoice
) -> None:
    model = Model(load_checkpoint(sdxl_folder))
    model.load_adapter(make_lora(sdxl_folder, "wide", seed=3, rank=3, where=""), "wide")
    model.bank.form = form
    inputs = unet_inputs(model, len(ROWS))
    expected = model.unet(**inputs).sample
    gated: list[bool] = []
    parts: list[int] = []
    product = autotune.product

    def seen(
        x: Tensor,
        weights: Sequence[Tensor],
        bias: Tensor | None,
        down: Tensor | None,
        ups: Sequence[Tensor],
        gate: Tensor | None,
        geglu: bool,
    ) -> Tensor:
        gated.append(geglu)
        parts.append(len(weights))
        found: Tensor = product(x, weights, bias, down, ups, gate, geglu)
        return found

    monkeypatch.setattr(autotune, "usable", lambda x: True)
    monkeypatch.setattr(autotune, "available", lambda: True)
    monkeypatch.setattr(autotune, "product", seen)
    monkeypatch.setattr(autotune, "choices", lambda device, dtype: Libraries())
    use_kernels(model.unet, True)
    assert relative(model.unet(**inputs).sample, expected) < 1e-6
    geglus = sum(type(module) is KernelGEGLU for module in model.unet.modules())
    assert geglus > 0
    assert gated == [True] * geglus  # without adapters the library's plain products are best
    gated.clear()
    with model.bank.active("unet", ROWS):
        together = model.unet(**inputs).sample
    assert gated.count(True) == geglus
    assert (False in gated) == (form != "dense")
    assert (3 in parts) == (form != "dense")  # query, key and value
    for row in (0, 2):
        reference = merged(model.unet, "unet", model.bank.adapters, ROWS[row])
        use_kernels(reference, False)
        assert relative(together[row], reference(**row_of(inputs, row)).sample[0]) < 1e-5
    use_kernels(model.unet, False)
    gated.clear()
    model.unet(**inputs)
    assert gated == []


@torch.inference_mode()
def test_geglu_and_low_rank_products_are_traced_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph without breaks, in which the product is one operation."""
    monkeypatch.setattr(autotune, "usable", lambda x: True)
    monkeypatch.setattr(autotune, "available", lambda: True)
    monkeypatch.setattr(autotune, "choices", lambda device, dtype: Libraries())
    module = torch.nn.Sequential(GEGLU(6, 4), torch.nn.Linear(4, 5))
    plain = copy.deepcopy(module)
    for layer in wrap(module).values():
        groups, rank = 2, 3
        down = torch.randn(groups, rank, layer.weight.shape[1])
        layer.slot.acting = Factors(down, torch.zeros(groups, rank, layer.weight.shape[0]), None, down, 0)
    use_kernels(module, True)
    x = torch.randn(4, 7, 6)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert relative(compiled(x), plain(x)) < 1e-6


class Libraries:
    """In the place of choices: torch alone."""

    def run(self, operands: Operands) -> Tensor:
        return operands.library()


def test_kernels_are_switched_off_with_the_wrapping(sdxl_folder: Path) -> None:
    unet = copy.deepcopy(Model(load_checkpoint(sdxl_folder)).unet)
    use_kernels(unet, True)
    unwrap(unet)
    plain = load_checkpoint(sdxl_folder).unet
    assert [type(module) for module in unet.modules()] == [type(module) for module in plain.modules()]
    assert any(type(module) is GEGLU for module in unet.modules())
    assert not any("kernels" in vars(module) for module in unet.modules())
