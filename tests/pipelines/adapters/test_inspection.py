"""What a file tells without being loaded: from its header, its metadata and the notes beside it."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import pytest
import torch

from pipelines.adapters import inspect_file, read_adapter, sha256
from pipelines.errors import AdapterFileError, AdapterMismatchError


def kohya(*stems, rank=4, width=8):
    tensors = {}
    for stem in stems:
        tensors[f"{stem}.lora_up.weight"] = torch.ones(width, rank, dtype=torch.float16)
        tensors[f"{stem}.lora_down.weight"] = torch.ones(rank, width, dtype=torch.float16)
        tensors[f"{stem}.alpha"] = torch.tensor(1.0)
    return tensors


UNET = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
SGM = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k"
CONTEXT = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
TEXT = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
TEXT_2 = "lora_te2_text_projection"


def test_layers_ranks_types_and_names_are_counted(save):
    found = inspect_file(save(kohya(UNET, SGM, TEXT, TEXT_2) | kohya(CONTEXT, rank=16)))
    assert found.kinds == ("LoRA",)
    assert found.refused == ""
    assert list(found.modules.items()) == [("unet", 3), ("text_encoder", 1), ("text_encoder_2", 1)]
    assert found.ranks == (4, 16)
    assert found.dtypes == ("fp16",)
    assert found.namings == ("kohya (diffusers names)", "kohya (SGM names)")


def test_text_layers_without_an_owner_are_counted_as_such(save):
    stem = "base_model.model.text_model.encoder.layers.0.self_attn.q_proj"
    found = inspect_file(
        save({f"{stem}.lora_A.weight": torch.ones(2, 8), f"{stem}.lora_B.weight": torch.ones(8, 2)})
    )
    assert found.modules == {"text_encoder?": 1}


def test_convolutions_make_it_a_locon(save):
    stem = "lora_unet_down_blocks_1_resnets_0_conv1"
    tensors = {
        f"{stem}.lora_up.weight": torch.ones(8, 2, 1, 1),
        f"{stem}.lora_down.weight": torch.ones(2, 8, 3, 3),
    }
    assert inspect_file(save(tensors)).kinds == ("LoCon",)


@pytest.mark.parametrize(
    ("leaf", "kind"),
    [
        ("hada_w1_a", "LoHa"),
        ("dora_scale", "DoRA"),
        ("lokr_w1", "LoKr"),
        ("miss_block", "MiSS"),
        ("ia3_l", "(IA)³"),
    ],
)
def test_a_type_is_named(leaf, kind, save):
    found = inspect_file(save(kohya(UNET) | {f"{SGM}.{leaf}": torch.ones(2, 2)}))
    assert kind in found.kinds
    assert not found.refused


@pytest.mark.parametrize(("leaf", "kind"), [("oft_diag", "an old OFT"), ("waveft_spectrum", "WaveFT")])
def test_a_type_that_is_not_applied_is_named(leaf, kind, save):
    found = inspect_file(save(kohya(UNET) | {f"{SGM}.{leaf}": torch.ones(2, 2)}))
    assert kind in found.kinds
    assert kind in found.refused


def test_whole_numbers_beside_the_weights_are_no_weights(save):
    found = inspect_file(save({f"{SGM}.weight": torch.ones(8), f"{SGM}.on_input": torch.tensor(0)}))
    assert found.kinds == ("(IA)³",)
    assert found.dtypes == ("fp32",)


@pytest.mark.parametrize(("width", "family"), [(768, "sd1"), (1024, "sd2"), (2048, "sdxl"), (320, "unknown")])
def test_the_family_by_shapes(width, family, save):
    found = inspect_file(save(kohya(CONTEXT, width=width), name="sdxl_pony_v1.safetensors"))
    assert found.origin.family == family
    assert found.origin.evidence == ("" if family == "unknown" else "shapes")


def test_the_width_is_found_in_other_types_than_lora(save):
    tensors = {f"{CONTEXT}.hada_w{i}_{half}": torch.ones(4, 2048).T if half == "a" else torch.ones(4, 2048)
               for i in (1, 2) for half in "ab"}  # fmt: skip
    assert inspect_file(save(tensors)).origin.family == "sdxl"


def test_the_family_by_metadata_where_shapes_are_silent(save):
    found = inspect_file(save(kohya(UNET), {"ss_base_model_version": "sdxl_base_v1-0"}))
    assert (found.origin.family, found.origin.evidence) == ("sdxl", "metadata")


def test_other_families_are_named(save):
    found = inspect_file(
        save({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 8)})
    )
    assert found.origin.family.startswith("FLUX")


def test_no_tensor_is_touched(tmp_path, sdxl):
    """The header announces half a terabyte of data, which a file with a hole holds: looking takes no time."""
    side = 360_000
    shape = {"dtype": "F32", "shape": [side, side], "data_offsets": [0, 4 * side * side]}
    header = json.dumps({f"{UNET}.lora_up.weight": shape}).encode()
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 4 * side * side)
    start = time.perf_counter()
    assert inspect_file(path).size > 5e11
    assert time.perf_counter() - start < 1
    with pytest.raises(AdapterFileError, match="no adapter's size"):
        read_adapter(path, sdxl.layers, "huge")


def test_a_thousand_layers_take_milliseconds(save):
    stems = [
        f"lora_unet_output_blocks_{i}_1_transformer_blocks_{j}_attn1_to_q"
        for i in range(12)
        for j in range(84)
    ]
    path = save(kohya(*stems, rank=1, width=1))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        inspect_file(path)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.25


@pytest.mark.parametrize("content", [b"", b"<html>", b"\0" * 100])
def test_what_is_no_safetensors_file_is_an_error(content, tmp_path):
    path = tmp_path / "fox.safetensors"
    path.write_bytes(content)
    with pytest.raises(AdapterFileError, match=r"fox\.safetensors"):
        inspect_file(path)


def test_peft_settings_that_will_be_refused_are_told_beforehand(save):
    path = save(kohya(UNET), {"lora_adapter_metadata": json.dumps({"unet.init_lora_weights": "corda"})})
    assert "corda" in inspect_file(path).refused


def test_what_is_no_adapter_says_so(save):
    assert "checkpoint" in inspect_file(save({"model.diffusion_model.out.2.weight": torch.ones(1)})).refused
    assert "no adapter layers" in inspect_file(save({"bundle_emb.fox": torch.ones(1)})).refused


def test_the_hash_is_that_of_the_whole_file(save, sdxl):
    path = save(kohya(UNET))
    assert len(sha256(path)) == 64
    report = read_adapter(path, sdxl.layers, "fox").report
    assert report.sha256 == sha256(path)
    assert report.short_hash == sha256(path)[:12]


# Metadata and neighbours --------------------------------------------------------------------------------

FULL = {
    "modelspec.title": "Red fox",
    "modelspec.author": "Reynard",
    "modelspec.description": "A fox.",
    "modelspec.usage_hint": "Use at 0.8",
    "modelspec.license": "CC0",
    "modelspec.tags": "cute, Character, forest",
    "modelspec.trigger_phrase": "fxr, red fur,  fxr",
    "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    "modelspec.hash_sha256": "0xabc",
    "sshs_model_hash": "0123",
    "ss_output_name": "fox-v3",
    "ss_clip_skip": "2",
    "ss_resolution": "(512, 512)",
    "ss_tag_frequency": json.dumps({"10_fox": {"fox": 20, "animal": 15, "snow": 2}, "1_reg": {"animal": 9}}),
    "lora_studio.preferred_weight": "0.8",
}


def test_metadata_is_made_sense_of(save):
    found = inspect_file(save(kohya(UNET), FULL)).metadata
    assert (found.title, found.author, found.licence, found.usage_hint) == (
        "Red fox",
        "Reynard",
        "CC0",
        "Use at 0.8",
    )
    assert (found.triggers, found.trigger_source) == (("fxr", "red fur"), "modelspec")
    assert found.category == "character"
    assert found.preferred_weight == 0.8
    assert found.clip_skip == 2
    assert found.resolution == "512, 512"
    assert found.hashes == {"modelspec.hash_sha256": "0xabc", "sshs_model_hash": "0123"}


def test_frequent_tags_stand_in_for_missing_triggers(save):
    found = inspect_file(save(kohya(UNET), {"ss_tag_frequency": FULL["ss_tag_frequency"]})).metadata
    assert (found.triggers, found.trigger_source) == (("animal", "fox"), "tag frequency")


@pytest.mark.parametrize(
    "broken",
    [
        {"ss_tag_frequency": "{"},
        {"ss_tag_frequency": "[1]"},
        {"ss_tag_frequency": '{"a": {"b": "c"}}'},
        {"ss_clip_skip": "None", "lora_studio.preferred_weight": "inf"},
        {"modelspec.title": "None"},
        {"ss_tag_frequency": "[" * 100_000},
    ],
)
def test_broken_metadata_counts_as_absent(broken, save):
    found = inspect_file(save(kohya(UNET), broken)).metadata
    assert (found.title, found.triggers, found.preferred_weight, found.clip_skip) == ("", (), None, None)


def beside(path: Path, ending: str, content) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (path.parent / f"{path.stem}{ending}").write_text(text, encoding="utf-8")


def test_the_notes_of_a1111(save):
    path = save(kohya(UNET))
    beside(path, ".json", {"activation text": "fxr, fur", "preferred weight": 0.7, "negative text": "cat",
                           "description": "d", "notes": "n", "sd version": "SDXL"})  # fmt: skip
    beside(path, ".txt", "say fxr")
    found = inspect_file(path)
    assert (found.metadata.triggers, found.metadata.trigger_source) == (("fxr", "fur"), "activation text")
    assert found.metadata.preferred_weight == 0.7
    assert (found.metadata.negative, found.metadata.notes, found.metadata.base_model) == ("cat", "n", "SDXL")
    assert found.sidecars.text == "say fxr"
    assert found.sidecars.files == ("fox.json", "fox.txt")
    assert found.origin.family == "unknown"  # a note proves nothing about the weights


def test_a_preferred_weight_of_0_means_that_none_was_set(save):
    path = save(kohya(UNET))
    beside(path, ".json", {"preferred weight": 0})
    assert inspect_file(path).metadata.preferred_weight is None


CIVITAI = {
    "trainedWords": ["fxr, fur", "tail"],
    "baseModel": "SDXL 1.0",
    "model": {"name": "Fox XL", "tags": ["animals"]},
    "files": [{"hashes": {"SHA256": "ABC", "AutoV3": "123"}}],
}


@pytest.mark.parametrize("ending", [".civitai.info", ".metadata.json"])
def test_the_notes_of_civitai(ending, save):
    path = save(kohya(UNET))
    beside(path, ending, CIVITAI if ending == ".civitai.info" else {"civitai": CIVITAI})
    found = inspect_file(path).metadata
    assert (found.title, found.triggers, found.category) == ("Fox XL", ("fxr", "fur", "tail"), "animal")
    assert found.hashes == {"civitai.SHA256": "ABC", "civitai.AutoV3": "123"}


def test_the_notes_of_lora_manager(save):
    path = save(kohya(UNET))
    beside(
        path,
        ".metadata.json",
        {
            "model_name": "Fox",
            "usage_tips": '{"strength": 0.6, "strength_min": 0.5, "strength_max": "0.9"}',
            "sha256": "ff",
            "tags": ["style"],
        },
    )
    found = inspect_file(path).metadata
    assert (found.title, found.preferred_weight, found.category) == ("Fox", 0.6, "style")
    assert found.strength_range == (0.5, 0.9)
    assert found.hashes == {"manager.sha256": "ff"}


@pytest.mark.parametrize("ending", [".json", ".civitai.info", ".metadata.json", ".txt"])
@pytest.mark.parametrize(
    "content",
    ["{", "[1, 2]", '{"model": 3, "files": [4, {"hashes": 5}], "trainedWords": {}, "usage_tips": "x", "civitai": 1}',
     '{"preferred weight": [1], "activation text": 7}', "\ud800"],
)  # fmt: skip
def test_broken_notes_never_stop_anything(ending, content, save):
    path = save(kohya(UNET))
    (path.parent / f"fox{ending}").write_bytes(content.encode("utf-8", "surrogatepass"))
    found = inspect_file(path).metadata
    assert (found.triggers, found.preferred_weight, found.title) == ((), None, "")
    assert found.strength_range is None


def test_the_preview_named_as_one_comes_first(save):
    path = save(kohya(UNET))
    for ending in (".png", ".preview.png"):
        (path.parent / f"fox{ending}").write_bytes(b"")
    assert inspect_file(path).sidecars.preview == path.parent / "fox.preview.png"


def test_the_files_own_word_comes_before_its_neighbours(save):
    path = save(kohya(UNET), FULL)
    beside(path, ".json", {"activation text": "other", "preferred weight": 0.1})
    beside(path, ".civitai.info", CIVITAI)
    found = inspect_file(path).metadata
    assert (found.title, found.triggers, found.preferred_weight) == ("Red fox", ("fxr", "red fur"), 0.8)


def test_it_turns_into_json_and_back(save):
    path = save(kohya(UNET, TEXT), FULL)
    found = inspect_file(path)
    told = json.loads(json.dumps(found.to_dict()))
    assert told["path"] == str(path)
    assert told["family"] == "sdxl"
    assert told["modules"] == {"unet": 1, "text_encoder": 1}
    assert told["ranks"] == [4, 4]
    assert told["triggers"] == ["fxr", "red fur"]
    assert told["raw"]["ss_output_name"] == "fox-v3"


def test_it_reads_well(save):
    text = str(inspect_file(save(kohya(UNET, TEXT), FULL)))
    for part in ("fox.safetensors", "LoRA, rank 4, fp16", "unet 1, text_encoder 1", "character", "0.8",
                 "Stable Diffusion XL (by its metadata)", "fxr, red fur"):  # fmt: skip
        assert part in text


# The load report ----------------------------------------------------------------------------------------


def test_the_report_reads_well(save, sdxl):
    path = save(kohya(UNET, rank=2) | kohya(SGM, rank=4) | {"global_step": torch.tensor(1)}, FULL)
    report = read_adapter(path, sdxl.layers, "fox").report
    total = len(sdxl.modules("unet"))
    assert str(report).splitlines() == [
        f"fox  (fox.safetensors, {report.sha256[:12]})",
        f"  applied   unet 2/{total}, text_encoder 0/12, text_encoder_2 0/13",
        "  type      LoRA, rank 2 to 4, alpha 1, fp16",
        "  naming    kohya (diffusers names) + kohya (SGM names)",
        "  made for  Stable Diffusion XL (by its metadata)",
        "  title     Red fox",
        "  triggers  fxr, red fur",
        "  note      1 ('global_step') keys hold counters or buffers that change nothing: ignored",
    ]


def test_the_report_says_where_nothing_is_known(save, sdxl):
    tensors = {key: tensor for key, tensor in kohya(UNET).items() if not key.endswith("alpha")}
    text = str(read_adapter(save(tensors), sdxl.layers, "fox").report)
    assert "alpha none (scale 1)" in text
    assert "made for  unknown" in text


def test_a_refused_file_leaves_no_half_of_an_adapter(save, sdxl):
    """One bad layer among good ones: nothing comes back at all."""
    tensors = kohya(UNET, SGM, TEXT.replace("fc1", "fc9"))
    with pytest.raises(AdapterMismatchError, match="fc9"):
        read_adapter(save(tensors), sdxl.layers, "fox")
