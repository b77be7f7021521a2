"""Requests as plain data: round trips, overriding, and errors that name entry and field."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from composers import Composite, Merge, Schedule, StudioError, Switch, Use
from pipelines import Request
from studio.recipe import USE_FIELDS, Draft, Wanted, plain_request, read_draft, read_requests


def built(draft: Draft) -> Request:
    return draft.build(lambda wanted: wanted.use(wanted.adapter, None), lambda prompt: prompt)


REQUESTS = [
    Request("a fox"),
    Request('odd: "quotes", commas,\nnew\tlines, 狐 🦊', negative_prompt="", seed=2**64 - 1),
    Request(
        "all",
        negative_prompt="none",
        adapters=[
            Use(
                "fox",
                0.1 + 0.2,
                0.5,
                (("mid_block", 1.0), ("up_blocks.1", 0.25)),
                Schedule(((0.0, 1.0), (0.5, 0.0))),
            ),
            Use("folder/hat", -1.5, band="low"),
            Use("lcm", 1.0, pinned=True),
        ],
        composer=Switch(interval=3, convention="code"),
        seed=7,
        steps=30,
        guidance_scale=6.0,
        guidance_rescale=0.7,
        width=512,
        height=768,
        scheduler="DPM++ 2M Karras",
        strength=0.5,
        clip_skip=1,
        text_mode="per_adapter",
        original_size=(1, 2),
        crop=(3, 4),
        target_size=(5, 6),
    ),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=["plain", "odd text", "every field"])
def test_a_request_survives_json(request_: Request) -> None:
    text = json.dumps(plain_request(request_))
    assert built(read_draft(json.loads(text), "here")) == request_


def test_a_wanted_adapter_can_say_all_that_a_use_can() -> None:
    assert tuple(field.name for field in fields(Wanted)) == USE_FIELDS


def test_a_draft_overrides_only_what_it_says() -> None:
    base = read_draft(
        {"prompt": "a", "seed": 1, "steps": 9, "adapters": {"fox": 0.5, "hat": 1.0}}, "file, entry 1"
    )
    flags = Draft({"steps": 4}, (Wanted("Hat", 0.2), Wanted("new", 0.3)))
    request = built(flags.over(base))
    assert (request.prompt, request.seed, request.steps) == ("a", 1, 4)
    assert request.uses == (Use("fox", 0.5), Use("hat", 0.2), Use("new", 0.3))
    assert flags.over(base).where == "file, entry 1"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"promt": "x"}, "unknown field 'promt'; did you mean 'prompt'?"),
        ({"prompt": 3}, "prompt=3 must be text"),
        ({"steps": 0}, "steps=0 must be a whole number in 1 … 1000"),
        ({"steps": "4"}, "steps='4' must be a whole number"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"composer": "swich"}, "composer: unknown method 'swich': did you mean 'switch'?"),
        ({"composer": {"method": "switch", "intervall": 3}}, "composer: switch has no setting 'intervall'"),
        ({"composer": 3}, "composer=3 must be text"),
        ({"adapters": "fox"}, 'adapters="fox" must be an object of strengths'),
        ({"adapters": {"fox": "strong"}}, 'adapters: fox: "strong" must be a number'),
        (
            {"adapters": [{"adapter": "fox", "wieght": 1}]},
            "adapters, entry 1: unknown field 'wieght'; did you mean",
        ),
        ({"adapters": [{"adapter": "fox", "schedule": [[1.5, 1]]}]}, "schedule starts [1.5]"),
        ({"adapters": [{"adapter": "fox", "blocks": 3}]}, "blocks=3 must be a list of pairs"),
        ({"adapters": ["fox", "FOX"]}, "stands twice"),
        ({"init_image": "nowhere.png"}, "init image"),
        ({"crop": [1]}, "crop"),
        ("a fox", "must be an object"),
    ],
)
def test_errors_name_the_entry_and_the_field(tmp_path: Path, entry: object, said: str) -> None:
    file = tmp_path / "many.json"
    file.write_text(json.dumps([{"prompt": "fine"}, entry]))
    with pytest.raises(StudioError) as caught:
        [built(draft) for draft in read_requests(file)]
    assert str(caught.value).startswith("many.json, entry 2")
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["", "[", "{}", "[]", '"x"'])
def test_a_file_that_is_no_list_of_requests(tmp_path: Path, text: str) -> None:
    file = tmp_path / "many.json"
    file.write_text(text)
    with pytest.raises(StudioError, match=r"many\.json"):
        read_requests(file)


def test_methods_as_text_and_as_objects() -> None:
    for value, method in (
        ("merge", Merge()),
        ("composite", Composite()),
        ("switch:interval=3", Switch(interval=3)),
        ({"method": "switch", "interval": 3}, Switch(interval=3)),
    ):
        assert built(read_draft({"composer": value}, "here")).composer == method
