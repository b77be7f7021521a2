"""LoRA loaders whose rows hold links, lists and JSON, and tags with strengths by block."""

from __future__ import annotations

import json
from typing import Any

import pytest

from studio.pictures.comfyui import Graphed

from .comfy_graphs import node, read

MODEL, CLIP = ["4", 0], ["4", 1]
UNKNOWN = "the strength of LoRA 'a' is not understood"
BLOCKS = "the strengths by block (LBW=) of LoRA tags are left out"
BY_BLOCK = (
    "B11:0,0,0,0,0,0,0,0,0,0,A,0,0,0,0,0,0;A=0.;",
    "0,0,0,0,0,0,0,0,0,0,A,B,0,0,0,0,0;A=0.5;B=0.2;",
    "0,0,0,0,0,0,0,0,0,0,1,1,0,0,0,0,0",
    "SD-MIDD;",
)


def through(kind: str, inputs: dict[str, Any], **more: Any) -> Graphed:
    encoders = {name: node("CLIPTextEncode", text="a fox", clip=["10", 1]) for name in ("6", "7")}
    loader = node(kind, model=MODEL, clip=CLIP, **inputs)
    return read({"10": loader, **encoders, **more}, model=["10", 0])


def loras(said: Graphed) -> list[tuple[str, float | None, float | None]]:
    return [(one.adapter, one.weight, one.text_weight) for one in said.wanted]


@pytest.mark.parametrize(
    ("row", "right", "notes"),
    [
        ({"on": True, "strength": ["30", 0]}, [("a", 0.7, None)], ()),
        ({"on": True, "strength": 0.8, "strengthTwo": ["30", 0]}, [("a", 0.8, 0.7)], ()),
        ({"on": True, "strength": 0.8, "strengthTwo": ["31", 0]}, [("a", 0.8, None)], (UNKNOWN,)),
        ({"on": True, "strength": [0.8, 0.4]}, [("a", None, None)], (UNKNOWN,)),
        ({"on": ["32", 0], "strength": 1}, [], ()),
        ({"strength": 1}, [], ()),
    ],
    ids=["linked", "second linked", "second unknown", "a list", "linked off", "not on"],
)
def test_rows_of_rgthrees_power_loader(row: dict[str, Any], right: list[Any], notes: tuple[str, ...]) -> None:
    more = {
        "30": node("PrimitiveFloat", value=0.7),
        "31": node("Ask Somebody", own={"x": 1}),
        "32": node("PrimitiveBoolean", value=False),
    }
    said = through("Power Lora Loader (rgthree)", {"lora_1": {"lora": "a.safetensors", **row}}, **more)
    assert (loras(said), said.notes) == (right, notes)


def test_the_bundle_of_super_lora() -> None:
    rows = [
        {"lora": "x/a.safetensors", "enabled": True, "strength": 0.75, "strengthClip": 0.25},
        {"lora": "off.safetensors", "enabled": False, "on": True, "strength": 1},
        {"lora": "unsaid.safetensors", "strength": 1},
        {"lora": "b.safetensors", "on": True, "strength": "0.5", "strengthTwo": "0.1"},
        {"lora": "c.safetensors", "enabled": True, "strengthModel": 1},
    ]
    said = through("NdSuperLoraLoader", {"lora_bundle": json.dumps(rows)})
    assert loras(said) == [("a", 0.75, 0.25), ("b", 0.5, 0.1), ("c", 1.0, None)]
    assert said.notes == ()
    said = through("NdSuperLoraLoader", {"lora_bundle": "[{"})
    assert said.notes == ("1 LoRA loader not understood: NdSuperLoraLoader (node 10)",)


def test_of_a_switch_of_loras_the_chosen_one_counts() -> None:
    inputs = {"toggle": True, "select": 2, "num_loras": 3, "lora_strength": 0.7}
    files = {f"lora_{place}_name": f"{name}.safetensors" for place, name in enumerate("abc", 1)}
    said = through("easy loraSwitcher", inputs | files)
    assert (loras(said), said.notes) == ([("b", 0.7, None)], ())


def test_a_node_that_names_the_file_is_no_loader_that_is_not_understood() -> None:
    more = {
        "40": node("mxSlider", Xi=1, Xf=0.65, isfloatX=1),
        "41": node("easy loraNames", lora_name="a.safetensors"),
    }
    inputs = {"lora_name": ["41", 0], "strength_model": ["40", 0], "strength_clip": 1.0}
    said = through("LoraLoader", inputs, **more)
    assert (loras(said), said.notes) == ([("a", 0.65, 1.0)], ())


@pytest.mark.parametrize("blocks", BY_BLOCK)
@pytest.mark.parametrize(
    ("strengths", "right"), [("", ""), (":0.8", ":0.8"), (":1.0:0.5", ":te=0.5:unet=1.0")]
)
def test_strengths_by_block_in_a_tag_are_told_and_the_others_keep_their_order(
    blocks: str, strengths: str, right: str
) -> None:
    tag = f"<lora:chars/li{strengths}:LBW={blocks}>"
    encoder = node(
        "ImpactWildcardEncode", wildcard_text="x", populated_text=f"a fox {tag}", clip=CLIP, model=MODEL
    )
    said = read({"6": encoder}, model=["6", 0])
    assert (said.values["prompt"], said.notes) == (f"a fox <lora:li{right}>", (BLOCKS,))


@pytest.mark.parametrize("blocks", BY_BLOCK)
def test_strengths_by_block_in_a_loaders_tags_are_told(blocks: str) -> None:
    said = through("LoraTagLoader", {"text": f"a fox <lora:li:0.8:0.4:LBW={blocks}>"})
    assert (loras(said), said.notes) == ([("li", 0.8, 0.4)], (BLOCKS,))
