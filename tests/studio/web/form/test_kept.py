"""The form that a browser keeps over a reload: put back as it stood, and whatever is another now is told."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from composers.plan import Schedule
from pipelines.home import Home
from studio.drafts.draft import Wanted
from studio.jobs.gate import Trust
from studio.library.scan import Library
from studio.web.form.form import Form
from studio.web.form.kept import UNREADABLE, PutBack, kept, put_back
from studio.web.form.mix import CUSTOM, MixRow

LATE = Wanted("nilo-fox", 1.0, blocks=(("mid", 0.5),), schedule=Schedule(((0.5, 0.0),)))
FORM = Form(
    values={
        "prompt": "a fox <lora:x:0.5>, ünder the sun",
        "negative_prompt": "",
        "seed": 2**64 - 1,
        "steps": 12,
        "guidance_scale": 4.5,
        "width": 64,
        "height": None,
        "scheduler": "DPM++ 2M Karras",
        "guidance_rescale": 0.2,
        "clip_skip": 0,
        "strength": 0.4,
        "crop": (5, 7),
    },
    method="switch",
    method_values={"interval": 3},
    rows=(
        MixRow("fox", weight=0.8, text_weight=0.5, before=1.2),
        MixRow("Hat", on=False, weight=-1, preset="style"),
        MixRow("nilo-fox", preset=CUSTOM, wanted=LATE),
        MixRow("owl", on=False, weight=None),
    ),
    count=3,
)


@pytest.fixture
def own(home: Path, sdxl_folder: Path, make_lora: Callable[..., Path]) -> Home:
    (home / "loras").mkdir(parents=True)
    for name, seed in (("fox", 1), ("hat", 2)):
        shutil.copy(make_lora(sdxl_folder, name, seed=seed), home / "loras")
    return Home.resolve(home, model_dirs=[sdxl_folder.parent])


def browser(form: Form, home: Home, model: str = "", user: str | None = None) -> Any:
    """What a browser holds after it kept the form."""
    return json.loads(json.dumps(kept(form, model, user, Library(lambda: home).cards())))


def reopened(value: object, home: Home, user: str | None = None) -> PutBack | None:
    return put_back(value, user, home, Trust(), Library(lambda: home).named)


def test_everything_comes_back_as_it_stood(own: Home, sdxl_folder: Path) -> None:
    model = sdxl_folder.name
    assert reopened(browser(FORM, own, model), own) == PutBack(FORM, model)
    assert reopened(browser(Form(), own), own) == PutBack(Form())
    assert reopened(None, own) is None


def test_the_initial_picture_is_left_out(own: Home) -> None:
    assert reopened(browser(replace(FORM, images={"init_image": "/tmp/x.png"}), own), own) == PutBack(FORM)


def test_a_lora_that_is_gone_is_told_and_switched_off(own: Home) -> None:
    held = browser(FORM, own)
    (own.path / "loras" / "fox.safetensors").unlink()
    back = reopened(held, own)
    assert back is not None
    assert back.form.rows == (MixRow("fox", on=False, weight=0.8, text_weight=0.5), *FORM.rows[1:])
    [note] = back.notes
    assert note == "LoRA 'fox' is not in the library any more; its row is switched off."
    assert reopened(browser(back.form, own), own) == PutBack(back.form)  # once told is enough


def test_a_lora_that_is_another_file_now_is_told(own: Home) -> None:
    held = browser(FORM, own)
    os.utime(own.path / "loras" / "hat.safetensors", (1, 1))
    assert reopened(held, own) == PutBack(
        FORM, notes=("LoRA 'Hat' is another file now than when it was put into this mix.",)
    )


def test_a_model_and_a_vae_that_are_gone_are_told_and_left(own: Home) -> None:
    back = reopened(browser(replace(FORM, vae="soft"), own, "juggernut"), own)
    assert back is not None
    assert (back.form, back.model) == (FORM, "")
    assert ["juggernut" in note or "soft" in note for note in back.notes] == [True, True]


def test_it_belongs_to_whoever_is_logged_in(own: Home) -> None:
    held = browser(FORM, own, user="ann")
    assert reopened(held, own, "bob") is None
    assert reopened(held, own) is None
    assert reopened(held, own, "ann") == PutBack(FORM)


@pytest.mark.parametrize(
    "broken",
    [
        {"format": 0}, {"format": 3}, {"values": 3}, {"values": ["prompt"]}, {"count": True}, {"method": "swich"},
        {"method_values": {"interval": -3}}, {"method_values": 5}, {"rows": None}, {"rows": [1]}, {"vae": None},
        {"rows": [{"name": "fox"}]}, {"model": 3}, {"count": 1e999}, {"values": {"prompt": "a" * 100_001}},
        {"values": {"guidance_scale": float("nan")}}, {"values": {"prompt": "\ud800"}},
        {"rows": [{"name": f"a{n}"} for n in range(10_000)]}, {"method_values": {"x": [[[[[[[[[[[1]]]]]]]]]]]}},
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_and_the_form_begins_anew(own: Home, broken: dict[str, Any]) -> None:
    assert reopened({**browser(FORM, own), **broken}, own) == PutBack(Form(), notes=(UNREADABLE,))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", "x"), ("seed", [1]), ("prompt", None), ("prompt", 5), ("scheduler", "Eule"), ("width", 1e9),
        ("width", 10**400), ("cut", "shallow"), ("crop", [1, 2, 3]), ("crop", {"a": 1}), ("strength", None),
        ("guidance_scale", "7"), ("composer", "switch"), ("adapters", {"fox": 1}), ("init_image", "/etc/passwd"),
        ("glow", 3),
    ],
)  # fmt: skip
def test_a_value_of_another_version_is_told_and_left_out(own: Home, name: str, value: object) -> None:
    held = browser(FORM, own)
    held["values"][name] = value
    back = reopened(held, own)
    assert back is not None
    assert dict(back.form.values) == {n: v for n, v in FORM.values.items() if n != name}
    assert replace(back.form, values=FORM.values) == FORM
    [note] = back.notes
    assert "left out" in note


def test_what_another_version_did_not_keep_is_as_in_an_empty_form(own: Home) -> None:
    assert reopened({"format": 2, "user": "", "model": ""}, own) == PutBack(Form())


@pytest.mark.parametrize(
    "broken",
    [
        {"weight": "1"}, {"on": 1}, {"preset": "nowhere"}, {"wanted": {"adapter": "fox", "no": 1}}, {"name": "HAT"},
        {"wanted": {"adapter": "fox", "schedule": 3}}, {"weight": float("nan")}, {"text_weight": float("inf")},
    ],
)  # fmt: skip
def test_nor_can_a_row_be_of_anything(own: Home, broken: dict[str, Any]) -> None:
    held = browser(FORM, own)
    held["rows"][0] |= broken
    assert reopened(held, own) == PutBack(Form(), notes=(UNREADABLE,))


FIRST = {
    "format": 1, "user": "", "model": "", "prompt": "", "negative": "", "method": "merge", "seed": -1, "count": 1,
    "steps": 0, "guidance": -1.0, "width": 0, "height": 0, "scheduler": "the model's own", "rescale": 0.0,
    "clip_skip": 0, "strength": 0.8, "vae": "", "method_values": {}, "rows": [],
}  # fmt: skip
"""A form of format 1 in which nothing is said."""


@pytest.mark.parametrize(
    ("old", "form"),
    [
        ({}, Form()),
        ({"seed": -5, "guidance": -0.5}, Form()),
        ({"seed": 0, "guidance": 0}, Form({"seed": 0, "guidance_scale": 0.0})),
        ({"negative": "rain", "clip_skip": 2}, Form({"negative_prompt": "rain", "clip_skip": 2})),
        ({"method": "switch"}, Form(method="switch")),
        ({"method_values": {"x": 1}}, Form(method="merge", method_values={"x": 1})),
        ({"count": 4}, Form(count=4)),
    ],
)
def test_a_form_of_format_1_means_what_it_meant(own: Home, old: dict[str, Any], form: Form) -> None:
    assert reopened({**FIRST, **old}, own) == PutBack(form)


@pytest.mark.parametrize(
    "broken",
    [
        {"prompt": None},
        {"seed": "7"},
        {"guidance": 10**400},
        {"width": 1e999},
        {"method": "swich"},
        {"rows": 3},
    ],
)
def test_a_form_of_format_1_that_cannot_be_read_is_told(own: Home, broken: dict[str, Any]) -> None:
    assert reopened({**FIRST, **broken}, own) == PutBack(Form(), notes=(UNREADABLE,))


@pytest.mark.parametrize("nothing", [3, "text", [], {}, {"format": 1}, {"format": 2}])
def test_nor_can_anything_else(own: Home, nothing: object) -> None:
    assert reopened(nothing, own) == PutBack(Form(), notes=(UNREADABLE,))
