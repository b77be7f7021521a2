"""LoRA files as people have them, from the command line: found, drawn, and what is doubtful is told once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.adapters import sha256
from pipelines.home import Home
from studio.commands import doctor
from studio.library.known import Finder, Known
from studio.library.scan import Library

Run = Callable[..., Any]


def test_a_folder_of_diffusers_and_foreign_keys_and_a_doubtful_scale(
    render: Run, loras: Path, tmp_path: Path
) -> None:
    folder = loras / "nilo fox"
    folder.mkdir()
    foreign = {"lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.ones(4, 2)}
    tensors = load_file(loras / "fox.safetensors") | foreign | {"loss": torch.tensor(1.0)}
    save_file(tensors, folder / "pytorch_lora_weights.safetensors", {"lora_alpha": "8", "r": "99"})
    asked = ("--json", "--seed", 1, "--out", tmp_path / "out.png")
    ran = render("-p", "a fox <lora:Nilo Fox:0.3>", *asked)
    assert ran.code == 0, ran.err
    [record] = json.loads(ran.out)
    assert [use["name"] for use in record["adapters"]] == ["nilo fox"]
    [left, scale] = [note for note in record["notes"] if note.startswith("LoRA 'nilo fox'")]
    assert "double_blocks" in left
    assert "left out" in left
    assert "rank 99" in scale
    assert "scale 1" in scale
    assert ran.err.count("left out") == ran.err.count("rank 99") == 1
    by_path = render("-p", "a fox", "--lora", f"{folder}=0.3", "--force", *asked)
    assert json.loads(by_path.out)[0]["adapters"][0]["sha256"] == record["adapters"][0]["sha256"]


def test_what_is_left_out_is_listed_with_the_reason(
    run: Run, loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(loras / "fox.safetensors", tmp_path / "elsewhere" / "far.safetensors")
    (loras / "far.safetensors").symlink_to(tmp_path / "elsewhere" / "far.safetensors")
    (loras / "gone.safetensors").symlink_to("nowhere.safetensors")
    rows = {row["name"]: row["type"] for row in json.loads(run("loras", "--json").out)}
    cards = {card.name: card for card in Library(Home.resolve).cards()}
    monkeypatch.setattr(doctor, "_test_picture", lambda home, problems: None)
    problems = doctor.problems_of(Home.resolve())
    for name, words in (("far", f"add that folder ({tmp_path / 'elsewhere'})"), ("gone", "leads nowhere")):
        assert words in rows[name]
        assert words in cards[name].error
        assert words in cards[name].misfit(None)
        assert any(words in problem for problem in problems)
    ran = run("render", "-p", "x <lora:far:1>")
    assert ran.code == 2
    assert "a link of that name leads outside" in ran.err


def test_a_picture_whose_lora_has_copies_or_another_name_finds_it_and_tells(loras: Path) -> None:
    (loras / "old").mkdir()
    shutil.copy(loras / "fox.safetensors", loras / "old" / "fox.safetensors")
    digest = sha256(loras / "fox.safetensors")
    for said in (None, Known(digest)):
        finder = Finder(Home.resolve())
        assert finder.lora("FOX", said, "") is not None
        [note] = finder.notes
        assert ("old/fox.safetensors" if said is None else "found by its hash") in note
        assert str(loras) not in note
    finder = Finder(Home.resolve())
    assert finder.lora("renamed", Known(digest), "") is not None
    assert "found by its hash" in finder.notes[0]
    shutil.copy(loras / "hat.safetensors", loras / "old" / "fox.safetensors")
    finder = Finder(Home.resolve())
    assert finder.lora("fox", Known(digest), "") == "loras/fox"
