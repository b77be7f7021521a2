"""Every field of a request, said by programs and by A1111's front ends, arrives in the draft as it was said."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from composers import CMLoRA, Merge, Switch
from composers.plan import Use
from composers.registry import settings_of, spell
from pipelines.errors import RequestError, StudioError
from pipelines.request import Request
from studio.drafts.draft import Draft
from studio.drafts.fields import FIELDS, Field
from studio.web.api import Functions, checked
from studio.web.arguments import FIRST, with_fields
from studio.web.sdapi.fields import read_asked

from ...loops import finished

ROOT = Path(__file__).resolve().parents[3]
USES = (Use("fox", 0.5, 0.25), Use("hat", -2.0))
BLOCKED = (Use("fox", 0.5, None, (("down_blocks", 0.5),), None, True),)


def values_of(field: Field) -> list[Any]:
    """Of the field, its extremes among them."""
    low, high = field.knob.low, field.knob.high
    return {
        "prompt": ["a fox", " (a:1.2) BREAK\nb "],
        "text": ["x"],
        "scheduler": ["Euler", "DPM++ 2M Karras"],
        "whole": [low, high, 7],
        "real": [low, high, 0.3, 1],
        "truth": [True, False],
        "choice": list(field.knob.choices),
        "pair": [(low, high), (0, 64)],
        "mix": [(), USES],
        "method": [Merge(), Switch(3), CMLoRA()],
        "picture": [],
    }[field.kind]


SAID = [(field, value) for field in FIELDS for value in values_of(field)]
NAMES = [f"{field.name}={value!r}"[:60] for field, value in SAID]


def built(draft: Draft) -> Request:
    return draft.build(lambda wanted: wanted.use(wanted.adapter, None))


def with_only(field: Field, value: Any) -> Request:
    return Request(**{"prompt": "a", "seed": 7, field.name: value})


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


class Listener:
    """In a worker's place: it keeps what it is asked for."""

    version = 0

    def __init__(self) -> None:
        self.drafts: list[Draft] = []

    def submit(self, owner: str, drafts: list[Draft], **rest: Any) -> str:
        self.drafts = drafts
        return "id"

    def head(self, id: str, owner: str) -> None:
        return None

    def view(self, id: str, owner: str, **rest: Any) -> None:
        return None


def function_of(name: str, listener: Listener | None = None) -> Any:
    """A function for programs, behind its gate."""
    functions = Functions(listener).all()  # type: ignore[arg-type]
    return checked(next(function for function in functions if function.__name__ == name))


def asked_of(name: str, **said: Any) -> list[Draft]:
    """What a function for programs would have drawn."""
    listener = Listener()
    with pytest.raises(RequestError, match="you have no job 'id'"):
        finished(function_of(name, listener)(**through_json(said)))
    return listener.drafts


def argument_of(field: Field, value: Any) -> Any:
    if field.kind == "method":
        return spell(value)
    if field.kind == "mix":
        return [
            f"{use.adapter}={use.weight}" + (f":{use.text_weight}" if use.text_weight else "")
            for use in value
        ]
    return value


@pytest.mark.parametrize(("field", "value"), SAID, ids=NAMES)
def test_an_argument_is_kept_as_it_is(field: Field, value: Any) -> None:
    said = {"prompt": "a", "seed": 7, field.argument: argument_of(field, value)}
    [draft] = asked_of("compose", **said)
    assert built(draft) == with_only(field, value)
    if field.kind != "method":
        drafts = asked_of("compare", **{"loras": [], "methods": ["merge", "switch:interval=3"], **said})
        assert [built(draft) for draft in drafts] == [
            replace(with_only(field, value), composer=method) for method in (Merge(), Switch(3))
        ]


def parameters(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function_of(name)).parameters


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_the_value_that_stands_for_nothing_says_nothing(field: Field) -> None:
    default = parameters("compose")[field.argument].default
    if field.name == "prompt":
        assert default is inspect.Parameter.empty
        return
    [draft] = asked_of("compose", **{"prompt": "a", "seed": 7, field.argument: default})
    assert built(draft) == Request("a", seed=built(draft).seed)
    assert default == (
        "merge" if field.kind == "method" else None if field.kind == "mix" else through_json(field.empty)
    )


def test_guidance_below_its_range_is_the_models_own_and_other_numbers_are_refused() -> None:
    [draft] = asked_of("compose", prompt="a", guidance_scale=-5)
    assert "guidance_scale" not in draft.values
    [draft] = asked_of("compose", prompt="a", steps=-5)
    with pytest.raises(RequestError, match="steps=-5 must be a whole number"):
        built(draft)


def test_a_picture_to_start_from_is_an_uploaded_file(tmp_path: Path) -> None:
    [draft] = asked_of("compose", prompt="a", init_image={"path": str(tmp_path / "a.png")}, strength=0.25)
    assert (draft.images["init_image"], draft.values["strength"]) == (tmp_path / "a.png", 0.25)
    for wrong in ("a.png", 5, {}, {"path": 5}):
        with pytest.raises(RequestError, match="init_image"):
            finished(function_of("compose")(prompt="a", init_image=wrong))


@pytest.mark.parametrize("wrong", [5, "1,2", [1], [1, 2, 3], [1.5, 2], [True, 1], ["1", "2"], {"a": 1}])
def test_a_pair_is_a_list_of_two_whole_numbers(wrong: Any) -> None:
    with pytest.raises(RequestError, match=r"crop=.* must be a "):
        finished(function_of("compose")(prompt="a", crop=wrong))


def test_what_programs_give_by_place_stays_there_and_everything_is_explained() -> None:
    for name in ("compose", "compare"):
        found = parameters(name)
        first = [argument for argument in FIRST if argument in found]
        assert list(found)[: len(first)] == first
        assert list(found)[-1] == "request"
        for argument in list(found)[:-1]:
            assert f"\n    {argument}: " in (inspect.getdoc(function_of(name)) or "")


def test_a_docstring_keeps_its_summary_and_what_is_returned() -> None:
    @with_fields(without=("prompt",))
    async def draw(**said: Any) -> dict[str, Any]:
        """Draw.

        Returns:
            A picture.
        """
        return said

    told = inspect.getdoc(draw) or ""
    assert told.startswith("Draw.\n\nArgs:\n    loras: ")
    assert told.endswith("Returns:\n    A picture.")
    assert "prompt" not in inspect.signature(draw).parameters


def plain(field: Field, value: Any) -> Any:
    """As a requests file holds it."""
    if field.kind == "method":
        return {"method": value.name, **settings_of(value)}
    if field.kind == "mix":
        return [
            {"adapter": use.adapter, "weight": use.weight, "text_weight": use.text_weight} for use in value
        ]
    return value


def drawn(body: Mapping[str, Any]) -> Request:
    asked = read_asked(through_json({"prompt": "a", "seed": 7, **body}), with_image=False)
    [draft] = asked.drafts({})
    return built(draft)


def by_script(*args: Any) -> dict[str, Any]:
    return {"alwayson_scripts": {"LoRA Studio": {"args": list(args)}}}


SCRIPTED = [
    (field, value) for field, value in SAID if field.name not in ("prompt", "seed", "init_image", "mask")
]


@pytest.mark.parametrize(
    ("field", "value"), SCRIPTED, ids=[f"{field.name}={value!r}"[:60] for field, value in SCRIPTED]
)
def test_our_script_says_every_field_that_a1111s_own_fields_do_not(field: Field, value: Any) -> None:
    assert drawn(by_script({field.name: plain(field, value)})) == with_only(field, value)
    if field.kind != "method":
        both = by_script("switch:interval=3", {field.name: plain(field, value)})
        assert drawn(both) == replace(with_only(field, value), composer=Switch(3))


@pytest.mark.parametrize(("field", "value"), SAID, ids=NAMES)
def test_a1111s_own_field_is_kept_as_it_is(field: Field, value: Any) -> None:
    if field.name == "strength":
        body = {"prompt": "a", "seed": 7, field.call: value, "init_images": [""]}
        assert built(read_asked(body, with_image=True).draft) == with_only(field, value)
    elif field.call:
        assert drawn({field.call: value}) == with_only(field, value)
    elif field.name == "scheduler":
        assert drawn({"sampler_name": value}) == with_only(field, value)


@pytest.mark.parametrize("field", [field for field in FIELDS if field.call], ids=lambda field: field.name)
def test_null_in_a1111s_fields_is_a_field_left_out(field: Field) -> None:
    body = {"prompt": "a", "seed": 7, "init_images": [""]}
    left_out = {name: value for name, value in body.items() if name != field.call}
    said, unsaid = (
        built(read_asked(one, with_image=True).draft) for one in ({**body, field.call: None}, left_out)
    )
    assert said == replace(unsaid, seed=said.seed)
    assert said.strength == 0.75


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_null_in_our_script_says_nothing(field: Field) -> None:
    if field.name not in ("prompt", "seed", "init_image", "mask"):
        assert drawn(by_script({field.name: None})) == drawn({})


def test_the_empty_negative_prompt_is_said_by_our_script() -> None:
    assert drawn({"negative_prompt": ""}).negative_prompt is None
    assert drawn({"negative_prompt": "x", **by_script({"negative_prompt": ""})}).negative_prompt == ""


def test_our_script_wins_over_fields_that_front_ends_always_send() -> None:
    request = drawn({"steps": 20, "width": 512, **by_script({"steps": 7})})
    assert (request.steps, request.width) == (7, 512)


def test_a_scripts_adapters_stand_before_those_of_tags() -> None:
    asked = read_asked(
        {"prompt": "a <lora:hat:0.5>", **by_script({"adapters": {"fox": 1.5}, "reuse": 3})}, with_image=False
    )
    drafts = asked.drafts({})
    assert [wanted.adapter for wanted in drafts[0].wanted] == ["fox", "hat"]
    assert (drafts[0].values["prompt"].strip(), asked.prompt) == ("a", "a <lora:hat:0.5>")
    scripted = by_script(
        {"adapters": [{"adapter": "fox", "weight": 0.5, "blocks": {"down_blocks": 0.5}, "pinned": True}]}
    )
    assert drawn(scripted).adapters == BLOCKED


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "args must be a method, an object with fields of a request, or both"),
        ([5], "args must be a method"),
        ([{"reuse": 3}, "switch"], "args must be a method"),
        (["switch", "merge"], "args must be a method"),
        (["swich"], "did you mean 'switch'"),
        (["switch", {"composer": "merge"}], "the method is given twice"),
        ([{"prompt": "b"}], "prompt is said by the field prompt"),
        ([{"seed": 5}], "seed is said by the field seed"),
        ([{"init_image": "/etc/passwd"}], "init_image is said by the field init_images of /sdapi/v1/img2img"),
        ([{"reus": 3}], "did you mean 'reuse'"),
        ([{"adapters": 5}], "adapters=5 must be an object of strengths"),
    ],
)
def test_what_our_script_does_not_take_is_refused(args: list[Any], said: str) -> None:
    with pytest.raises(StudioError, match="alwayson_scripts: LoRA Studio: ") as error:
        drawn(by_script(*args))
    assert said in str(error.value)


def test_our_script_stands_once() -> None:
    scripts = {"LoRA Studio": {"args": ["merge"]}, "lora studio": {"args": ["switch"]}}
    with pytest.raises(RequestError, match="stands there 2 times"):
        drawn({"alwayson_scripts": scripts})


def test_two_clip_skips_that_differ_are_refused() -> None:
    def skips(ours: int, a1111s: int) -> dict[str, Any]:
        return {"override_settings": {"CLIP_stop_at_last_layers": a1111s}, **by_script({"clip_skip": ours})}

    assert drawn(skips(1, 2)).clip_skip == 1
    assert drawn(skips(0, 1)).clip_skip == 0
    for ours, a1111s in ((2, 2), (1, 1)):
        with pytest.raises(RequestError, match="leave one of them out"):
            drawn(skips(ours, a1111s))
