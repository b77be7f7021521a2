"""Ranks, alphas, kernels, data types: what one layer may look like, and what it then does."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from pipelines.adapters import Target, model_layers, read_adapter
from pipelines.families.family import SDXL

QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
KEY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k"
CONV = "down_blocks.1.resnets.0.conv1"
TEXT_QUERY = "encoder.layers.0.self_attn.q_proj"


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


def kohya(module, factors, *, component="unet"):
    stem = {"unet": "lora_unet_", "text_encoder": "lora_te1_text_model_"}[component] + module.replace(
        ".", "_"
    )
    tensors = {f"{stem}.lora_up.weight": factors.up, f"{stem}.lora_down.weight": factors.down}
    if factors.alpha is not None:
        tensors[f"{stem}.alpha"] = torch.tensor(factors.alpha)
    return tensors


def peft(module, factors, *, component="unet"):
    return {
        f"{component}.{module}.lora_B.weight": factors.up,
        f"{component}.{module}.lora_A.weight": factors.down,
    }


def test_a_layer_without_alpha_has_scale_1_and_the_report_says_so(sdxl, trainer, save, assert_applied):
    with_alpha = trainer.layer(sdxl.modules("unet")[QUERY])
    without = trainer.layer(sdxl.modules("unet")[KEY], alpha=False)
    adapter = read_adapter(save(kohya(QUERY, with_alpha) | kohya(KEY, without)), sdxl.layers, "fox")
    assert_applied(adapter, sdxl, "unet", {QUERY: with_alpha, KEY: without})
    assert "1 of 2 layers give no alpha: scale 1 there" in adapter.report.notes
    for alike in (kohya(QUERY, with_alpha), kohya(KEY, without)):
        notes = read_adapter(save(alike), sdxl.layers, "fox").report.notes
        assert not any("no alpha" in note for note in notes), "it is remarkable beside layers that have one"


@pytest.mark.parametrize("shape", [(), (1,)])
def test_alpha_may_be_a_scalar_or_a_list_of_one(shape, sdxl, trainer, save, assert_applied):
    factors = trainer.layer(sdxl.modules("unet")[QUERY])
    tensors = kohya(QUERY, factors)
    tensors = {k: v.reshape(shape) if k.endswith("alpha") else v for k, v in tensors.items()}
    assert_applied(read_adapter(save(tensors), sdxl.layers, "fox"), sdxl, "unet", {QUERY: factors})


def test_a_tucker_core_is_multiplied_in_exactly(sdxl, trainer, save):
    out_width, in_width, *_ = sdxl.modules("unet")[CONV]
    up, mid, down = (
        trainer.tensor(out_width, 3, 1, 1),
        trainer.tensor(3, 3, 3, 3),
        trainer.tensor(3, in_width, 1, 1),
    )
    stem = f"lora_unet_{CONV.replace('.', '_')}"
    path = save({
        f"{stem}.lora_up.weight": up, f"{stem}.lora_mid.weight": mid, f"{stem}.lora_down.weight": down,
        f"{stem}.alpha": torch.tensor(1.5),
    })  # fmt: skip
    adapter = read_adapter(path, sdxl.layers, "fox")
    assert adapter.layers[f"unet.{CONV}"].rank == 3

    picture = trainer.tensor(2, in_width, 6, 6)  # [batch, in, height, width]
    conv2d = torch.nn.functional.conv2d
    as_trained = conv2d(conv2d(conv2d(picture, down), mid, padding=1), up) * 1.5 / 3
    torch.testing.assert_close(
        conv2d(picture, adapter.delta(f"unet.{CONV}"), padding=1), as_trained, rtol=1e-5, atol=1e-5
    )
    assert adapter.report.kind == "LoCon"


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_linear_and_pointwise_factors_serve_either_layer(family, request, trainer, save, assert_applied):
    """SD1.x has convolutions where SDXL has linear layers; files come from both habits."""
    model = request.getfixturevalue(family)
    module = "down_blocks.1.attentions.0.proj_in"
    shape = model.modules("unet")[module]
    other_shape = (*shape[:2], 1, 1) if len(shape) == 2 else shape[:2]
    factors = trainer.layer(other_shape)
    adapter = read_adapter(save(kohya(module, factors)), model.layers, "fox")
    assert_applied(adapter, model, "unet", {module: factors})
    read = adapter.layers[f"unet.{module}"]
    assert read.down.ndim == read.up.ndim == len(shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_floating_type_is_read_as_it_stands(dtype, sdxl, trainer, save, assert_applied):
    factors = trainer.layer(sdxl.modules("unet")[QUERY])
    stored = replace(factors, up=factors.up.to(dtype), down=factors.down.to(dtype))
    adapter = read_adapter(save(kohya(QUERY, stored)), sdxl.layers, "fox")
    assert adapter.layers[f"unet.{QUERY}"].up.dtype == dtype
    exact = replace(factors, up=stored.up.float(), down=stored.down.float())
    assert_applied(adapter, sdxl, "unet", {QUERY: exact})
    names = {torch.float8_e4m3fn: "fp8 e4m3", torch.float8_e5m2: "fp8 e5m2", torch.bfloat16: "bf16"}
    assert adapter.report.dtype == names.get(dtype, f"fp{dtype.itemsize * 8}")


def settings(**fields):
    return {"lora_adapter_metadata": json.dumps(fields)}


@pytest.mark.parametrize("rslora", [False, True], ids=["LoRA", "rsLoRA"])
def test_peft_settings_give_every_layer_its_scale(rslora, sdxl, trainer, save, assert_applied):
    query = trainer.layer(sdxl.modules("unet")[QUERY], alpha=False, rank=2)
    key = trainer.layer(sdxl.modules("unet")[KEY], alpha=False, rank=4)
    text = trainer.layer(sdxl.modules("text_encoder")[TEXT_QUERY], alpha=False, rank=4)
    path = save(
        peft(QUERY, query) | peft(KEY, key) | peft(f"text_model.{TEXT_QUERY}", text, component="text_encoder"),
        settings(**{
            "unet.r": 2, "unet.lora_alpha": 6, "unet.use_rslora": rslora, "unet.rank_pattern": {"to_k": 4},
            "unet.alpha_pattern": {"attn1.to_k": 5}, "text_encoder.lora_alpha": 3, "text_encoder.r": 4,
            "text_encoder.alpha_pattern": {f"text_model.{TEXT_QUERY}": 7},
        }),
    )  # fmt: skip
    adapter = read_adapter(path, sdxl.layers, "fox")
    divisor = math.sqrt if rslora else float
    assert adapter.layers[f"unet.{QUERY}"].scale == pytest.approx(6 / divisor(2))
    assert adapter.layers[f"unet.{KEY}"].scale == pytest.approx(5 / divisor(4))
    assert adapter.layers[f"text_encoder.{TEXT_QUERY}"].scale == pytest.approx(7 / 4)
    assert adapter.report.alphas == (5, 7)
    assert_applied(adapter, sdxl, "unet", {
        QUERY: replace(query, alpha=6 / divisor(2) * 2), KEY: replace(key, alpha=5 / divisor(4) * 4)
    })  # fmt: skip


def test_a_pattern_matches_whole_names_only(sdxl, trainer, save):
    query = trainer.layer(sdxl.modules("unet")[QUERY], alpha=False, rank=2)
    path = save(
        peft(QUERY, query), settings(**{"unet.lora_alpha": 6, "unet.alpha_pattern": {"o_q": 1, "1.to_q": 2}})
    )
    assert read_adapter(path, sdxl.layers, "fox").layers[f"unet.{QUERY}"].scale == 3


def test_an_alpha_in_the_file_wins_over_the_settings(sdxl, trainer, save, assert_applied):
    factors = trainer.layer(sdxl.modules("unet")[QUERY])
    path = save(kohya(QUERY, factors), settings(**{"unet.lora_alpha": 99}))
    assert_applied(read_adapter(path, sdxl.layers, "fox"), sdxl, "unet", {QUERY: factors})


def test_embeddings_and_counters_are_ignored_but_not_silently(sdxl, trainer, save, assert_applied):
    factors = trainer.layer(sdxl.modules("unet")[QUERY])
    extras = {
        "bundle_emb.fox.string_to_param.*": torch.zeros(2, 4),
        "text_encoder.text_model.embeddings.position_ids": torch.arange(4),
        "global_step": torch.tensor(100),
    }
    adapter = read_adapter(save(kohya(QUERY, factors) | extras), sdxl.layers, "fox")
    assert_applied(adapter, sdxl, "unet", {QUERY: factors})
    assert any("bundle_emb" in note for note in adapter.report.notes)
    assert any("global_step" in note and "position_ids" in note for note in adapter.report.notes)


def test_embeddings_of_more_than_the_bound_are_left_out_with_a_note(sdxl, trainer, save, monkeypatch):
    monkeypatch.setattr("pipelines.adapters.reading.MOST_BUNDLED", 40)
    factors = trainer.layer(sdxl.modules("unet")[QUERY])
    extras = {f"bundle_emb.{word}.clip_l": torch.ones(1, 8) for word in ("fox", "hat")}
    adapter = read_adapter(save(kohya(QUERY, factors) | extras), sdxl.layers, "fox")
    assert len(adapter.bundled) == 1
    (left,) = {"fox", "hat"} - set(adapter.bundled)
    assert any("left out" in note and left in note for note in adapter.report.notes)


def test_an_alpha_whose_factors_were_cut_away_is_noted(sdxl, trainer, save, assert_applied):
    factors = trainer.layer(sdxl.modules("unet")[QUERY])
    orphan = {f"lora_unet_{KEY.replace('.', '_')}.alpha": torch.tensor(4.0)}
    adapter = read_adapter(save(kohya(QUERY, factors) | orphan), sdxl.layers, "fox")
    assert_applied(adapter, sdxl, "unet", {QUERY: factors})
    assert any(KEY in note for note in adapter.report.notes)


def test_a_file_that_was_never_trained_is_said_to_change_nothing(sdxl, trainer, save):
    factors = trainer.layer(sdxl.modules("unet")[QUERY])
    path = save(kohya(QUERY, replace(factors, up=torch.zeros_like(factors.up))))
    assert any("changes nothing" in note for note in read_adapter(path, sdxl.layers, "fox").report.notes)


def test_shapes_win_over_what_the_metadata_claims(sd1, trainer, save, assert_applied):
    """A published width of the text embeddings decides, and the contradiction is noted."""
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    shape = (sd1.modules("unet")[module][0], 768)
    components = {"unet": {module: Target(shape)}}
    full = replace(sd1.layers, components=components, unet_config={"cross_attention_dim": 768})
    path = save(
        kohya(module, trainer.layer(shape)), {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}
    )
    report = read_adapter(path, full, "fox").report
    assert (report.family, report.evidence) == ("sd1", "shapes")
    assert any("Stable Diffusion XL" in note for note in report.notes)


def test_a_small_model_may_share_another_familys_width(sdxl, trainer, save):
    """A small SDXL whose text embeddings are 768 wide still takes its own files."""
    unet = torch.nn.Module()
    unet.to_k = torch.nn.Linear(768, 8)
    unet.config = {"cross_attention_dim": 768}
    holder = torch.nn.Module()
    holder.attn2 = unet
    holder.config = unet.config
    down = torch.nn.Module()
    down.down_blocks = torch.nn.ModuleList([holder])
    down.config = unet.config
    model = model_layers(SDXL, "narrow", {"unet": down})
    path = save(kohya("down_blocks.0.attn2.to_k", trainer.layer((8, 768))))
    assert read_adapter(path, model, "fox").report.family == "unknown"


def test_a_peft_folder_may_be_named_instead_of_the_file(sdxl, trainer, save, assert_applied):
    factors = trainer.layer(sdxl.modules("unet")[QUERY], alpha=False, rank=2)
    path = save(peft(QUERY, factors), name="adapter_model.safetensors")
    (path.parent / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 5})
    )
    adapter = read_adapter(path.parent, sdxl.layers, "fox")
    assert_applied(adapter, sdxl, "unet", {QUERY: replace(factors, alpha=5.0)})


def test_the_folders_settings_do_not_touch_other_files(sdxl, trainer, save):
    factors = trainer.layer(sdxl.modules("unet")[QUERY], alpha=False, rank=2)
    path = save(peft(QUERY, factors))
    (path.parent / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 5}))
    assert read_adapter(path, sdxl.layers, "fox").layers[f"unet.{QUERY}"].scale == 1
