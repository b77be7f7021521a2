"""Files that are no model that can be used: each is refused by its right name, by its header alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.checkpoints import load_checkpoint
from pipelines.checkpoints.single_file import examine
from pipelines.errors import ModelError
from pipelines.families.family import SD1, SD2, SDXL

from .headers import Shapes, published, write_header

UNET = "model.diffusion_model."
TO_Q = f"{UNET}input_blocks.4.1.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def xl() -> Shapes:
    return published(SDXL)


OTHERS = [
    ("model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight", "is an SD3 model"),
    ("transformer_blocks.3.ff_context.net.0.proj.weight", "is an SD3 model"),
    ("transformer.single_transformer_blocks.0.attn.to_q.weight", "is a FLUX model"),
    ("model.diffusion_model.distilled_guidance_layer.in_proj.weight", "is a Chroma model"),
    ("double_stream_modulation_img.lin.weight", "is a FLUX.2 model"),
    ("txt_in.individual_token_refiner.blocks.0.norm1.weight", "is a Hunyuan video model"),
    ("model.diffusion_model.mlp_t5.0.weight", "is a Hunyuan-DiT model"),
    ("blocks.0.self_attn.q.weight head.modulation", "is a Wan video model"),
    ("transformer_blocks.0.img_mod.1.weight", "is a Qwen-Image model"),
    ("transformer_blocks.0.attn1.to_q.weight adaln_single.linear.weight", "is a PixArt or Sana model"),
    ("clip_txt_mapper.weight", "is a Stable Cascade model"),
    ("model.diffusion_model.layers.0.attention.qkv.weight cap_embedder.1.weight", "is a Lumina or Z-Image model"),
    ("double_layers.0.attn.w1q.weight", "is an AuraFlow model"),
    ("caption_projection.0.linear.weight double_stream_blocks.0.block.adaLN.weight", "is a HiDream model"),
    ("patchify_proj.weight adaln_single.linear.weight", "is an LTX video model"),
    ("first_stage_model.encoder.conv_in.weight", "is a VAE"),
    ("vae.decoder.conv_in.weight", "is a VAE"),
    ("decoder.1.weight taesd_decoder.1.weight", "is a VAE"),
    ("text_model.encoder.layers.0.mlp.fc1.weight", "is a text encoder"),
    ("transformer.text_model.encoder.layers.0.mlp.fc1.weight", "is a text encoder"),
    ("encoder.block.0.layer.0.SelfAttention.q.weight", "is a text encoder"),
    ("model.layers.0.self_attn.q_proj.weight", "is a text encoder"),
    ("conditioner.embedders.1.model.ln_final.weight", "is a text encoder"),
    ("body.0.rdb1.conv1.weight conv_first.weight", "is an upscaler"),
    ("params_ema.body.0.weight", "is an upscaler"),
    ("model.1.sub.0.RDB1.conv1.0.weight", "is an upscaler"),
    ("layers.0.residual_group.blocks.0.norm1.weight", "is an upscaler"),
    ("string_to_param.*", "is a textual inversion embedding"),
    ("clip_l clip_g", "is a textual inversion embedding"),
    ("image_proj.proj.weight ip_adapter.1.to_k_ip.weight", "is an IP-Adapter"),
    ("controlnet_down_blocks.0.weight", "is a ControlNet"),
    ("lora_unet_x.lora_up.weight", "is a LoRA"),
    ("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight", "is a motion module"),
    ("model_ema.diffusion_modelodd", "holds averaged"),
    ("hello", "is not a checkpoint that is understood"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "name"), OTHERS)
def test_another_kind_of_file_is_named(tmp_path: Path, keys: str, name: str) -> None:
    file = write_header(tmp_path / "other.safetensors", dict.fromkeys(keys.split(), (2, 2)))
    with pytest.raises(ModelError, match=rf"^other\.safetensors {name}.*SD1\.x, SD2\.x and SDXL"):
        examine(file)


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        ("control_model.input_blocks.0.0.weight", "holds, a ControlNet"),
        (f"{UNET}input_blocks.1.0.time_stack.in_layers.0.weight", "holds, a video model"),
        (f"{UNET}time_embed.cond_proj.weight", "holds, a full LCM model"),
        ("unet.time_embedding.cond_proj.weight", "holds, a full LCM model"),
        (f"{UNET}input_blocks.1.1.transformer_blocks.0.fuser.linear.weight", "holds, a GLIGEN model"),
        ("lora_unet_mid_block_attentions_0_proj_in.lora_up.weight", "holds, a LoRA"),
        (f"{UNET}input_blocks.1.motion_modules.0.proj.weight", "holds, a motion module"),
        ("embedder.model.visual.proj", "holds, an unCLIP"),
        ("their.network.weight", r"not understood \(1\): their\.network\.weight"),
    ],
)
def test_what_else_a_whole_model_holds_is_named(tmp_path: Path, xl: Shapes, extra: str, name: str) -> None:
    file = write_header(tmp_path / "more.safetensors", {**xl, extra: (2, 2)})
    with pytest.raises(ModelError, match=rf"^more\.safetensors .*{name}"):
        examine(file)


@pytest.mark.parametrize(
    ("channels", "name"),
    [(9, "an inpainting model"), (8, r"an instruction \(pix2pix\)"), (5, "a depth"), (12, "takes 12 input")],
)
def test_other_tasks_are_named_by_their_channels(tmp_path: Path, channels: int, name: str) -> None:
    shapes = published(SD1) | {f"{UNET}input_blocks.0.0.weight": (320, channels, 3, 3)}
    with pytest.raises(ModelError, match=name):
        examine(write_header(tmp_path / "task.safetensors", shapes))


def test_a_refiner_is_no_sd_turbo(tmp_path: Path, xl: Shapes) -> None:
    only = {key: shape for key, shape in xl.items() if not key.startswith("conditioner.")}
    second = "conditioner.embedders.0.model.transformer.resblocks.0.ln_1.weight"
    with pytest.raises(ModelError, match="is the SDXL refiner"):
        examine(write_header(tmp_path / "refiner.safetensors", {**only, second: (1280,)}))


def test_a_part_of_a_model_says_what_is_missing_and_where_to_put_it(tmp_path: Path, xl: Shapes) -> None:
    unet = {key: shape for key, shape in xl.items() if key.startswith(UNET)}
    named = {key.removeprefix(UNET): shape for key, shape in unet.items()}
    for shapes in (unet, named):
        with pytest.raises(
            ModelError, match=r"has no text encoder and no VAE inside.*unet/diffusion_pytorch_model"
        ):
            examine(write_header(tmp_path / "unet.safetensors", shapes))
    first = {key: shape for key, shape in xl.items() if "embedders.1." not in key}
    with pytest.raises(ModelError, match="has no second text encoder inside"):
        examine(write_header(tmp_path / "first.safetensors", first))


def test_marks_and_metadata_are_read(tmp_path: Path) -> None:
    file = tmp_path / "marks.safetensors"
    facts = examine(write_header(file, published(SD1) | {"v_pred": (0,), "ztsnr": (0,)}))
    assert (facts.prediction_type, facts.zero_snr) == ("v_prediction", True)
    facts = examine(write_header(file, published(SDXL), metadata={"modelspec.prediction_type": "v"}))
    assert (facts.prediction_type, facts.zero_snr, facts.notes) == ("v_prediction", False, ())
    facts = examine(write_header(file, published(SD2, vae=False)))
    assert (facts.family, facts.has_vae) == (SD2, False)
    with pytest.raises(ModelError, match="is an EDM model"):
        examine(write_header(file, published(SDXL) | {"edm_vpred.sigma_max": ()}))


PACKED = [
    ({f"{TO_Q}.weight.absmax": (9,)}, {}, "4 bits .*NF4"),
    ({f"{TO_Q}.weight.quant_state.bitsandbytes__nf4": (9,)}, {}, "4 bits .*NF4"),
    ({f"{TO_Q}.weight_scale_2": ()}, {}, "NVFP4"),
    ({f"{TO_Q}.qweight": (9, 9)}, {}, "GPTQ, AWQ or SVDQuant"),
    ({f"{TO_Q}.weight._data": (9, 9)}, {}, "quanto"),
    ({f"{TO_Q}.weight_zero_point": (640,)}, {}, "with offsets"),
    ({}, {f"{TO_Q}.weight": "I8"}, "stored as int8 without scales"),
    ({}, {f"{TO_Q}.weight": "U8"}, r"packed bytes \(uint8\)"),
    ({}, {f"{TO_Q}.weight": "I64"}, "'I64'"),
    ({f"{TO_Q}.weight_scale": (640, 20)}, {f"{TO_Q}.weight": "F8_E4M3", f"{TO_Q}.weight_scale": "U8"}, "MXFP8"),
    ({f"{TO_Q}.weight_scale": (7,)}, {f"{TO_Q}.weight": "I8", f"{TO_Q}.weight_scale": "F32"}, r"shape \[7\]"),
    ({f"{TO_Q}.weight_scale": (), f"{TO_Q}.scale_weight": ()}, {}, "has two scales"),
    ({f"{TO_Q}_lost.weight_scale": (640,)}, {}, r"not understood \(1\)"),
]  # fmt: skip


@pytest.mark.parametrize(("extra", "dtypes", "message"), PACKED)
def test_numbers_that_cannot_be_read_are_named(
    tmp_path: Path, xl: Shapes, extra: Shapes, dtypes: dict[str, str], message: str
) -> None:
    file = write_header(tmp_path / "packed.safetensors", {**xl, **extra}, dtypes)
    with pytest.raises(ModelError, match=message):
        examine(file)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256}, "convrot"),
        ({"format": "nvfp4"}, "nvfp4"),
        ({"format": "int8_blockwise", "group_size": 128}, "int8_blockwise"),
        ([], "comfy_quant|_quantization_metadata|layer"),
    ],
)
def test_formats_that_are_no_plain_scale_are_named(
    tmp_path: Path, xl: Shapes, said: object, message: str
) -> None:
    layers = json.dumps({"format_version": "1.0", "layers": {"layer": said}})
    dtypes = {f"{TO_Q}.weight": "I8", f"{TO_Q}.weight_scale": "F32"}
    shapes = {**xl, f"{TO_Q}.weight_scale": (640, 1)}
    file = write_header(
        tmp_path / "odd.safetensors", shapes, dtypes, metadata={"_quantization_metadata": layers}
    )
    with pytest.raises(ModelError, match=message):
        examine(file)


def test_other_endings_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(ModelError, match="is a GGUF file"):
        examine(tmp_path / "model.gguf")
    (tmp_path / "model.safetensors").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(ModelError, match="is a GGUF file"):
        examine(tmp_path / "model.safetensors")


def test_a_vae_is_read_by_every_key(tmp_path: Path, sd_folder: Path, tiny_configs: Path) -> None:
    from diffusers import AutoencoderKL

    from .written import same, vae_tensors

    vae = AutoencoderKL.from_pretrained(sd_folder / "vae")
    tensors = {key: value.clone() for key, value in vae_tensors(vae, prefix="").items()}
    file = tmp_path / "other.safetensors"
    key = "decoder.conv_in.weight"
    fine = {"loss.logvar": torch.rand(1), f"{key[:-7]}.scale_weight": torch.tensor(2.0)}
    save_file(tensors | fine | {key: tensors[key] / 2}, file)
    assert same(load_checkpoint(sd_folder, vae=file).vae, vae)
    save_file(tensors | {"decoder.tail.weight": torch.rand(2)}, file)
    with pytest.raises(ModelError, match=r"not understood \(1\): decoder\.tail\.weight"):
        load_checkpoint(sd_folder, vae=file)
    tensors.pop("decoder.conv_out.bias")
    save_file(tensors, file)
    with pytest.raises(ModelError, match=r"lacks weights that a VAE has: 1 of .*decoder\.conv_out\.bias"):
        load_checkpoint(sd_folder, vae=file)


@pytest.mark.parametrize("where", ["comfy_quant", "_quantization_metadata"])
def test_a_scale_that_a_layer_is_said_to_have_and_has_not_is_refused(
    tmp_path: Path, xl: Shapes, where: str
) -> None:
    file = tmp_path / "half.safetensors"
    mark = {f"{TO_Q}.comfy_quant": (27,)} if where == "comfy_quant" else {}
    said = {"_quantization_metadata": json.dumps({"layers": {TO_Q: {"format": "float8_e4m3fn"}}})}
    metadata = None if mark else said
    scale = {f"{TO_Q}.weight_scale": (1,)}
    dtypes = {f"{TO_Q}.weight": "F8_E4M3", f"{TO_Q}.comfy_quant": "U8", f"{TO_Q}.weight_scale": "F32"}
    write_header(file, {**xl, **mark, **scale}, dtypes, metadata=metadata)
    assert examine(file).family is SDXL
    write_header(file, {**xl, **mark}, dtypes, metadata=metadata)
    with pytest.raises(ModelError, match=rf"{TO_Q}\.weight is said to have a scale"):
        examine(file)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("x0", "refused"),
        ("sample", "refused"),
        ("Rectified Flow", "refused"),
        ("something", "note"),
        ("unknown", ""),
        ("epsilon", ""),
        ("", ""),
    ],
)
def test_a_prediction_type_that_is_not_run_is_never_taken_for_epsilon_in_silence(
    tmp_path: Path, xl: Shapes, said: str, told: str
) -> None:
    file = write_header(tmp_path / "odd.safetensors", xl, metadata={"modelspec.prediction_type": said})
    if told == "refused":
        with pytest.raises(ModelError, match=r"predicts .* which is not supported"):
            examine(file)
        return
    facts = examine(file)
    assert facts.prediction_type == "epsilon"
    assert ["something" in note for note in facts.notes] == ([True] if told else [])
