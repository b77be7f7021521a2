"""True FLoRA: its own format, and never mistaken for a LoRA, nor a LoRA for it."""

from __future__ import annotations

import pytest
import safetensors
import torch

from pipelines.adapters import Hadamard, LowRank, inspect_file, read_adapter, write_lora
from pipelines.errors import AdapterFormatError, AdapterMismatchError

QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"  # [8, 8]
KEY = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"  # [8, 40]
CONV = "mid_block.resnets.0.conv1"  # [16, 16, 3, 3]
IN, OUT = f"unet.{QUERY}.flora_in.weight", f"unet.{QUERY}.flora_out.weight"


@pytest.fixture
def layers(sdxl, trainer):
    """FLoRA factors of mixed rank for a linear layer, a rectangular one, a convolution and a text layer."""
    text = "text_model.encoder.layers.0.self_attn.q_proj"
    names = {f"unet.{name}": sdxl.modules("unet")[name] for name in (QUERY, KEY, CONV)}
    module = next(
        name for name in sdxl.modules("text_encoder_2") if name.endswith(text.removeprefix("text_model."))
    )
    names[f"text_encoder_2.{module}"] = sdxl.modules("text_encoder_2")[module]
    return {
        name: Hadamard(trainer.tensor(rank, shape[1]), trainer.tensor(shape[0], rank))
        for rank, (name, shape) in enumerate(names.items(), start=1)
    }


@pytest.mark.parametrize("naming", ["peft", "kohya"])
def test_round_trip(naming, layers, sdxl, tmp_path):
    path = tmp_path / "fox.safetensors"
    write_lora(path, layers, naming=naming, metadata={"modelspec.title": "Fox"})
    adapter = read_adapter(path, sdxl.layers, "fox")
    assert adapter.layers.keys() == layers.keys()
    for name, written in layers.items():
        read = adapter.layers[name]
        assert isinstance(read, Hadamard)
        assert torch.equal(read.inner, written.inner)
        assert torch.equal(read.outer, written.outer)
        assert read.scale == 1
    with safetensors.safe_open(path, "pt") as file:
        keys, metadata = list(file.keys()), file.metadata()
    assert all(".flora_in." in key or ".flora_out." in key for key in keys)
    assert not any("lora_A" in key or "lora_up" in key or "alpha" in key for key in keys)
    assert (metadata["flora.version"], metadata["flora.reduction"]) == ("1", "sum")
    assert "lora_adapter_metadata" not in metadata


def test_the_report_says_what_it_is(layers, sdxl, tmp_path):
    write_lora(tmp_path / "fox.safetensors", layers)
    report = read_adapter(tmp_path / "fox.safetensors", sdxl.layers, "fox").report
    assert (report.kind, report.naming, report.ranks) == ("FLoRA", "FLoRA", (1, 4))
    assert report.applied == {"unet": 3, "text_encoder": 0, "text_encoder_2": 1}
    assert "FLoRA, rank 1 to 4, fp32" in str(report)
    assert "alpha" not in str(report)
    seen = inspect_file(tmp_path / "fox.safetensors")
    assert (seen.kinds, seen.ranks, seen.refused) == (("FLoRA",), (1, 4), "")


def test_the_change_is_the_papers_equation(sdxl, trainer):
    """W0 + change = W0 * (BA), and equation 4 equals equation 5 with a sum, written out rank by rank."""
    weight, inner, outer = trainer.tensor(6, 5), trainer.tensor(3, 5), trainer.tensor(6, 3)
    factors = Hadamard(inner, outer)
    x = trainer.tensor(7, 5)
    merged = x @ (weight + factors.change(weight)).T
    summed = sum(outer[:, r] * ((inner[r] * x) @ weight.T) for r in range(3))
    assert torch.allclose(merged, summed, rtol=1e-5, atol=1e-5)
    kernel = trainer.tensor(6, 5, 3, 3)
    taps = factors.change(kernel)
    assert torch.allclose(taps, kernel * (outer @ inner - 1)[:, :, None, None])


def test_a_mean_over_the_rank_is_a_scale(sdxl, save, trainer, tmp_path):
    tensors = {IN: trainer.tensor(4, 8), OUT: trainer.tensor(8, 4)}
    mean = read_adapter(save(tensors, {"flora.reduction": "mean"}), sdxl.layers, "fox")
    factors = mean.layers[f"unet.{QUERY}"]
    assert factors.scale == 1 / 4
    assert torch.allclose(factors.factor(), tensors[OUT] @ tensors[IN] / 4)
    write_lora(tmp_path / "again.safetensors", mean.layers, metadata=mean.metadata.raw)
    again = read_adapter(tmp_path / "again.safetensors", sdxl.layers, "fox").layers[f"unet.{QUERY}"]
    assert again.scale == 1
    assert torch.allclose(again.factor(), factors.factor())


@pytest.mark.parametrize(
    ("key", "flat"),
    [("lora_unet_{}.flora_in.weight", True), ("base_model.model.{}.flora_in.weight", False)],
)
def test_other_prefixes_are_read_too(key, flat, sdxl, save, trainer):
    name = key.format(QUERY.replace(".", "_") if flat else QUERY)
    tensors = {name: trainer.tensor(2, 8), name.replace("flora_in", "flora_out"): trainer.tensor(8, 2)}
    assert read_adapter(save(tensors), sdxl.layers, "fox").layers.keys() == {f"unet.{QUERY}"}


def test_a_file_may_hold_both_types(layers, sdxl, trainer, tmp_path):
    other = f"unet.{QUERY.replace('to_q', 'to_v')}"
    lowrank = trainer.layer((8, 8))
    mixed = {**layers, other: LowRank(lowrank.down, lowrank.up, 0.5)}
    for naming in ("kohya", "peft"):
        path = tmp_path / f"{naming}.safetensors"
        write_lora(path, mixed, naming=naming)
        adapter = read_adapter(path, sdxl.layers, "fox")
        assert adapter.report.kind == "FLoRA + LoRA"
        assert isinstance(adapter.layers[f"unet.{QUERY}"], Hadamard)
        assert adapter.layers[other].scale == pytest.approx(0.5)


def test_an_ordinary_lora_is_never_called_flora(sdxl, trainer, tmp_path):
    lowrank = trainer.layer((8, 8))
    write_lora(tmp_path / "fox.safetensors", {f"unet.{QUERY}": LowRank(lowrank.down, lowrank.up, 1.0)})
    assert read_adapter(tmp_path / "fox.safetensors", sdxl.layers, "fox").report.kind == "LoRA"
    assert inspect_file(tmp_path / "fox.safetensors").kinds == ("LoRA",)


def test_what_changes_nothing_is_said_to(sdxl, save):
    ones = {IN: torch.ones(1, 8), OUT: torch.ones(8, 1)}
    assert any(
        "changes nothing" in note for note in read_adapter(save(ones), sdxl.layers, "fox").report.notes
    )
    zeros = {IN: torch.zeros(1, 8), OUT: torch.ones(8, 1)}
    assert not read_adapter(save(zeros), sdxl.layers, "fox").report.notes


@pytest.mark.parametrize(
    ("tensors", "error", "said"),
    [
        ({IN: torch.ones(2, 8)}, AdapterFormatError, "no matching outer half"),
        ({OUT: torch.ones(8, 2)}, AdapterFormatError, "no matching inner half"),
        ({IN: torch.ones(0, 8), OUT: torch.ones(8, 0)}, AdapterFormatError, "rank 0"),
        ({IN: torch.ones(2, 9), OUT: torch.ones(8, 2)}, AdapterMismatchError, "[2, 9]"),
        ({IN: torch.ones(2, 8), OUT: torch.ones(2, 8)}, AdapterMismatchError, "[2, 8]"),
        ({IN: torch.ones(2, 8), OUT: torch.ones(8, 3)}, AdapterMismatchError, "[8, 3]"),
        ({IN: torch.tensor(1.0), OUT: torch.ones(8, 1)}, AdapterFormatError, "rank 0"),
        (
            {IN: torch.ones(2, 8), OUT: torch.ones(8, 2), f"unet.{QUERY}.alpha": torch.tensor(2.0)},
            AdapterFormatError,
            "no meaning",
        ),
        (
            {IN: torch.ones(2, 8), OUT: torch.ones(8, 2), f"unet.{QUERY}.lora_A.weight": torch.ones(2, 8)},
            AdapterFormatError,
            "no meaning",
        ),
        (
            {
                f"unet.{QUERY}.flora_A.weight": torch.ones(2, 8),
                f"unet.{QUERY}.flora_B.weight": torch.ones(8, 2),
            },
            AdapterFormatError,
            "flora_in and flora_out",
        ),
    ],
)
def test_unsound_files_are_refused(tensors, error, said, sdxl, save, refused):
    assert said in refused(error, save(tensors), sdxl)


@pytest.mark.parametrize("metadata", [{"flora.version": "2"}, {"flora.reduction": "max"}])
def test_settings_of_another_format_are_refused(metadata, sdxl, save, refused):
    file = save({IN: torch.ones(2, 8), OUT: torch.ones(8, 2)}, metadata)
    (said,) = metadata.values()
    assert repr(said) in refused(AdapterFormatError, file, sdxl)
    assert repr(said) in inspect_file(file).refused
