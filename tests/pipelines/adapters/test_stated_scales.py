"""A scale that stands in another place than PEFT's own: used where it is one thing and fits the tensors, else told."""

from __future__ import annotations

import json
import math

import pytest
import torch

from pipelines.adapters import inspect_file, read_adapter
from pipelines.errors import AdapterFormatError

QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
KEY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"


@pytest.fixture
def peft(sdxl, trainer):
    """A bare PEFT file: a query of rank 4 and a text layer of rank 4, no alphas."""
    query = trainer.layer(sdxl.modules("unet")[QUERY], alpha=False, rank=4)
    text = trainer.layer((16, 16), alpha=False, rank=4)
    return {
        f"unet.{QUERY}.lora_A.weight": query.down, f"unet.{QUERY}.lora_B.weight": query.up,
        f"text_encoder.{TEXT}.lora_A.weight": text.down, f"text_encoder.{TEXT}.lora_B.weight": text.up,
    }  # fmt: skip


def scales(adapter) -> dict[str, float]:
    return {name.partition(".")[0]: factors.scale for name, factors in adapter.layers.items()}


def about_scale(adapter) -> list[str]:
    """What the report says of the scale here; what other programs do with it is another matter."""
    notes = adapter.report.notes
    return [note for note in notes if "scale" in note and not note.startswith("other programs")]


USED = {
    "flat": ({"lora_alpha": "8", "r": "4"}, 2, 2),
    "flat, as decimals": ({"lora_alpha": "8.0", "r": "4.0"}, 2, 2),
    "flat, no rank": ({"lora_alpha": "8"}, 2, 2),
    "other names": ({"alpha": "2", "rank": "4"}, 0.5, 0.5),
    "other names again": ({"network_alpha": "2", "network_dim": "4"}, 0.5, 0.5),
    "by component": ({"unet.lora_alpha": "8", "unet.r": "4", "text_encoder.lora_alpha": "1"}, 2, 0.25),
    "one component": ({"unet.lora_alpha": "8"}, 2, 1),
    "common and its own": ({"lora_alpha": "8", "text_encoder.lora_alpha": "2"}, 2, 0.5),
    "rsLoRA": ({"lora_alpha": "8", "r": "4", "use_rslora": "True"}, 4, 4),
    "no rsLoRA": ({"lora_alpha": "8", "r": "4", "use_rslora": "False"}, 2, 2),
    "patterns": ({"lora_alpha": "8", "r": "4", "alpha_pattern": '{"to_q": 16}'}, 4, 2),
    "ranks by pattern": ({"lora_alpha": "8", "r": "2", "rank_pattern": '{"to_q": 4, "q_proj": 4}'}, 2, 2),
    "peft_config": ({"peft_config": '{"peft_type": "LORA", "r": 4, "lora_alpha": 8}'}, 2, 2),
    "peft_config, default": ({"peft_config": '{"default": {"r": 4, "lora_alpha": 8}}'}, 2, 2),
    "peft_config by component": ({"peft_config": '{"unet": {"r": 4, "lora_alpha": 8}}'}, 2, 1),
    "peft_config, rsLoRA": ({"peft_config": '{"r": 4, "lora_alpha": 8, "use_rslora": true}'}, 4, 4),
    "peft_config, an adapter's name": ({"peft_config": '{"fox": {"r": 4, "lora_alpha": 8}}'}, 2, 2),
    "PEFT's own place, an adapter's name": (
        {"lora_adapter_metadata": '{"fox": {"r": 4, "lora_alpha": 8}}'}, 2, 2),
    "lora_config": ({"lora_config": '{"r": 4, "lora_alpha": 8}'}, 2, 2),
    "JSON, other names": ({"lora_config": '{"rank": 4, "alpha": 8}'}, 2, 2),
    "LoraConfig": ({"LoraConfig": '{"rank": 4, "network_alpha": 8}'}, 2, 2),
    "config": ({"config": '{"rank": 4, "alpha": 8, "steps": 9}'}, 2, 2),
    "training_args": ({"training_args": '{"lora_rank": 4, "lora_alpha": 8}'}, 2, 2),
    "ot_config": ({"ot_config": '{"lora_rank": 4, "lora_alpha": 2.0}'}, 0.5, 0.5),
    "PEFT's own place, for all": ({"lora_adapter_metadata": '{"r": 4, "lora_alpha": 8}'}, 2, 2),
    "PEFT's own place, nested": ({"lora_adapter_metadata": '{"unet": {"r": 4, "lora_alpha": 8}}'}, 2, 1),
    "kohya's": ({"ss_network_alpha": "8.0", "ss_network_dim": "4"}, 2, 2),
    "two places that agree": ({"ss_network_alpha": "8", "ss_network_dim": "4", "lora_alpha": "8"}, 2, 2),
}  # fmt: skip


@pytest.mark.parametrize("case", USED)
def test_a_scale_that_is_one_thing_is_used(case, peft, save, sdxl):
    metadata, unet, text = USED[case]
    adapter = read_adapter(save(peft, metadata), sdxl.layers, "fox")
    assert scales(adapter) == {"unet": unet, "text_encoder": text}
    if not case.startswith("PEFT's own"):
        assert len([note for note in about_scale(adapter) if "have scale" in note]) == 1


TOLD = {
    "another rank": ({"lora_alpha": "8", "r": "16"}, ("alpha 8, rank 16", "rank 4", "scale 2")),
    "kohya's of another rank": ({"ss_network_alpha": "8", "ss_network_dim": "16"}, ("rank 16", "scale 2")),
    "two places that differ": (
        {"lora_alpha": "8", "peft_config": '{"lora_alpha": 2}'},
        ("alpha 8", "alpha 2"),
    ),
    "no number": ({"lora_alpha": "eight"}, ("'eight'", "finite")),
    "kohya's without a rank": ({"ss_network_alpha": "8"}, ("alpha 8", "scale 2")),
    "lora_scale": ({"lora_scale": "0.5"}, ("lora_scale", "scale 0.5")),
    "scaling": ({"scaling": "2"}, ("scaling", "scale 2")),
    "not finite": ({"lora_alpha": "1e999"}, ("finite",)),
    "no JSON": ({"peft_config": "{"}, ("peft_config", "not valid JSON")),
    "a hostile pattern": ({"lora_alpha": "8", "alpha_pattern": '{"(a+)+b": 1}'}, ("more than a layer name",)),
    "deep": ({"peft_config": "[" * 5000}, ("peft_config",)),
    "rsLoRA without an alpha": (
        {"peft_config": '{"r": 4, "use_rslora": true}'},
        ("ask for rsLoRA", "scale 1"),
    ),
    "another spelling": ({"LoRA_alpha": "8"}, ("'LoRA_alpha' says alpha 8", "rank is 4")),
    "another component": ({"transformer.lora_alpha": "8"}, ("'transformer.lora_alpha' says alpha 8",)),
    "a trainer's own words": (
        {"config_of_mine": '{"network": {"linear": 4, "linear_alpha": 8}}'},
        ("'config_of_mine: network: linear_alpha' says alpha 8",),
    ),
    "settings of another component": (
        {"lora_adapter_metadata": '{"text_encoder_2.r": 4, "text_encoder_2.lora_alpha": 8}'},
        ("settings say nothing of the",),
    ),
    "neither yes nor no": ({"lora_alpha": "8", "use_rslora": "perhaps"}, ("'perhaps'",)),
}


@pytest.mark.parametrize("case", TOLD)
def test_a_scale_that_is_not_certain_is_told_in_one_note(case, peft, save, sdxl):
    metadata, words = TOLD[case]
    adapter = read_adapter(save(peft, metadata), sdxl.layers, "fox")
    assert set(scales(adapter).values()) == {1.0}
    [note] = about_scale(adapter)
    for word in words:
        assert word in note
    assert "scale 1" in note
    assert len(note) < 600


@pytest.mark.parametrize(
    "metadata", [{}, {"ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"}, {"r": "4"}]
)
def test_a_bare_file_of_peft_says_what_cannot_be_seen(metadata, peft, save, sdxl):
    adapter = read_adapter(save(peft, metadata), sdxl.layers, "fox")
    assert set(scales(adapter).values()) == {1.0}
    [note] = about_scale(adapter)
    assert "rsLoRA" in note
    assert "PiSSA" in note


@pytest.mark.parametrize(
    "metadata",
    [
        {"lora_alpha": "4", "r": "4"},
        {"ss_network_alpha": "4", "ss_network_dim": "4"},
        {"config_of_mine": '{"linear_alpha": 4}'},
    ],
)
def test_where_the_header_says_scale_1_too_there_is_nothing_to_tell(metadata, peft, save, sdxl):
    adapter = read_adapter(save(peft, metadata), sdxl.layers, "fox")
    assert set(scales(adapter).values()) == {1.0}
    assert about_scale(adapter) == []


def test_ranks_that_differ_need_a_rank_that_says_so(sdxl, trainer, save, peft):
    key = trainer.layer(sdxl.modules("unet")[KEY], alpha=False, rank=2)
    more = {f"unet.{KEY}.lora_A.weight": key.down, f"unet.{KEY}.lora_B.weight": key.up}
    adapter = read_adapter(save(peft | more, {"lora_alpha": "8"}), sdxl.layers, "fox")
    assert {factors.scale for factors in adapter.layers.values()} == {1.0}
    assert "2 to 4" in about_scale(adapter)[0]
    adapter = read_adapter(
        save(peft | more, {"lora_alpha": "8", "r": "4", "rank_pattern": '{"to_k": 2}'}), sdxl.layers, "fox"
    )
    assert {factors.scale for factors in adapter.layers.values()} == {2.0, 4.0}


def test_alphas_in_the_file_win_and_a_header_that_says_otherwise_is_told(sdxl, trainer, save):
    factors = trainer.layer(sdxl.modules("unet")[QUERY], rank=4)
    stem = f"lora_unet_{QUERY.replace('.', '_')}"
    tensors = {
        f"{stem}.lora_up.weight": factors.up, f"{stem}.lora_down.weight": factors.down,
        f"{stem}.alpha": torch.tensor(2.0),
    }  # fmt: skip
    adapter = read_adapter(save(tensors, {"lora_alpha": "8", "r": "4"}), sdxl.layers, "fox")
    assert scales(adapter) == {"unet": 0.5}
    [note] = about_scale(adapter)
    assert "0.5" in note
    assert "not 2" in note
    adapter = read_adapter(
        save(tensors, {"ss_network_alpha": "8", "ss_network_dim": "4"}), sdxl.layers, "fox"
    )
    assert scales(adapter) == {"unet": 0.5}


def test_a_start_that_changed_the_base_is_refused_wherever_it_is_said(peft, save, sdxl, refused):
    for metadata in (
        {"lora_alpha": "8", "init_lora_weights": "pissa"},
        {"peft_config": '{"lora_alpha": 8, "init_lora_weights": "olora"}'},
    ):
        path = save(peft, metadata)
        assert "changed base model" in refused(AdapterFormatError, path, sdxl)
        assert "changed base model" in inspect_file(path).refused


def test_convolutions_are_not_scaled_by_what_was_said_of_linear_layers(sdxl, trainer, save):
    conv = trainer.layer(sdxl.modules("unet")["conv_in"], alpha=False, rank=4)
    tensors = {"lora_unet_conv_in.lora_up.weight": conv.up, "lora_unet_conv_in.lora_down.weight": conv.down}
    said = {
        "ss_network_alpha": "8",
        "ss_network_dim": "4",
        "ss_network_args": '{"conv_dim": "4", "conv_alpha": "1"}',
    }
    adapter = read_adapter(save(tensors, said), sdxl.layers, "fox")
    assert scales(adapter) == {"unet": 1.0}
    assert "not certain" in about_scale(adapter)[0]


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_other_types_have_the_scale_that_a_header_states_too(kind, trainer, save, sdxl):
    stem, shape = f"lora_unet_{QUERY.replace('.', '_')}", sdxl.modules("unet")[QUERY]
    halves = {"LoHa": ("hada_w1", "hada_w2"), "LoKr": ("lokr_w2",)}[kind]
    base = torch.zeros(shape)
    out, inner = (shape[0], shape[1]) if kind == "LoHa" else (shape[0] // 2, shape[1] // 2)
    tensors = {f"{stem}.{half}_a": trainer.tensor(out, 2) for half in halves}
    tensors |= {f"{stem}.{half}_b": trainer.tensor(2, inner) for half in halves}
    if kind == "LoKr":
        tensors[f"{stem}.lokr_w1"] = trainer.tensor(2, 2)
    plain = read_adapter(save(tensors), sdxl.layers, "fox").layers[f"unet.{QUERY}"].change(base)
    for said in ({"lora_alpha": "8", "r": "2"}, {"ss_network_alpha": "8", "ss_network_dim": "2"}):
        adapter = read_adapter(save(tensors, said), sdxl.layers, "fox")
        torch.testing.assert_close(adapter.layers[f"unet.{QUERY}"].change(base), 4 * plain)
        assert len(about_scale(adapter)) == 1
    adapter = read_adapter(save(tensors, {"lora_alpha": "8", "r": "16"}), sdxl.layers, "fox")
    torch.testing.assert_close(adapter.layers[f"unet.{QUERY}"].change(base), plain)
    assert "at scale 1, though" in about_scale(adapter)[0]
    alpha = {f"{stem}.alpha": torch.tensor(1.0)}
    adapter = read_adapter(save(tensors | alpha, {"lora_alpha": "8", "r": "2"}), sdxl.layers, "fox")
    torch.testing.assert_close(adapter.layers[f"unet.{QUERY}"].change(base), plain / 2)


def beside(path, text):
    (path.parent / "adapter_config.json").write_text(text if isinstance(text, str) else json.dumps(text))


def test_a_config_beside_diffusers_file_is_its_own(peft, save, sdxl):
    path = save(peft, name="pytorch_lora_weights.safetensors")
    beside(path, {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": True})
    assert set(scales(read_adapter(path, sdxl.layers, "fox")).values()) == {8 / math.sqrt(4)}


@pytest.mark.parametrize("text", ['{"r": 4, "lora_alpha": 8}', '{"init_lora_weights": "pissa"}', "{", "[]"])
def test_a_config_beside_a_file_of_another_name_is_told_and_not_used(text, peft, save, sdxl):
    path = save(peft, name="renamed.safetensors")
    beside(path, text)
    adapter = read_adapter(path, sdxl.layers, "fox")
    assert set(scales(adapter).values()) == {1.0}
    [note] = about_scale(adapter)
    assert "adapter_config.json" in note
    assert inspect_file(path).refused == ""


def test_settings_that_give_another_rank_than_the_tensors_are_told(peft, save, sdxl):
    path = save(peft, {"lora_adapter_metadata": '{"unet.r": 8, "unet.lora_alpha": 8, "text_encoder.r": 4}'})
    notes = read_adapter(path, sdxl.layers, "fox").report.notes
    assert any("rank 8" in note and "rank 4" in note for note in notes)
    assert any("give no alpha for text_encoder" in note for note in notes)


def test_a_yes_or_no_that_is_a_text_is_read_as_one(peft, save, sdxl):
    path = save(
        peft,
        {"lora_adapter_metadata": '{"r": 4, "lora_alpha": 8, "use_rslora": "false", "use_dora": "False"}'},
    )
    assert set(scales(read_adapter(path, sdxl.layers, "fox")).values()) == {2.0}
