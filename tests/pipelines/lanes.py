"""What the tests of lanes share: inputs of a UNet, one row of them, and how far two results are apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from composers import Use
from pipelines.engine.reference import merged
from pipelines.model import Model

Inputs = dict[str, Tensor | dict[str, Tensor]]


def unet_inputs(model: Model, rows: int) -> Inputs:
    """Up to eight rows of noise, each at a timestep of its own."""
    generator = torch.Generator().manual_seed(5)
    config = model.unet.config
    inputs: Inputs = {
        "sample": torch.randn((rows, 4, 16, 16), generator=generator),
        "timestep": torch.tensor([10.0, 400, 20, 999, 1, 2, 3, 4][:rows]),
        "encoder_hidden_states": torch.randn((rows, 77, config.cross_attention_dim), generator=generator),
    }
    if model.checkpoint.family.size_conditioned:
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn((rows, 32), generator=generator),
            "time_ids": torch.full((rows, 6), 32.0),
        }
    return inputs


def row_of(inputs: Inputs, row: int) -> Inputs:
    return {
        key: value[row : row + 1]
        if isinstance(value, Tensor)
        else {name: tensor[row : row + 1] for name, tensor in value.items()}
        for key, value in inputs.items()
    }


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.float().cpu(), expected.float().cpu()
    return float((found - expected).norm() / expected.norm())


def assert_within_own_noise(model: Model, lanes: Sequence[tuple[Use, ...]], dtype: torch.dtype) -> None:
    """The error against fp32 merged weights is at most twice that of half-precision merged weights."""
    inputs = unet_inputs(model, len(lanes))
    exact = [merged(model.unet, "unet", model.bank.adapters, uses) for uses in lanes]
    expected = [unet(**row_of(inputs, row)).sample for row, unet in enumerate(exact)]
    model.to("cpu", dtype)
    halved: Inputs = {
        key: value.to(dtype) if isinstance(value, Tensor) else {k: v.to(dtype) for k, v in value.items()}
        for key, value in inputs.items()
    }
    with model.bank.active("unet", lanes):
        together = model.unet(**halved).sample
    for row, unet in enumerate(exact):
        noise = relative(unet.to(dtype)(**row_of(halved, row)).sample, expected[row])
        assert relative(together[row : row + 1], expected[row]) < 2 * noise + 1e-3
