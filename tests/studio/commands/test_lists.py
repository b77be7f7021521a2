"""`models`, `loras`, `inspect` and `import-paths` as their users call them."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from pipelines.home import Home

Run = Callable[..., Any]


def test_loras_are_listed(run: Run, loras: Path) -> None:
    (loras / "fox.json").write_text(json.dumps({"preferred weight": 0.7, "activation text": "red fox, snow"}))
    (loras / "broken.safetensors").write_text("no adapter")
    listed = {row["name"]: row for row in json.loads(run("loras", "--json").out)}
    assert (listed["fox"]["weight"], listed["fox"]["triggers"]) == (0.7, ["red fox", "snow"])
    assert listed["broken"]["type"].startswith("cannot be read")
    plain = run("loras").out.splitlines()
    assert plain[0].split("\t")[:3] == ["Name", "Weight", "Words"]
    assert "fox\t0.7\tred fox, snow\tunknown\tLoRA" in plain


def test_models_are_listed(run: Run, sdxl_folder: Path, home: Path) -> None:
    rows = json.loads(run("models", "--model-dir", sdxl_folder.parent, "--json").out)
    row = next(row for row in rows if row["name"] == "random-sdxl")
    assert (row["base"], row["path"]) == ("Stable Diffusion XL", str(sdxl_folder))
    assert not home.exists()


def test_only_what_a_model_may_take(
    run: Run, loras: Path, sdxl_folder: Path, sd_folder: Path, make_lora: Callable[..., Path]
) -> None:
    shutil.copy(make_lora(sd_folder, "sd", seed=3), loras)
    save_file({"unet.mid.attn2.to_k.lora_A.weight": torch.zeros(4, 2048)}, loras / "full-size.safetensors")
    rows = json.loads(run("loras", "--model", sdxl_folder, "--json").out)
    assert [row["name"] for row in rows] == ["fox", "hat"]
    assert run("loras", "--model", "nowhere").code == 2


def test_inspect_takes_files_names_and_pictures(run: Run, loras: Path, tmp_path: Path) -> None:
    picture = tmp_path / "plain.png"
    Image.new("RGB", (8, 8)).save(picture)
    ran = run("inspect", "fox", loras / "hat.safetensors", picture)
    assert ran.code == 0
    assert "fox.safetensors" in ran.out
    assert "rank 4" in ran.out
    assert "says nothing about how it was made" in ran.out
    assert [entry["kinds"] for entry in json.loads(run("inspect", "fox", "--json").out)] == [["LoRA"]]
    assert run("inspect", "fox", "nowhere").code == 1
    assert run("inspect", "nowhere").code == 2


def test_inspect_says_what_a_picture_means_here(run: Run, loras: Path, tmp_path: Path) -> None:
    info = PngInfo()
    metadata = {"positive_prompt": "a fox", "negative_prompt": "", "seed": 5, "cfg_scale": 6.5, "steps": 30,
                "width": 64, "height": 64, "scheduler": "euler_a", "app_version": "5.0.0",
                "model": {"name": "gone"}, "loras": [{"model": {"name": "hat"}, "weight": 0.65},
                {"model": {"name": "fxo"}, "weight": 1}]}  # fmt: skip
    info.add_text("invokeai_metadata", json.dumps(metadata))
    Image.new("RGB", (8, 8)).save(tmp_path / "invoke.png", pnginfo=info)
    ran = run("inspect", tmp_path / "invoke.png")
    assert ran.code == 0, ran.err
    assert "prompt: a fox" in ran.out
    assert "missing: LoRA 'fxo' is not here; similar: fox" in ran.out
    assert "missing: model 'gone'" in ran.out
    assert "made by InvokeAI" in ran.out
    [told] = json.loads(run("inspect", tmp_path / "invoke.png", "--json").out)
    assert told["settings"]["seed"] == 5
    assert [use["adapter"] for use in told["settings"]["adapters"]] == ["hat"]


def test_inspect_reads_what_lies_in_exif_and_shows_settings_in_place_of_json(
    run: Run, tmp_path: Path
) -> None:
    fooocus = {
        "metadata_scheme": "fooocus",
        "full_prompt": ["a fox"],
        "prompt": "a fox",
        "seed": "42",
        "steps": 8,
    }
    for name, text in (("a", "a fox\nSteps: 8, Sampler: Euler, Seed: 42"), ("b", json.dumps(fooocus))):
        notes = Image.Exif()
        notes.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-le")
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.webp", exif=notes.tobytes())
    ran = run("inspect", tmp_path / "a.webp", tmp_path / "b.webp")
    assert ran.code == 0, ran.err
    assert "Steps: 8, Sampler: Euler, Seed: 42" in ran.out
    assert "prompt: a fox\n  seed: 42\n  steps: 8" in ran.out
    assert "{" not in ran.out
    told = json.loads(run("inspect", tmp_path / "a.webp", tmp_path / "b.webp", "--json").out)
    assert [one["settings"]["seed"] for one in told] == [42, 42]
    (tmp_path / "c.png").write_bytes(png_of('{"a": {"b": 1}}'))
    ran = run("inspect", tmp_path / "c.png")
    assert "JSON of no program that is known; set it up by hand" in ran.out


def png_of(text: str) -> bytes:
    info = PngInfo()
    info.add_text("parameters", text)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def test_other_programs_folders_are_taken_over(run: Run, home: Path, tmp_path: Path) -> None:
    (tmp_path / "webui" / "models" / "Lora").mkdir(parents=True)
    ran = run("import-paths", tmp_path / "webui")
    assert ran.code == 0
    assert str(tmp_path / "webui" / "models" / "Lora") in ran.out
    assert Home.resolve().roots.loras == (tmp_path / "webui" / "models" / "Lora",)
    assert run("import-paths", tmp_path / "nowhere").code == 2


def test_one_broken_picture_is_named_and_the_others_are_told(run: Run, tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("parameters", "a fox\nSteps: 4, Seed: 7, Size: 64x64")
    whole = tmp_path / "whole.png"
    Image.new("RGB", (8, 8)).save(whole, pnginfo=info)
    content = whole.read_bytes()
    for name, data in {
        "cut.png": content[:20],
        "none.png": b"",
        "odd.jpg": b"\xff\xd8\xff\xe1\xff\xff",
    }.items():
        (tmp_path / name).write_bytes(data)
    found = run("inspect", *sorted(tmp_path.glob("*.png")), tmp_path / "odd.jpg", "~nobody/x.png")
    assert found.code == 1
    assert "a fox" in found.out
    for name in ("cut.png", "none.png", "odd.jpg", "x.png"):
        assert name in found.err
    assert "whole.png" not in found.err


def test_a_home_of_nobody_and_a_name_too_long_are_no_tracebacks(run: Run, tmp_path: Path) -> None:
    for words in (
        ("batch", "~nobody/jobs.yaml", "--check"),
        ("batch", tmp_path / "jobs.yaml", "--check", "--wildcards", "~nobody"),
        ("batch", "n" * 300 + ".yaml", "--check"),
        ("render", "-p", "x", "--requests", "~nobody/requests.json"),
        ("render", "-p", "x", "--from", "n" * 300 + ".png"),
        ("train-flora", "~nobody/a.png", "-p", "x", "-o", tmp_path / "x.safetensors"),
    ):
        found = run(*words)
        assert found.code == 2, words
        assert found.err.startswith("error: ")
        assert len(found.err) < 1000
