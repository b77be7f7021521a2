"""Keys that belong to no layer of the model: a few are named and left out, and where a real part of the file is foreign
it is refused by its right name."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.adapters import inspect_file, read_adapter
from pipelines.errors import AdapterFormatError, AdapterMismatchError


@pytest.fixture
def whole(sdxl, trainer):
    """A whole file: kohya's keys for every layer of the UNet, and its factors."""
    learned = trainer.layers(sdxl.modules("unet"))
    tensors = {}
    for module, factors in learned.items():
        stem = f"lora_unet_{module.replace('.', '_')}"
        tensors |= {f"{stem}.lora_up.weight": factors.up, f"{stem}.lora_down.weight": factors.down}
        tensors[f"{stem}.alpha"] = torch.tensor(factors.alpha)
    return tensors, learned


def pair(stem: str) -> dict[str, torch.Tensor]:
    return {f"{stem}.lora_up.weight": torch.ones(4, 2), f"{stem}.lora_down.weight": torch.ones(2, 4)}


FOREIGN = {
    "FLUX": pair("lora_unet_double_blocks_0_img_attn_qkv"),
    "Stable Diffusion 3": pair("lora_te3_encoder_block_0_layer_0_SelfAttention_k"),
    "Wan": pair("diffusion_model.blocks.0.cross_attn.k"),
    "no layer of this model": pair("lora_unet_down_blocks_7_attentions_0_proj_in"),
    "no layer": pair("lora_unet_some_new_block_0_proj"),
    "no layer of": {"something.else": torch.ones(3)},
    "FLUX or": {"lora_unet_double_blocks_0_img_attn_qkv.hada_w1_a": torch.ones(4, 2)},
    "AnimateDiff": pair("unet.down_blocks.0.motion_modules.0.temporal_transformer.proj_in"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_handful_of_foreign_keys_is_named_and_the_rest_applies(what, whole, save, sdxl, assert_applied):
    tensors, learned = whole
    path = save(tensors | FOREIGN[what])
    adapter = read_adapter(path, sdxl.layers, "fox")
    assert_applied(adapter, sdxl, "unet", learned)
    [note] = [note for note in adapter.report.notes if "left out" in note]
    assert what in note
    assert next(iter(FOREIGN[what])) in note
    assert inspect_file(path).refused == ""


@pytest.mark.parametrize("share", [0.25, 0.6])
@pytest.mark.parametrize("family", ["FLUX", "Wan"])
def test_a_file_of_which_a_real_part_is_another_models_is_refused_by_its_name(
    share, family, whole, save, sdxl, refused
):
    tensors, _ = whole
    [[stem, _]] = {re.sub(r"\.lora_\w+\.weight", "", key): 0 for key in FOREIGN[family]}.items()
    count = int(len(tensors) * share / (1 - share) / 2)
    foreign = {}
    for number in range(count):
        foreign |= pair(re.sub(r"0", str(number), stem, count=1))
    path = save(tensors | foreign)
    assert f"made for {family}" in refused(AdapterMismatchError, path, sdxl)
    assert inspect_file(path).origin.label.startswith(family)


def test_a_foreign_unet_beside_whole_text_encoders_is_never_left_out(sdxl, trainer, save, refused):
    tensors = {}
    for component in ("text_encoder", "text_encoder_2"):
        for module, factors in trainer.layers(sdxl.modules(component), alpha=False).items():
            stem = f"{component}.{module}"
            tensors |= {f"{stem}.lora_B.weight": factors.up, f"{stem}.lora_A.weight": factors.down}
    path = save(tensors | FOREIGN["FLUX"])
    assert "made for FLUX" in refused(AdapterMismatchError, path, sdxl)
    assert inspect_file(path).origin.label.startswith("FLUX")
    assert "match no layer" in refused(
        AdapterMismatchError, save(tensors | FOREIGN["no layer of this model"]), sdxl
    )
    report = read_adapter(save(tensors | FOREIGN["Stable Diffusion 3"]), sdxl.layers, "fox").report
    assert any("Stable Diffusion 3" in note for note in report.notes)


@pytest.mark.parametrize("seed", range(20))
def test_no_key_is_lost_in_silence(seed, whole, save, sdxl):
    """Keys spoiled at random: each is applied, or named, or the file is refused."""
    tensors, _ = whole
    choose = random.Random(seed)
    spoils = (
        lambda key: key.replace("lora_unet_", "lora_dit_"), lambda key: f"ema.{key}", lambda key: key.replace(".", "_"),
        lambda key: key.replace("blocks_", "blocks_9"), lambda key: key + "_2", lambda key: key[:-1],
        lambda key: key.replace("lora_", "lxra_"), lambda key: f"{key}.exp_avg", lambda key: key.upper(),
        lambda key: key.replace("to_", "qo_"), lambda key: choose.choice(("loss", "optimizer.state.1", "betas")),
    )  # fmt: skip
    spoil, stems = choose.choice(spoils), sorted({key.partition(".")[0] for key in tensors})
    chosen = set(choose.sample(stems, choose.choice((1, 2, 3, 10, len(stems) // 2))))
    spoiled = {
        spoil(key) if key.partition(".")[0] in chosen else key: tensor for key, tensor in tensors.items()
    }
    try:
        report = read_adapter(save(spoiled), sdxl.layers, "fox").report
    except (AdapterFormatError, AdapterMismatchError):
        return
    named = sum(int(found[1]) for note in report.notes if (found := re.match(r"(\d+) (?:alpha|\()", note)))
    used = 3 * report.applied["unet"]
    assert used + named == len(spoiled), report.notes


def test_the_state_of_an_optimizer_and_bare_buffers_are_named_however_many(whole, save, sdxl, assert_applied):
    tensors, learned = whole
    extras = {f"{key}.{state}": torch.zeros(2) for key in tensors for state in ("exp_avg", "exp_avg_sq")}
    extras |= {
        name: torch.tensor(1.0) for name in ("loss", "optimizer.param_groups.0.lr", "betas", "logit_scale")
    }
    adapter = read_adapter(save(tensors | extras), sdxl.layers, "fox")
    assert_applied(adapter, sdxl, "unet", learned)
    [note] = [note for note in adapter.report.notes if "counters or buffers" in note]
    assert note.startswith(f"{len(extras)} (")


@pytest.mark.parametrize("leaf", ["lora_sideways.weight", "some_scale", "lora_up.weight_scale"])
def test_an_unknown_part_of_a_known_layer_is_never_left_out(leaf, whole, save, sdxl, refused):
    tensors, _ = whole
    key = f"lora_unet_conv_in.{leaf}"
    path = save(tensors | {key: torch.ones(1)})
    assert repr(key) in refused(AdapterFormatError, path, sdxl)
    assert repr(key) in inspect_file(path).refused


def test_half_of_a_layer_is_never_left_out(whole, save, sdxl, refused):
    tensors, _ = whole
    spoiled = {key.replace("conv_in.lora_up", "cnv_in.lora_up"): tensor for key, tensor in tensors.items()}
    assert "no matching up half" in refused(AdapterFormatError, save(spoiled), sdxl)


# What a file is called ----------------------------------------------------------------------------------------

LAYER = "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TYPES = {
    "MiSS": ("MISS", ["miss_block"]),
    "VB-LoRA": ("VBLORA", ["vblora_logits_A", "vblora_logits_B_topk_indices"]),
    "VeRA": ("VERA", ["vera_lambda_b", "vera_lambda_d"]),
    "HRA": ("HRA", ["hra_u"]),
    "SHiRA": ("SHIRA", ["shira_weight", "shira_indices"]),
    "C3A": ("C3A", ["c3a_kernel"]),
    "FourierFT": ("FOURIERFT", ["fourierft_spectrum"]),
    "full": ("LN_TUNING", ["ln_tuning_layers.weight", "ln_tuning_layers.bias"]),
    "BOFT": ("BOFT", ["boft_R", "boft_s"]),
    "OFT": ("OFT", ["oft_R.weight"]),
    "HiRA": ("HIRA", ["hira_A", "hira_B"]),
    "AdaLoRA": ("ADALORA", ["lora_A", "lora_B", "lora_E"]),
    "(IA)³": ("IA3", ["ia3_l"]),
    "LoHa": ("LOHA", ["hada_w1_a", "hada_w1_b"]),
    "LoKr": ("LOKR", ["lokr_w1", "lokr_w2"]),
    "DeLoRA": ("DELORA", ["delora_A", "delora_B", "delora_lambda"]),
    "RandLoRA": ("RANDLORA", ["randlora_lambda", "randlora_gamma"]),
    "RoAd": ("ROAD", ["road_theta", "road_alpha"]),
    "DoRA": ("LORA", ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"]),
    "PEFT's GLoRA": ("GLORA", ["glora_A.Xd", "glora_A.Xu", "glora_C.zeros"]),
}
REFUSED = {
    "Bone": ("BONE", ["bone_block"]),
    "GraLoRA": ("GRALORA", ["gralora_A", "gralora_B"]),
    "WaveFT": ("WAVEFT", ["waveft_spectrum"]),
    "an old OFT": ("", ["oft_diag"]),
}


def keys_of(leaves: list[str], ending: str) -> list[str]:
    """PEFT's keys; ending: of the adapter's name, where the file has it."""
    inside = r"(?=[.]weight$|[.]bias$|[.]X|[.]zeros|$)"
    return [f"{LAYER}.{re.sub(inside, ending, leaf, count=1)}" for leaf in leaves]


@pytest.mark.parametrize("ending", ["", ".default"])
@pytest.mark.parametrize("name", TYPES)
def test_types_are_called_by_their_name(name, ending, tmp_path):
    kind, leaves = TYPES[name]
    path = tmp_path / "adapter_model.safetensors"
    save_file({key: torch.ones(4, 4) for key in keys_of(leaves, ending)}, path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    found = inspect_file(path)
    assert found.kinds == (name,)
    assert not found.refused


@pytest.mark.parametrize("name", TYPES)
def test_settings_of_another_type_are_refused(name, tmp_path, sdxl, refused):
    path = tmp_path / "adapter_model.safetensors"
    save_file({f"{LAYER}.lora_A.weight": torch.ones(2, 8), f"{LAYER}.lora_B.weight": torch.ones(8, 2)}, path)
    kind = TYPES[name][0]
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind, "use_dora": kind == "LORA"}))
    message = refused(AdapterFormatError, path, sdxl)
    assert ("DoRA" if name == "DoRA" else kind) in message
    assert "adapter_config.json" in message


@pytest.mark.parametrize("ending", ["", ".default"])
@pytest.mark.parametrize("settings", [False, True], ids=["by its keys", "with its settings"])
@pytest.mark.parametrize("name", REFUSED)
def test_types_that_are_not_applied_are_called_by_their_name(name, settings, ending, tmp_path, sdxl, refused):
    kind, leaves = REFUSED[name]
    path = tmp_path / "adapter_model.safetensors"
    save_file({key: torch.ones(4, 4) for key in keys_of(leaves, ending)}, path)
    if settings and kind:
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    for said in (refused(AdapterFormatError, path, sdxl), inspect_file(path).refused):
        assert name in said
        assert "transformer" not in said.replace("transformer_blocks", "")


def test_a_type_that_only_the_settings_name_is_called_so(tmp_path, sdxl, refused):
    path = tmp_path / "adapter_model.safetensors"
    save_file({f"{LAYER}.newest_thing": torch.ones(4)}, path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "NEWEST"}')
    assert "the PEFT type 'NEWEST'" in refused(AdapterFormatError, path, sdxl)


def test_what_layers_share_shows_the_type_too(save, sdxl, refused):
    path = save({"base_model.pvera_A": torch.ones(4, 4), "base_model.pvera_B": torch.ones(4, 4)})
    assert "not applied yet" in refused(AdapterFormatError, path, sdxl)
    assert "PVeRA" in inspect_file(path).refused


def test_what_layers_share_is_nothing_alone(save, sdxl, refused):
    path = save(
        {"base_model.vblora_vector_bank.default": torch.ones(4, 4), "base_model.randlora_A": torch.ones(4, 4)}
    )
    assert "no adapter layers" in refused(AdapterFormatError, path, sdxl)
    assert "no adapter layers" in inspect_file(path).refused


MODELS = {
    "FLUX": ["transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",
             "lora_unet_single_blocks_3_linear1.hada_w1_a", "diffusion_model.double_blocks.1.img_attn.qkv.dora_scale"],
    "Stable Diffusion 3": ["diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight"],
    "Wan": ["diffusion_model.blocks.0.self_attn.q.lora_down.weight"],
    "Qwen-Image": ["transformer_blocks.0.img_mod.1.lora_A.weight",
                   "lora_unet_transformer_blocks_0_txt_mlp_net_2.lokr_w1"],
    "a diffusion transformer": ["transformer.transformer_blocks.0.attn1.to_q.lora_A.weight",
                                "base_model.model.transformer_blocks.3.attn1.to_q.lora_B.weight",
                                "lora_transformer_blocks_0_attn_to_q.lora_up.weight"],
    "Stable Cascade": ["lora_prior_unet_down_blocks_0_1_channelwise_0.lora_up.weight"],
    "AnimateDiff": ["down_blocks.0.motion_modules.0.temporal_transformer.proj_in.lora_up.weight",
                    "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0."
                    "processor.to_q_lora.down.weight"],
    "Stable Video Diffusion": [
        "unet.down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn1.to_q.lora_A.weight"],
}  # fmt: skip


@pytest.mark.parametrize("key", [key for keys in MODELS.values() for key in keys])
def test_loras_for_other_models_are_called_so_whatever_their_type(key, save, sdxl, refused):
    name = next(name for name, keys in MODELS.items() if key in keys)
    path = save({key: torch.ones(4, 4)})
    assert f"made for {name}" in refused(AdapterMismatchError, path, sdxl)
    assert name in inspect_file(path).origin.label


THINGS = {
    "ControlNet LoRA": ["lora_controlnet", "input_hint_block.0.up", "zero_convs.0.0.weight"],
    "LLLite": ["lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.down.0.weight"],
    "a ControlNet": ["control_model.input_hint_block.0.weight"],
    "a ControlNet,": ["controlnet_down_blocks.0.weight", "conv_in.weight"],
    "whole checkpoint": ["model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.logit_scale"],
    "hypernetwork": ["768.0.linear.0.weight", "768.0.linear.0.bias"],
    "embedding": ["emb_params"],
    "an embedding": ["clip_l", "clip_g"],
    "textual-inversion": ["string_to_param.*"],
    "textual": ["<fox>"],
    "motion module": ["down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"],
    "IP-Adapter": ["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"],
    "T2I-Adapter": ["adapter.body.0.resnets.0.block1.weight"],
    "a part of a model": ["decoder.up_blocks.0.resnets.0.conv1.weight"],
    "a part of a model ": ["text_model.encoder.layers.0.mlp.fc1.weight"],
    "upscaler": ["conv_first.weight", "body.0.rdb1.conv1.weight"],
}


@pytest.mark.parametrize("name", THINGS)
def test_what_is_no_lora_is_called_what_it_is(name, save, sdxl, refused):
    path = save({key: torch.ones(4, 4) for key in THINGS[name]})
    words = name.removeprefix("a ").removeprefix("an ").strip(" ,")
    assert words in refused((AdapterFormatError, AdapterMismatchError), path, sdxl)
    seen = inspect_file(path)
    assert words in seen.refused or words in seen.origin.label


def test_embeddings_that_come_with_a_lora_are_handed_out_by_word(whole, save, sdxl, tmp_path: Path):
    tensors, _ = whole
    extras = {
        "bundle_emb.red fox.clip_l": torch.ones(2, 16), "bundle_emb.red fox.clip_g": torch.ones(2, 24),
        "bundle_emb.v1.5 hat.string_to_param.*": torch.ones(1, 16), "bundle_emb.a.b.emb_params": torch.ones(16),
    }  # fmt: skip
    adapter = read_adapter(save(tensors | extras), sdxl.layers, "fox")
    assert {word: set(own) for word, own in adapter.bundled.items()} == {
        "red fox": {"clip_l", "clip_g"},
        "v1.5 hat": {"string_to_param.*"},
        "a.b": {"emb_params"},
    }
    assert torch.equal(adapter.bundled["red fox"]["clip_g"], torch.ones(2, 24))
    [note] = [note for note in adapter.report.notes if "bundle_emb" in note]
    assert "'red fox'" in note


def test_keys_are_counted_once(whole, save, sdxl, refused):
    tensors, _ = whole
    stem = next(key for key in tensors if key.endswith("lora_up.weight")).removesuffix(".lora_up.weight")
    odd = {f"{stem}.lora_sideways.weight": torch.zeros(1)}
    said = refused(AdapterFormatError, save(tensors | odd), sdxl)
    assert f": 1 ('{stem}.lora_sideways.weight') of {len(tensors) + 1} keys follow no adapter format" in said
