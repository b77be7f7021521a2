"""A scale that makes nothing of its weight is refused, and a weight that is no number; a missing scale is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.checkpoints.stored import Weight, opened, storage_of
from pipelines.checkpoints.weights import read_weights_header
from pipelines.errors import ModelError


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
def test_a_scale_of_zero_or_not_finite_is_refused(tmp_path: Path, scale: float) -> None:
    file = tmp_path / "m.safetensors"
    save_file({"a.weight": torch.ones(2, 2), "a.scale_weight": torch.tensor(scale)}, file)
    storage = storage_of(file.name, read_weights_header(file))
    with pytest.raises(ModelError, match=r"a\.scale_weight is"), opened(file, storage) as read:
        read(Weight("a.weight", (2, 2)), torch.float32)


@pytest.mark.parametrize(
    ("number", "stored", "dtype"),
    [
        (float("nan"), torch.float32, torch.float32),
        (float("-inf"), torch.float16, torch.float32),
        (float("nan"), torch.float8_e4m3fn, torch.bfloat16),
        (70_000.0, torch.float32, torch.float16),  # finite as it is stored
    ],
)
def test_a_weight_that_is_not_finite_is_refused(
    tmp_path: Path, number: float, stored: torch.dtype, dtype: torch.dtype
) -> None:
    file = tmp_path / "m.safetensors"
    save_file({"a.weight": torch.tensor([[1.0, number]]).to(stored), "b.weight": torch.zeros(0, 2)}, file)
    with opened(file, storage_of(file.name, read_weights_header(file))) as read:
        assert not read(Weight("b.weight", (0, 2)), dtype).numel()
        with pytest.raises(
            ModelError, match=r"m\.safetensors: the weight a\.weight holds .* NaN or infinite in"
        ):
            read(Weight("a.weight", (1, 2)), dtype)


@pytest.mark.parametrize(
    ("mark", "unscaled"),
    [("scaled_fp8", ["b.a.weight", "u.b.weight"]), ("u.scaled_fp8", ["u.b.weight"]), ("b.scaled", [])],
)
def test_weights_without_the_scale_that_a_mark_promises_are_known(
    tmp_path: Path, mark: str, unscaled: list[str]
) -> None:
    file = tmp_path / "m.safetensors"
    eight = torch.ones(2, 2).to(torch.float8_e4m3fn)
    plain = {"u.c.weight": torch.ones(2, 2).half(), mark: torch.zeros(0, dtype=torch.float8_e4m3fn)}
    weights = {"u.a.weight": eight, "u.b.weight": eight.clone(), "b.a.weight": eight.clone()}
    save_file({**plain, **weights, "u.a.scale_weight": torch.tensor(0.5)}, file)
    assert sorted(storage_of(file.name, read_weights_header(file)).unscaled) == unscaled
