"""A LoRA cut into content and style: every layer in its place, scales carried, and the halves make the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.adapters import ModelLayers, read_adapter
from pipelines.blora.blora_training import trained_layers
from pipelines.blora.layouts import model_outline, published_layers
from pipelines.blora.splitting import split, split_file
from pipelines.errors import AdapterMismatchError, ModelError, RequestError
from pipelines.families.family import SD1, SDXL
from pipelines.families.unet_names import sgm_names
from pipelines.home import Home

BLOCKS = ("up_blocks.0.attentions.0", "up_blocks.0.attentions.1")


@pytest.fixture(scope="module")
def sdxl_layers() -> ModelLayers:
    return published_layers(SDXL)[0]


def released(layers: ModelLayers) -> dict[str, torch.Tensor]:
    """A file as the released training code writes it, of rank 1, for SDXL as published."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name in trained_layers(layers.components["unet"], BLOCKS):
        out, width = layers.components["unet"][name].shape
        tensors[f"unet.{name}.lora.down.weight"] = torch.randn(1, width, generator=generator)
        tensors[f"unet.{name}.lora.up.weight"] = torch.randn(out, 1, generator=generator)
    return tensors


def test_the_papers_files_hold_160_pairs(sdxl_layers: ModelLayers, tmp_path: Path) -> None:
    tensors = released(sdxl_layers)
    assert len(tensors) == 2 * 160
    widths = {tensor.shape[1] for key, tensor in tensors.items() if "down" in key}
    assert widths == {1280, 2048}
    save_file(tensors, tmp_path / "b.safetensors")
    found = split(
        read_adapter(tmp_path / "b.safetensors", sdxl_layers, "b"), SDXL.block_map, "Stable Diffusion XL"
    )
    content, style = found.parts["content"], found.parts["style"]
    assert (len(content), len(style)) == (80, 80)
    assert not content.keys() & style.keys()
    assert content.keys() | style.keys() == found.adapter.layers.keys()
    assert all(name.startswith(f"unet.{BLOCKS[0]}.") for name in content)
    assert found.warning == ""


def test_kohya_files_with_alpha_are_split_too(sdxl_layers: ModelLayers, tmp_path: Path) -> None:
    """The release matches nothing in such files, and drops the alphas of those it matches."""
    sgm = sgm_names(sdxl_layers.components["unet"])
    tensors = {}
    for key, tensor in released(sdxl_layers).items():
        name, _, leaf = key.removeprefix("unet.").partition(".lora.")
        stem = "lora_unet_" + sgm[name].replace(".", "_")
        tensors[f"{stem}.lora_{leaf}"] = tensor
        tensors[f"{stem}.alpha"] = torch.tensor(0.5)
    assert any(key.startswith("lora_unet_output_blocks_0_1_") for key in tensors)
    save_file(tensors, tmp_path / "k.safetensors")
    found = split(read_adapter(tmp_path / "k.safetensors", sdxl_layers, "k"), SDXL.block_map, "SDXL")
    assert (len(found.parts["content"]), len(found.parts["style"])) == (80, 80)
    assert {layer.scale for part in found.parts.values() for layer in part.values()} == {0.5}


@pytest.fixture(scope="module")
def outline(sdxl_folder: Path) -> tuple[ModelLayers, dict[str, tuple[str, ...]]]:
    layers, blocks = model_outline(sdxl_folder, Home.resolve())
    return layers, dict(blocks)


@pytest.fixture
def whole(sdxl_folder: Path, make_lora: Callable[..., Path], tmp_path: Path) -> Path:
    """An ordinary LoRA in kohya's names, text encoders included, whose alpha differs from layer to layer."""
    tensors = {}
    for index, (key, tensor) in enumerate(load_file(make_lora(sdxl_folder, "fox", seed=4)).items()):
        component, _, rest = key.partition(".")
        name, _, half = rest.partition(".lora_")
        prefix = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}[component]
        stem = f"{prefix}_{name.replace('.', '_')}"
        if component != "unet" and not name.startswith("text_model"):
            stem = f"{prefix}_text_model_{name.replace('.', '_')}"
        tensors[f"{stem}.lora_{'down' if half[0] == 'A' else 'up'}.weight"] = tensor
        tensors[f"{stem}.alpha"] = torch.tensor(1.0 + index % 3)
    save_file(tensors, tmp_path / "fox.safetensors", {"modelspec.title": "Fox", "sshs_model_hash": "x"})
    return tmp_path / "fox.safetensors"


@pytest.mark.parametrize("naming", ["peft", "kohya"])
def test_the_halves_are_the_original_within_both_blocks(
    naming: str, whole: Path, outline: tuple[ModelLayers, dict[str, tuple[str, ...]]], tmp_path: Path
) -> None:
    layers, blocks = outline
    outs = {part: tmp_path / f"{part}.safetensors" for part in ("content", "style")}
    found = split_file(whole, outs, layers, blocks, naming=naming)
    original = read_adapter(whole, layers, "fox")
    halves = {part: read_adapter(out, layers, part) for part, out in outs.items()}
    assert not halves["content"].layers.keys() & halves["style"].layers.keys()
    merged = {**halves["content"].layers, **halves["style"].layers}
    assert merged.keys() == {
        name for name in original.layers if name.startswith(tuple(f"unet.{block}." for block in BLOCKS))
    }
    for name, factors in merged.items():
        assert torch.allclose(factors.delta(), original.delta(name), rtol=1e-6, atol=0), name
    assert len({factors.scale for factors in merged.values()}) > 1
    assert "not trained on the content and style blocks alone" in found.warning
    assert "text_encoder" in found.warning
    assert halves["style"].metadata.category == "style"
    assert halves["content"].metadata.title == "Fox (content)"
    assert not halves["content"].metadata.hashes


@pytest.mark.parametrize("part", ["content", "style"])
def test_stock_diffusers_loads_the_files(
    part: str,
    whole: Path,
    sdxl_folder: Path,
    stock: Callable[[Path], object],
    outline: tuple[ModelLayers, dict[str, tuple[str, ...]]],
    tmp_path: Path,
) -> None:
    layers, blocks = outline
    out = tmp_path / f"{part}.safetensors"
    split_file(whole, {part: out}, layers, blocks)
    mine = read_adapter(out, layers, part)
    pipe: object = stock(sdxl_folder)
    before = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}  # type: ignore[attr-defined]
    pipe.load_lora_weights(out)  # type: ignore[attr-defined]
    pipe.fuse_lora()  # type: ignore[attr-defined]
    pipe.unload_lora_weights()  # type: ignore[attr-defined]
    for name, weight in pipe.unet.state_dict().items():  # type: ignore[attr-defined]
        layer = f"unet.{name.removesuffix('.weight')}"
        expected = mine.delta(layer) if layer in mine.layers else torch.zeros_like(weight)
        assert torch.allclose(weight - before[name], expected, atol=1e-5), name


def test_kohya_names_load_in_stock_diffusers_where_alpha_is_one(
    sdxl_folder: Path,
    make_lora: Callable[..., Path],
    stock: Callable[[Path], object],
    outline: tuple[ModelLayers, dict[str, tuple[str, ...]]],
    tmp_path: Path,
) -> None:
    layers, blocks = outline
    out = tmp_path / "style.safetensors"
    split_file(make_lora(sdxl_folder, "fox", seed=4), {"style": out}, layers, blocks, naming="kohya")
    mine = read_adapter(out, layers, "style")
    pipe: object = stock(sdxl_folder)
    layer = next(iter(mine.layers))
    name = f"{layer.removeprefix('unet.')}.weight"
    before = pipe.unet.state_dict()[name].clone()  # type: ignore[attr-defined]
    pipe.load_lora_weights(out)  # type: ignore[attr-defined]
    pipe.fuse_lora()  # type: ignore[attr-defined]
    pipe.unload_lora_weights()  # type: ignore[attr-defined]
    after = pipe.unet.state_dict()[name]  # type: ignore[attr-defined]
    assert torch.allclose(after - before, mine.delta(layer), atol=1e-5)


def test_what_cannot_be_split_says_why(
    whole: Path, outline: tuple[ModelLayers, dict[str, tuple[str, ...]]], sd_folder: Path, tmp_path: Path
) -> None:
    layers, blocks = outline
    down = {key: tensor for key, tensor in load_file(whole).items() if "down_blocks_1" in key}
    save_file(down, tmp_path / "down.safetensors")
    out = {"style": tmp_path / "style.safetensors"}
    with pytest.raises(
        AdapterMismatchError, match=r"content blocks.*it has down_blocks\.1\.attentions\.0 \("
    ):
        split_file(tmp_path / "down.safetensors", out, layers, blocks)
    with pytest.raises(RequestError, match=r"no map of its content blocks.*probe-blocks"):
        split_file(whole, out, layers, {})
    assert not out["style"].exists()
    out["style"].touch()
    with pytest.raises(RequestError, match="already there"):
        split_file(whole, out, layers, blocks)
    with pytest.raises(RequestError, match=r"must end in \.safetensors"):
        split_file(whole, {"style": tmp_path / "style.png"}, layers, blocks)
    same = tmp_path / "same.safetensors"
    with pytest.raises(RequestError, match="both be written"):
        split_file(whole, {"content": same, "style": same}, layers, blocks)
    assert model_outline(sd_folder, Home.resolve())[1] == {} == SD1.block_map
    with pytest.raises(ModelError, match="a model on the hub"):
        model_outline("someone/something", Home.resolve())
