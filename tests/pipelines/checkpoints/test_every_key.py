"""Every weight key of a single file is used or refused, whatever its layout, data types, scales and extra keys are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipelines import Request, StudioPipeline
from pipelines.checkpoints import load_checkpoint
from pipelines.checkpoints.single_file import examine, load_tokenizers
from pipelines.errors import ModelError
from pipelines.families.family import SD1, SD2, SDXL
from pipelines.home import Home
from pipelines.model import Model

from .written import (
    Tensors,
    clip_tensors,
    diffusers_tensors,
    sd2_tensors,
    single_file_tensors,
    unet_tensors,
)

Make = Callable[[Any], Tensors]


def comfy(pipe: Any) -> Tensors:
    """ComfyUI's names of SDXL's text encoders."""
    tensors = single_file_tensors(pipe)
    parts = {"conditioner.embedders.0.": "text_encoders.clip_l.", "conditioner.embedders.1.": "clip_g."}
    for old, new in parts.items():
        tensors = {key.replace(old, new): value for key, value in tensors.items()}
    return tensors


def old_clip(pipe: Any) -> Tensors:
    return {key.replace(".text_model.", "."): value for key, value in single_file_tensors(pipe).items()}


def old_vae(pipe: Any) -> Tensors:
    """diffusers' VAE as its first versions wrote it, beside the original code's other parts."""
    names = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    tensors = unet_tensors(pipe.unet) | clip_tensors(pipe.text_encoder, "cond_stage_model.")
    for key, value in pipe.vae.state_dict().items():
        for new, old in names.items():
            key = key.replace(f".attentions.0.{new}", f".attentions.0.{old}")
        tensors[f"vae.{key}"] = value
    return tensors


def averaged(pipe: Any) -> Tensors:
    """A file with nothing but the averaged copy of its UNet."""
    tensors = single_file_tensors(pipe)
    unet = "model.diffusion_model."
    ema = {
        f"model_ema.{key.removeprefix('model.').replace('.', '')}": value
        for key, value in tensors.items()
        if key.startswith(unet)
    }
    rest = {key: value for key, value in tensors.items() if not key.startswith(unet)}
    return rest | ema | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}


def transposed(pipe: Any) -> Tensors:
    """SDXL's second encoder with its projection as a linear layer's weight."""
    tensors = single_file_tensors(pipe)
    name = "conditioner.embedders.1.model.text_projection"
    return {
        **{key: value for key, value in tensors.items() if key != name},
        f"{name}.weight": tensors[name].T,
    }


LAYOUTS: dict[str, tuple[str, Make]] = {
    "sd1": ("sd1", single_file_tensors),
    "sd1, CLIP without text_model": ("sd1", old_clip),
    "sd1, diffusers' names": ("sd1", diffusers_tensors),
    "sd1, an old VAE in diffusers' names": ("sd1", old_vae),
    "sd1, averaged weights only": ("sd1", averaged),
    "sd2": ("sd2", lambda pipe: sd2_tensors(pipe, "cond_stage_model.")),
    "sd2 as SD-Turbo": ("sd2", lambda pipe: sd2_tensors(pipe, "conditioner.embedders.0.")),
    "sdxl": ("sdxl", single_file_tensors),
    "sdxl, CLIP without text_model": ("sdxl", old_clip),
    "sdxl, ComfyUI's names": ("sdxl", comfy),
    "sdxl, diffusers' names": ("sdxl", diffusers_tensors),
    "sdxl, projection as a layer": ("sdxl", transposed),
}

WRAPPERS: dict[str, Callable[[str], str]] = {
    "": lambda key: key,
    "model. doubled": lambda key: f"model.{key}",
    "module.": lambda key: f"module.{key}",
    "state_dict.": lambda key: f"state_dict.{key}",
    "compiled": lambda key: key.replace("diffusion_model.", "diffusion_model._orig_mod."),
    "without model.": lambda key: key.removeprefix("model."),
}

HARMLESS: Tensors = {
    "betas": torch.rand(9),
    "alphas_cumprod": torch.rand(9),
    "sqrt_one_minus_alphas_cumprod": torch.rand(9),
    "log_one_minus_alphas_cumprod": torch.rand(9),
    "posterior_mean_coef1": torch.rand(9),
    "lvlb_weights": torch.rand(9),
    "denoiser.sigmas": torch.rand(9),
    "global_step": torch.tensor(875000),
    "model_ema.diffusion_modeltime_embed0weight": torch.rand(4, 4),
    "first_stage_model.loss.logvar": torch.rand(3),
    "first_stage_model.loss.perceptual_loss.lin0.model.1.weight": torch.rand(3, 3),
    "loss.discriminator.main.0.weight": torch.rand(3, 3),
}
ENCODER: dict[str, Tensors] = {
    "sd1": {
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "cond_stage_model.logit_scale": torch.tensor(4.6),
        "cond_stage_model.transformer.text_projection.weight": torch.rand(4, 4),
        "cond_stage_model.transformer.vision_model.encoder.layers.0.mlp.fc1.weight": torch.rand(4, 4),
    },
    "sd2": {
        "cond_stage_model.model.logit_scale": torch.tensor(4.6),
        "cond_stage_model.model.attn_mask": torch.rand(7, 7),
        "cond_stage_model.model.transformer.resblocks.3.ln_1.weight": torch.rand(4),
        "cond_stage_model.model.transformer.resblocks.3.attn.in_proj_weight": torch.rand(12, 4),
    },
    "sdxl": {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "conditioner.embedders.1.model.logit_scale": torch.tensor(4.6),
        "conditioner.embedders.1.model.attn_mask": torch.rand(7, 7),
    },
}
"""What text encoders hold beside their weights; SD2.x's last layer is one that is never run."""

PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)
SCALED = ("scale_weight", "weight_scale", "comfy_quant", "int8 by row", "SCB", "by block")


def stored(value: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(the tensor to write, what it means in float32)."""
    written = value.to(dtype)
    return written, written.to(torch.float32)


def scaled(key: str, value: Tensor, how: str, random: Random) -> tuple[Tensors, Tensor]:
    """(the tensors to write for a weight with a scale, what they mean in float32)."""
    name = key.removesuffix(".weight")
    value = value.float()
    marks: Tensors = {}
    if how in ("int8 by row", "SCB"):
        whole = value.flatten(1).abs().amax(1).clamp(min=1e-6)
        scale = whole / 127
        written = (value / scale.reshape(-1, *(1 for _ in value.shape[1:]))).round().to(torch.int8)
        if how == "SCB":
            marks = {f"{name}.SCB": whole, f"{name}.weight_format": torch.tensor(0, dtype=torch.uint8)}
            scale = whole * (1 / 127)
        else:
            marks = {f"{name}.weight_scale": scale[:, None] if random.random() < 0.5 else scale}
        return {key: written, **marks}, written.float() * scale.reshape(-1, *(1 for _ in value.shape[1:]))
    dtype = random.choice((torch.float8_e4m3fn, torch.float8_e5m2))
    if how == "by block" and value.ndim == 2 and all(length % 2 == 0 for length in value.shape):
        scale = (
            torch.rand(value.shape[0] // 2, value.shape[1] // 2, generator=torch.Generator().manual_seed(1))
            + 0.5
        )
        spread = scale.repeat_interleave(2, 0).repeat_interleave(2, 1)
        written = (value / spread).to(dtype)
        return {key: written, f"{name}.weight_scale_inv": scale}, written.float() * spread
    scale = value.abs().amax().clamp(min=1e-6) / 300
    written = (value / scale).to(dtype)
    ending = "scale_weight" if how == "scale_weight" else "weight_scale"
    marks[f"{name}.{ending}"] = scale if random.random() < 0.5 else scale.reshape(1)
    if how == "scale_weight":
        marks[f"{name}.scale_input"] = torch.tensor(0.7)
    if how == "comfy_quant":
        said = json.dumps({"format": "float8_e4m3fn" if dtype == torch.float8_e4m3fn else "float8_e5m2"})
        marks[f"{name}.comfy_quant"] = torch.tensor(list(said.encode()), dtype=torch.uint8)
        marks[f"{name}.input_scale"] = torch.tensor(0.7)
    return {key: written, **marks}, written.float() * scale


@pytest.fixture(scope="module")
def pipes(sd_folder: Path, sdxl_folder: Path, stock: Callable[[Path], Any]) -> dict[str, Any]:
    sd = stock(sd_folder)
    return {"sd1": sd, "sd2": sd, "sdxl": stock(sdxl_folder)}


def variant(seed: int, pipes: dict[str, Any]) -> tuple[str, Tensors, Tensors, str]:
    """(family, tensors to write, what the weights mean under the layout's names, a label) of one generated file."""
    random = Random(seed)
    layout = list(LAYOUTS)[seed % len(LAYOUTS)]
    family, make = LAYOUTS[layout]
    wrapper = "" if "diffusers' names" in layout or "averaged" in layout else random.choice(list(WRAPPERS))
    scheme = random.choice(("one type", "mixed", *SCALED))
    one = random.choice(PLAIN)
    written: Tensors = {}
    meant: Tensors = {}
    for key, value in make(pipes[family]).items():
        outer = WRAPPERS[wrapper](key)
        value = value.contiguous()
        if scheme in SCALED and key.endswith(".weight") and value.ndim >= 2 and random.random() < 0.7:
            tensors, meant[key] = scaled(outer, value, scheme, random)
            written |= tensors
        else:
            written[outer], meant[key] = stored(
                value, random.choice(PLAIN[:4]) if scheme != "one type" else one
            )
    extras = {**HARMLESS, **(ENCODER[family] if layout in ENCODER else {})}
    for key in random.sample(list(extras), min(6, len(extras))):
        if not ("model_ema" in key and "averaged" in layout):
            written[WRAPPERS[wrapper](key)] = extras[key]
    if scheme in ("scale_weight",) and random.random() < 0.5:
        written[WRAPPERS[wrapper]("model.diffusion_model.scaled_fp8")] = torch.zeros(
            0, dtype=torch.float8_e4m3fn
        )
    if random.random() < 0.5:
        written |= {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    return family, written, meant, f"{layout}, {wrapper or 'plain'}, {scheme}"


def test_a_mark_of_scales_without_scales_is_told(
    pipes: dict[str, Any], tiny_configs: Path, tmp_path: Path
) -> None:
    file = tmp_path / "made.safetensors"
    tensors = {key: value.to(torch.float8_e4m3fn) for key, value in single_file_tensors(pipes["sd1"]).items()}
    save_file(tensors, file)
    assert not examine(file).notes
    save_file(tensors | {"model.diffusion_model.scaled_fp8": torch.zeros(0)}, file)
    [note] = examine(file).notes
    assert "scaled_fp8" in note
    assert "have none and are read at scale 1: model.diffusion_model." in note


@pytest.mark.parametrize("seed", range(24))
def test_a_generated_file_is_read_to_the_bit(
    seed: int, pipes: dict[str, Any], tiny_configs: Path, tmp_path: Path
) -> None:
    family, written, meant, label = variant(seed, pipes)
    file = tmp_path / "made.safetensors"
    save_file({key: value.clone() for key, value in written.items()}, file)
    facts = examine(file)
    assert facts.family.name == family, label
    assert not facts.contents.notes or "averaged" in label
    checkpoint = load_checkpoint(file)
    assert (checkpoint.prediction_type == "v_prediction") == ("v_pred" in written or label.startswith("sd2,"))
    assert checkpoint.zero_snr == ("ztsnr" in written)

    class Read:
        """What was read, in the form that the layout's writer takes."""

        unet, vae = checkpoint.unet, checkpoint.vae

    read = Read()
    for name, encoder in checkpoint.text_encoders.items():
        setattr(read, name, encoder)
    again = LAYOUTS[list(LAYOUTS)[seed % len(LAYOUTS)]][1](read)
    compared = 0
    for key, value in meant.items():
        if family != "sdxl" and key.endswith("text_projection"):  # open_clip's, which SD2.x does not use
            continue
        assert torch.equal(again[key].float(), value), f"{label}: {key}"
        compared += 1
    assert compared > 300


@pytest.mark.parametrize("seed", range(14))
def test_a_weight_that_nobody_reads_or_that_is_missing_is_named(
    seed: int, pipes: dict[str, Any], tiny_configs: Path, tmp_path: Path
) -> None:
    random = Random(1000 + seed)
    _, written, _, label = variant(seed, pipes)
    file = tmp_path / "odd.safetensors"
    if seed % 2:
        names = [
            "model.diffusion_model.input_blocks.1.0.extra.weight",
            "model.diffusion_model.output_blocks.99.0.in_layers.2.weight",
            "first_stage_model.decoder.tail.weight",
            "conditioner.embedders.3.model.weight",
            "text_encoder_3.encoder.block.0.weight",
            "somebody.elses.network.0.weight",
            "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.scale_weight.weight",
        ]
        odd = random.choice(names)
        written[odd] = torch.rand(4, 4)
    else:
        dispensable = ("loss", "ema", "vision", "text_projection", "resblocks.3", "scale")
        odd = random.choice(
            [
                key
                for key in written
                if key.endswith(("weight", "bias")) and not any(word in key for word in dispensable)
            ]
        )
        written.pop(odd)
    save_file({key: value.clone() for key, value in written.items()}, file)
    with pytest.raises(ModelError) as refused:
        examine(file)
    assert "odd.safetensors" in str(refused.value), label
    if seed % 2:
        assert odd in str(refused.value), label


CASES = [
    "sd1, CLIP without text_model",
    "sd1, diffusers' names",
    "sd2 as SD-Turbo",
    "sdxl, CLIP without text_model",
    "sdxl, ComfyUI's names",
]


@pytest.fixture
def folders(sd_folder: Path, sdxl_folder: Path, tmp_path: Path) -> dict[str, Path]:
    """Family -> a folder of the model that its files are written from; SD2.x pads with another token."""
    sd2 = Path(shutil.copytree(sd_folder, tmp_path / "sd2"))
    load_tokenizers(SD2)[0].save_pretrained(sd2 / "tokenizer")
    return {"sd1": sd_folder, "sd2": sd2, "sdxl": sdxl_folder}


@pytest.mark.parametrize("layout", CASES)
def test_a_file_draws_what_the_same_model_draws_from_its_folder(
    layout: str, pipes: dict[str, Any], folders: dict[str, Path], tiny_configs: Path, tmp_path: Path
) -> None:
    family, make = LAYOUTS[layout]
    file = tmp_path / "made.safetensors"
    save_file({key: value.contiguous().clone() for key, value in make(pipes[family]).items()}, file)
    drawn = []
    for source in (folders[family], file):
        checkpoint = load_checkpoint(source)
        assert checkpoint.prediction_type == "epsilon"
        pipe = StudioPipeline(Model(checkpoint), home=Home.resolve(tmp_path))
        request = Request("a (red:1.2) fox", seed=3, steps=3, width=32, height=32, scheduler="Euler")
        result = pipe(request, output_type="latent")
        drawn.append(result.images[0])
    assert torch.equal(drawn[0], drawn[1])
    assert list(result.records[0].notes) == list(checkpoint.notes)


def test_families_are_told_apart(pipes: dict[str, Any], tiny_configs: Path, tmp_path: Path) -> None:
    file = tmp_path / "made.safetensors"
    for layout, family in (("sd1", SD1), ("sd2", SD2), ("sd2 as SD-Turbo", SD2), ("sdxl", SDXL)):
        of, make = LAYOUTS[layout]
        save_file({key: value.contiguous().clone() for key, value in make(pipes[of]).items()}, file)
        assert examine(file).family is family
        line = examine(file).line
        assert line.startswith(family.label)
        assert ("is assumed" in line) == (family is SD2)


def test_what_holds_no_weights_is_left_out_and_told(
    pipes: dict[str, Any], tiny_configs: Path, tmp_path: Path
) -> None:
    file = tmp_path / "made.safetensors"
    extra = {"their_version": torch.tensor(3.0), "scale_factor": torch.tensor(0.18)}
    save_file(single_file_tensors(pipes["sd1"]) | extra, file)
    said: list[str] = []
    checkpoint = load_checkpoint(file, notify=said.append)
    note = "left out of its file, as it holds no weight: "
    assert [note in one and "their_version" in one for one in said] == [True]
    assert note in checkpoint.notes[0]
