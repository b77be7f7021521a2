"""What is written is read back exactly, by us and (test_against_stock) by stock diffusers."""

from __future__ import annotations

import json

import pytest
import safetensors
import torch

from pipelines.adapters import LowRank, read_adapter, sha256, write_lora


@pytest.fixture
def layers(sdxl, trainer):
    """Factors for every layer of a small SDXL, text encoders included."""
    made = {}
    for component in sdxl.layers.components:
        for module, factors in trainer.layers(sdxl.modules(component)).items():
            made[f"{component}.{module}"] = LowRank(
                factors.down, factors.up, factors.alpha / factors.down.shape[0]
            )
    return made


@pytest.mark.parametrize("naming", ["kohya", "peft"])
def test_round_trip(naming, layers, sdxl, tmp_path):
    path = tmp_path / "fox.safetensors"
    write_lora(path, layers, naming=naming, metadata={"modelspec.title": "Fox"})
    adapter = read_adapter(path, sdxl.layers, "fox")
    assert set(adapter.layers) == set(layers)
    for name, written in layers.items():
        read = adapter.layers[name]
        assert torch.equal(read.up, written.up)
        assert torch.equal(read.down, written.down)
        assert read.scale == pytest.approx(written.scale, rel=1e-6)
    assert adapter.metadata.title == "Fox"
    assert [file.name for file in tmp_path.iterdir()] == ["fox.safetensors"]


def test_half_precision_factors_stay_as_they_are(layers, sdxl, tmp_path):
    name, factors = next(iter(layers.items()))
    half = LowRank(factors.down.bfloat16(), factors.up.bfloat16(), factors.scale)
    write_lora(tmp_path / "fox.safetensors", {name: half})
    read = read_adapter(tmp_path / "fox.safetensors", sdxl.layers, "fox").layers[name]
    assert read.up.dtype == torch.bfloat16
    assert torch.equal(read.down, half.down)


@pytest.mark.parametrize("naming", ["kohya", "peft"])
def test_equal_content_gives_equal_bytes(naming, layers, tmp_path):
    notes = {f"modelspec.{word}": word for word in ("title", "author", "license", "tags", "date")}
    backwards = dict(reversed(layers.items()))
    write_lora(tmp_path / "a.safetensors", layers, naming=naming, metadata=notes)
    write_lora(tmp_path / "b.safetensors", backwards, naming=naming, metadata=dict(reversed(notes.items())))
    assert sha256(tmp_path / "a.safetensors") == sha256(tmp_path / "b.safetensors")


def test_the_library_reads_the_container_too(layers, tmp_path):
    write_lora(tmp_path / "fox.safetensors", layers, naming="peft", metadata={"modelspec.title": "Füchsin"})
    with safetensors.safe_open(tmp_path / "fox.safetensors", "pt") as file:
        assert file.metadata()["modelspec.title"] == "Füchsin"
        assert json.loads(file.metadata()["lora_adapter_metadata"])["unet.use_rslora"] is False
        assert len(file.keys()) == 2 * len(layers)


@pytest.mark.parametrize(
    ("metadata", "prefix"),
    [({}, "lora_te_"), ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "lora_te1_")],
)
def test_kohya_numbers_text_encoders_in_sdxl_files_only(metadata, prefix, layers, tmp_path):
    text = {name: factors for name, factors in layers.items() if name.startswith("text_encoder.")}
    write_lora(tmp_path / "fox.safetensors", text, metadata=metadata)
    with safetensors.safe_open(tmp_path / "fox.safetensors", "pt") as file:
        assert all(key.startswith(f"{prefix}text_model_encoder_layers_") for key in file.keys())  # noqa: SIM118


def test_a_failed_write_leaves_the_old_file(layers, tmp_path, monkeypatch):
    path = tmp_path / "fox.safetensors"
    path.write_bytes(b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_lora(path, layers)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["fox.safetensors"]
