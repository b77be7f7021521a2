"""Lanes whose adapters hold several terms a layer, whole differences, biases and norms, against merged weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from composers import Use
from pipelines import StudioPipeline
from pipelines.adapters import Adapter, AdapterMetadata, LoadReport
from pipelines.adapters.pinned import pack
from pipelines.adapters.terms import Hadamard, LayerFactors, LowRank, Shift, Term, Whole, terms_of, together
from pipelines.checkpoints import load_checkpoint
from pipelines.engine.engine import SHIFTING
from pipelines.engine.products.layers import LANE_LAYERS, LaneGroupNorm, LaneLayerNorm
from pipelines.engine.reference import merged
from pipelines.engine.unet_call import forward
from pipelines.model import Model

from ...lanes import assert_within_own_noise, relative, row_of, unet_inputs
from ..test_stages import call, staged

ROWS = [
    (Use("all", 0.7),),
    (),
    (Use("added", 0.5),),
    (Use("all", -0.4), Use("dora", 0.9), Use("added", 0.3)),
    (Use("dora", 1.0, blocks=(("up_blocks", 1.0),)),),
    (Use("all", 0.7),),
    (Use("bias", 1.0), Use("whole", 0.5)),
]


def changes(model: Model, kind: str, seed: int) -> Iterator[tuple[str, LayerFactors]]:
    """Random factors for every layer of the model, its norms included."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int, scale: float = 0.05) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    for component, part in {"unet": model.unet, **model.checkpoint.text_encoders}.items():
        for name, module in part.named_modules():
            if isinstance(module, nn.LayerNorm | nn.GroupNorm) and kind in ("all", "bias"):
                yield (
                    f"{component}.{name}",
                    together([Whole(noise(*module.weight.shape)), Shift(noise(*module.weight.shape))]),
                )
            if not isinstance(module, nn.Linear | nn.Conv2d):
                continue
            out, inner, *kernel = module.weight.shape
            low = [
                LowRank(noise(2, inner, *kernel), noise(out, 2, *(1 for _ in kernel)), 0.5) for _ in range(2)
            ]
            many = Hadamard(1 + noise(1, inner), 1 + noise(out, 1))
            whole = Whole(noise(*module.weight.shape))
            terms: list[Term] = {
                "all": [low[0], many, whole, low[1], Shift(noise(out))],
                "dora": [Hadamard(torch.ones(1, inner), 1 + noise(out, 1)), low[0]],
                "bias": [Shift(noise(out))],
                "whole": [whole],
            }[kind]
            yield f"{component}.{name}", together(terms)


def adapter(model: Model, kind: str, seed: int) -> Adapter:
    report = LoadReport(kind, "", kind, "", "", "", {}, {}, (2, 2), None, "fp32", sha256=kind)
    return Adapter(kind, dict(changes(model, kind, seed)), AdapterMetadata(), report)


@pytest.fixture
def model(model_folder: Path, make_lora: Callable[..., Path]) -> Model:
    model = Model(load_checkpoint(model_folder))
    model.load_adapter(make_lora(model_folder, "added", seed=2, rank=2, where=""), "added")
    for seed, kind in enumerate(("all", "dora", "bias", "whole")):
        model.bank.load(adapter(model, kind, seed))
    return model


@torch.inference_mode()
def test_every_lane_equals_its_merged_weights_and_itself_alone(model: Model) -> None:
    inputs = unet_inputs(model, len(ROWS))
    with model.bank.active("unet", ROWS):
        together = model.unet(**inputs).sample
    assert "reshaped" in model.bank.forms("unet")
    for row, uses in enumerate(ROWS):
        alone = merged(model.unet, "unet", model.bank.adapters, uses)(**row_of(inputs, row)).sample
        assert relative(together[row], alone[0]) < 1e-5, uses
        with model.bank.active("unet", [uses]):
            single = model.unet(**row_of(inputs, row)).sample
        assert relative(together[row], single[0]) < 1e-5, uses


@torch.inference_mode()
def test_text_encoders_take_it_too(model: Model) -> None:
    rows = [(Use("all", 0.7),), (), (Use("bias", 0.4), Use("added", -0.3))]
    for component, encoder in model.checkpoint.text_encoders.items():
        ids = torch.randint(0, 1000, (3, 77), generator=torch.Generator().manual_seed(1))
        with model.bank.active(component, rows):
            together = encoder(ids)[0]
        for row, uses in enumerate(rows):
            reference = merged(encoder, component, model.bank.adapters, uses)
            assert relative(together[row], reference(ids[row : row + 1])[0][0]) < 1e-5


@torch.inference_mode()
def test_strength_0_and_lanes_without_any_are_the_base_bit_for_bit(model: Model, model_folder: Path) -> None:
    untouched = load_checkpoint(model_folder).unet
    inputs = unet_inputs(model, 3)
    plain = untouched(**inputs).sample
    with model.bank.active("unet", [(Use("all", 0.0),), (), (Use("bias", 0.0),)]):
        assert torch.equal(model.unet(**inputs).sample, plain)
    with model.bank.active("unet", [(Use("all", 1.0),), (), ()]):
        found = model.unet(**inputs).sample
    assert relative(found[1:], plain[1:]) < 1e-6
    assert relative(found[0], plain[0]) > 1e-2
    assert torch.equal(model.unet(**inputs).sample, plain)


@torch.inference_mode()
def test_unloaded_it_leaves_nothing(model: Model, model_folder: Path) -> None:
    for kind in ("all", "dora", "bias", "whole"):
        model.bank.unload(kind)
    lanes = [module for module in model.unet.modules() if isinstance(module, LANE_LAYERS)]
    assert any(isinstance(module, LaneLayerNorm) for module in lanes)
    assert any(isinstance(module, LaneGroupNorm) for module in lanes)
    assert all(not module.slot.standing and module.slot.idle for module in lanes)


@pytest.mark.parametrize(
    ("model_folder", "dtype"), [("sd", torch.bfloat16), ("sdxl", torch.float16)], indirect=["model_folder"]
)
@torch.inference_mode()
def test_half_precision_stays_within_its_own_noise(model: Model, dtype: torch.dtype) -> None:
    assert_within_own_noise(model, ROWS, dtype)


def test_the_bank_counts_what_it_holds_and_gives_it_back(model: Model) -> None:
    full = model.bank.bytes
    own = adapter(model, "whole", 3)
    model.bank.unload("whole")
    assert full - model.bank.bytes == own.bytes
    model.bank.load(own)
    assert model.bank.bytes == full


def test_all_terms_move_as_one_block(model: Model) -> None:
    own = adapter(model, "all", 0)
    packed = pack(own)
    moved = packed.factors_in(packed.block.clone())
    assert moved.keys() == own.layers.keys()
    for layer, factors in own.layers.items():
        for before, after in zip(terms_of(factors), terms_of(moved[layer]), strict=True):
            assert type(before) is type(after)
            weight = torch.randn(model_weight(model, layer))
            assert torch.equal(before.change(weight), after.change(weight))


def model_weight(model: Model, layer: str) -> torch.Size:
    component, _, name = layer.partition(".")
    part = {"unet": model.unet, **model.checkpoint.text_encoders}[component]
    weight = part.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight.shape


@torch.inference_mode()
def test_whole_differences_are_recorded_as_whole_weights_and_biases_are_not(sdxl_folder: Path) -> None:
    pipe = StudioPipeline.from_pretrained(sdxl_folder)
    bank = pipe.model.bank
    for seed, kind in enumerate(("dora", "bias", "whole")):
        bank.load(adapter(pipe.model, kind, seed))
    engine = staged(pipe).model.engine
    mixes = [(Use("whole", 0.5), Use("dora", -0.3)), (Use("dora", 0.4),), ()]
    own = call(pipe, mixes)
    for _ in range(3):  # on the buffers, recorded, replayed
        found = engine.run(own).prediction
    assert (engine.stats.layer_by_layer, engine.stats.captures, engine.stats.replays) == (0, 1, 2)
    for row in range(0, own.rows, 2):
        twin = merged(pipe.model.unet, "unet", bank.adapters, own.uses[row])
        assert relative(found[row], forward(twin, own).prediction[row]) < 1e-5, own.uses[row]
    engine.run(call(pipe, [(Use("bias", 0.5),), ()]))
    assert engine.stats.layer_by_layer == 1
    assert engine.stats.why == SHIFTING
