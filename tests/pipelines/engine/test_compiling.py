"""What is compiled of a UNet is the same model, and comes apart again."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.compile_fx
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch._inductor.virtualized import V

from composers import Use
from pipelines import StudioPipeline
from pipelines.engine.compiling import (
    BLOCKS,
    CompiledTransformer,
    arguments,
    compile_blocks,
    uncompile_blocks,
)
from pipelines.engine.reference import merged
from pipelines.engine.residency.bank import FormChoice

from ..lanes import relative


@pytest.fixture
def pipe(shallow_sdxl_folder: Path) -> StudioPipeline:
    return StudioPipeline.from_pretrained(shallow_sdxl_folder)


def inputs(unet: nn.Module, rows: int = 2, seed: int = 0) -> dict[str, object]:
    draw = torch.Generator().manual_seed(seed)
    config = unet.config
    added = {
        "text_embeds": torch.randn((rows, 32), generator=draw),
        "time_ids": torch.full((rows, 6), 32.0),
    }
    return {
        "sample": torch.randn((rows, 4, 8, 8), generator=draw),
        "timestep": torch.linspace(20, 980, rows),
        "encoder_hidden_states": torch.randn((rows, 7, config.cross_attention_dim), generator=draw),
        "added_cond_kwargs": added if config.addition_embed_type else None,
    }


@torch.inference_mode()
def predicted(unet: nn.Module, seed: int = 0) -> Tensor:
    found: Tensor = unet(**inputs(unet, seed=seed), return_dict=False)[0]
    return found


def classes(unet: nn.Module) -> list[type]:
    return [type(module) for module in unet.modules()]


def compiled(unet: nn.Module) -> set[str]:
    """Names of the classes of which something is compiled."""
    return {
        type(module).__name__
        for module in unet.modules()
        if module._compiled_call_impl is not None or isinstance(module, CompiledTransformer)
    }


EVERYTHING = {
    "BasicTransformerBlock",
    "ResnetBlock2D",
    "CompiledTransformer",
    "GroupNorm",
    "Upsample2D",
    "Downsample2D",
}


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.parametrize("family", ["sd", "shallow_sdxl"])
def test_a_compiled_model_predicts_the_same_and_comes_apart(
    request: pytest.FixtureRequest, family: str
) -> None:
    """Projections as convolutions of 1 x 1, and as Linear layers."""
    unet = StudioPipeline.from_pretrained(request.getfixturevalue(f"{family}_folder")).model.unet
    before, expected = classes(unet), predicted(unet)
    compile_blocks(unet, "eager")
    assert compiled(unet) == EVERYTHING
    assert relative(predicted(unet), expected) < 1e-6
    uncompile_blocks(unet)
    assert compiled(unet) == set()
    assert classes(unet) == before
    assert not any(hasattr(module, "ends") for module in unet.modules())
    assert torch.equal(predicted(unet), expected)


def test_a_stack_leaves_the_image_in_the_layout_that_it_came_in(pipe: StudioPipeline) -> None:
    stack = next(module for module in pipe.model.unet.modules() if type(module) is Transformer2DModel)
    image = torch.randn(2, stack.in_channels, 4, 4)
    text = torch.randn(2, 7, pipe.model.unet.config.cross_attention_dim)
    with torch.inference_mode():
        expected = stack(image, text, return_dict=False)[0]
        compile_blocks(stack, "eager", classes=("Transformer2DModel",))
        for layout in (torch.contiguous_format, torch.channels_last):
            found = stack(image.contiguous(memory_format=layout), text, return_dict=False)[0]
            assert relative(found, expected) < 1e-5
            assert found.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("left_out", ["Transformer2DModel", "Upsample2D"])
def test_what_is_left_out_runs_as_it_comes(pipe: StudioPipeline, left_out: str) -> None:
    compile_blocks(pipe.model.unet, "eager", classes=[name for name in BLOCKS if name != left_out])
    apart = "CompiledTransformer" if left_out == "Transformer2DModel" else left_out
    assert compiled(pipe.model.unet) == EVERYTHING - {apart}
    norms = [name for name, module in pipe.model.unet.named_modules() if module._compiled_call_impl]
    assert any(name.endswith("attentions.0.norm") for name in norms) == (left_out == "Transformer2DModel")


def test_a_stack_that_takes_no_image_is_left_alone() -> None:
    stack = Transformer2DModel(2, 8, num_vector_embeds=4, sample_size=2, norm_num_groups=4)
    compile_blocks(nn.ModuleList([stack]), "eager")
    assert type(stack) is Transformer2DModel


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda stack: pickle.loads(pickle.dumps(stack))])
def test_a_copy_is_not_compiled_and_has_weights_of_its_own(
    pipe: StudioPipeline, copied: Callable[[nn.Module], nn.Module]
) -> None:
    unet = pipe.model.unet
    before = classes(unet)
    compile_blocks(unet, "eager")
    expected = predicted(unet)
    twin = copied(unet)
    assert classes(twin) == before
    assert compiled(twin) == set()
    assert compiled(unet) == EVERYTHING
    assert relative(predicted(twin), expected) < 1e-6
    with torch.no_grad():
        for weight in twin.parameters():
            weight.zero_()
    assert torch.equal(predicted(unet), expected)
    compile_blocks(twin, "eager")  # and can be compiled itself
    assert not predicted(twin).any()


def test_models_with_different_backends_stand_side_by_side(pipe: StudioPipeline) -> None:
    unet = pipe.model.unet
    twin = copy.deepcopy(unet)
    expected = predicted(unet)
    seen: list[str] = []

    def backend(name: str) -> Callable[..., object]:
        def compiler(graph: torch.fx.GraphModule, _: object) -> object:
            seen.append(name)
            return graph.forward

        return compiler

    compile_blocks(unet, backend("first"))
    compile_blocks(twin, backend("second"))
    for own in (unet, twin):
        assert relative(predicted(own), expected) < 1e-6
    assert seen.count("first") == seen.count("second") > 0
    again = len(seen)
    for own in (unet, twin):
        predicted(own)
    assert len(seen) == again


def test_hooks_on_the_projections_are_called(pipe: StudioPipeline) -> None:
    """Also one that comes after compiling: torch itself would go on without it."""
    unet = pipe.model.unet
    compile_blocks(unet, "eager")
    before = predicted(unet)
    stack = next(module for module in unet.modules() if isinstance(module, CompiledTransformer))
    handle = stack.proj_out.register_forward_hook(lambda module, args, found: found * 2)
    hooked = predicted(unet)
    uncompile_blocks(unet)
    assert relative(hooked, predicted(unet)) < 1e-6
    assert relative(hooked, before) > 1e-4
    compile_blocks(unet, "eager")
    handle.remove()
    assert torch.equal(predicted(unet), before)


@pytest.mark.parametrize(
    ("family", "form"),
    [
        ("sd", "lane-packed"),
        ("shallow_sdxl", "lane-packed"),
        ("shallow_sdxl", "pool"),
        ("shallow_sdxl", "dense"),
    ],
)
def test_mixes_change_the_projections_without_compiling(
    request: pytest.FixtureRequest, make_lora: Callable[..., Path], family: str, form: FormChoice
) -> None:
    """Linear and convolutional projections with adapters: as merged weights, and nothing compiles for another mix."""
    model_folder: Path = request.getfixturevalue(f"{family}_folder")
    pipe = StudioPipeline.from_pretrained(model_folder, form=form)
    for name, seed in (("one", 1), ("two", 2)):
        pipe.load_lora_weights(make_lora(model_folder, name, seed=seed, where="proj_", text=False), name)
    model = pipe.model
    model.engine.optimize(graphs=False, compile=True, backend="eager")
    count = 0
    for turn, weights in enumerate([(0.5, 0.7), (-0.3, 1.0), (1.0, 0.2)]):
        rows = [(Use("one", weights[0]), Use("two", weights[1])), (Use("two", weights[0]), Use("one", 0.4))]
        own = inputs(model.unet, seed=turn)
        with torch.inference_mode(), model.bank.active("unet", rows):
            found = model.unet(**own, return_dict=False)[0]
        if turn == 0:
            count = graphs()
        for row, uses in enumerate(rows):
            twin = merged(model.unet, "unet", model.bank.adapters, uses)
            assert compiled(twin) == set()
            with torch.inference_mode():
                assert relative(found[row], twin(**own, return_dict=False)[0][row]) < 1e-5
    assert graphs() == count


def test_inductor_keeps_long_rows_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert arguments()["backend"] == "inductor"
    assert arguments(options={"epilogue_fusion": True})["options"] == {"epilogue_fusion": True}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    backend = arguments()["backend"]
    assert callable(backend)
    assert arguments()["backend"] is backend  # or torch would compile anew
    assert arguments(options={"epilogue_fusion": True})["backend"] is not backend
    assert arguments("eager")["backend"] == "eager"


def test_what_keeps_long_rows_leaves_plain_inductor_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its heuristics hold within its own compilations, and are part of inductor's key for its cache."""
    seen: list[tuple[str, str]] = []

    def compile_fx(graph: Any, inputs: Any, *, config_patches: Any = None, **others: Any) -> Any:
        chosen = (config_patches or {}).get("inductor_choices_class")
        seen.append((type(V.choices).__name__, chosen().uuid() if chosen else ""))
        return graph

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    backend = arguments()["backend"]
    monkeypatch.undo()
    monkeypatch.setattr(torch._inductor.compile_fx, "compile_fx", compile_fx)
    for own in ("inductor", backend, "inductor"):
        torch.compiler.reset()
        torch.compile(nn.LayerNorm(8), backend=own, fullgraph=True)(torch.randn(3, 8))
    assert seen == [("InductorChoices", ""), ("LongRows", "rows of 2048"), ("InductorChoices", "")]
