"""LoRA that was trained against a changed base is read as its difference from the base, or refused by its name.

`test_zoo.py` compares PEFT's own layers with it, where the start follows from the base.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.adapters import inspect_file, read_adapter
from pipelines.errors import AdapterFormatError, AdapterMismatchError

QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "conv_in"


def written(folder: Path, start: str, *, layer: str = QUERY, shape=(8, 8), **fields: object) -> dict:
    """A folder of PEFT's, with factors of rank 2 for one layer."""
    folder.mkdir(exist_ok=True)
    out, width, *kernel = shape
    tensors = {
        f"base_model.model.{layer}.lora_A.weight": torch.randn(2, width, *kernel),
        f"base_model.model.{layer}.lora_B.weight": torch.randn(out, 2, *(1 for _ in kernel)),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "init_lora_weights": start, **fields}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return tensors


def product(tensors: dict) -> torch.Tensor:
    down, up = tensors.values()
    return up @ down


@pytest.mark.parametrize(
    ("start", "name"),
    [
        ("pissa", "pissa_init"),
        ("pissa_niter_4", "pissa_init"),
        ("corda", "corda_init"),
        ("lora_ga", "loraga_init"),
    ],
)
def test_a_start_that_is_stored_beside_is_taken_out(start, name, tmp_path, sdxl):
    trained, begun = written(tmp_path, start), written(tmp_path / name, True)
    adapter = read_adapter(tmp_path, sdxl.layers, "fox")
    wanted = 3 * (product(trained) - product(begun))
    weight = sdxl.layers.target("unet", QUERY).weight()
    torch.testing.assert_close(adapter.layers[f"unet.{QUERY}"].change(weight), wanted)
    assert inspect_file(tmp_path).refused == ""


def test_a_start_of_another_file_is_refused(tmp_path, sdxl, refused):
    written(tmp_path, "corda")
    written(tmp_path / "corda_init", True, layer=QUERY.replace("to_q", "to_k"))
    assert "another file's" in refused(AdapterFormatError, tmp_path / "adapter_model.safetensors", sdxl)
    tensors = written(tmp_path / "corda_init", True)
    half = {key: value[:1] if "lora_A" in key else value[:, :1] for key, value in tensors.items()}
    save_file(
        {k: v.contiguous() for k, v in half.items()}, tmp_path / "corda_init" / "adapter_model.safetensors"
    )
    refused(AdapterMismatchError, tmp_path / "adapter_model.safetensors", sdxl)


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        ("corda", "data"),
        ("lora_ga", "data"),
        ("pissa_niter_16", "random"),
        ("LoftQ", "rounded"),
        ("olora_x", "data"),
    ],
)
def test_a_start_that_is_not_known_is_refused_by_name(start, reason, tmp_path, sdxl, refused):
    written(tmp_path, start)
    if start == "LoftQ":  # its start would not tell how the base was rounded
        written(tmp_path / "loftq_init", True)
    path = tmp_path / "adapter_model.safetensors"
    for message in (refused(AdapterFormatError, path, sdxl), inspect_file(path).refused):
        assert f"init_lora_weights={start.lower()!r}" in message
        assert reason in message


def test_a_start_takes_an_alpha(tmp_path, sdxl, refused):
    for start, alpha in (("olora", None), ("pissa", None), ("pissa", 0)):
        written(tmp_path, start, lora_alpha=alpha)
        assert "alpha" in refused(AdapterFormatError, tmp_path / "adapter_model.safetensors", sdxl)


def test_convolutions_have_no_start(tmp_path, sdxl, refused):
    written(tmp_path, "pissa", layer=CONV, shape=sdxl.layers.target("unet", CONV).shape)
    assert "convolution" in refused(AdapterFormatError, tmp_path / "adapter_model.safetensors", sdxl)


def test_a_weight_that_does_not_tell_its_start_is_refused(tmp_path, sdxl, refused):
    """Of equal singular values, any turn of their vectors is a start."""
    written(tmp_path, "pissa")
    layer = sdxl.unet.get_submodule(QUERY)
    kept = layer.weight.detach().clone()
    try:
        with torch.no_grad():
            layer.weight.copy_(torch.eye(8))
        assert "clearly" in refused(AdapterFormatError, tmp_path / "adapter_model.safetensors", sdxl)
    finally:
        with torch.no_grad():
            layer.weight.copy_(kept)


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal", "mica", "True", ""])
def test_a_start_that_left_the_base_is_plain(start, tmp_path, sdxl):
    tensors = written(tmp_path, start)
    adapter = read_adapter(tmp_path, sdxl.layers, "fox")
    torch.testing.assert_close(adapter.delta(f"unet.{QUERY}"), 3 * product(tensors))
    assert not any("start" in note for note in adapter.report.notes)


def test_what_follows_from_the_base_or_is_not_known_is_told(tmp_path, sdxl):
    for start, said in (
        ("pissa", "the checkpoint that it was trained on"),
        ("kaiming_like", "not known here"),
    ):
        written(tmp_path, start)
        report = read_adapter(tmp_path, sdxl.layers, "fox").report
        [note] = [note for note in report.notes if said in note]
        assert start in note
        assert note in report.doubts


def test_t_lora_of_another_base_is_refused(save, sdxl, refused):
    stem = f"lora_unet_{QUERY.replace('.', '_')}"
    left, values, right = torch.linalg.svd(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))
    tensors = {
        f"{stem}.q_layer.weight": right[:4],
        f"{stem}.p_layer.weight": left[:, :4],
        f"{stem}.lambda_layer": values[None, :4],
    }
    assert "near no singular vectors" in refused(AdapterFormatError, save(tensors), sdxl)
    ones = {key: torch.ones_like(value) for key, value in tensors.items()}
    refused(AdapterFormatError, save(ones), sdxl)
    conv = {
        "lora_unet_conv_in.q_layer.weight": torch.ones(2, 4, 1, 1),
        "lora_unet_conv_in.p_layer.weight": torch.ones(8, 2, 1, 1),
        "lora_unet_conv_in.lambda_layer": torch.ones(1, 2),
    }
    assert "taps" in refused(AdapterFormatError, save(conv), sdxl)
