"""`render` from flags to files, in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from studio.pictures.metadata import read_picture

Run = Callable[..., Any]


def pixels(file: Path | str) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"), dtype=int)


def test_prompts_methods_and_seeds_share_one_pass(render: Run, loras: Path, tmp_path: Path) -> None:
    ran = render(
        "-p", "a fox <lora:FOX:0.3>", "-p", "a hat", "--lora", "hat=0.2:0.1", "--composer", "merge",
        "--composer", "switch:interval=1", "-n", 2, "--seed", 7, "--json", "--out", tmp_path / "out",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    records = json.loads(ran.out)
    assert [(r["prompt"], r["composer"], r["seed"]) for r in records] == [
        (prompt, method, seed)
        for prompt in ("a fox", "a hat")
        for method in ("merge", "switch:interval=1")
        for seed in (7, 8)
    ]
    assert all(r["shared"] and r["unet_calls"] == 3 and r["largest_call"] == 16 for r in records)
    assert [use["name"] for use in records[0]["adapters"]] == ["hat", "fox"]
    assert records[0]["adapters"][0]["text_weight"] == 0.1
    assert [Path(r["file"]).name for r in records] == [f"{i:05d}_{7 + (i - 1) % 2}.png" for i in range(1, 9)]
    assert all(Image.open(r["file"]).size == (32, 32) for r in records)


def test_a_pinned_lora_acts_in_every_pass(render: Run, loras: Path, tmp_path: Path) -> None:
    asked = ["-p", "a fox", "--seed", 7, "--json", "--composer", "composite", "--lora", "hat=0.2"]
    [pinned] = json.loads(render(*asked, "--pin", "fox=0.5", "--out", tmp_path / "pinned.png").out)
    [member] = json.loads(render(*asked, "--lora", "fox=0.5", "--out", tmp_path / "member.png").out)
    assert [(used["name"], used["pinned"]) for used in pinned["adapters"]] == [("hat", False), ("fox", True)]
    assert pinned["unet_rows"] * 2 == member["unet_rows"]
    assert (pixels(tmp_path / "pinned.png") != pixels(tmp_path / "member.png")).any()


def test_pictures_go_to_the_days_folder_and_paths_to_stdout(render: Run, home: Path) -> None:
    ran = render("-p", "a fox")
    file = Path(ran.out.strip())
    assert file.parent.parent == home / "outputs"
    assert read_picture(file).ours
    assert "seed" in ran.err
    quiet = render("-p", "a fox", "--quiet")
    assert quiet.err == ""
    assert Path(quiet.out.strip()).name.startswith("00002_")


def test_nothing_is_overwritten_without_force(render: Run, home: Path, tmp_path: Path) -> None:
    file = tmp_path / "fox.png"
    file.write_text("precious")
    ran = render("-p", "a fox", "--out", file)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"error: {file} exists already; choose another --out, or overwrite with --force\n"
    assert file.read_text() == "precious"
    assert render("-p", "a fox", "--out", file, "--force").code == 0
    assert Image.open(file).size == (32, 32)
    assert not home.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["-p", "x <lora:foxx:1>", "--lora", "hta"], "did you mean 'hat'"),
        (["-p", "x", "-n", "2000000"], "--count=2000000: at most 10000 pictures are made at once"),
        (["-p", "x", "-n", "0"], "'0' must be a whole number above 0"),
        (["-p", "x", "-p", "y", "-n", "6000"], "come to 12000 pictures, more than 10000"),
        (["-p", "x", "-n", "2", "--seed", str(2**64 - 1)], "the last of 2 seeds would lie beyond"),
        (["-p", "a" * 20_001], "prompt has 20001 characters, more than 20000"),
        (["-p", "x", "--lora", "a" * 1001], "a LoRA has 1001 characters"),
        (["-p", "x", "--lora", "fox=inf"], "must be"),
        (["-p", "x", "--lora", "~nobody-of-that-name/fox"], "nobody-of-that-name"),
        (["-p", "x <lora:foxx:1>", "--lora", "hta"], "did you mean 'fox'"),
        (["-p", "x", "--lora", "fox=much"], "'much' is no strength"),
        (["-p", "x <lora:fox:0.5>", "--lora", "fox=1"], "stands twice"),
        (["-p", "x <lora:fox", "--lora", "fox=1"], "not closed"),
        (["-p", "x", "--scheduler", "eulr"], "did you mean Euler"),
        (["-p", "x", "--composer", "swich"], "did you mean 'switch'"),
        (["-p", "x", "--device", "cuda:9"], "not available"),
        (["-p", "x", "--dtype", "int8"], "dtype 'int8' must be one of"),
        (["-p", "x", "--size", "33x32"], "multiple of 2"),
        (["-p", "x", "--width", "32"], "either --size or --width"),
        (["-p", "x", "--requests", "r.json"], "either --prompt or --requests"),
        (["--from", "nowhere.png"], "does not exist"),
        ([], "brings no example of its own"),
        (["-p", "x", "--out", "fox.jpg"], "written as PNG"),
        (["-p", "x", "--model", "nowhere"], "unknown model 'nowhere'"),
        (["-p", "x", "--steps", "many"], "invalid int value"),
        (["-p", "x", "--prevew"], "unrecognized arguments"),
    ],
)
def test_bad_input_is_refused_with_its_remedy(render: Run, loras: Path, flags: list[str], said: str) -> None:
    ran = render(*flags)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ") or "\nerror: " in ran.err
    assert said in ran.err
    assert "Traceback" not in ran.err


def test_a_picture_that_fails_fails_alone(render: Run, loras: Path, tmp_path: Path) -> None:
    entries = [
        {"prompt": "a", "seed": 1},
        {"prompt": f"(a hat:{'9' * 38})", "seed": 2, "adapters": {"fox": 1}},
    ]
    (tmp_path / "many.json").write_text(json.dumps(entries))
    ran = render("--requests", tmp_path / "many.json", "--out", f"{tmp_path}/{{seed}}.png", "--json")
    assert ran.code == 1
    good, bad = json.loads(ran.out)
    assert Path(good["file"]).exists()
    assert bad["file"] is None
    assert bad["error"].startswith("many.json, entry 2: ")
    assert "lower the adapters' strengths" in bad["error"]
    assert not (tmp_path / "2.png").exists()


def test_the_preferred_weight_is_taken_where_none_is_given(render: Run, loras: Path, tmp_path: Path) -> None:
    (loras / "fox.json").write_text(json.dumps({"preferred weight": 0.35}))
    ran = render(
        "-p", "a", "-p", "a <lora:fox>", "-p", "a <lora:fox:0.9>", "--json", "--out", tmp_path / "out"
    )
    assert [use["weight"] for r in json.loads(ran.out) for use in r["adapters"]] == [0.35, 0.9]
    ran = render("-p", "a", "--lora", "fox", "--json", "--out", tmp_path / "out")
    assert json.loads(ran.out)[0]["adapters"][0]["weight"] == 0.35


def test_two_files_of_one_name(render: Run, loras: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    shutil.copy(loras / "hat.safetensors", tmp_path / "mine" / "fox.safetensors")
    ran = render(
        "-p", "a", "--lora", tmp_path / "mine" / "fox.safetensors", "--lora", "fox=0.5", "--json",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert [use["name"] for use in json.loads(ran.out)[0]["adapters"]] == ["fox", "loras/fox"]


def resaid(picture: Path, file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """The picture with another text of ours."""
    info = PngInfo()
    with Image.open(picture) as image:
        info.add_text("lora-studio", json.dumps(change(json.loads(image.info["lora-studio"]))))
        image.save(file, pnginfo=info)
    return file


class TestAgain:
    """`render --from picture.png`."""

    @pytest.fixture
    def picture(self, render: Run, loras: Path, tmp_path: Path) -> Path:
        file = tmp_path / "first.png"
        ran = render(
            "-p", "a fox, \"red\"\nin snow <lora:fox:0.3:stop=0.5>", "--negative", "blur", "--lora", "hat=0.2:0.1",
            "--composer", "composite", "--cfg-scale", 4.5, "--sampler", "Euler a", "--clip-skip", 1,
            "--out", file,
        )  # fmt: skip
        assert ran.code == 0, ran.err
        return file

    def test_it_is_equal_bit_for_bit(
        self, run: Run, picture: Path, sdxl_folder: Path, tmp_path: Path
    ) -> None:
        ran = run("render", "--from", picture, "--model-dir", sdxl_folder.parent, "--out", tmp_path / "2.png")
        assert ran.code == 0, ran.err
        assert "equal to the picture, bit for bit" in ran.err
        assert np.array_equal(pixels(picture), pixels(tmp_path / "2.png"))

    def test_other_flags_override(self, run: Run, picture: Path, sdxl_folder: Path, tmp_path: Path) -> None:
        ran = run(
            "render", "--from", picture, "--model-dir", sdxl_folder.parent, "--steps", 2, "--lora", "fox=0",
            "--json", "--out", tmp_path / "2.png",
        )  # fmt: skip
        record = json.loads(ran.out)[0]
        assert (record["steps"], record["prompt"]) == (2, 'a fox, "red"\nin snow')
        assert [use["name"] for use in record["adapters"]] == ["hat"]
        assert "the picture" not in ran.err

    def test_renamed_files_are_found_by_their_hash(
        self, run: Run, picture: Path, loras: Path, sdxl_folder: Path, tmp_path: Path
    ) -> None:
        (loras / "fox.safetensors").rename(loras / "vulpes.safetensors")
        (loras / "hat.safetensors").rename(loras / "fox.safetensors")
        models = tmp_path / "models"
        shutil.copytree(sdxl_folder, models / "renamed")
        ran = run("render", "--from", picture, "--model-dir", models, "--out", tmp_path / "2.png")
        assert ran.code == 0, ran.err
        assert "'fox' of this picture is called 'vulpes' here" in ran.err
        assert "LoRA 'hat' was found by its hash: it is called 'fox' here" in ran.err
        assert "found by its hash: it is called 'renamed' here" in ran.err
        assert "equal to the picture, bit for bit" in ran.err

    def test_missing_files_are_named(self, run: Run, picture: Path, loras: Path, sdxl_folder: Path) -> None:
        for file in loras.iterdir():
            file.unlink()
        ran = run("render", "--from", picture, "--model-dir", sdxl_folder.parent)
        assert ran.code == 2
        assert "LoRA 'fox' (hash " in ran.err
        assert "LoRA 'hat' (hash " in ran.err
        assert "--lora-dir" in ran.err
        assert "model" not in ran.err.replace("--model", "")
        ran = run("render", "--from", picture)
        assert ran.code == 2
        for missing in ("LoRA 'fox' (hash ", "LoRA 'hat' (hash ", "model 'random-sdxl' (hash "):
            assert missing in ran.err

    def test_no_path_of_this_computer_is_taken_from_a_picture(
        self, run: Run, picture: Path, loras: Path, sdxl_folder: Path, tmp_path: Path
    ) -> None:
        hidden = tmp_path / "hidden"
        shutil.copytree(sdxl_folder, hidden / "models" / "random-sdxl")
        shutil.move(loras / "fox.safetensors", hidden / "fox.safetensors")
        told = resaid(
            picture,
            tmp_path / "told.png",
            lambda said: {
                **said,
                "request": {**said["request"], "adapters": [{"adapter": str(hidden / "fox.safetensors")}]},
                "record": {
                    **said["record"],
                    "model": str(hidden / "models" / "random-sdxl"),
                    "model_source": str(hidden / "models" / "random-sdxl"),
                },
                "setup": {"vae": str(hidden / "vae"), "low_memory": False},
            },
        )
        ran = run("render", "--from", told)
        assert ran.code == 2
        for missing in ("LoRA '", "model 'random-sdxl'", "VAE 'vae'"):
            assert f"{missing}" in ran.err
        assert ran.err.count("is not here") == 3

    def test_a_missing_vae_of_another_programs_picture_is_told(
        self, run: Run, loras: Path, sdxl_folder: Path, tmp_path: Path
    ) -> None:
        info = PngInfo()
        info.add_text(
            "parameters", "a fox\nSteps: 1, Seed: 1, Size: 32x32, Model: random-sdxl, VAE: soft.safetensors"
        )
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
        for more in ([], ["--model", "random-sdxl"]):
            ran = run("render", "--from", tmp_path / "a.png", "--model-dir", sdxl_folder.parent, *more)
            assert ran.code == 0, ran.err
            assert "VAE 'soft' is not here, so the model's own decodes; name one with --vae" in ran.err

    def test_another_programs_picture_is_rendered_too(
        self, run: Run, loras: Path, sdxl_folder: Path, tmp_path: Path
    ) -> None:
        nodes = {
            "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x/random-sdxl.safetensors"}},
            "2": {
                "class_type": "LoraLoader",
                "inputs": {
                    "lora_name": "hat.safetensors", "strength_model": 0.2, "strength_clip": 0.2,
                    "model": ["1", 0], "clip": ["1", 1],
                },
            },
            "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "a hat <lora:fox:0.1>", "clip": ["2", 1]}},
            "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["2", 1]}},
            "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 32, "height": 48, "batch_size": 1}},
            "6": {
                "class_type": "KSampler",
                "inputs": {
                    "seed": 11, "steps": 2, "cfg": 5.5, "sampler_name": "euler", "scheduler": "normal",
                    "model": ["2", 0], "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["5", 0],
                },
            },
        }  # fmt: skip
        info = PngInfo()
        info.add_text("prompt", json.dumps(nodes))
        Image.new("RGB", (8, 8)).save(tmp_path / "comfy.png", pnginfo=info)
        ran = run(
            "render", "--from", tmp_path / "comfy.png", "--model-dir", sdxl_folder.parent, "--json",
            "--out", tmp_path / "2.png",
        )  # fmt: skip
        assert ran.code == 0, ran.err
        assert "made by ComfyUI" in ran.err
        [record] = json.loads(ran.out)
        assert (record["model"], record["seed"], record["steps"]) == ("random-sdxl", 11, 2)
        assert (record["width"], record["height"], record["prompt"]) == (32, 48, "a hat")
        assert [(use["name"], use["weight"]) for use in record["adapters"]] == [("hat", 0.2), ("fox", 0.1)]

    def test_a_jpeg_of_swarmui_is_rendered_too(
        self, run: Run, loras: Path, sdxl_folder: Path, tmp_path: Path
    ) -> None:
        said = {
            "prompt": "a fox <lora:fox:0.7>", "negativeprompt": "blurry", "seed": 2**53 + 1, "steps": "2",
            "cfgscale": 4.5, "width": 32, "height": 48, "sampler": "dpmpp_2m", "scheduler": "karras", "loras": ["fox"],
            "loraweights": ["0.7"], "model": "random-sdxl", "refinerupscale": 2,
        }  # fmt: skip
        notes = Image.Exif()
        text = json.dumps({"sui_image_params": said})
        notes.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")
        Image.new("RGB", (8, 8)).save(tmp_path / "swarm.jpg", exif=notes.tobytes())
        ran = run(
            "render", "--from", tmp_path / "swarm.jpg", "--model-dir", sdxl_folder.parent, "--json",
            "--out", tmp_path / "2.png",
        )  # fmt: skip
        assert ran.code == 0, ran.err
        assert "made by SwarmUI" in ran.err
        assert "not taken over: refinerupscale" in ran.err
        [record] = json.loads(ran.out)
        assert (record["prompt"], record["negative_prompt"], record["seed"]) == ("a fox", "blurry", 2**53 + 1)
        assert (record["steps"], record["width"], record["height"]) == (2, 32, 48)
        assert record["scheduler"] == "DPM++ 2M Karras"
        assert [(use["name"], use["weight"]) for use in record["adapters"]] == [("fox", 0.7)]

    def test_sizes_that_were_the_pictures_own_follow_it(
        self, run: Run, picture: Path, sdxl_folder: Path, tmp_path: Path
    ) -> None:
        ran = run(
            "render", "--from", picture, "--model-dir", sdxl_folder.parent, "--width", 48, "--json",
            "--out", tmp_path / "2.png",
        )  # fmt: skip
        record = json.loads(ran.out)[0]
        assert record["original_size"] == record["target_size"] == [32, 48]

    def test_another_file_of_the_same_name_is_no_secret(
        self, run: Run, picture: Path, loras: Path, sdxl_folder: Path, tmp_path: Path
    ) -> None:
        shutil.copy(loras / "hat.safetensors", loras / "fox.safetensors")
        ran = run("render", "--from", picture, "--model-dir", sdxl_folder.parent, "--out", tmp_path / "2.png")
        assert "LoRA 'fox' is another file than the one this picture was made with" in ran.err
        assert "different from the picture" in ran.err

    def test_against_a_shared_batch(self, render: Run, run: Run, sdxl_folder: Path, tmp_path: Path) -> None:
        render("-p", "a fox", "-n", 3, "--out", tmp_path / "out/")
        first = min((tmp_path / "out").iterdir())
        ran = run(
            "render",
            "--from",
            first,
            "--model-dir",
            sdxl_folder.parent,
            "-n",
            1,
            "--json",
            "--out",
            tmp_path / "2.png",
        )
        assert ran.code == 0, ran.err
        ran = run(
            "render",
            "--from",
            first,
            "--model-dir",
            sdxl_folder.parent,
            "--json",
            "--out",
            tmp_path / "3.png",
        )
        assert json.loads(ran.out)[0]["compared"]["largest"] <= 2

    def test_the_initial_image_must_be_given_again(
        self, render: Run, run: Run, sdxl_folder: Path, tmp_path: Path
    ) -> None:
        start, other = tmp_path / "start.png", tmp_path / "other.png"
        Image.new("RGB", (32, 32), "red").save(start)
        Image.new("RGB", (32, 32), "blue").save(other)
        file = tmp_path / "first.png"
        assert render("-p", "a", "--init-image", start, "--strength", 0.7, "--out", file).code == 0
        again = [
            "render",
            "--from",
            file,
            "--model-dir",
            sdxl_folder.parent,
            "--out",
            tmp_path / "2.png",
            "--force",
        ]
        assert "not stored in it; give that with --init-image" in run(*again).err
        assert "is not the initial image" in run(*again, "--init-image", other).err
        assert "equal to the picture" in run(*again, "--init-image", start).err


def test_previews_are_shown_and_taken_away(render: Run, home: Path, tmp_path: Path) -> None:
    plain, shown = tmp_path / "plain.png", tmp_path / "shown.png"
    render("-p", "a", "--seed", 1, "--out", plain)
    assert render("-p", "a", "--seed", 1, "--out", shown, "--preview").code == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["plain.png", "shown.png"]
    assert np.array_equal(pixels(plain), pixels(shown))
