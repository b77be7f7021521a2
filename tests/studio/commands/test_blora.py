"""`split`, `probe-blocks`, `train-blora` and `train-flora` as their users call them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.adapters import inspect_file

Run = Callable[..., object]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "cat.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(file)
    return file


def test_split_writes_both_parts(run, loras: Path, sdxl_folder: Path, tmp_path: Path) -> None:
    outs = [tmp_path / "c.safetensors", tmp_path / "s.safetensors"]
    words = ("split", "fox", "--model", sdxl_folder, "--content", outs[0], "--style", outs[1])
    ran = run(*words)
    assert (ran.code, ran.out.split()) == (0, [str(out) for out in outs])
    assert "warning: fox was not trained on the content and style blocks alone" in ran.err
    for out in outs:
        assert inspect_file(out).modules == {"unet": 16}
    assert "already there" in run(*words).err
    kohya = run(*words, "--force", "--naming", "kohya", "--quiet")
    assert (kohya.code, kohya.err) == (0, "")
    assert inspect_file(outs[0]).namings[0].startswith("kohya")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("split", "fox"), "--content OUT, --style OUT, or both"),
        (("split", "foks", "--style", "s.safetensors"), "did you mean 'fox'"),
        (("split", "fox", "--style", "s.safetensors"), "--model names the model"),
        (("split", "fox", "--style", "s.png", "--model", "tiny-sdxl"), "must end in .safetensors"),
        (("probe-blocks", "nowhere.safetensors"), "does not exist"),
        (("train-blora", "none.png", "--prompt", "a", "--out", "v.safetensors"), "none.png does not exist"),
        (("train-blora", "none.png", "--prompt", "a", "--out", "v.bin"), "must end in .safetensors"),
        (("train-blora", "none.png", "--out", "v.safetensors"), "--prompt"),
        (("train-flora", "none.png", "--prompt", "a", "--out", "v.safetensors"), "none.png does not exist"),
        (("train-flora", "--prompt", "a", "--out", "v.safetensors"), "IMAGE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_refused(
    words: tuple[str, ...],
    message: str,
    run,
    loras: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run(*words)
    assert ran.code == 2
    assert ran.out == ""
    assert message in ran.err.replace("\n", " ")


def test_a_probe_prints_a_map_and_draws_a_sheet(run, home: Path, sdxl_folder: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    words = ("probe-blocks", sdxl_folder, "--out", sheet, "--seeds", 1, "--steps", 1, "--size", 32)
    pairs = ("--content", "a fox", "a car", "--style", "a fox", "a fox in ink")
    ran = run(*words, *pairs)
    assert ran.code == 0, ran.err
    assert set(json.loads(ran.out)) == {"block_map"}
    assert Image.open(sheet).size[0] > 1000
    assert "up_blocks.0.attentions.1" in ran.err
    assert "picture statistics" in ran.err
    assert "already there" in run(*words, *pairs).err
    assert "--style A B is missing" in run(*words, "--force", *pairs[:3]).err


def test_training_from_the_command_line(
    run, home: Path, sdxl_folder: Path, picture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "v.safetensors"
    words = ("train-blora", picture, "--prompt", "A [v]", "--out", out, "--model", sdxl_folder)
    ran = run(
        *words, "--steps", 2, "--size", 32, "--rank", 2, "--sample-every", 2, "--sample-prompt", "a fox"
    )
    assert ran.code == 0, ran.err
    assert ran.out.split() == [str(out)]
    assert inspect_file(out).metadata.triggers == (r"\[v\]",)
    assert (tmp_path / "v-step000002.png").is_file()
    assert r"write A \[v\]" in ran.err
    assert "nothing to resume" in run(*words, "--force", "--resume").err


def test_a_flora_from_the_command_line(
    run, home: Path, sdxl_folder: Path, picture: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.png"
    other.write_bytes(picture.read_bytes())
    other.with_suffix(".txt").write_text("a [v] cat on a mat")
    out = tmp_path / "v.safetensors"
    words = ("train-flora", picture, other, "--prompt", "a [v] cat", "--out", out, "--model", sdxl_folder)
    ran = run(*words, "--steps", 2, "--size", 32, "--rank", 2, "--sample-every", 2, "--reach", "transformer")
    assert ran.code == 0, ran.err
    assert ran.out.split() == [str(out)]
    assert "from 2 pictures" in ran.err
    assert inspect_file(out).kinds == ("FLoRA",)
    assert (tmp_path / "v-step000002.png").is_file()
    assert "FLoRA, rank 2" in run("inspect", out).out
    other.with_suffix(".txt").write_bytes(b"\xff\xfe\x00")
    assert "save it as UTF-8" in run(*words, "--force").err
