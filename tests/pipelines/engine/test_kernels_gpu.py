"""The kernels on a CUDA device. Run by hand: `pytest -m gpu`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines import Request, StudioPipeline
from pipelines.engine import choosing
from pipelines.engine.choosing import LIBRARY, Choice, Clock, Operands, Way
from pipelines.engine.layers import use_kernels

from ..lanes import relative

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("geglu", [False, True])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("sizes", [(4, 512, 640, 640), (3, 77, 328, 264)])
@torch.inference_mode()
def test_every_candidate_runs_and_equals_float32(
    dtype: torch.dtype, geglu: bool, own: bool, sizes: tuple[int, int, int, int]
) -> None:
    groups, tokens, inner, outer = sizes
    out, like = outer * (2 if geglu else 1), {"device": "cuda", "dtype": dtype}
    operands = Operands(
        torch.empty(groups, tokens, inner, **like),
        torch.empty(*((groups,) if own else ()), out, inner, **like),
        torch.empty(out, **like),
        torch.empty(groups, tokens, 3 * 48, **like)[..., 48:96],
        torch.empty(groups, 48, out, **like),
        geglu,
    ).twin()
    x, weight, bias, shrunk, up = (
        None if part is None else part.float()
        for part in (operands.x, operands.weight, operands.bias, operands.shrunk, operands.up)
    )
    assert x is not None
    assert weight is not None
    agree(operands, Operands(x, weight, bias, shrunk, up, geglu))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("sizes", [(4, 512, 640, 144), (3, 77, 328, 24)])
@torch.inference_mode()
def test_every_candidate_for_shrinking_equals_float32(
    dtype: torch.dtype, own: bool, sizes: tuple[int, int, int, int]
) -> None:
    groups, tokens, inner, rank = sizes
    x = torch.randn(groups, tokens, inner, device="cuda", dtype=dtype)
    down = torch.randn(*((groups,) if own else ()), rank, inner, device="cuda", dtype=dtype)
    exact = Operands(x.float(), down.float(), None, None, None, False)
    agree(Operands(x, down, None, None, None, False), exact)


def agree(operands: Operands, exact: Operands) -> None:
    """Every way of a product gives the exact one's library result, but for rounding to 16 bits."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        expected = exact.library()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    for name, way in operands.ways().items():
        assert relative(way(), expected) < 5e-3, name


@pytest.mark.parametrize("compiled", [False, True])
def test_pictures_stay_within_half_precisions_noise(
    sdxl_folder: Path, make_lora: Callable[..., Path], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded, with and without compiling; the kernels must run, however slow they are on so small a model."""
    measured = choosing.measured

    def a_kernel(ways: Mapping[str, Way], seconds: Clock) -> Choice:
        found = measured(ways, seconds)
        assert found.dropped == {}
        return replace(found, name=list(found.microseconds)[-1])

    monkeypatch.setattr(choosing, "measured", a_kernel)
    monkeypatch.setattr(choosing, "keep_in", lambda folder: choosing._choices.clear())
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
    choices = choosing.choices(x.device, x.dtype)
    choice = choices.choice(
        Operands(x.reshape(1, -1, width), block.net[0].proj.weight, block.net[0].proj.bias, None, None, True)
    )
    assert LIBRARY in choice.microseconds
    assert choice.dropped == {}
