"""What is refused, with which error, and that the message names the file, the key and the remedy."""

from __future__ import annotations

import json
import pickle
import struct

import pytest
import torch

from pipelines.adapters import read_adapter
from pipelines.errors import AdapterError, AdapterFileError, AdapterFormatError, AdapterMismatchError
from pipelines.home.headers import LONGEST_HEADER

QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
STEM = f"lora_unet_{QUERY.replace('.', '_')}"
UP, DOWN = f"{STEM}.lora_up.weight", f"{STEM}.lora_down.weight"


@pytest.fixture
def sound(sdxl, trainer):
    """The tensors of a sound file with one layer."""
    factors = trainer.layer(sdxl.modules("unet")[QUERY], rank=2)
    return {UP: factors.up, DOWN: factors.down, f"{STEM}.alpha": torch.tensor(2.0)}


def test_the_sound_file_is_read(sound, save, sdxl):
    assert list(read_adapter(save(sound), sdxl.layers, "fox").layers) == [f"unet.{QUERY}"]


# Files that are no safetensors files --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\n  <html>", "web page"),
        (b'{"error": "login required, please sign in"}', "JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (pickle.dumps({"lora": [1, 2, 3]}), "pickle"),
        (b"PK\x03\x04" + b"\0" * 60, "pickle"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 60, "not a safetensors file"),
        (b"\x10\x00\x00", "truncated"),
    ],
    ids=["zero bytes", "html", "html indented", "json", "lfs", "pickle", "zip pickle", "png", "three bytes"],
)
def test_other_content_under_the_right_name(content, said, tmp_path, sdxl, refused):
    path = tmp_path / "fox.safetensors"
    path.write_bytes(content)
    assert said in refused(AdapterFileError, path, sdxl)


@pytest.mark.parametrize("ending", [".pt", ".ckpt", ".bin"])
def test_pickles_are_refused_and_never_opened(ending, tmp_path, sdxl, refused):
    path = tmp_path / f"fox{ending}"
    torch.save({UP: torch.zeros(1)}, path)
    message = refused(AdapterFileError, path, sdxl)
    assert "pickle" in message
    assert "convert it to .safetensors" in message


def test_safetensors_under_a_pickles_name(sound, save, sdxl, refused):
    path = save(sound)
    assert "rename it" in refused(AdapterFileError, path.rename(path.with_suffix(".pt")), sdxl)


def test_a_missing_file(tmp_path, sdxl, refused):
    assert "no such file" in refused(AdapterFileError, tmp_path / "nowhere.safetensors", sdxl)


def test_a_folder_without_weights(tmp_path, sdxl, refused):
    assert "adapter_model.safetensors" in refused(AdapterFileError, tmp_path, sdxl)


@pytest.mark.parametrize("left", [0.2, 0.9, 0.999], ids=["in the header", "in the data", "last bytes"])
def test_a_truncated_file(left, sound, save, sdxl, refused):
    path = save(sound)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * left)])
    message = refused(AdapterFileError, path, sdxl)
    assert "truncated" in message
    assert "download it again" in message


def raw_file(path, header: object, data: bytes = b"", length: int | None = None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(start, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        (b"{not json at all}", b"", "JSON"),
        (b'{"a": {"dtype":"F32","shape":[0],"data_offsets":[0,0]}, "a": {}}', b"", "occurs twice"),
        (b"{" + b'"a":[' * 50_000, b"", "JSON"),
        ({"a": entry(0, 4, dtype="Q4")}, b"\0" * 4, "Q4"),
        ({"a": entry(0, 4, shape=(-1,))}, b"\0" * 4, "malformed"),
        ({"a": entry(0, 4, shape=(True,))}, b"\0" * 4, "malformed"),
        ({"a": entry(0, 4, shape=(10**6, 10**6))}, b"\0" * 4, "damaged"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, b"\0" * 4, "overlaps"),
        ({"a": entry(4, 8)}, b"\0" * 8, "gap"),
        ({"a": entry(0, 4)}, b"\0" * 12, "follow the last tensor"),
        ({"a": entry(0, 4, shape=[2] * 9)}, b"\0" * 4, "malformed"),
        ({"a": entry(0, 4, shape=[10**400])}, b"\0" * 4, "malformed"),
        ({"a": 7}, b"", "malformed"),
    ],
)
def test_a_header_that_lies(header, data, said, tmp_path, sdxl, refused):
    path = raw_file(tmp_path / "fox.safetensors", header, data)
    assert said in refused(AdapterFileError, path, sdxl)


def test_a_header_length_is_not_trusted(tmp_path, sdxl, refused):
    path = raw_file(tmp_path / "fox.safetensors", {}, b"", length=LONGEST_HEADER + 1)
    assert "header claims" in refused(AdapterFileError, path, sdxl)


# Sound containers with unsound content ------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", [UP, DOWN, f"{STEM}.alpha"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_that_are_not_finite(value, key, dtype, sound, save, sdxl, refused):
    sound[key] = sound[key].to(dtype)
    sound[key].view(-1)[-1] = value
    assert repr(key) in refused(AdapterFileError, save(sound), sdxl)


@pytest.mark.parametrize(("lost", "left"), [(UP, DOWN), (DOWN, UP)])
def test_a_layer_with_a_missing_half(lost, left, sound, save, sdxl, refused):
    del sound[lost]
    message = refused(AdapterFormatError, save(sound), sdxl)
    assert repr(left) in message
    assert "incomplete" in message


def test_no_tensors_at_all(save, sdxl, refused):
    assert "change nothing" in refused(AdapterFormatError, save({}), sdxl)


def test_only_ignorable_tensors(save, sdxl, refused):
    assert "change nothing" in refused(AdapterFormatError, save({"bundle_emb.fox": torch.zeros(2)}), sdxl)


def test_only_alphas(save, sdxl, refused):
    assert "no factors" in refused(AdapterFormatError, save({f"{STEM}.alpha": torch.tensor(1.0)}), sdxl)


def test_alpha_zero_everywhere(sound, save, sdxl, refused):
    sound[f"{STEM}.alpha"] = torch.tensor(0.0)
    assert "alpha is 0" in refused(AdapterFormatError, save(sound), sdxl)


def test_an_alpha_that_is_not_one_number(sound, save, sdxl, refused):
    sound[f"{STEM}.alpha"] = torch.tensor([1.0, 2.0])
    assert f"{STEM}.alpha" in refused(AdapterFormatError, save(sound), sdxl)


def test_rank_zero(sound, save, sdxl, refused):
    sound[UP], sound[DOWN] = sound[UP][:, :0], sound[DOWN][:0]
    assert "rank 0" in refused(AdapterFormatError, save(sound), sdxl)


def test_quantised_weights(sound, save, sdxl, refused):
    sound[UP] = sound[UP].to(torch.int8)
    assert "int8" in refused(AdapterFormatError, save(sound), sdxl)


@pytest.mark.parametrize("other", ["SGM", "PEFT"])
def test_one_layer_under_two_names(other, sound, save, sdxl, refused):
    twin = {"SGM": "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_up.weight",
            "PEFT": f"unet.{QUERY}.lora_B.weight"}[other]  # fmt: skip
    message = refused(AdapterFormatError, save(sound | {twin: sound[UP]}), sdxl)
    assert repr(twin) in message
    assert repr(UP) in message


@pytest.mark.parametrize(
    ("half", "change"),
    [
        (UP, lambda t: t[:-1]),
        (UP, lambda t: t[:, :1]),
        (DOWN, lambda t: t[:, :-1]),
        (DOWN, lambda t: t[:1]),
        (DOWN, lambda t: t[..., None, None].repeat(1, 1, 3, 3)),
        (DOWN, lambda t: t.flatten()),
    ],
    ids=[
        "out too narrow",
        "up of another rank",
        "in too narrow",
        "down of another rank",
        "a kernel",
        "one axis",
    ],
)
def test_shapes_that_do_not_fit(half, change, sound, save, sdxl, refused):
    sound[half] = change(sound[half])
    message = refused(AdapterMismatchError, save(sound), sdxl)
    assert repr(half) in message
    assert QUERY in message


def test_a_tucker_core_that_does_not_fit(trainer, save, sdxl, refused):
    conv = "lora_unet_down_blocks_1_resnets_0_conv1"
    shapes = {"up": (8, 2, 1, 1), "mid": (2, 3, 3, 3), "down": (2, 8, 1, 1)}
    tensors = {f"{conv}.lora_{part}.weight": trainer.tensor(*shape) for part, shape in shapes.items()}
    assert "lora_mid" in refused(AdapterMismatchError, save(tensors), sdxl)


def test_keys_that_match_no_layer_are_counted_and_the_first_ones_shown(sound, save, sdxl, refused):
    strays = {
        f"lora_unet_down_blocks_7_attentions_{i}_proj_in.lora_up.weight": torch.ones(8, 1) for i in range(5)
    }
    message = refused(AdapterMismatchError, save(sound | strays), sdxl)
    assert "5 (" in message
    assert "down_blocks_7_attentions_0" in message
    assert "small-sdxl" in message


@pytest.mark.parametrize("key", ["something.weight", "lora_unet_a_b.lora_sideways.weight", "fox"])
def test_keys_of_no_known_format(key, sound, save, sdxl, refused):
    assert repr(key) in refused(AdapterFormatError, save(sound | {key: torch.ones(2)}), sdxl)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("model.diffusion_model.out.2.weight", "checkpoint"),
        ("emb_params", "textual-inversion"),
        ("unet:0:up", "kohya's format"),
        ("down_blocks.0.resnets.0.conv1.weight", "part of a model"),
    ],
)
def test_files_that_are_no_adapters_are_called_what_they_are(key, said, save, sdxl, refused):
    assert said in refused(AdapterFormatError, save({key: torch.ones(2)}), sdxl)


# Types that are not applied, or not whole -------------------------------------------------------------------------

KINDS = {
    "old OFT": ["oft_diag"],
    "GLoRA": ["a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight"],
    "another shape": ["lora_up.weight", "lora_down.weight", "reshape_weight"],
    "FLoRA": ["flora_A", "flora_B"],
    "a trained bias on its inner half": ["lora_A.bias"],
    "RandLoRA of an unknown layout": ["randlora_delta"],
    "WaveFT": ["waveft_spectrum"],
    "HiRA of an unknown layout": ["hira_A", "hira_B", "hira_C"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_types_are_refused_by_name(kind, sound, save, sdxl, refused):
    other = {f"lora_unet_conv_in.{leaf}": torch.ones(8, 4) for leaf in KINDS[kind]}
    message = refused(AdapterFormatError, save(sound | other), sdxl)
    assert kind in message
    assert "lora_unet_conv_in." in message


PARTS = {
    "DoRA": {"dora_scale": (8, 1)},
    "LoHa": {"hada_w1_a": (8, 2), "hada_w1_b": (2, 36), "hada_w2_a": (8, 2)},
    "LoKr": {"lokr_w2": (4, 2)},
    "LoKr of two factors": {"lokr_w1": (2, 2), "lokr_w2_a": (4, 2)},
    "GLoRA": {"a1.weight": (4, 2), "a2.weight": (2, 4), "b1.weight": (8, 2)},
    "OFT": {"rescale": (8, 1)},
    "(IA)³": {"on_input": (1,)},
    "HiRA": {"hira_A": (2, 4)},
    "VeRA": {"vera_lambda_b": (8,), "vera_lambda_d": (2,)},
    "RandLoRA": {"randlora_lambda": (2, 2), "randlora_gamma": (2, 4)},
    "T-LoRA": {"q_layer.weight": (2, 4), "lambda_layer": (1, 2)},
    "SHiRA": {"shira_weight": (3,)},
    "VB-LoRA": {"vblora_logits_A": (2, 2, 4)},
    "AdaLoRA": {"lora_E": (2, 1)},
}


@pytest.mark.parametrize("kind", PARTS)
def test_a_type_without_all_its_parts_is_refused(kind, sound, save, sdxl, refused):
    other = {f"lora_unet_conv_in.{leaf}": torch.ones(shape) for leaf, shape in PARTS[kind].items()}
    message = refused(AdapterFormatError, save(sound | other), sdxl)
    assert "fetch" in message or "save it again" in message


@pytest.mark.parametrize(
    "parts",
    [
        ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"],
        ["lokr_w1", "lokr_w2"],
        ["a1.weight", "a2.weight", "b1.weight", "b2.weight"],
        ["oft_blocks"],
        ["hira_A", "hira_B"],
        ["c3a_kernel"],
        ["miss_block"],
        ["boft_R", "boft_s"],
        ["ia3_l"],
    ],
    ids=lambda parts: parts[0],
)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 1, 1)])
def test_shapes_that_no_trainer_writes_are_refused_with_their_key(parts, shape, sound, save, sdxl, refused):
    other = {f"lora_unet_conv_in.{leaf}": torch.ones(shape) for leaf in parts}
    assert "lora_unet_conv_in." in refused(AdapterError, save(sound | other), sdxl)


def test_numbers_whose_product_is_infinite_are_refused(save, sdxl, refused):
    parts = {f"hada_w{i}_{half}": (8, 2) if half == "a" else (2, 36) for i in (1, 2) for half in "ab"}
    tensors = {f"lora_unet_conv_in.{part}": torch.full(shape, 1e30) for part, shape in parts.items()}
    assert "so large" in refused(AdapterFileError, save(tensors), sdxl)


FULL = {
    "LoHa": {f"hada_w{i}_{half}": (8, 4) for i in (1, 2) for half in "ab"},
    "LoKr": {"lokr_w1": (8, 4), "lokr_w2": (8, 4)},
    "LoKr in Tucker's form": {
        "lokr_w1": (2, 2), "lokr_t2": (2, 3, 3, 3), "lokr_w2_a": (3, 4), "lokr_w2_b": (2, 2)
    },
    "GLoRA": {f"{part}.weight": (8, 4) for part in ("a1", "a2", "b1", "b2")},
    "OFT": {"oft_blocks": (8, 4)},
    "(IA)³": {"ia3_l": (9, 1)},
    "a norm": {"w_norm": (7,)},
    "a difference": {"diff": (8, 3, 3, 3)},
    "a bias": {"diff_b": (9,)},
    "MiSS": {"miss_block": (2, 9)},
    "C3A": {"c3a_kernel": (2, 2, 3)},
    "AdaLoRA, its inputs": {"lora_A": (2, 9), "lora_B": (8, 2), "lora_E": (2, 1)},
    "AdaLoRA, its outputs": {"lora_A": (2, 36), "lora_B": (9, 2), "lora_E": (2, 1)},
    "AdaLoRA, its ranks": {"lora_A": (2, 36), "lora_B": (8, 2), "lora_E": (3, 1)},
    "DeLoRA on a kernel": {
        "delora_A": (2, 4),
        "delora_B": (8, 2),
        "delora_lambda": (1,),
        "delora_w_norm": (4,),
    },
    "HiRA": {"hira_A": (2, 9), "hira_B": (8, 2)},
}  # fmt: skip


@pytest.mark.parametrize("kind", FULL)
def test_a_type_of_other_sizes_is_refused(kind, sound, save, sdxl, refused):
    other = {f"lora_unet_conv_in.{leaf}": torch.ones(shape) for leaf, shape in FULL[kind].items()}
    message = refused(AdapterMismatchError, save(sound | other), sdxl)
    assert "lora_unet_conv_in." in message


@pytest.mark.parametrize("shape", [(9, 8), (2, 3), (3, 2, 2), (2, 4, 3)], ids=str)
def test_a_miss_whose_blocks_do_not_tile_the_weight_is_refused(shape, save, sdxl, refused):
    """The weight is 8 by 8."""
    key = f"lora_unet_{QUERY.replace('.', '_')}.miss_block"
    assert key in refused(AdapterMismatchError, save({key: torch.ones(shape)}), sdxl)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"init_lora_weights": "pissa_niter_16"}, "pissa"),
        ({"init_lora_weights": "corda"}, "training data"),
        ({"init_lora_weights": "loftq"}, "rounded the base weights"),
        ({"kasa_config": {"beta": 1e-4}}, "kasa_config"),
        ({"use_qalora": "true"}, "use_qalora"),
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"lora_alpha": "eight"}, "lora_alpha"),
        ({"lora_alpha": 4, "alpha_pattern": {"(a+)+b": 1}}, "(a+)+b"),
    ],
)
@pytest.mark.parametrize("place", ["adapter_config.json", "lora_adapter_metadata"])
def test_peft_settings_that_change_the_mathematics(fields, said, place, sound, save, sdxl, refused):
    tensors = {f"unet.{QUERY}.lora_A.weight": sound[DOWN], f"unet.{QUERY}.lora_B.weight": sound[UP]}
    if place == "adapter_config.json":
        path = save(tensors, name="adapter_model.safetensors")
        (path.parent / place).write_text(json.dumps(fields))
    else:
        path = save(tensors, {place: json.dumps({f"unet.{field}": value for field, value in fields.items()})})
    message = refused(AdapterFormatError, path, sdxl)
    assert said in message
    assert place in message


def test_peft_settings_that_cannot_be_read(sound, save, sdxl, refused):
    assert "lora_adapter_metadata" in refused(
        AdapterFormatError, save(sound, {"lora_adapter_metadata": "{"}), sdxl
    )


# Files for other models ---------------------------------------------------------------------------------


def context_layer(width):
    """attn2.to_k of a full-size model: what it reads tells the family."""
    stem = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    return {f"{stem}.lora_up.weight": torch.ones(640, 2), f"{stem}.lora_down.weight": torch.ones(2, width)}


@pytest.mark.parametrize(
    ("width", "family"),
    [(768, "Stable Diffusion 1.x"), (1024, "Stable Diffusion 2.x"), (2048, "Stable Diffusion XL")],
)
def test_the_width_of_the_text_embeddings_tells_the_family(width, family, save, sd1, sdxl, refused):
    model = sd1 if "XL" in family else sdxl
    message = refused(AdapterMismatchError, save(context_layer(width)), model)
    assert f"made for {family}" in message
    assert f"this is {model.layers.label}, {model.layers.family.label}" in message
    assert str(width) in message


def test_shapes_count_more_than_metadata(save, sdxl, refused):
    path = save(context_layer(768), {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"})
    assert "made for Stable Diffusion 1.x" in refused(AdapterMismatchError, path, sdxl)


def test_many_transformer_blocks_mean_sdxl(save, sd1, refused):
    stem = "lora_unet_input_blocks_7_1_transformer_blocks_9_attn1_to_q"
    tensors = {f"{stem}.lora_up.weight": torch.ones(8, 2), f"{stem}.lora_down.weight": torch.ones(2, 8)}
    assert "made for Stable Diffusion XL" in refused(AdapterMismatchError, save(tensors), sd1)


@pytest.mark.parametrize(
    ("field", "value", "family"),
    [
        ("modelspec.architecture", "stable-diffusion-v1/lora", "Stable Diffusion 1.x"),
        ("ss_base_model_version", "sd_v1-5", "Stable Diffusion 1.x"),
        ("ss_base_model_version", "sd_v2-1", "Stable Diffusion 2.x"),
        ("ss_v2", "True", "Stable Diffusion 2.x"),
        ("modelspec.architecture", "flux-1-dev/lora", "FLUX"),
    ],
)
def test_where_shapes_are_silent_the_metadata_tells(field, value, family, sound, save, sdxl, refused):
    message = refused(AdapterMismatchError, save(sound, {field: value}), sdxl)
    assert f"made for {family}" in message
    assert f"{field} is {value!r}" in message
    assert 'family="sdxl"' in message


def test_the_owner_may_know_better_than_the_metadata(sound, save, sdxl):
    path = save(sound, {"ss_base_model_version": "sd_v1-5"})
    report = read_adapter(path, sdxl.layers, "fox", family="sdxl").report
    assert report.family == "sdxl"
    assert any("sd_v1-5" in note for note in report.notes)


@pytest.mark.parametrize(
    ("key", "family"),
    [
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "FLUX"),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "FLUX"),
        ("transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight", "Stable Diffusion 3"),
        ("lora_te3_encoder_block_0_layer_0_SelfAttention_k.lora_down.weight", "Stable Diffusion 3"),
        ("transformer.transformer_blocks.0.img_mlp.net.2.lora_A.weight", "Qwen-Image"),
        ("diffusion_model.blocks.0.cross_attn.k.lora_A.weight", "Wan"),
        ("diffusion_model.layers.0.attention.to_q.lora_A.weight", "Z-Image"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "a language model"),
    ],
)
def test_files_of_other_families_are_recognised(key, family, sound, save, sdxl, refused):
    message = refused(AdapterMismatchError, save(sound | {key: torch.ones(2, 8)}), sdxl)
    assert f"made for {family}" in message
    assert repr(key) in message


def test_a_second_text_encoder_that_the_model_lacks(save, sd1, refused):
    key = "lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight"
    assert "no text_encoder_2" in refused(AdapterMismatchError, save({key: torch.ones(24, 2)}), sd1)


def test_a_text_layer_that_fits_both_encoders(save, sdxl, refused, trainer):
    """Text encoders of one width, and a file that does not say which it means."""
    import dataclasses

    twins = {part: sdxl.layers.components["text_encoder"] for part in ("text_encoder", "text_encoder_2")}
    model = dataclasses.replace(sdxl, layers=dataclasses.replace(sdxl.layers, components=twins))
    stem = "base_model.model.text_model.encoder.layers.0.self_attn.q_proj"
    path = save({f"{stem}.lora_A.weight": torch.ones(2, 16), f"{stem}.lora_B.weight": torch.ones(16, 2)})
    assert "which text encoder" in refused(AdapterFormatError, path, model)
