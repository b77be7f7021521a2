"""The gate: what makes no sense is refused before any work, with the thing, the value and the remedy."""

from __future__ import annotations

import math
from typing import Any

import pytest
from PIL import Image

from composers import BLora, Composite, Schedule, StudioError, Switch, Use
from composers.plan import Step
from pipelines.families.family import SDXL, Defaults
from pipelines.request import Facts, Request

FACTS = Facts(
    label="small",
    defaults=Defaults(128, 96, "Euler", 20, 3.5),
    adapters=("Fox", "hat", "style"),
    size_unit=8,
    block_map={"@content": ("up_blocks.0",)},
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps=0 must be a whole number in 1"),
        ({"steps": 2.5}, "steps=2.5 must be a whole number"),
        ({"steps": True}, "steps=True"),
        ({"seed": -1}, "seed=-1"),
        ({"width": -8}, "width=-8"),
        ({"guidance_scale": math.nan}, "guidance_scale=nan must be a number"),
        ({"guidance_scale": -1.0}, "guidance_scale=-1.0"),
        ({"guidance_rescale": 1.5}, "guidance_rescale=1.5"),
        ({"strength": 2}, "strength=2"),
        ({"clip_skip": -1}, "clip_skip=-1"),
        ({"text_mode": "both"}, "text_mode='both' must be merged, first or per_adapter"),
        ({"composer": "switch"}, "must be a method such as Switch"),
        ({"scheduler": "Eular"}, "did you mean"),
        ({"adapters": {"fox": math.inf}}, "weight of adapter 'fox'=inf"),
        ({"adapters": [Use("fox"), Use("FOX")]}, "'FOX' stands twice"),
        ({"adapters": ["fox"]}, "a list of Use, found 'fox'"),
        ({"init_image": "picture.png"}, "must be a PIL image"),
        ({"crop": (1, 2, 3)}, "crop=\\(1, 2, 3\\)"),
        ({"negative_prompt": 3}, "must be text"),
        ({"negative_prompt": "a\ud800"}, r"negative_prompt: '\\ud800' at place 2 is half a character"),
        ({"negative_prompt": "a\0b"}, "holds a NUL character"),
        ({"negative_prompt": "a " * 10_001}, "negative_prompt has 20002 characters, more than 20000"),
        ({"negative_prompt": "a" * 1001}, "has 1001 characters without a space, more than 1000"),
        ({"negative_prompt": "!" * 1001}, "has 1001 characters without a space"),
        ({"adapters": {"\ud800": 1.0}}, "the name of an adapter: "),
        ({"adapters": {"a" * 1001: 1.0}}, "the name of an adapter has 1001 characters"),
        ({"adapters": {3: 1.0}}, "the name of an adapter=3 must be text"),
        ({"adapters": {f"a{n}": 1.0 for n in range(101)}}, "101 adapters are more than one picture may have"),
        ({"adapters": "fox"}, "found 'fox'"),
        ({"adapters": 7}, "found 7"),
        ({"adapters": [Use("fox", 101.0)]}, "weight of adapter 'fox'=101.0 must be a number in -100 … 100"),
        ({"adapters": [Use("fox", text_weight=-1e9)]}, "text_weight of adapter 'fox'"),
        ({"adapters": [Use("fox", blocks=(("mid_block", 1e6),))]}, "block 'mid_block' of adapter 'fox'"),
        ({"adapters": [Use("fox", blocks=(("\ud800", 1.0),))]}, "the name of a block of adapter 'fox'"),
        ({"adapters": [Use("fox", blocks=(("a", 1.0),) * 1001)]}, "1001 blocks of adapter 'fox'"),
        (
            {"adapters": [Use("fox", schedule=Schedule(tuple((n / 2000, 1.0) for n in range(1001))))]},
            "1001 moments of adapter 'fox'",
        ),
        ({"adapters": [Use("fox", schedule=Schedule(((0.5, 1e6),)))]}, "schedule of adapter 'fox' from 0.5"),
        ({"composer": BLora(content="\ud800")}, "blora: content: "),
        ({"scheduler": 5}, "scheduler=5 must be text"),
        ({"scheduler": "e" * 10_000}, "scheduler has 10000 characters"),
        ({"text_mode": ["merged"]}, "text_mode="),
        ({"guidance_scale": 10**400}, "guidance_scale="),
        ({"steps": 10**5000}, "steps=a number of about 49.. digits must be a whole number in 1"),
        ({"original_size": (10**30, 5)}, "original_size=.* must be two numbers of pixels in 0 … 65536"),
        ({"original_size": (-1, 5)}, "original_size"),
        ({"target_size": (True, 5)}, "target_size"),
        ({"target_size": (5, 65537)}, "target_size"),
        ({"target_size": 5}, "target_size=5 must be two whole numbers"),
        ({"crop": (0, 10**400)}, "crop"),
        ({"init_image": Image.new("1", (10_000, 8_001))}, "10000x8001 pixels, 80 million; at most 80"),
    ],
    ids=lambda value: value if isinstance(value, str) else " and ".join(value),
)
def test_refused_when_made(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StudioError, match=message):
        Request("a fox", **settings)


def test_what_a_request_may_hold_at_most() -> None:
    """The bounds themselves are legal: what was drawn with them is drawn again."""
    uses = [
        Use(f"a{n}", 100.0, -100.0, (("b" * 1000, 100.0),), Schedule(((0.0, -100.0),))) for n in range(100)
    ]
    Request("word " * 4000, negative_prompt="a" * 1000, adapters=uses)
    Request("狐" * 1000, crop=(-65536, 65536), original_size=(0, 65536), target_size=(65536, 0))


@pytest.mark.parametrize(
    "settings",
    [
        {"adapter": 3},
        {"weight": "1"},
        {"weight": 10**400},
        {"weight": True},
        {"weight": None},
        {"text_weight": "1"},
        {"blocks": ("mid_block",)},
        {"blocks": (("mid_block", "1"),)},
        {"band": ["high"]},
    ],
)
def test_a_use_of_other_types_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(StudioError, match="adapter"):
        Use(**({"adapter": "fox"} | settings))


@pytest.mark.parametrize("points", [((0.0,),), ((0.0, "1"),), (("0", 1.0),), ((math.nan, 1.0),), (5,)])
def test_a_schedule_of_other_types_is_refused(points: Any) -> None:
    with pytest.raises(StudioError, match="schedule"):
        Schedule(points)


def test_a_schedule_holds_each_factor_until_the_next() -> None:
    schedule = Schedule(((0.25, 0.5), (0.5, 0.0)))
    assert [schedule.factor(Step(index, 8, 1.0)) for index in range(8)] == [1, 1, 0.5, 0.5, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 100}, "width=100 must be a multiple of 8 pixels for small; try 96"),
        ({"adapters": {"foxx": 1.0}}, "'foxx' is not loaded: did you mean 'Fox'"),
        ({"adapters": {"zzz": 1.0}}, "load it with load_lora_weights"),
        ({"prompt": "a <lora:hats:1>"}, "did you mean 'hat'"),
        ({"prompt": "a <lora:hat:1>", "adapters": {"hat": 1.0}}, "'hat' stands twice"),
        ({"adapters": [Use("hat", blocks=(("@style", 1.0),))]}, "no map of its style blocks"),
        (
            {"steps": 2, "adapters": {"fox": 1, "hat": 1, "style": 1}, "composer": Switch()},
            "at least 3 steps",
        ),
        ({"init_image": Image.new("RGB", (64, 64)), "steps": 4, "strength": 0.2}, "leaves no step to run"),
    ],
    ids=lambda value: value if isinstance(value, str) else " and ".join(value),
)
def test_refused_for_the_model(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StudioError, match=message):
        Request(**({"prompt": "a fox"} | settings)).resolved(FACTS)


def test_open_questions_are_answered_by_the_model() -> None:
    resolved = Request("a fox").resolved(FACTS)
    assert (resolved.width, resolved.height, resolved.steps) == (128, 96, 20)
    assert (resolved.scheduler, resolved.guidance_scale) == ("Euler", 3.5)
    assert resolved.original_size == resolved.target_size == (96, 128)
    assert resolved.seed is not None
    assert 0 <= resolved.seed < 2**32


def test_what_is_given_stays() -> None:
    request = Request(
        "a fox", steps=7, seed=3, scheduler="k_euler_a", width=64, height=8, original_size=(1, 2)
    )
    resolved = request.resolved(FACTS)
    assert (resolved.steps, resolved.seed, resolved.width, resolved.height) == (7, 3, 64, 8)
    assert (resolved.scheduler, resolved.original_size, resolved.target_size) == ("Euler a", (1, 2), (8, 64))
    assert resolved.resolved(FACTS) == resolved


def test_names_are_found_whatever_their_case_and_tags_join_in() -> None:
    resolved = Request("a <lora:HAT:0.5> fox", adapters={"fox": 0.8}).resolved(FACTS)
    assert resolved.prompt == "a fox"
    assert resolved.uses == (Use("Fox", 0.8), Use("hat", 0.5))


def test_weight_zero_is_no_member() -> None:
    resolved = Request("a fox", adapters={"fox": 0.0, "hat": 1.0}, composer=Composite()).resolved(FACTS)
    assert resolved.uses == (Use("hat", 1.0),)
    assert len(resolved.plans()[0].lanes) == 2


def test_symbolic_blocks_become_the_models_own() -> None:
    resolved = Request("a fox", adapters=[Use("hat", blocks=(("@content", 0.5),))]).resolved(FACTS)
    assert resolved.uses[0].blocks == (("up_blocks.0", 0.5),)


def test_pinned_adapters_stand_in_every_lane_and_schedules_scale_the_gates() -> None:
    request = Request(
        "a fox",
        adapters=[
            Use("fox", 0.8),
            Use("hat", 0.5, schedule=Schedule(((0.5, 0.0),))),
            Use("style", 0.3, pinned=True),
        ],
        composer=Switch(interval=2),
        steps=8,
    ).resolved(FACTS)
    plans = request.plans()
    active = [[(use.adapter, use.weight) for use in plan.lanes[0].uses] for plan in plans]
    fox, hat, gone = ("Fox", 0.8), ("hat", 0.5), ("hat", 0.0)
    style = ("style", 0.3)
    assert active == [[turn, style] for turn in (fox, fox, hat, hat, fox, fox, gone, gone)]
    assert {plan.lanes[0].prompt.text_uses for plan in plans} == {
        (Use("Fox", 0.8), Use("hat", 0.5), Use("style", 0.3))
    }


def test_image_to_image_counts_the_steps_that_run() -> None:
    picture = Image.new("RGB", (70, 130))
    resolved = Request("a fox", init_image=picture, steps=10, strength=0.35).resolved(FACTS)
    assert resolved.executed_steps == 3
    assert (resolved.width, resolved.height) == (64, 128)
    assert len(resolved.plans()) == 3


def test_family_defaults_are_requests_that_stand() -> None:
    for family in (SDXL,):
        facts = Facts("big", family.defaults, (), 8, {})
        assert Request("a fox").resolved(facts).scheduler == family.defaults.scheduler
