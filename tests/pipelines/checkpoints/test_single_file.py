"""Single-file checkpoints: written in Stability's layout from tiny models, they load as what they were."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from pipelines import assets
from pipelines.checkpoints import load_checkpoint
from pipelines.checkpoints.single_file import examine, load_tokenizers
from pipelines.checkpoints.weights import read_weights_header
from pipelines.errors import ModelError
from pipelines.families.family import FAMILIES, SD1, SD2, SDXL

from .written import (
    Tensors,
    clip_tensors,
    open_clip_tensors,
    same,
    single_file_tensors,
    unet_tensors,
    vae_tensors,
)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_loads_what_was_written(
    kind: str, configs: Path, tmp_path: Path, stock: Callable[[Path], Any], request: pytest.FixtureRequest
) -> None:
    pipe = stock(request.getfixturevalue(kind))
    file = tmp_path / "My Model.safetensors"
    save_file(single_file_tensors(pipe), file)
    checkpoint = load_checkpoint(file)
    assert checkpoint.family is (SD1 if kind == "sd" else SDXL)
    assert same(checkpoint.unet, pipe.unet)
    assert same(checkpoint.vae, pipe.vae)
    for name in checkpoint.family.text_encoders:
        assert same(checkpoint.text_encoders[name], getattr(pipe, name))
    assert checkpoint.label == "My Model"
    assert checkpoint.defaults == checkpoint.family.defaults
    assert (checkpoint.prediction_type, checkpoint.zero_snr) == ("epsilon", False)
    assert checkpoint.force_zeros_for_empty_prompt == (kind == "sdxl")
    pads = [tokenizer.pad_token for tokenizer in checkpoint.tokenizers.values()]
    assert pads == (["<|endoftext|>"] if kind == "sd" else ["<|endoftext|>", "!"])
    assert len(checkpoint.hash) == 10


def test_sd2_is_told_by_its_text_encoder(
    configs: Path, tmp_path: Path, stock: Callable[[Path], Any], sd: Path
) -> None:
    pipe = stock(sd)
    tensors = unet_tensors(pipe.unet) | vae_tensors(pipe.vae)
    tensors |= open_clip_tensors(pipe.text_encoder, "cond_stage_model.")
    file = tmp_path / "two.safetensors"
    save_file({key: value.clone() for key, value in tensors.items()}, file)
    checkpoint = load_checkpoint(file)
    assert checkpoint.family is SD2
    assert same(checkpoint.text_encoders["text_encoder"], pipe.text_encoder)
    assert checkpoint.prediction_type == "v_prediction"
    (tmp_path / "two.yaml").write_text("model: {params: {linear_start: 0.00085}}")
    assert examine(file).prediction_type == "epsilon"
    (tmp_path / "two.yaml").write_text("model: {params: {parameterization: v}}")
    assert examine(file).prediction_type == "v_prediction"
    (tmp_path / "two.yaml").unlink()
    save_file(tensors, file, metadata={"modelspec.prediction_type": "epsilon"})
    again = load_checkpoint(file)
    assert again.scheduler.config.prediction_type == "epsilon"
    assert (again.defaults.width, again.defaults.height) == (512, 512)


@pytest.mark.parametrize(
    ("said", "predicts"),
    [
        ({"ss_v_parameterization": "True"}, "v_prediction"),
        ({"modelspec.predict_key": "v"}, "v_prediction"),
        ({"ss_v_parameterization": "False"}, "epsilon"),
        ({"modelspec.predict_key": "epsilon"}, "epsilon"),
    ],
)
def test_v_prediction_as_sd_scripts_states_it(
    said: dict[str, str], predicts: str, sd: Path, configs: Path, tmp_path: Path, stock: Callable[[Path], Any]
) -> None:
    file = tmp_path / "v.safetensors"
    save_file(single_file_tensors(stock(sd)), file, metadata=said)
    assert examine(file).prediction_type == predicts


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_zero_snr_and_v_prediction_markers(
    kind: str, configs: Path, tmp_path: Path, stock: Callable[[Path], Any], request: pytest.FixtureRequest
) -> None:
    tensors = single_file_tensors(stock(request.getfixturevalue(kind)))
    file = tmp_path / "noob.safetensors"
    save_file(tensors | {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}, file)
    checkpoint = load_checkpoint(file)
    assert (checkpoint.prediction_type, checkpoint.zero_snr) == ("v_prediction", True)
    assert checkpoint.scheduler.config.rescale_betas_zero_snr
    assert checkpoint.scheduler.config.timestep_spacing == "trailing"
    assert checkpoint.defaults.scheduler == "Euler"


def test_half_precision_and_another_vae(
    configs: Path, tmp_path: Path, stock: Callable[[Path], Any], sdxl: Path
) -> None:
    pipe = stock(sdxl)
    tensors = single_file_tensors(pipe)
    bare = tmp_path / "bare.safetensors"
    save_file({k: v for k, v in tensors.items() if not k.startswith("first_stage_model.")}, bare)
    with pytest.raises(ModelError, match="has no VAE inside; name one with --vae"):
        load_checkpoint(bare)
    vae = tmp_path / "home" / "vae" / "Nice.safetensors"
    vae.parent.mkdir(parents=True)
    save_file({k: v + 1 for k, v in vae_tensors(pipe.vae, prefix="").items()}, vae)
    checkpoint = load_checkpoint(bare, dtype=torch.float16, vae="nice")
    assert checkpoint.unet.dtype == checkpoint.text_encoders["text_encoder_2"].dtype == torch.float16
    assert checkpoint.vae.dtype == torch.float16  # these tiny VAEs say that they do not overflow
    expected = pipe.vae.decoder.conv_in.weight + 1
    assert torch.allclose(checkpoint.vae.decoder.conv_in.weight.float(), expected, atol=1e-3)
    with pytest.raises(ModelError, match="holds no VAE"):
        load_checkpoint(bare, vae=bare)


def test_a_missing_weight_is_named(
    configs: Path, tmp_path: Path, stock: Callable[[Path], Any], sd: Path
) -> None:
    tensors = single_file_tensors(stock(sd))
    file = tmp_path / "cut.safetensors"
    save_file({k: v for k, v in tensors.items() if "output_blocks.3.1" not in k}, file)
    with pytest.raises(ModelError, match=r"cut\.safetensors lacks weights that a Stable Diffusion 1"):
        load_checkpoint(file)
    wrong = tensors | {"model.diffusion_model.out.2.bias": torch.zeros(9)}
    save_file(wrong, file)
    with pytest.raises(ModelError, match=r"looks like Stable Diffusion 1\.x but cannot be loaded"):
        load_checkpoint(file)


UNET_9 = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2, 9, 3, 3)}
UNET_4 = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2, 4, 3, 3)}
ONE = torch.zeros(1)
SIZES = {"model.diffusion_model.label_emb.0.0.weight": torch.zeros(2, 9)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (UNET_9, "is an inpainting model"),
        (UNET_4 | SIZES | {"conditioner.embedders.0.model.ln_final.bias": ONE}, "is the SDXL refiner"),
        (UNET_4, "has no text encoder"),
        (UNET_4 | {"edm_mean": ONE}, "is an EDM model"),
        ({"model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.bias": ONE}, "is an SD3 model"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": ONE}, "is a FLUX model"),
        ({"model.diffusion_model.double_blocks.0.img_mod.lin.bias": ONE}, "is a FLUX model"),
        ({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": ONE}, "is a LoRA; load it as one"),
        ({"unet.mid_block.attentions.0.proj_in.lora_A.weight": ONE}, "is a LoRA; load it as one"),
        ({"lora_unet_mid.hada_w1_a": ONE}, "is a LoRA"),
        ({"control_model.time_embed.0.bias": ONE}, "is a ControlNet"),
        ({"decoder.conv_in.weight": ONE}, "is a VAE"),
        ({"down_blocks.0.resnets.0.conv1.weight": ONE}, "holds a UNet only"),
        ({"emb_params": ONE}, "is a textual inversion"),
        ({"some.thing": ONE}, "is not a checkpoint that is understood"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, tensors: Tensors, message: str) -> None:
    file = tmp_path / "other.safetensors"
    save_file(tensors, file)
    with pytest.raises(ModelError, match=f"other.safetensors {message}"):
        examine(file)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    for name in ("old.ckpt", "old.pt"):
        (tmp_path / name).write_bytes(b"PK")
        with pytest.raises(ModelError, match="is a pickle, which can run code"):
            load_checkpoint(tmp_path / name)
    for content in (b"", b"abc", b"\xff" * 64, b"\x10" + b"\0" * 7 + b"{not json at al}"):
        (tmp_path / "bad.safetensors").write_bytes(content)
        with pytest.raises(ModelError, match=r"bad\.safetensors cannot be read: "):
            examine(tmp_path / "bad.safetensors")
    save_file(UNET_4, tmp_path / "whole.safetensors")
    (tmp_path / "bad.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-4])
    with pytest.raises(ModelError, match="it is cut short"):
        examine(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    "prompt", ["a photo of a cat", "", "It's 2024: NAÏVE café —\n(red:1.2) x_y", "日本語 🦊", "y" * 300]
)
def test_the_tokenizer_is_clips(prompt: str) -> None:
    theirs = open_clip.get_tokenizer("ViT-B-32")(prompt)[0].tolist()
    end = theirs.index(49407) + 1
    for family in FAMILIES.values():
        for tokenizer in load_tokenizers(family):
            ours = tokenizer(prompt, padding="max_length", max_length=77, truncation=True).input_ids
            assert len(ours) == 77
            assert ours[:end] == theirs[:end]
            assert set(ours[end:]) <= {tokenizer.pad_token_id}
    if prompt == "a photo of a cat":
        assert theirs[:7] == [49406, 320, 1125, 539, 320, 2368, 49407]


PUBLISHED = {"sd1": 859_520_964, "sd2": 865_910_724, "sdxl": 2_567_463_684}
"""UNet parameters of the published models."""


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shipped_configurations_are_the_published_models(family: str) -> None:
    folder = assets.root() / "configs" / family
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(
            diffusers.UNet2DConditionModel.load_config(folder / "unet")
        )
        vae = diffusers.AutoencoderKL.from_config(diffusers.AutoencoderKL.load_config(folder / "vae"))
    assert sum(p.numel() for p in unet.parameters()) == PUBLISHED[family]
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    widths = [
        CLIPTextConfig.from_pretrained(folder / name).hidden_size for name in FAMILIES[family].text_encoders
    ]
    assert sum(widths) == unet.config.cross_attention_dim == FAMILIES[family].context_width
    assert sum(file.stat().st_size for file in (assets.root() / "configs").rglob("*")) < 3 * 2**20


@pytest.mark.slow
def test_a_full_size_sd1_checkpoint_loads_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: pytest.fail("the network was asked for"))
    folder = assets.root() / "configs" / "sd1"
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(
            diffusers.UNet2DConditionModel.load_config(folder / "unet")
        )
        vae = diffusers.AutoencoderKL.from_config(diffusers.AutoencoderKL.load_config(folder / "vae"))
        encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
    tensors: Tensors = {}
    for part in (unet_tensors(unet), vae_tensors(vae), clip_tensors(encoder, "cond_stage_model.")):
        tensors |= {key: torch.full(value.shape, 0.01, dtype=torch.float16) for key, value in part.items()}
    file = tmp_path / "big.safetensors"
    save_file(tensors, file)
    del tensors
    said: list[str] = []
    checkpoint = load_checkpoint(file, dtype=torch.float16, notify=said.append)
    assert read_weights_header(file).parameters > 1e9
    assert "billion parameters need 2.0 GiB of memory" in said[0]
    assert checkpoint.vae.dtype == torch.float32
    assert sum(p.numel() for p in checkpoint.unet.parameters()) == PUBLISHED["sd1"]
