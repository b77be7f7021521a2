"""A scale that makes nothing of its weight is refused."""

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
