"""The pack prompt-control for ComfyUI: schedules, AND, functions and LoRA tags in a text."""

from __future__ import annotations

import re
from typing import Any

import pytest

from studio.pictures.comfyui import Graphed
from studio.pictures.comfyui_schedules import MOMENTS

from ...budget import cheap
from .comfy_graphs import node, read

CLIP = ["4", 1]


def encoded(text: str, kind: str = "PCLazyTextEncode", **more: Any) -> Graphed:
    return read({"6": node(kind, text=text, clip=CLIP, **more)})


def both(text: str, **more: Any) -> Graphed:
    """One text for the loader of LoRAs and for the prompt, as the pack's own workflows have it."""
    loader = "PCLazyLoraLoaderAdvanced" if more else "PCLazyLoraLoader"
    return read(
        {
            "20": node("PrimitiveStringMultiline", value=text),
            "10": node(loader, model=["4", 0], clip=CLIP, text=["20", 0], **more),
            "6": node("PCLazyTextEncode", text=["20", 0], clip=["10", 1]),
            "7": node("PCLazyTextEncode", text="blurry", clip=["10", 1]),
        },
        model=["10", 0],
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a [red:blue:0.5] fox", "a [red:blue:0.5] fox"),
        ("a [cat:.25]", "a [:cat:0.25]"),
        ("a [cat::1]", "a [cat::1.0]"),
        ("[a:b:c:0.3,0.7]", "[a:[b:c:0.7]:0.3]"),
        ("[b:c:0.3,0.7]", "[:[b:c:0.7]:0.3]"),
        ("[b:0.3,0.7]", "[:[b::0.7]:0.3]"),
        ("[a:b:c:0.3]", "[a:b:0.3]"),
        ("[a:[b:c:0.8]:0.4]", "[a:[b:c:0.8]:0.4]"),
        ("[SEQ:a:0.2:b:0.6] x", "[a:[b::0.6]:0.2] x"),
        ("a [dog:cat:HIRES]", "a dog"),
        ("a [cat:HIRES] x", "a x"),
        ("a [soft] light [b", r"a \[soft\] light \[b"),
        ("a] fox", r"a\] fox"),
        ("a fox # nobody reads this\nin snow", "a fox in snow"),
        (r"number \#1", "number #1"),
        ("cat :1 AND dog :3", "cat :0.25 AND dog :0.75"),
        ("cat AND dog :0", "cat"),
        ("one BREAK two CAT three", "one BREAK two BREAK three"),
    ],
)
def test_a_schedule_is_said_in_our_words(text: str, words: str) -> None:
    said = encoded(text)
    assert said.values["prompt"] == words
    assert set(said.notes) <= {MOMENTS}
    assert bool(said.notes) == bool(re.search(r":[01]\.\d+\]", words))


def test_alternation_is_told() -> None:
    said = encoded("a [cat|dog:0.2|x]")
    assert said.values["prompt"] == r"a \[cat|dog:0.2|x\]"
    said = encoded("a [cat|dog:0.2]")
    assert said.values["prompt"] == "a [cat|dog]"
    assert said.notes == ("prompt-control changes [a|b] with the noise; here it changes at every step",)


def test_steps_and_tags_of_the_advanced_node() -> None:
    said = encoded("[red:blue:5] [dog:cat:HIRES]", "PCLazyTextEncodeAdvanced", num_steps=20, tags="x, hires")
    assert said.values["prompt"] == "[red:blue:0.25] cat"
    said = encoded("a fox", "PCLazyTextEncodeAdvanced", num_steps=0, tags="", start=0.2, end=1.0)
    assert said.notes == ("left out: start=0.2 of PCLazyTextEncodeAdvanced (node 6)",)


def test_functions_are_left_out_and_told() -> None:
    said = encoded("STYLE(A1111) a (red:1.1) cat MASK(0 0.5, 0 1, (0.3)) AND COUPLE() dog", "PCTextEncode")
    assert said.values["prompt"] == "a (red:1.1) cat :0.5 AND dog :0.5"
    [note] = said.notes
    assert all(f"{name}() in the prompt of PCTextEncode" in note for name in ("STYLE", "MASK", "COUPLE"))


def test_loras_act_with_their_schedules() -> None:
    said = both("a fox <lora:x/all:0.5:0.25> [<lora:first:1>::0.5] [red:<lora:late:0.7>blue:0.3]")
    assert said.values["prompt"] == "a fox [red:blue:0.3]"
    found = {one.adapter: one for one in said.wanted}
    assert (found["all"].weight, found["all"].text_weight, found["all"].schedule) == (0.5, 0.25, None)
    points = {name: [*one.schedule.points] for name, one in found.items() if one.schedule}
    assert points["first"] == [(pytest.approx(0.5, abs=1e-5), 0.0)]
    assert points["late"] == [(0.0, 0.0), (pytest.approx(0.3, abs=1e-5), 1.0)]
    assert found["late"].text_scheduled
    assert said.notes == (MOMENTS,)
    [lora] = both("[<lora:a:1>:5]", num_steps=20, tags="", start=0.0, end=1.0).wanted
    assert lora.schedule is not None
    assert lora.schedule.points[1] == (pytest.approx(0.25, abs=1e-5), 1.0)


def test_tags_that_no_loader_reads_are_told() -> None:
    said = encoded("a fox <lora:x:1>")
    assert (said.values["prompt"], said.wanted) == ("a fox", ())
    assert said.notes == (
        "left out: the LoRA tags of PCLazyTextEncode (node 6), which no loader of the workflow reads",
    )


def test_the_packs_older_nodes() -> None:
    said = read(
        {
            "20": node("PromptToSchedule", text="a [red:blue:0.4] fox <lora:a:0.5>"),
            "10": node("ScheduleToModel", model=["4", 0], prompt_schedule=["20", 0]),
            "6": node("ScheduleToCond", clip=CLIP, prompt_schedule=["20", 0]),
        },
        model=["10", 0],
    )
    assert said.values["prompt"] == "a [red:blue:0.4] fox"
    assert [(one.adapter, one.weight, one.text_weight) for one in said.wanted] == [("a", 0.5, None)]
    assert said.notes == (MOMENTS,)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 15_000,
        "[a:" * 3_000 + "b" + ":0.5]" * 3_000,
        "[SEQ" + ":a:0.1" * 3_000 + "]",
        "STYLE((a)" * 2_000,
        "<lora:a:1:1:LBW=" * 1_000,
        "[<lora:a:1>:0.5]" * 1_000,
        "a AND " * 3_000,
        "\\" * 15_000,
        "[a|" * 5_000 + "]" * 5_000,
    ],
    ids=lambda text: text[:12],
)
def test_a_hostile_text_takes_little_time(text: str) -> None:
    with cheap():
        both(text)
