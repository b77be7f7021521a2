"""Diffusers folders: which files of a part are read, and that every key of them is used or named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.checkpoints import load_checkpoint
from pipelines.checkpoints.folders import folder_variant
from pipelines.errors import ModelError

from .written import same

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


@pytest.fixture
def folder(sd_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sd_folder, tmp_path / "copy"))


def changed(folder: Path, part: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = folder / part / WEIGHTS[part]
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize("part", list(WEIGHTS))
def test_a_weight_too_many_and_a_weight_too_few_are_errors(folder: Path, part: str) -> None:
    changed(folder, part, lambda tensors: tensors.update(extra_weight=torch.rand(3)))
    with pytest.raises(ModelError, match=rf"weights in {part} are not understood \(1\): extra_weight"):
        load_checkpoint(folder)

    def swapped(tensors: dict[str, torch.Tensor]) -> None:
        name = next(
            key for key in sorted(tensors) if key.endswith("norm1.weight") or "layer_norm1.weight" in key
        )
        tensors["extra_weight"] = tensors.pop(name)

    changed(folder, part, swapped)
    with pytest.raises(ModelError, match=rf"the files in {part} hold \d+ numbers where \d+ belong.*such as"):
        load_checkpoint(folder)


@pytest.mark.parametrize("part", list(WEIGHTS))
def test_a_number_that_is_not_finite_is_an_error(folder: Path, part: str) -> None:
    changed(folder, part, lambda tensors: tensors[min(tensors)].view(-1)[:1].fill_(float("nan")))
    with pytest.raises(
        ModelError, match=f"{part}: the weight .* NaN or infinite in float32, .*use another copy"
    ):
        load_checkpoint(folder)


@pytest.mark.parametrize("part", list(WEIGHTS))
def test_whole_numbers_and_scales_are_not_taken_as_weights(folder: Path, part: str) -> None:
    name = {"unet": "conv_in.weight", "vae": "decoder.conv_in.weight"}.get(
        part, "encoder.layers.0.mlp.fc1.weight"
    )

    def whole(tensors: dict[str, torch.Tensor]) -> None:
        key = next(key for key in tensors if key.endswith(name))
        tensors[key] = (tensors[key] * 100).to(torch.int8)

    changed(folder, part, whole)
    with pytest.raises(ModelError, match="stored as int8 without scales"):
        load_checkpoint(folder)
    changed(
        folder,
        part,
        lambda tensors: tensors.update(
            {f"{key}_scale": torch.tensor(0.01) for key in list(tensors) if key.endswith(name)}
        ),
    )
    with pytest.raises(ModelError, match=f"weights in {part} have scales .* read from single files only"):
        load_checkpoint(folder)


def test_what_no_text_encoder_needs_is_left_out(folder: Path, stock: Callable[[Path], Any]) -> None:
    expected = stock(folder).text_encoder
    ids = torch.arange(77)[None]
    changed(
        folder, "text_encoder", lambda tensors: tensors.update({"text_model.embeddings.position_ids": ids})
    )
    assert same(load_checkpoint(folder).text_encoders["text_encoder"], expected)


@pytest.mark.parametrize("variant", ["fp16", "bf16", "fp32", "non_ema"])
def test_a_folder_with_one_variant_only_is_read(
    folder: Path, variant: str, stock: Callable[[Path], Any]
) -> None:
    expected = stock(folder)
    for part, name in WEIGHTS.items():
        file = folder / part / name
        file.rename(file.with_name(name.replace(".safetensors", f".{variant}.safetensors")))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert folder_variant(folder, dtype) == variant
    checkpoint = load_checkpoint(folder)
    assert same(checkpoint.unet, expected.unet)
    assert same(checkpoint.vae, expected.vae)
    assert same(checkpoint.text_encoders["text_encoder"], expected.text_encoder)


def test_a_variant_of_the_unet_alone_is_read_with_the_other_parts(folder: Path) -> None:
    file = folder / "unet" / WEIGHTS["unet"]
    file.rename(file.with_name("diffusion_pytorch_model.bf16.safetensors"))
    assert len(load_checkpoint(folder).files) == 3


def test_shards_are_read_by_their_index(folder: Path, stock: Callable[[Path], Any]) -> None:
    expected = stock(folder).unet
    expected.save_pretrained(folder / "unet", max_shard_size="400KB")
    whole = folder / "unet" / WEIGHTS["unet"]
    whole.unlink(missing_ok=True)
    shards = sorted((folder / "unet").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    assert same(load_checkpoint(folder).unet, expected)
    shards[0].unlink()
    with pytest.raises(ModelError, match="copy"):
        load_checkpoint(folder)


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_a_part_with_pickles_only_is_refused(folder: Path, part: str) -> None:
    file = folder / part / WEIGHTS[part]
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(
        ModelError, match=rf"no \.safetensors weights in its {part} folder; \.bin files are not read"
    ):
        load_checkpoint(folder)


def test_a_missing_tokenizer_is_clips_own(folder: Path) -> None:
    before = load_checkpoint(folder)
    shutil.rmtree(folder / "tokenizer")
    checkpoint = load_checkpoint(folder)
    words = "a photo of a (red) fox, 2024"
    assert (
        checkpoint.tokenizers["text_encoder"](words).input_ids
        == before.tokenizers["text_encoder"](words).input_ids
    )
    assert checkpoint.notes == ("its folder has no tokenizer, so CLIP's own is used",)
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "vocab_size": 1000}))
    with pytest.raises(ModelError, match="has no tokenizer folder; copy or download"):
        load_checkpoint(folder)


def test_a_safety_checker_is_not_asked_for(folder: Path) -> None:
    index = folder / "model_index.json"
    said = json.loads(index.read_text())
    said |= {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True,
    }
    index.write_text(json.dumps(said))
    assert load_checkpoint(folder).family.name == "sd1"


def test_a_vaes_folder_is_read_by_every_key(folder: Path, tmp_path: Path) -> None:
    vae = Path(shutil.copytree(folder / "vae", tmp_path / "mine"))
    (vae / WEIGHTS["vae"]).rename(vae / "diffusion_pytorch_model.fp16.safetensors")
    assert same(load_checkpoint(folder, vae=vae).vae, load_checkpoint(folder).vae)
    file = vae / "diffusion_pytorch_model.fp16.safetensors"
    save_file(load_file(file) | {"more": torch.rand(2)}, file)
    with pytest.raises(ModelError, match=r"mine: weights in vae are not understood \(1\): more"):
        load_checkpoint(folder, vae=vae)
