"""The kernels on a CUDA device. Run by hand: `pytest -m gpu`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines import Request, StudioPipeline
from pipelines.engine.products import autotune
from pipelines.engine.products.autotune import Choice, Clock
from pipelines.engine.products.layers import use_kernels
from pipelines.engine.products.operands import BESIDE, IN_PASSING, LIBRARY, Operands, Way

from ...lanes import relative

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["one", "q/k/v", "pool", "geglu", "own weights", "own weights, geglu"])
@pytest.mark.parametrize("sizes", [(4, 512, 640, 640), (3, 77, 328, 264)])
@torch.inference_mode()
def test_every_candidate_runs_and_equals_float32(
    dtype: torch.dtype, kind: str, sizes: tuple[int, int, int, int]
) -> None:
    groups, tokens, inner, outer = sizes
    rank, parts = 48, 3 if kind == "q/k/v" else 1
    out = outer * (2 if "geglu" in kind else 1)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda", dtype=dtype)

    weights = made(parts, *((groups,) if "own" in kind else ()), out, inner) / inner**0.5
    sets = 1 if kind == "pool" else groups
    operands = Operands(
        made(sets, groups // sets * tokens, inner),
        weights.unbind(),
        made(out) if parts == 1 else None,
        None if "own" in kind else made(sets, parts * rank, inner) / inner**0.5,
        () if "own" in kind else (made(parts, sets, rank, out) / rank**0.5).unbind(),
        made(groups, rank) if kind == "pool" else None,
        "geglu" in kind,
    )
    exact = Operands(
        operands.x.float(),
        tuple(weight.float() for weight in operands.weights),
        None if operands.bias is None else operands.bias.float(),
        None if operands.down is None else operands.down.float(),
        tuple(up.float() for up in operands.ups),
        None if operands.gate is None else operands.gate.float(),
        operands.geglu,
    )
    ways = operands.ways()
    assert len(ways) > 3
    assert (BESIDE in ways) == (operands.down is not None)
    assert (IN_PASSING in ways) == (operands.down is not None and operands.gate is None)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        expected = exact.library()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    for name, way in ways.items():
        assert relative(way(), expected) < 6e-3, name


@pytest.mark.parametrize("compiled", [False, True])
def test_pictures_stay_within_half_precisions_noise(
    sdxl_folder: Path, make_lora: Callable[..., Path], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded, with and without compiling; the kernels must run, however slow they are on so small a model."""
    measured = autotune.measured

    def a_kernel(ways: Mapping[str, Way], seconds: Clock) -> Choice:
        found = measured(ways, seconds)
        assert found.dropped == {}
        return replace(found, name=list(found.microseconds)[-1])

    monkeypatch.setattr(autotune, "measured", a_kernel)
    monkeypatch.setattr(autotune, "keep_in", lambda folder: autotune._choices.clear())
    request = Request("a fox", adapters={"wide": 0.8}, seed=1, steps=6)

    def drawn(dtype: torch.dtype, kernels: bool) -> torch.Tensor:
        pipe = StudioPipeline.from_pretrained(sdxl_folder, dtype=dtype).to("cuda")
        pipe.load_lora_weights(make_lora(sdxl_folder, "wide", seed=3, rank=4, where=""), "wide")
        pipe.optimize(kernels=kernels, compile=compiled and kernels, form="lane-packed")
        found = pipe(request, output_type="latent").images[0]
        assert pipe.model.engine.stats.captures == 1
        assert isinstance(found, torch.Tensor)
        return found

    expected = drawn(torch.float32, False)
    noise = relative(drawn(torch.float16, False), expected)
    assert relative(drawn(torch.float16, True), expected) < 2 * noise + 1e-3


@torch.inference_mode()
def test_the_base_with_geglu_by_kernels_is_diffusers_own(sdxl_folder: Path) -> None:
    unet = StudioPipeline.from_pretrained(sdxl_folder, dtype=torch.bfloat16).to("cuda").model.unet
    block = next(module for name, module in unet.named_modules() if name.endswith("ff"))
    width = block.net[0].proj.in_features
    x = torch.randn(4, 64, width, device="cuda", dtype=torch.bfloat16)
    expected = block(x)
    use_kernels(unet, True)
    assert relative(block(x), expected) < 1e-2
    choices = autotune.choices(x.device, x.dtype)
    choice = choices.choice(
        Operands(
            x.reshape(1, -1, width), (block.net[0].proj.weight,), block.net[0].proj.bias, None, (), None, True
        )
    )
    assert LIBRARY in choice.microseconds
    assert choice.dropped == {}
