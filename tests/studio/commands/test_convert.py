"""`convert`, and what `inspect` says of types, as their users call them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.adapters import inspect_file, read_adapter, sha256
from pipelines.blora.layouts import model_outline
from pipelines.home import Home

Run = Callable[..., Any]


@pytest.fixture
def dora(loras: Path) -> Path:
    """`dora`, made of `fox`: of the outputs of its layers."""
    tensors = load_file(loras / "fox.safetensors")
    lengths = {
        key.replace("lora_B.weight", "dora_scale"): torch.rand(len(up), *(1 for _ in up.shape[1:])) + 0.5
        for key, up in tensors.items()
        if key.endswith("lora_B.weight")
    }
    assert lengths
    save_file(tensors | lengths, loras / "dora.safetensors")
    return loras / "dora.safetensors"


@pytest.mark.parametrize("to", ["kohya", "diffusers", "peft"])
def test_a_lora_is_written_for_other_programs(
    to, run: Run, loras: Path, sdxl_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / ("fox" if to == "peft" else "fox.safetensors")
    before = sha256(loras / "fox.safetensors")
    ran = run("convert", "fox", "--to", to, "--model", sdxl_folder, "--output", out)
    assert ran.code == 0, ran.err
    assert "layers of LoRA are written exactly" in ran.err
    files = [Path(line) for line in ran.out.split()]
    assert all(file.is_file() for file in files)
    layers = model_outline(sdxl_folder, Home.resolve())[0]
    original = read_adapter(loras / "fox.safetensors", layers, "fox")
    written = {}
    for file in files:
        if file.suffix == ".safetensors":
            written |= read_adapter(file, layers, "fox").layers
    assert set(written) == set(original.layers)
    for name, factors in original.layers.items():
        torch.testing.assert_close(written[name].delta(), factors.delta())
    again = run("convert", "fox", "--to", to, "--model", sdxl_folder, "--output", out)
    assert (again.code, again.out) == (2, "")
    assert "already there" in again.err
    assert run("convert", "fox", "--to", to, "-m", sdxl_folder, "--out", out, "--overwrite", "-q").err == ""
    assert sha256(loras / "fox.safetensors") == before


def test_without_a_name_it_is_written_beside_the_original(run: Run, loras: Path, sdxl_folder: Path) -> None:
    ran = run("convert", loras / "fox.safetensors", "--to", "diffusers", "--model", sdxl_folder)
    assert ran.out.split() == [str(loras / "fox-diffusers.safetensors")]


def test_a_lora_of_a_built_in_model_needs_no_model(run: Run, home: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run("convert", "nilo-fox", "--to", "kohya")
    assert ran.code == 0, ran.err
    assert inspect_file(tmp_path / ran.out.strip()).namings[0].startswith("kohya")


def test_what_depends_on_the_base_asks_for_the_model_and_then_reads_it(
    run: Run, dora: Path, sdxl_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "plain.safetensors"
    ran = run("convert", "dora", "--to", "kohya", "--model", sdxl_folder, "--rank", 4, "--out", out)
    assert ran.code == 0, ran.err
    assert "of DoRA are approximated, rank 4: the relative error is" in ran.err
    assert inspect_file(out).kinds == ("LoRA",)
    kept = run(
        "convert",
        "dora",
        "--to",
        "diffusers",
        "--model",
        sdxl_folder,
        "--keep",
        "--out",
        tmp_path / "k.safetensors",
    )
    assert kept.code == 0, kept.err
    assert inspect_file(tmp_path / "k.safetensors").kinds == ("DoRA",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fox", "--to", "kohya", "--keep", "--rank", "4"), "leave out --rank, or --keep"),
        (("fox", "--to", "a1111"), "invalid choice"),
        (("fox",), "--to"),
        (("fox", "--to", "kohya", "--rank", "0"), "above 0"),
        (("fox", "--to", "kohya", "--out", "x.png"), "must end in .safetensors"),
        (("fox", "--to", "kohya", "--out", "none/x.safetensors"), "does not exist"),
        (("fox", "--to", "peft", "--out", "none/x"), "does not exist"),
        (("foks", "--to", "kohya"), "did you mean 'fox'"),
        (("fox", "--to", "kohya", "--model", "nowhere.safetensors"), "nowhere.safetensors"),
        (("fox", "--to", "kohya", "--model", "tiny-sd", "--out", "x.safetensors"), "fox.safetensors"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_refused(words, message, run: Run, loras: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run("convert", *words)
    assert ran.code == 2
    assert ran.out == ""
    assert message in ran.err.replace("\n", " ")
    assert not list(tmp_path.glob("*.safetensors"))


def test_inspect_tells_terms_exactness_and_what_others_do(run: Run, dora: Path, loras: Path) -> None:
    said = run("inspect", "dora").out
    assert "DoRA: a factor for each output, or for each input, and low rank" in said
    assert "exact, from the base model's own weights" in said
    assert "elsewhere DoRA: ComfyUI draws it differently, also at strength 1" in said
    assert "MB)" in said
    [entry] = json.loads(run("inspect", "fox", "--json").out)
    assert (entry["terms"], entry["exactness"], entry["elsewhere"]) == (["LoRA: low rank"], "exact", [])


def test_split_asks_for_plain_lora_where_it_cannot_write(
    run: Run, dora: Path, sdxl_folder: Path, tmp_path
) -> None:
    ran = run("split", "dora", "--style", tmp_path / "s.safetensors", "--model", sdxl_folder)
    assert ran.code == 2
    assert "make it a plain LoRA first, with `lora-studio convert`" in ran.err.replace("\n", " ")
    assert not (tmp_path / "s.safetensors").exists()


KOHYA = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    ("parts", "terms", "elsewhere"),
    [
        ({"dora_scale": (1, 8), "lora_up.weight": (8, 2), "lora_down.weight": (2, 8)}, "factor", "other than 1"),
        ({"oft_blocks": (2, 4, 4), "rescale": (8, 1), "alpha": ()}, "turned", "ComfyUI ignores rescale"),
        ({"oft_blocks": (2, 4, 4), "alpha": ()}, "turned", "twice (s²)"),
        ({"oft_blocks": (2, 4, 4), "alpha": ()}, "turned", "smaller bound than LyCORIS"),
        ({"oft_blocks": (1, 2, 4, 4), "alpha": ()}, "turned", "each stage"),
        ({"weight": (8,), "on_input": ()}, "each input", "ComfyUI does not load it"),
        ({"hada_w1_a": (8, 2), "hada_w1_b": (2, 8), "hada_w2_a": (8, 2), "hada_w2_b": (2, 8)}, "rank squared", "twice"),
        ({"a1.weight": (8, 2), "a2.weight": (2, 8), "b1.weight": (8, 2), "b2.weight": (2, 8)}, "base weight", "order"),
        ({"diff": (8, 8)}, "whole", "diffusers refuses"),
        ({"hra_u": (8, 2)}, "reflections", "only PEFT loads it"),
        ({"q_layer.weight": (2, 8), "p_layer.weight": (8, 2), "lambda_layer": (1, 2)}, "", "do not load it"),
    ],
)  # fmt: skip
def test_each_type_tells_what_others_do(
    parts, terms, elsewhere, run: Run, home: Path, tmp_path: Path
) -> None:
    save_file(
        {f"{KOHYA}.{end}": torch.ones(shape) for end, shape in parts.items()}, tmp_path / "a.safetensors"
    )
    said = run("inspect", tmp_path / "a.safetensors").out
    assert not terms or any(terms in line for line in said.splitlines() if line.strip().startswith("terms"))
    assert any(elsewhere in line for line in said.splitlines() if line.strip().startswith("elsewhere"))


def test_settings_that_others_do_not_read_are_told(run: Run, home: Path, tmp_path: Path) -> None:
    stem = "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"{stem}.lora_A.weight": torch.ones(4, 640), f"{stem}.lora_B.weight": torch.ones(640, 4)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = tmp_path / "adapter_config.json"
    for alpha, told in ((8, True), (4, False)):
        config.write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": alpha}))
        assert ("do not read PEFT's settings" in run("inspect", tmp_path).out) is told
