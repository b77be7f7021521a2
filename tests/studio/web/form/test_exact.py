"""What was said goes through the form and back unchanged: every field, every value, on every road."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from composers import methods
from composers.plan import Schedule
from pipelines.errors import RequestError
from pipelines.home import Home
from pipelines.schedulers import scheduler_names
from pipelines.text.tags import PARTS, PRESETS
from studio.drafts.draft import Draft, Wanted
from studio.drafts.fields import FIELDS, Field, of_kind
from studio.drafts.input_images import mask_mark, stored_mask
from studio.jobs.gate import Trust
from studio.web.form import mix
from studio.web.form.components import Fields, control, picture_control, shown
from studio.web.form.form import VALUES, Form, draft_of, form_of, is_proper
from studio.web.form.kept import kept, put_back


def values_of(field: Field) -> list[Any]:
    """Values that a request takes: nothing, 0, an empty text, the default, the ends, and some between."""
    low, high = field.knob.low or 0, 1000 if field.knob.high is None else field.knob.high
    between: dict[str, list[Any]] = {
        "whole": [low, low + 1, high, high - 1, 7, 64, 2**53 + 1],
        "real": [float(low), float(high), 0.8, 0.333, 0.1 + 0.2, 1 / 3, 7, 7.0],
        "pair": [(0, 0), (1024, 768), (-5, 3), (int(high), int(high))],
        "choice": [*field.knob.choices],
        "truth": [True, False],
        "scheduler": ["model", "euler", "DPM++ 2M Karras", *scheduler_names()[:2]],
        "text": ["", "a", " a "],
        "prompt": ["", "a fox", "a\r\nfox", "a\nfox ", " ", "\\<x>", "ü (fox:1.2)"],
    }
    wanted = [None, 0, "", field.default, field.empty, *between[field.kind]]
    return [value for value in wanted if is_proper(field, value)]


CASES = [(field.name, value) for field in VALUES for value in values_of(field)]
MIXES = (
    Wanted("fox"),
    Wanted("fox", 0.8),
    Wanted("fox", 1.0, 0.0),
    Wanted("fox", None, 0.3, pinned=True, band="low"),
    Wanted("fox", 0.123456789, schedule=Schedule(((0.0, 0.5), (12, 1.0)))),
    Wanted("fox", 55.5, blocks=(("mid_block", 0.5), ("@content", 1.0))),
    Wanted("fox", 0.8, 0.0, (("@content", 1.0),)),
    Wanted("fox", 0.8, None, (("@content", 1.0),)),
    Wanted("fox", 0.8, 0.4, (("@style", 1.0),)),
    Wanted("fox", None, 0.0, (("@style", 1.0),), Schedule(((0.5, 0.0),))),
    Wanted("fox", 0.8, 0.0, (("@IN07", 1.0),)),
    Wanted("fox", 0.8, 0.0, (("mid_block", 0.0),)),
    Wanted("fox", 0.8, 1.0, (("@1,0,0.5", 1.0),)),
    *(Wanted("fox", 0.8, text, PRESETS[name][0]) for name in PRESETS for text in (None, 0.0, 0.5)),
)


@pytest.fixture(scope="module")
def page() -> Fields:
    """The form's components, on no page."""
    with gr.Blocks():
        return Fields(
            {field.name: control(field) for field in VALUES},
            gr.Radio(list(methods())), gr.State({}), gr.State(()), gr.State(0),
            {field.name: picture_control(field) for field in of_kind("picture")}, gr.Accordion(),
            gr.Slider(1, 16, 1), gr.Dropdown(["", "soft"], value=""), gr.State(Form()),
        )  # fmt: skip


Road = Callable[[Form], Form]


def on_page(page: Fields, form: Form) -> dict[Any, Any]:
    """What the page holds after a form was put on it, and sends back: a browser's numbers, its ends of lines."""
    return {
        component: _sent(component, told) for component, told in page.filled(form, 0, lambda f: f).items()
    }


def _sent(component: Any, told: Any) -> Any:
    if isinstance(told, dict) and told.get("__type__") == "update":
        component, told = type(component)(maximum=told["maximum"]), told["value"]
    if isinstance(component, gr.State | gr.Image):
        return told
    if isinstance(component, gr.Textbox):
        told = told.replace("\r\n", "\n")
    seen = json.loads(json.dumps(component.postprocess(told)), parse_int=_as_javascript)
    return component.preprocess(seen)


def _as_javascript(text: str) -> int:
    """A number goes through a float, which is written with as few digits as tell it from others."""
    return int(Decimal(repr(float(text))))


def kept_in_browser(form: Form, tmp_path: Path) -> Form:
    held = json.loads(json.dumps(kept(form, "", None, ())), parse_int=_as_javascript)
    back = put_back(held, None, Home(tmp_path), Trust(), lambda names: ())
    assert back is not None
    assert [note for note in back.notes if "library" not in note] == []
    return replace(back.form, rows=tuple(replace(row, on=True) for row in back.form.rows))


@pytest.fixture(params=["form", "page", "browser", "all"])
def road(request: pytest.FixtureRequest, page: Fields, tmp_path: Path) -> Road:
    """A way that a form goes."""
    return {
        "form": lambda form: form,
        "page": lambda form: page.read(on_page(page, form)),
        "browser": lambda form: kept_in_browser(form, tmp_path),
        "all": lambda form: page.read(
            on_page(page, kept_in_browser(page.read(on_page(page, form)), tmp_path))
        ),
    }[request.param]


def test_every_field_comes_back_as_it_was_said(road: Road) -> None:
    assert {name for name, _ in CASES} == {field.name for field in VALUES}
    for name, value in CASES:
        draft = Draft({name: value})
        back = draft_of(road(form_of(draft)))
        assert back == draft, (name, value)
        assert type(back.values[name]) in (type(value), int), (name, value)


def test_so_do_all_of_them_at_once_and_none_of_them(road: Road) -> None:
    for place in range(max(len(values_of(field)) for field in VALUES)):
        chosen = {field.name: values_of(field)[place % len(values_of(field))] for field in VALUES}
        draft = Draft(chosen, MIXES[:1])
        assert draft_of(road(form_of(draft))) == draft
    assert draft_of(road(form_of(Draft()))) == Draft()


def test_every_method_comes_back_and_none_that_was_not_said(road: Road) -> None:
    for name, kind in methods().items():
        draft = Draft({"composer": kind()})
        assert draft_of(road(form_of(draft))) == draft, name


def test_every_adapter_comes_back_as_it_was_wanted(road: Road) -> None:
    for wanted in MIXES:
        draft = Draft({"prompt": "a fox"}, (wanted, replace(wanted, adapter="hat", weight=-1.0)))
        assert draft_of(road(form_of(draft))) == draft, wanted


def test_an_initial_picture_comes_back_by_its_own_path(page: Fields, tmp_path: Path) -> None:
    start, copy = tmp_path / "start.png", tmp_path / "copy.png"
    start.write_bytes(b"a picture")
    copy.write_bytes(b"a picture")
    draft = Draft({"strength": 0.8}, images={"init_image": start})
    filled = page.filled(form_of(draft), 0, lambda file: copy)
    assert filled.pop(page.panel).open
    got = {component: _sent(component, told) for component, told in filled.items()}
    assert got[page.images["init_image"]] == str(copy)
    assert draft_of(page.read(got)) == draft
    copy.write_bytes(b"b picture")
    assert page.read(got).images == {"init_image": str(copy)}
    assert page.read({**got, page.images["init_image"]: None}).images == {}


def test_a_mask_that_came_as_text_comes_back_as_it_was(page: Fields, tmp_path: Path) -> None:
    mask = stored_mask(mask_mark(Image.new("L", (8, 8), 255)))
    assert mask is not None
    draft = Draft({"mask_blur": 8}, images={"mask": mask})
    copy = tmp_path / "mask.png"
    copy.write_bytes(mask.data)
    filled = page.filled(form_of(draft), 0, lambda source: copy)
    assert filled.pop(page.panel).open
    got = {component: _sent(component, told) for component, told in filled.items()}
    assert got[page.images["mask"]] == str(copy)
    assert draft_of(page.read(got)) == draft


def test_a_picture_that_is_gone_is_forgotten(page: Fields, tmp_path: Path) -> None:
    form = Form(images={"init_image": str(tmp_path / "gone.png")})
    assert page.read(on_page(page, form)) == Form()
    assert page.read({k: _sent(k, v) for k, v in page.filled(form, 0).items()}) == Form()


@pytest.mark.parametrize(
    ("name", "brought", "held", "said"),
    [
        ("negative_prompt", "", "rain", "rain"), ("negative_prompt", "rain", "", None), ("steps", 12, 0, None),
        ("steps", None, 12, 12), ("steps", 999, 999, 999), ("steps", 5, 12.0, 12), ("seed", 2**64 - 1, 3, 3),
        ("seed", 7, None, None), ("guidance_scale", 7.5, -1, None), ("guidance_scale", None, 0, 0.0),
        ("guidance_rescale", 0.0, 0.3, 0.3), ("guidance_rescale", 0.3, 0, None), ("clip_skip", None, 0, 0),
        ("crop", (0, 0), "5, 7", (5, 7)), ("crop", (5, 7), "", None), ("target_size", None, "64x96", (64, 96)),
        ("cut", "deep", "", None), ("text_mode", "first", "per_adapter", "per_adapter"),
        ("scheduler", "euler", "Euler a", "Euler a"), ("scheduler", "model", "Euler", "Euler"),
        ("width", 64, 96, 96), ("reuse", 3, 0, None),
    ],
)  # fmt: skip
def test_a_control_that_was_changed_gives_what_stands_in_it(
    page: Fields, name: str, brought: Any, held: Any, said: Any
) -> None:
    others = {"prompt": "a fox", "negative_prompt": ""}
    got = on_page(page, Form({**others, name: brought}))
    form = page.read({**got, page.controls[name]: held})
    assert form.said(name) == said
    assert (name in form.values) == (said is not None)
    assert form.saying(**{name: 1}).values == {**others, name: 1}


def test_what_is_no_value_is_refused_by_name(page: Fields) -> None:
    got = on_page(page, Form())
    for name, held in (
        ("crop", "1024"), ("target_size", "wide"), ("seed", 1.5), ("steps", "7"), ("guidance_scale", float("nan")),
        ("width", 10**400), ("steps", True),
    ):  # fmt: skip
        with pytest.raises(RequestError, match=name):
            page.read({**got, page.controls[name]: held})


def test_a_field_without_a_control_rides_along_unseen(page: Fields) -> None:
    bare = replace(page, controls={"prompt": page.controls["prompt"]})
    form = Form({"prompt": "a fox", "crop": (5, 7), "cut": "deep"})
    got = on_page(bare, form)
    assert bare.read(got) == form
    assert bare.read({**got, bare.controls["prompt"]: "an owl"}) == form.saying(prompt="an owl")


def test_clearing_forgets_what_was_brought(page: Fields) -> None:
    got = on_page(
        page, form_of(Draft({"negative_prompt": "", "cut": "deep", "composer": methods()["switch"]()}))
    )
    got |= {component: _sent(component, told) for component, told in page.filled(Form(), 1).items()}
    assert draft_of(page.read(got)) == Draft()


def test_every_field_has_a_control_with_its_words_and_choices() -> None:
    for field in VALUES:
        made = control(field)
        assert made.label == field.knob.label
        assert made.info.startswith(field.knob.help)
        assert made.value == shown(field, None)
        if field.kind == "choice":
            assert [value for _, value in made.choices][-len(field.knob.choices) :] == list(
                field.knob.choices
            )
    assert {field.name for field in FIELDS} - {field.name for field in VALUES} == {
        "composer", "adapters", "init_image", "mask"
    }  # fmt: skip


def test_a_preset_is_a_symbolic_block_both_ways() -> None:
    for preset in mix.PRESETS:
        row = mix.MixRow("fox", weight=0.7, text_weight=None, preset=preset)
        asked = row.asked()
        assert asked.blocks == (((f"@{preset}", 1.0),) if preset else ())
        assert asked.text_weight == (0.0 if preset in PARTS else None)
        assert mix.row_of(asked).preset == preset
        assert mix.row_of(asked).text_weight is None


@pytest.mark.parametrize(
    "tag",
    [
        "<lora:fox>", "<lora:fox:0.8>", "<lora:fox:0.5:0.8>", "<lora:fox:0.8:lbw=OUTALL>", "<lora:fox:1:lbw=content>",
        "<lora:fox:1:lbw=1,0,0.5>", "<lora:fox:0.8:step=0.2-0.6>", "<lora:fox:0.8:step=1@0,0.5@12>",
        "<lora:fox:1:lbw=mid_block@1,up_blocks.1@0.5>",
    ],
)  # fmt: skip
def test_a_tag_and_the_row_it_becomes_ask_for_the_same(tag: str) -> None:
    prompt, rows = mix.taken_from(f"a fox, {tag}", ())
    assert prompt == "a fox"
    typed = draft_of(Form({"prompt": f"a fox, {tag}"}))
    assert draft_of(Form({"prompt": prompt}, rows=rows)) == typed
    assert draft_of(form_of(typed)) == typed


def test_a_strength_that_is_left_to_the_file_stays_so_until_it_is_moved() -> None:
    rows = (mix.row_of(Wanted("Fox")), mix.row_of(Wanted("hat", 0.5)))
    assert mix.changed(rows, 0, text_weight=0.3)[0].asked().weight is None
    assert mix.changed(rows, 0, weight=1.0)[0].asked().weight == 1.0
    assert [row.weight for row in mix.preferring(rows, {"fox": 0.7, "hat": 0.9})] == [0.7, 0.5]
    assert mix.preferring(rows, {"fox": None}) == rows
    assert mix.scaled(rows[0], 1).weight is None
    assert mix.total(rows) == 1.5
