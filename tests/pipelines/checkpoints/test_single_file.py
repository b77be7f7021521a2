"""Single-file checkpoints: written in Stability's layout from tiny models, they load as what they were.

The names below were written from the published layouts, apart from diffusers' own converter.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from pipelines import assets
from pipelines.checkpoints import load_checkpoint
from pipelines.checkpoints.single_file import examine, load_tokenizers
from pipelines.checkpoints.weights import read_weights_header
from pipelines.errors import ModelError
from pipelines.families.family import FAMILIES, SD1, SD2, SDXL

Tensors = dict[str, Tensor]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet_names(unet: Any) -> dict[str, str]:
    """Module of diffusers' UNet -> module of Stability's; for two layers a level."""
    names = dict(UNET_ENDS)
    count = len(unet.down_blocks)
    for level, block in enumerate(unet.down_blocks):
        for layer in range(2):
            names[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{3 * level + layer + 1}.0"
            names[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{3 * level + layer + 1}.1"
        names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{3 * level + 3}.0.op"
        del block
    for level in range(count):
        has_attention = hasattr(unet.up_blocks[level], "attentions")
        for layer in range(3):
            names[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{3 * level + layer}.0"
            names[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{3 * level + layer}.1"
        names[f"up_blocks.{level}.upsamplers.0"] = f"output_blocks.{3 * level + 2}.{1 + has_attention}"
    names |= {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"}
    return names | {"mid_block.resnets.1": "middle_block.2"}


def renamed(key: str, names: Mapping[str, str], resnet: Mapping[str, str]) -> str:
    module = max((name for name in names if key.startswith(f"{name}.")), key=len)
    rest = key[len(module) + 1 :]
    if ".resnets." in key:
        inner, _, last = rest.rpartition(".")
        rest = f"{resnet.get(inner, inner)}.{last}"
    return f"{names[module]}.{rest}"


def unet_tensors(unet: Any) -> Tensors:
    names = unet_names(unet)
    return {f"model.diffusion_model.{renamed(k, names, RESNET)}": v for k, v in unet.state_dict().items()}


def vae_tensors(vae: Any, prefix: str = "first_stage_model.") -> Tensors:
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    count = len(vae.encoder.down_blocks)
    for half, blocks, stage in (("encoder", "down_blocks", "down"), ("decoder", "up_blocks", "up")):
        names |= {f"{half}.{end}": f"{half}.{end}" for end in ("conv_in", "conv_out")}
        names[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        names |= {f"{half}.mid_block.resnets.{i}": f"{half}.mid.block_{i + 1}" for i in range(2)}
        names[f"{half}.mid_block.attentions.0"] = f"{half}.mid.attn_1"
        for level in range(count):
            target = level if stage == "down" else count - 1 - level
            for layer in range(3):
                names[f"{half}.{blocks}.{level}.resnets.{layer}"] = f"{half}.{stage}.{target}.block.{layer}"
            names[f"{half}.{blocks}.{level}.{stage}samplers.0"] = f"{half}.{stage}.{target}.{stage}sample"
    tensors = {}
    for key, value in vae.state_dict().items():
        target = renamed(key, names, {"conv_shortcut": "nin_shortcut"})
        for ours, theirs in (("group_norm", "norm"), ("to_out.0", "proj_out"), ("to_", "")):
            target = target.replace(f".attn_1.{ours}", f".attn_1.{theirs}")
        tensors[prefix + target] = (
            value[:, :, None, None] if ".attn_1." in target and value.ndim == 2 else value
        )
    return tensors


def clip_tensors(encoder: Any, prefix: str) -> Tensors:
    """CLIP-L, as transformers writes it."""
    state = encoder.state_dict()
    return {f"{prefix}transformer.text_model.{k.removeprefix('text_model.')}": v for k, v in state.items()}


def open_clip_tensors(encoder: Any, prefix: str) -> Tensors:
    """A text encoder as open_clip writes it: query, key and value in one matrix, the projection transposed."""
    state = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    tensors = {
        f"{prefix}model.positional_embedding": state["embeddings.position_embedding.weight"],
        f"{prefix}model.token_embedding.weight": state["embeddings.token_embedding.weight"],
        f"{prefix}model.ln_final.weight": state["final_layer_norm.weight"],
        f"{prefix}model.ln_final.bias": state["final_layer_norm.bias"],
        f"{prefix}model.text_projection": state.get(
            "text_projection.weight", torch.eye(encoder.config.hidden_size)
        ).T.contiguous(),
    }
    inner = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    for layer in range(encoder.config.num_hidden_layers):
        ours, theirs = f"encoder.layers.{layer}.", f"{prefix}model.transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            for name, other in inner.items():
                tensors[f"{theirs}{other}.{kind}"] = state[f"{ours}{name}.{kind}"]
            parts = [state[f"{ours}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            tensors[f"{theirs}attn.in_proj_{kind}"] = torch.cat(parts)
    return tensors


def single_file_tensors(pipe: Any) -> Tensors:
    tensors = unet_tensors(pipe.unet) | vae_tensors(pipe.vae)
    if hasattr(pipe, "text_encoder_2"):
        tensors |= clip_tensors(pipe.text_encoder, "conditioner.embedders.0.")
        tensors |= open_clip_tensors(pipe.text_encoder_2, "conditioner.embedders.1.")
    else:
        tensors |= clip_tensors(pipe.text_encoder, "cond_stage_model.")
    return {key: value.clone() for key, value in tensors.items()}


@pytest.fixture(scope="module")
def sdxl(sdxl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny SDXL with a second text encoder wider than the first: by its width diffusers' loading tells it."""
    folder = tmp_path_factory.mktemp("wide") / "wide-sdxl"
    shutil.copytree(sdxl_folder, folder)
    config = CLIPTextConfig.from_pretrained(folder / "text_encoder_2")
    config.update({"hidden_size": 48, "num_attention_heads": 3})
    torch.manual_seed(13)
    CLIPTextModelWithProjection(config).save_pretrained(folder / "text_encoder_2")
    return folder


@pytest.fixture
def sd(sd_folder: Path) -> Path:
    return sd_folder


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sd: Path, sdxl: Path) -> Path:
    """Shipped data whose configurations are the tiny models', so that tiny files are what it expects."""
    data = tmp_path / "data"
    for family, folder in (("sd1", sd), ("sd2", sd), ("sdxl", sdxl)):
        shutil.copytree(folder, data / "configs" / family, ignore=shutil.ignore_patterns("*.safetensors"))
        for part in ("tokenizer", "tokenizer_2"):
            shutil.rmtree(data / "configs" / family / part, ignore_errors=True)
    shutil.copytree(assets.root() / "configs" / "tokenizer", data / "configs" / "tokenizer")
    monkeypatch.setattr(assets, "root", lambda: data)
    monkeypatch.setenv("LORA_STUDIO_HOME", str(tmp_path / "home"))

    def no_network(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    return data


def same(module: Any, other: Any) -> bool:
    a, b = module.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


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


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (UNET_9, "is an inpainting model"),
        (UNET_4 | {"conditioner.embedders.0.model.ln_final.bias": ONE}, "is the SDXL refiner"),
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
