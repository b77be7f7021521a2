"""Every field of a request goes into a picture's two texts and comes back from each, also one that is made up here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from composers import BLora, CMLoRA, Composite, Merge, Schedule, Switch, Use
from composers.registry import spell
from pipelines import Record, Request
from pipelines.families.family import Defaults
from pipelines.home import Home
from pipelines.request import Facts
from studio.drafts.draft import Draft
from studio.drafts.fields import BY_NAME, FIELDS, Field
from studio.drafts.input_images import read_input
from studio.pictures.metadata import NO_MASK, Setup, chunks
from studio.pictures.restore import Restored, restore
from studio.pictures.texts import CHUNK, PARAMETERS

ROOT = Path(__file__).resolve().parents[3]
FACTS = Facts(
    "a model",
    Defaults(512, 768, "DPM++ 2M Karras", 20, 7.5),
    adapters=("fox", "hat"),
    size_unit=8,
    block_map={"@content": ("mid_block",), "@style": ("up_blocks.0",)},
    unet_layers=("mid_block.a", "up_blocks.0.a"),
    cuts=("deep", "published"),
)
IMAGE = Image.new("RGB", (64, 48), "red")
MASK = Image.linear_gradient("L").resize((64, 48))
SCHEDULED = Use("fox", 0.5, 0.25, (("mid_block", 0.5),), Schedule(((0.0, 0.0), (0.25, 1.0))))
SAMPLES: Mapping[str, list[Any]] = {
    "prompt": ["", "a fox", "a (fox:1.3), [hat]\nBREAK a \\(x\\)", "Steps: 3, Seed: 4, Size: 5x5", "狐 🦊 “”"],
    "negative_prompt": [None, "", "rain", "two\nlines: of, it"],
    "adapters": [(), {"fox": 0.7}, {"hat": -1.5, "fox": 100.0}, [SCHEDULED, Use("hat", 1e-3)]],
    "composer": [Merge(), Composite(), Switch(interval=2), Switch(convention="code"), BLora("hat", "fox", "square")],
    "width": [None, 8, 1000, 16384],
    "height": [None, 8, 1000, 16384],
    "strength": [0.05, 0.8, 0.123456789, 1.0],
    "scheduler": [None, "model", "Euler a", "DPM++ 2M"],
    "init_image": [None, IMAGE],
    "mask": [None, MASK],
}  # fmt: skip
"""Of fields whose values are not any that their range allows."""
BESIDE: Mapping[str, Mapping[str, Any]] = {
    "adapters": {"composer": Composite()},
    "composer": {"adapters": {"fox": 0.5, "hat": 0.25}},
    "strength": {"init_image": IMAGE},
    "mask": {"init_image": IMAGE},
    "mask_blur": {"init_image": IMAGE, "mask": MASK},
    "mask_content": {"init_image": IMAGE, "mask": MASK},
    "mask_area": {"init_image": IMAGE, "mask": MASK, "width": 64, "height": 48},
    "mask_padding": {"init_image": IMAGE, "mask": MASK},
    "cut": {"reuse": 3},
}
"""What a field means nothing without."""


def samples(field: Field) -> list[Any]:
    """Values of a field: what stands for nothing, the ends of its range, and something between."""
    own = field.knob
    found = SAMPLES.get(field.name)
    if found is not None:
        return found
    low, high = (own.low or 0, 10 if own.high is None else own.high)
    between: list[Any] = {
        "whole": [int(low), int(low + high) // 3, int(high)],
        "real": [float(low), low + (high - low) * 0.37, float(high)],
        "truth": [False, True],
        "choice": list(own.choices),
        "pair": [(int(low), int(high)), (int(high), int(low)), (0, 0), (768, 512), (512, 768)],
        "text": ["", "a", 'a "b", c: d', " a\nb"],
    }[field.kind]
    return [*between, field.default, *([None] if field.optional else [])]


CASES = [(field.name, value) for field in FIELDS for value in samples(field)]
each = pytest.mark.parametrize(("name", "value"), CASES, ids=lambda value: str(value)[:40])


def resolved(name: str, value: Any) -> Request:
    asked = {"prompt": "a fox", **BESIDE.get(name, {}), name: value}
    return Request(**asked).resolved(FACTS)


def record_of(request: Request) -> Record:
    """As a picture has it, but for what its adapters' files and the run tell."""
    said: dict[str, Any] = {one.name: getattr(request, one.name, None) for one in dataclasses.fields(Record)}
    said |= {
        "composer": spell(request.composer), "adapters": (), "model": "ghost", "model_source": "", "notes": (),
        "model_hash": "0123456789", "family": "sdxl", "versions": {CHUNK: "1.0"},
        "strength": None if request.init_image is None else request.strength,
    }  # fmt: skip
    return Record(**said)


def back(request: Request, text: str, tmp_path: Path) -> Restored:
    """What is restored from a picture in which this text alone is left."""
    home = tmp_path / "home"
    (home / "loras").mkdir(parents=True, exist_ok=True)
    for name in FACTS.adapters:
        (home / "loras" / f"{name}.safetensors").touch()
    info = PngInfo()
    info.add_text(text, chunks(request, record_of(request), {}, Setup())[text])
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png", pnginfo=info)
    return restore(tmp_path / "picture.png", Home.resolve(home))


def again(draft: Draft, asked: Request) -> Request:
    """The restored request, with the pictures that are given again: the initial image, and the mask where it is not in
    the text."""
    bare = dataclasses.replace(draft, images={})
    request = bare.build(lambda wanted: wanted.use(wanted.adapter, None))
    mask = read_input("mask", draft.images["mask"]) if "mask" in draft.images else asked.mask
    return dataclasses.replace(request, init_image=asked.init_image, mask=mask).resolved(FACTS)


@each
def test_a_field_comes_back_from_our_text(tmp_path: Path, name: str, value: Any) -> None:
    request = resolved(name, value)
    found = back(request, CHUNK, tmp_path)
    assert again(found.draft, request) == request
    assert ("mask" in found.draft.images) == (request.mask is not None)
    assert all(one.named for one in found.draft.wanted), "a picture names no paths of this computer"
    assert (found.said.init_image is None) == (request.init_image is None)
    assert found.draft.values.get("negative_prompt") == request.negative_prompt
    assert found.notes == (found.notes[:1] if request.init_image is not None else ())


@each
def test_a_field_comes_back_from_the_text_for_other_programs(tmp_path: Path, name: str, value: Any) -> None:
    request = resolved(name, value)
    found = back(request, PARAMETERS, tmp_path)
    expected = dataclasses.replace(request, negative_prompt=request.negative_prompt or None)
    assert again(found.draft, request) == expected
    assert (found.said.init_image is None) == (request.init_image is None)
    assert (found.program, found.said.model, found.said.model_hash) == ("LoRA Studio", "ghost", "0123456789")
    [first, *rest] = found.said.notes
    assert "was taken out" in first
    assert rest == ([NO_MASK] if request.mask is not None else [])


@pytest.mark.parametrize("text", [CHUNK, PARAMETERS])
def test_all_fields_at_once(tmp_path: Path, text: str) -> None:
    asked = {field.name: samples(field)[-2] for field in FIELDS if field.name != "prompt"}
    asked |= {"adapters": {"hat": -1.5, "fox": 2.0}, "reuse": 2, "width": 1000, "height": 8, "steps": 30}
    request = Request("a fox", **{**asked, "init_image": IMAGE, "mask": MASK}).resolved(FACTS)
    assert again(back(request, text, tmp_path).draft, request) == request


@pytest.mark.parametrize("text", [CHUNK, PARAMETERS])
def test_what_only_repeats_other_values_is_left_out(tmp_path: Path, text: str) -> None:
    found = back(resolved("steps", 5), text, tmp_path).draft.values
    assert {"original_size", "target_size", "cut"} & found.keys() <= {"cut"}
    assert found.get("cut") is None
    assert (found["width"], found["height"]) == (512, 768)
    assert back(resolved("target_size", (9, 9)), text, tmp_path).draft.values["target_size"] == (9, 9)


def test_a_strength_without_an_initial_picture_says_nothing_of_one(tmp_path: Path) -> None:
    request = Request("a fox", strength=0.3).resolved(FACTS)
    for text in (CHUNK, PARAMETERS):
        assert back(request, text, tmp_path).said.init_image is None
    assert "strength" not in back(request, PARAMETERS, tmp_path).draft.values


def test_a_cut_that_only_the_method_brought_is_left_out(tmp_path: Path) -> None:
    asked = {"prompt": "a", "adapters": {"fox": 1.0, "hat": 1.0}, "composer": BY_NAME["composer"].default}
    request = Request(**asked, reuse=2).resolved(FACTS)
    assert back(request, CHUNK, tmp_path).draft.values["cut"] == "deep"
    request = Request(**{**asked, "composer": CMLoRA()}).resolved(FACTS)
    assert request.cut == "deep"
    for text in (CHUNK, PARAMETERS):
        found = back(request, text, tmp_path).draft
        assert "cut" not in found.values
        assert again(found, request).cut == "deep"
    other = dataclasses.replace(request, cut="published")
    for text in (CHUNK, PARAMETERS):
        assert back(other, text, tmp_path).draft.values["cut"] == "published"
