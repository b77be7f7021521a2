"""A converted file changes each layer as the original did, and nothing is lost in silence."""

from __future__ import annotations

import copy
import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipelines.adapters import ModelLayers, read_adapter
from pipelines.adapters.conversion import convert
from pipelines.adapters.plain import BOUND, EXACT
from pipelines.adapters.terms import Target
from pipelines.errors import (
    AdapterFileError,
    AdapterFormatError,
    AdapterMismatchError,
    BaseNeeded,
    RequestError,
    SetupError,
)
from pipelines.families.family import SDXL
from pipelines.home.headers import LONGEST_HEADER

from .conversions import assert_alike, converted, read_all, saved
from .test_zoo import KERNELS, LINEAR, LYCORIS, NORMS, PEFT, base, inputs, kohya, seeded

__all__ = ["base", "saved", "seeded"]  # fixtures

FORMATS = ("kohya", "diffusers", "peft")
LOW_RANK = (
    "LoCon", "LoCon, Tucker", "LoHa", "LoHa, Tucker", "LoHa, scalar", "LoKr", "LoKr, both factored", "LoKr, Tucker",
    "GLoRA",
)  # fmt: skip
LOW_RANK_IN_PEFT = (
    "LoRA", "rsLoRA", "LoRA with patterns", "LoRA with a bias", "LoHa", "LoKr", "AdaLoRA", "MiSS", "VeRA", "HRA",
    "HRA, orthogonal", "DeLoRA", "VB-LoRA",
)  # fmt: skip
IN_PEFT = ("LoHa", "LoHa, Tucker", "LoHa, scalar", "LoKr", "LoKr, Tucker", "LoKr, whole")
KEPT: Mapping[str, tuple[str, ...]] = {
    **{name: ("kohya",) for name in LYCORIS},
    **{name: ("kohya", "peft") for name in IN_PEFT},
    **{name: FORMATS for name in ("LoCon", "LoCon, Tucker", "DoRA of the outputs")},
}


# -- read back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "to"),
    [
        *((name, "kohya") for name in (*LOW_RANK, *(f"peft {name}" for name in LOW_RANK_IN_PEFT))),
        *((name, to) for name in ("LoCon", "LoHa", "GLoRA", "peft LoRA with a bias") for to in FORMATS[1:]),
    ],
)
def test_what_is_low_rank_is_written_exactly(name, to, base, saved):
    path = saved(name)
    done, _ = converted(path, base, to)
    assert not done.errors
    assert not done.left_out
    other = read_all(done, base)
    assert other.report.kind in ("LoRA", "LoCon")
    assert_alike(read_adapter(path, base.layers, "fox"), other, base)
    assert "are written exactly" in done.lines[0]


@pytest.mark.parametrize("name", sorted({*LYCORIS} - {*LOW_RANK}))
def test_what_is_not_is_approximated_and_the_error_is_measured(name, base, saved):
    path = saved(name)
    done, _ = converted(path, base, "kohya")
    original, other = read_adapter(path, base.layers, "fox"), read_all(done, base)
    assert set(original.layers) == set(other.layers)
    lost = whole = 0.0
    for layer, factors in original.layers.items():
        weight = base.module(layer).weight
        wanted = factors.change(weight)
        error = float((other.layers[layer].change(weight) - wanted).norm() / wanted.norm())
        assert error <= BOUND
        assert done.errors.get(layer, 0.0) == pytest.approx(error, abs=2 * EXACT)
        lost += float((other.layers[layer].change(weight) - wanted).norm() ** 2)
        whole += float(wanted.norm() ** 2)
    assert done.error == pytest.approx((lost / whole) ** 0.5, abs=2 * EXACT)
    if done.errors:
        worst = max(done.errors, key=lambda layer: done.errors[layer])
        assert worst in done.lines[-1]


def test_the_rank_is_the_lowest_within_the_bound(base, saved):
    path = saved("OFT")
    done, _ = converted(path, base, "kohya")
    original = read_adapter(path, base.layers, "fox")
    for layer in done.errors:
        values = torch.linalg.svdvals(
            original.layers[layer].change(base.module(layer).weight).flatten(1).double()
        )
        lost = values.square().flip(0).cumsum(0).flip(0).sqrt() / values.norm()
        assert lost[done.ranks[layer]] <= BOUND < lost[done.ranks[layer] - 1]


@pytest.mark.parametrize("name", ["LoCon", "LoHa", "OFT"])
def test_a_rank_that_is_given_is_the_highest(name, base, saved):
    path = saved(name)
    done, _ = converted(path, base, "diffusers", rank=2)
    other, original = read_all(done, base), read_adapter(path, base.layers, "fox")
    assert set(done.ranks.values()) == {2}
    assert set(done.errors) == set(original.layers)
    for layer, factors in original.layers.items():
        wanted = factors.change(base.module(layer).weight).flatten(1)
        u, s, v = torch.linalg.svd(wanted, full_matrices=False)
        nearest = u[:, :2] * s[:2] @ v[:2]
        got = other.layers[layer].change(base.module(layer).weight).flatten(1)
        torch.testing.assert_close(got, nearest, rtol=1e-4, atol=1e-5)


def test_plain_factors_stay_as_they_are_to_the_bit(base, saved):
    path = saved("LoCon")
    original = read_adapter(path, base.layers, "fox")
    for to in FORMATS:
        done, out = converted(path, base, to)
        other = read_all(done, base)
        for layer, factors in original.layers.items():
            assert torch.equal(factors.up, other.layers[layer].up)
            assert torch.equal(factors.down, other.layers[layer].down)
            assert other.layers[layer].scale == pytest.approx(factors.scale, rel=1e-7)
        assert done.files
        assert out.exists()


# -- kept --------------------------------------------------------------------------------------------------


def assert_equal_bits(ours: Any, other: Any, name: str) -> None:
    assert type(ours) is type(other), name
    for field, value in vars(ours).items():
        got = getattr(other, field)
        if isinstance(value, Tensor):
            assert torch.equal(value, got), f"{name} {field}"
        elif isinstance(value, tuple):
            for one, two in zip(value, got, strict=True):
                assert_equal_bits(one, two, name)
        else:
            assert got == pytest.approx(value, rel=1e-6), f"{name} {field}"


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("name", LYCORIS)
def test_a_type_is_kept_to_the_bit_or_refused_by_name(name, to, base, saved):
    path = saved(name)
    original = read_adapter(path, base.layers, "fox")
    if to not in KEPT[name]:
        with pytest.raises(AdapterFormatError, match=r"--keep"):
            converted(path, base, to, keep=True)
        return
    done, _ = converted(path, base, to, keep=True)
    other = read_all(done, base)
    assert set(other.layers) == set(original.layers)
    for layer, factors in original.layers.items():
        assert_equal_bits(factors, other.layers[layer], layer)
    if to == "kohya":
        assert other.report.kind == original.report.kind


@pytest.mark.parametrize("name", PEFT)
def test_types_of_peft_are_kept_in_its_folders(name, base, saved):
    path = saved(f"peft {name}")
    done, out = converted(path, base, "peft", keep=True)
    original = read_adapter(path, base.layers, "fox")
    other = read_all(done, base)
    for layer, factors in original.layers.items():
        assert_equal_bits(factors, other.layers[layer], layer)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base.unet), path).eval()
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base.unet), out).eval()
    for layer in PEFT[name][2]:
        x = inputs(base.module(f"unet.{layer}"))
        wanted = theirs.base_model.model.get_submodule(layer)(x)
        got = again.base_model.model.get_submodule(layer)(x)
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["LoHa", "LoKr", "LoKr, both", "LoKr, whole", "DoRA", "LoRA with a bias"])
def test_types_of_peft_are_kept_in_files_of_kohya(name, base, saved):
    path = saved(f"peft {name}")
    done, _ = converted(path, base, "kohya", keep=True)
    assert_alike(read_adapter(path, base.layers, "fox"), read_all(done, base), base)


ONE_TRAINER: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "LoHa": {
        "hada_w1_a": (16, 2, 1, 1), "hada_w1_b": (2, 16, 3, 3),
        "hada_w2_a": (16, 2, 1, 1), "hada_w2_b": (2, 16, 3, 3),
    },
    "OFT": {"oft_R.weight": (36, 6)},
    "GLoRA": {"a1.weight": (2, 16), "a2.weight": (16, 2), "b1.weight": (2, 144), "b2.weight": (16, 2)},
}  # fmt: skip
"""Layouts of OneTrainer, and GLoRA's old one, on a kernel [16, 16, 3, 3]."""


@pytest.mark.parametrize("name", ONE_TRAINER)
def test_layouts_that_no_package_writes_are_kept(name, base, tmp_path):
    layer = f"unet.{KERNELS[1]}"
    tensors = {f"{kohya(layer)}.{end}": torch.randn(shape) * 0.3 for end, shape in ONE_TRAINER[name].items()}
    path = tmp_path / "original.safetensors"
    safetensors.torch.save_file(tensors, path)
    done, out = converted(path, base, "kohya", keep=True)
    original, other = read_adapter(path, base.layers, "fox"), read_all(done, base)
    assert_equal_bits(original.layers[layer], other.layers[layer], layer)
    if name == "LoHa":  # others read its flat form alone
        assert all(tensor.ndim == 2 for tensor in load_file(out).values())
    if name != "LoHa":
        with pytest.raises(AdapterFormatError, match="--keep"):
            converted(path, base, "peft", keep=True)


def test_a_single_file_of_peft_keeps_its_settings(base, saved, tmp_path):
    path = saved("peft LoHa")
    done = convert(path, tmp_path / "single.safetensors", base.layers, "peft", keep=True)
    assert_alike(read_adapter(path, base.layers, "fox"), read_all(done, base), base)


def test_norms_and_biases_are_written_where_there_is_a_place(base, tmp_path):
    layers = (*(f"unet.{name}" for name in NORMS), f"unet.{KERNELS[0]}", f"unet.{LINEAR[2]}")
    tensors = {}
    for layer in layers:
        module = base.module(layer)
        norm = layer.removeprefix("unet.") in NORMS
        tensors[f"{kohya(layer)}.{'b_norm' if norm else 'diff_b'}"] = torch.randn(len(module.weight))
        if norm:
            tensors[f"{kohya(layer)}.w_norm"] = torch.randn(len(module.weight))
    path = tmp_path / "original.safetensors"
    safetensors.torch.save_file(tensors, path)
    original = read_adapter(path, base.layers, "fox")
    for how in ({}, {"keep": True}):
        done, _ = converted(path, base, "kohya", force=True, **how)
        assert_alike(original, read_all(done, base), base)
    for to in ("diffusers", "peft"):
        done, _ = converted(path, base, to, force=True)
        assert set(read_all(done, base).layers) == {f"unet.{KERNELS[0]}", f"unet.{LINEAR[2]}"}
        assert any("norms are left out" in line and NORMS[0] in line for line in done.lines)
        assert done.left_out[0] in metadata_of(done.files[0])["lora_studio.conversion"]
        with pytest.raises(AdapterFormatError, match=r"full, which .* cannot hold"):
            converted(path, base, to, keep=True, force=True)


# -- files -------------------------------------------------------------------------------------------------


def metadata_of(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_metadata_are_kept_and_what_was_done_is_added(base, saved):
    path = saved("LoHa")
    done, out = converted(path, base, "kohya")
    texts = metadata_of(out)
    assert texts["modelspec.title"] == "Fox"
    assert texts["lora_studio.converted_from"].startswith("original.safetensors ")
    assert "8 layers of LoHa are written exactly" in texts["lora_studio.conversion"]
    assert done.lines[0] in texts["lora_studio.conversion"]


def test_layers_of_alpha_0_stay_without_effect_where_0_means_the_rank(base, saved, tmp_path):
    tensors = load_file(saved("LoCon"))
    stem = kohya(f"unet.{LINEAR[0]}")
    path = tmp_path / "idle.safetensors"
    safetensors.torch.save_file(tensors | {f"{stem}.alpha": torch.tensor(0.0)}, path)
    done, out = converted(path, base, "kohya")
    assert float(load_file(out)[f"{stem}.alpha"]) != 0
    assert read_all(done, base).layers[f"unet.{LINEAR[0]}"].idle


def test_a_header_that_nobody_would_read_is_not_written(base, saved, tmp_path):
    path = saved("LoCon")
    room = LONGEST_HEADER - int.from_bytes(path.read_bytes()[:8], "little") - 100
    safetensors.torch.save_file(load_file(path), path, {"notes": "x" * room})
    out = tmp_path / "out.safetensors"
    with pytest.raises(AdapterFormatError, match="'notes' is the largest"):
        convert(path, out, base.layers, "diffusers")
    assert not out.exists()


def test_settings_that_no_longer_hold_are_dropped(base, saved, tmp_path):
    tensors = load_file(saved("LoCon"))
    stale = {
        "lora_alpha": "99",
        "unet.r": "3",
        "sshs_model_hash": "ab",
        "modelspec.hash_sha256": "cd",
        "note": "kept",
    }
    path = tmp_path / "stale.safetensors"
    safetensors.torch.save_file(tensors, path, stale)
    _, out = converted(path, base, "kohya")
    texts = metadata_of(out)
    assert texts["note"] == "kept"
    assert not stale.keys() - {"note"} & texts.keys()
    assert not any("lora_alpha" in note for note in read_adapter(out, base.layers, "fox").report.notes)


def test_embeddings_come_along_or_are_named(base, saved, tmp_path):
    path = tmp_path / "bundle.safetensors"
    word = {"bundle_emb.fox.clip_l": torch.randn(2, 16)}
    safetensors.torch.save_file(load_file(saved("LoCon")) | word, path)
    _, out = converted(path, base, "kohya")
    assert torch.equal(load_file(out)["bundle_emb.fox.clip_l"], word["bundle_emb.fox.clip_l"])
    done, _ = converted(path, base, "diffusers", force=True)
    assert any("embeddings" in line and "'fox'" in line for line in done.lines)


def test_what_the_reader_left_out_is_said_again(base, saved, tmp_path):
    path = tmp_path / "more.safetensors"
    stray = {"lora_unet_nowhere_at_all.lora_up.weight": torch.ones(4, 2)}
    safetensors.torch.save_file(load_file(saved("LoCon")) | stray, path)
    done, out = converted(path, base, "kohya")
    assert any("nowhere_at_all" in line for line in done.lines)
    assert "nowhere_at_all" in metadata_of(out)["lora_studio.conversion"]


@pytest.mark.parametrize("to", FORMATS)
def test_no_file_is_overwritten_unless_asked_and_the_original_never(to, base, saved, tmp_path):
    path = saved("LoCon")
    before = path.read_bytes()
    done, out = converted(path, base, to)
    kept = {file: file.read_bytes() for file in done.files}
    with pytest.raises(RequestError, match="already there"):
        converted(path, base, to)
    assert {file: file.read_bytes() for file in done.files} == kept
    converted(path, base, to, force=True)
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    for place in (path.parent,) if to == "peft" else (path, link):
        with pytest.raises(RequestError, match="original"):
            convert(path, place, base.layers, to, force=True)
    assert path.read_bytes() == before
    assert out.exists()


def test_a_folder_of_peft_is_never_converted_onto_itself(base, saved):
    path = saved("peft LoHa")
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    for out in (path, path / "adapter_model.safetensors"):
        with pytest.raises(RequestError, match="original"):
            convert(path, out, base.layers, "peft", force=True)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


@pytest.mark.parametrize("to", FORMATS)
def test_a_full_disk_is_one_line_and_leaves_nothing(to, base, saved, monkeypatch):
    path = saved("LoCon")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SetupError, match=r"No space left on device\); choose another --output") as caught:
        converted(path, base, to)
    assert "\n" not in str(caught.value)
    assert [file.name for file in path.parent.iterdir()] == ["original.safetensors"]


def test_an_old_folder_survives_a_full_disk(base, saved, monkeypatch):
    path = saved("LoCon")
    done, _ = converted(path, base, "peft")
    before = {file: file.read_bytes() for file in done.files}
    write, count = Path.write_bytes, iter(range(99))

    def full(self: Path, content: bytes) -> int:
        if next(count) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SetupError):
        converted(path, base, "peft", rank=1, force=True)
    assert {file: file.read_bytes() for file in done.files} == before


def test_types_that_depend_on_the_base_ask_for_the_model(base, saved):
    path = saved("DoRA of the outputs")
    bare = {
        component: {name: Target(target.shape) for name, target in layers.items()}
        for component, layers in base.layers.components.items()
    }
    outline = ModelLayers(SDXL, "small", bare, base.layers.unet_config)
    out = path.parent / "converted.safetensors"
    with pytest.raises(BaseNeeded, match=r"original\.safetensors: .* makes it DoRA, .*--model"):
        convert(path, out, outline, "kohya")
    assert not out.exists()
    convert(path, out, outline, "kohya", keep=True)  # nothing of it needs the base
    assert_alike(read_adapter(path, base.layers, "fox"), read_adapter(out, base.layers, "fox"), base)


def test_several_components_need_a_folder_in_peft(base, saved, tmp_path):
    with pytest.raises(RequestError, match="give a folder"):
        convert(saved("LoCon"), tmp_path / "one.safetensors", base.layers, "peft")
    assert not (tmp_path / "one.safetensors").exists()


def test_a_file_for_another_model_is_refused(base, tmp_path, sd1):
    path = tmp_path / "other.safetensors"
    stem = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    safetensors.torch.save_file(
        {f"{stem}.lora_up.weight": torch.ones(640, 2), f"{stem}.lora_down.weight": torch.ones(2, 2048)}, path
    )
    with pytest.raises(AdapterMismatchError):
        convert(path, tmp_path / "out.safetensors", sd1.layers, "kohya")
    assert not (tmp_path / "out.safetensors").exists()
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(AdapterFileError):
        convert(tmp_path / "broken.safetensors", tmp_path / "out.safetensors", sd1.layers, "kohya")


def test_diffusers_settings_are_those_of_the_layers(base, saved):
    _, out = converted(saved("peft LoRA with patterns"), base, "diffusers")
    settings = json.loads(metadata_of(out)["lora_adapter_metadata"])
    assert settings["unet.alpha_pattern"]
    assert settings["unet.use_dora"] is False
    assert all(key.startswith("unet.") for key in load_file(out))
