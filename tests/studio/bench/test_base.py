"""`python -m studio.bench.base`: every way is the same model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipelines.engine.compiling import CompiledTransformer, arguments
from pipelines.home import Home
from studio.bench import base
from studio.bench.speed.bed import load_unet


def test_every_kernel_gives_the_same_predictions(
    sdxl_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    flags = ["--model", str(sdxl_folder), "--size", "32", "--images", "1", "--repeats", "1", "--profile"]
    choice = ["--builds", "plain", "--attention", "auto", "math", "flash"]
    base.main([*flags, *choice, "--json", str(file)])
    ways = json.loads(file.read_text())["found"]["32"]
    assert len(ways) == 3
    assert all(way["difference"] < 1e-5 for way in ways)
    assert all(way["profile"]["parts"] for way in ways)
    assert "plain, math" in capsys.readouterr().out


def test_builds_are_copies_laid_out_and_compiled_as_their_names_say(sdxl_folder: Path) -> None:
    unet = load_unet(str(sdxl_folder), Home.resolve(), torch.device("cpu"), torch.float32)
    assert base.built(unet, "plain", "eager") is unet
    builds: tuple[base.Build, ...] = (
        "blocks",
        "compiled",
        "stacks apart",
        "samplers apart",
        "channels last",
        "whole",
    )
    made = {build: base.built(unet, build, "eager") for build in builds}
    compiled = {build: compiled_kinds(own) for build, own in made.items()}
    assert compiled["blocks"] == {"BasicTransformerBlock"}
    stacks, samplers = {"CompiledTransformer"}, {"Upsample2D", "Downsample2D"}
    assert compiled["stacks apart"] == {"BasicTransformerBlock", "ResnetBlock2D", "GroupNorm"} | samplers
    assert compiled["compiled"] == compiled["stacks apart"] | stacks
    assert compiled["samplers apart"] == compiled["compiled"] - samplers
    assert compiled["channels last"] == compiled["compiled"]
    assert compiled["whole"] == {"UNet2DConditionModel"}
    assert made["channels last"].conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert unet.conv_in.weight.is_contiguous()
    assert compiled_kinds(unet) == set()


def test_builds_tell_inductor_what_their_names_say(
    shallow_sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = load_unet(str(shallow_sdxl_folder), Home.resolve(), torch.device("cpu"), torch.float32)
    seen: set[object] = set()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "compile", lambda call, **arguments: seen.add(arguments["backend"]) or call)
    tuning = {"coordinate_descent_tuning": True}
    torchs, engines = torch._dynamo.lookup_backend("inductor"), arguments()["backend"]
    backends: dict[base.Build, object] = {
        "blocks": torchs,
        "short rows": torchs,
        "compiled": engines,
        "whole": engines,
        "tiles": arguments(options=tuning)["backend"],
    }
    for build, backend in backends.items():
        seen.clear()
        base.built(unet, build, "inductor")
        assert seen == {backend}, build


def compiled_kinds(unet: torch.nn.Module) -> set[str]:
    return {
        type(module).__name__
        for module in unet.modules()
        if module._compiled_call_impl is not None or isinstance(module, CompiledTransformer)
    }
