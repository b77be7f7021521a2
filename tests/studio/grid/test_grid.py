"""Grids: axes, cells equal to single renders, the sheet and the page."""

from __future__ import annotations

import json
import re
from argparse import ArgumentParser
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines import StudioPipeline
from pipelines.errors import RequestError
from pipelines.home import Home
from studio.batch.manifest import MANIFEST
from studio.commands import grid
from studio.drafts.entries import read_draft
from studio.grid.axes import read_axis
from studio.grid.grid import Cell, make_grid
from studio.grid.page import write_page
from studio.grid.sheet import MOST_PIXELS, _fitting, draw_sheet
from studio.pictures.comparison import TOLERANCE
from studio.pictures.metadata import read_picture

from ...budget import cheap

BASE = {"prompt": "a fox {x|y}", "adapters": [{"adapter": "fox", "weight": 0.8}]}


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("seed=1-3", ["1", "2", "3"]),
        ("guidance=1-5 [3]", ["1", "3", "5"]),
        ("method=merge,switch:interval=3,convention=code,composite", None),
        ("sampler=Euler,DDIM", ["Euler", "DDIM"]),
        ("lora=none, fox=0.5+hat, hat", ["none", "fox=0.5+hat", "hat"]),
        ("weight:fox=0,0.5", ["0", "0.5"]),
        ("prompt=a, b | c", ["a, b", "c"]),
    ],
)
def test_axes(text: str, labels: list[str] | None) -> None:
    found = [label for label, _ in read_axis(text).cells]
    assert found == (labels or ["merge", "switch:interval=3,convention=code", "composite"])


@pytest.mark.parametrize("text", ["seed", "sead=1", "seed=x", "weight:fox=", "seed:fox=1"])
def test_axes_that_cannot_be(text: str) -> None:
    with pytest.raises(RequestError, match="axis"):
        read_axis(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed=1-1e9", "'1-1e9' holds 1000000000 values; there may be 2500 here"),
        ("seed=1-2501", "holds 2501 values"),
        ("seed=0-1e999", "too large to be held"),
        ("guidance=0-1 (1e-300)", "holds 1e+300 values"),
        ("guidance=1-1 (1e999)", "a step too large"),
        ("guidance=0-1 [9999999]", "1 … 2500 values"),
        ("seed=1-2000,1-2000", "there may be 500 here"),
        ("seed=" + "1," * 5000, "too many values"),
        ("seed=" + "9" * 5000, "no number"),
        ("sampler=" + "a," * 3000, "3000 values, more than 2500"),
        ("sampler=" + "a|" * 40_000, "more than 2500"),
        ("lora=" + "a" * 100_000, "an axis has 100005 characters"),
        ("lora=a\ud800", "half a character"),
        ("a" * 50_000 + "=1", "unknown axis"),
    ],
    ids=lambda text: text[:16].encode("unicode-escape").decode(),
)
def test_axes_are_counted_before_they_are_made(text: str, said: str) -> None:
    with cheap(), pytest.raises(RequestError, match=re.escape(said)) as caught:
        read_axis(text)
    assert len(str(caught.value).encode()) < 1000


def test_cells_are_counted_before_they_are_made() -> None:
    with cheap(), pytest.raises(RequestError, match="has 15625000000 cells, more than 2500"):
        jobs_of("seed=1-2500", "steps=1-2500", "guidance=1-2500")
    with cheap(), pytest.raises(RequestError, match="the prompt has 1980000000 characters, more than 20000"):
        jobs_of("prompt=a|" + "b" * 99_000, prompt="a" * 20_000)


def test_a_sheet_is_no_larger_than_can_be_drawn() -> None:
    assert _fitting((100, 50), 9) == (100, 50)
    wide, high = _fitting((4096, 4096), 2500)
    assert wide == high
    assert 390e6 < wide * high * 2500 <= MOST_PIXELS


def jobs_of(*axes: str, **fields: Any) -> list[dict[str, Any]]:
    return make_grid(
        {**BASE, **fields}, [read_axis(axis) for axis in axes] + [None] * (3 - len(axes)), None
    ).jobs()


def test_cells_are_jobs_row_by_row() -> None:
    jobs = jobs_of("seed=1,2", "steps=3,4")
    assert [(job["seed"], job["steps"]) for job in jobs] == [(1, 3), (2, 3), (1, 4), (2, 4)]
    assert jobs[0]["prompt"] == "a fox \\{x\\|y\\}"  # a grid draws no lots
    assert jobs[0]["name"] == "seed 1 steps 3"


def test_changes_to_the_mix_and_the_prompt() -> None:
    jobs = jobs_of("weight:hat=0,1", "lora=hat,hat+owl=0.3")
    assert [[(one["adapter"], one.get("weight")) for one in job["adapters"]] for job in jobs] == [
        [("fox", 0.8), ("hat", 0)],
        [("fox", 0.8), ("hat", 1)],
        [("fox", 0.8), ("hat", 0), ("owl", 0.3)],
        [("fox", 0.8), ("hat", 1), ("owl", 0.3)],
    ]
    assert [job["adapters"][0]["weight"] for job in jobs_of("weight=0.1,0.2")] == [0.1, 0.2]
    assert [job["prompt"] for job in jobs_of("prompt=fox,owl", prompt="a fox")] == ["a fox", "a owl"]


def test_the_flags_of_a_grid_ask_for_what_those_of_render_do() -> None:
    parser = ArgumentParser()
    grid.add(parser)
    said = ["--lora", "fox=0.5:0.25", "--pin", "lcm", "--pin", "hat=0.3", "--prompt", "a", "--crop", "1,2"]
    values = grid.read(parser.parse_args([*said, "--seed", "7", "--x", "steps=1-2"]))
    draft = read_draft(grid._fields(values, Home.resolve()), "")
    assert draft == values.asked.draft.with_value("prompt", "a")


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        (("weight:owl=1",), "no LoRA 'owl'"),
        (("prompt=owl,cat",), "does not stand in the prompt"),
        (("seed=1", "seed=2"), "two axes"),
        (("seed=1-100", "steps=1-100"), "10000 cells"),
    ],
)
def test_grids_that_cannot_be(axes: tuple[str, ...], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        jobs_of(*axes)


class Page(HTMLParser):
    """What a page holds: tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def test_the_sheet_and_the_page(tmp_path: Path) -> None:
    axes = [read_axis("seed=1,2,3"), read_axis("prompt=fox,<b>\"'"), read_axis("method=merge,switch")]
    grid = make_grid({"prompt": "a fox & <i>"}, axes, "title <script>")
    cells = []
    for number, place in enumerate(grid.places):
        file = tmp_path / f"{number}.png"
        Image.new("RGB", (32, 16), (number * 10, 0, 0)).save(file)
        failed = number == 4
        error = "no <memory>" if failed else None
        cells.append(Cell(place, grid.labels(place), None if failed else file, {"prompt": 'p"<'}, error))
    sheet = draw_sheet(grid, cells)
    colours = {pixel for _, pixel in sheet.getcolors(sheet.width * sheet.height) or []}
    assert {(number * 10, 0, 0) for number in range(12) if number != 4} <= colours
    assert (40, 0, 0) not in colours
    assert draw_sheet(grid, cells, 20).width < sheet.width
    text = write_page(grid, cells)
    page = Page(text)
    images = page.all("img")
    assert len(images) == 11
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in images)
    assert images[0]["alt"] == 'p"<; seed 1; prompt fox; method merge'
    assert not page.all("script")
    assert not page.all("link")
    assert "prefers-color-scheme: dark" in text
    assert "color-scheme: light dark" in text
    assert text.count("no &lt;memory&gt;") == 1
    assert len(page.all("details")) == 11
    assert {head["scope"] for head in page.all("th")} == {"col", "row"}


def test_the_command_and_its_cells_equal_single_renders(
    run: Callable[..., Any], loras: Path, sdxl_folder: Path, tmp_path: Path
) -> None:
    words = ("--prompt", "a fox", "--size", "32x32", "--steps", 2, "--model", sdxl_folder, "--lora", "fox")
    axes = ("--x", "method=merge,switch,composite", "--y", "lora=none,hat=0.5")
    out = tmp_path / "out"
    ran = run("grid", *words, *axes, "--out", out)
    assert (ran.code, ran.out.split()) == (0, [str(out / "grid.png"), str(out / "grid.html")])
    assert "Traceback" not in ran.err
    again = run("grid", *words, *axes, "--out", out)
    assert "6 of 6 pictures are there already" in again.err
    pipe = StudioPipeline.from_pretrained(sdxl_folder)
    for name in ("fox", "hat"):
        pipe.load_lora_weights(loras / f"{name}.safetensors")
    entries = [json.loads(line) for line in (out / "cells" / MANIFEST).read_text().splitlines()]
    assert len(entries) == 6
    assert any(entry["record"]["shared"] for entry in entries)
    for entry in entries:
        file = out / "cells" / entry["file"]
        draft = read_picture(file).draft
        image = pipe(draft.build(lambda wanted: wanted.use(wanted.adapter, None))).images[0]
        with Image.open(file) as stored:
            assert np.abs(np.asarray(stored, dtype=int) - np.asarray(image, dtype=int)).max() <= TOLERANCE
    for wrong in (("--x", "seed=1", "--prompt", "b"), (), ("--x", "seed=1", "-n", 2), ("--x", "model=a")):
        assert run("grid", *words, *wrong, "--out", out).code == 2


def test_models_by_prompts(
    run: Callable[..., Any], loras: Path, sd_folder: Path, sdxl_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    axes = ("--x", f"model={sd_folder},{sdxl_folder}", "--y", "prompt=fox,owl", "--z", "guidance=1,4")
    ran = run("grid", "--prompt", "a fox", "--size", "32x32", "--steps", 2, *axes, "--out", out)
    assert ran.code == 0, ran.err
    entries = [json.loads(line) for line in (out / "cells" / MANIFEST).read_text().splitlines()]
    found = {
        (entry["record"]["family"], entry["record"]["prompt"], entry["record"]["guidance_scale"])
        for entry in entries
    }
    assert found == {
        (family, prompt, guidance)
        for family in ("sd1", "sdxl")
        for prompt in ("a fox", "a owl")
        for guidance in (1.0, 4.0)
    }
    page = Page((out / "grid.html").read_text())
    assert {head for image in page.all("img") for head in (image["alt"] or "").split("; ")} >= {
        "prompt owl",
        f"model {sd_folder}",
        "guidance 4",
    }
    assert (out / "grid.png").stat().st_size > 1000
