"""Pictures of ComfyUI that hold the drawn workflow alone: well-known nodes are read, the rest is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from studio.pictures.comfyui import DRAWN, Graphed, read_comfyui

WIDGETS = {
    "CheckpointLoaderSimple": ["m.safetensors"],
    "EmptyLatentImage": [640, 512, 1],
    "KSampler": [2**53 + 1, "randomize", 25, 5.5, "dpmpp_2m", "karras", 1],
    "SaveImage": ["ComfyUI"],
    "VAEDecode": [],
}
INPUTS: dict[str, list[tuple[str, str]]] = {
    "KSampler": [
        ("model", "MODEL"),
        ("positive", "CONDITIONING"),
        ("negative", "CONDITIONING"),
        ("latent_image", "LATENT"),
    ],
    "CLIPTextEncode": [("clip", "CLIP")],
    "LoraLoader": [("model", "MODEL"), ("clip", "CLIP")],
    "VAEDecode": [("samples", "LATENT"), ("vae", "VAE")],
    "SaveImage": [("images", "IMAGE")],
    "Reroute": [("", "*")],
    "SetNode": [("MODEL", "MODEL")],
}
OUTPUTS = {"LoraLoader": ["MODEL", "CLIP"], "CheckpointLoaderSimple": ["MODEL", "CLIP", "VAE"]}


class Drawing:
    """A drawn workflow that is being made."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.links: list[list[Any]] = []

    def add(
        self,
        number: int,
        kind: str,
        *sources: tuple[int, int] | None,
        values: Any = None,
        mode: int = 0,
        names: tuple[str, ...] = (),
    ) -> int:
        inputs = []
        for place, (name, sort) in enumerate(
            INPUTS.get(kind, [(f"in{place}", "*") for place in range(len(sources))])
        ):
            link = None
            if place < len(sources) and (source := sources[place]) is not None:
                link = len(self.links) + 1
                self.links.append([link, source[0], source[1], number, place, sort])
            inputs.append({"name": name, "type": sort, "link": link})
        inputs += [{"name": name, "type": "X", "widget": {"name": name}, "link": None} for name in names]
        self.nodes.append(
            {
                "id": number,
                "type": kind,
                "mode": mode,
                "inputs": inputs,
                "outputs": [{"type": sort} for sort in OUTPUTS.get(kind, [])],
                "widgets_values": WIDGETS.get(kind, []) if values is None else values,
            }
        )
        return number

    def said(self, **more: Any) -> Graphed:
        found = read_comfyui(
            "a.png", {"workflow": json.dumps({"nodes": self.nodes, "links": self.links, **more})}
        )
        assert found is not None
        return found


def plain(
    model: tuple[int, int] = (4, 0), clip: tuple[int, int] = (4, 1), latent: tuple[int, int] = (5, 0)
) -> Drawing:
    made = Drawing()
    made.add(4, "CheckpointLoaderSimple")
    made.add(5, "EmptyLatentImage")
    made.add(6, "CLIPTextEncode", clip, values=["a fox"])
    made.add(7, "CLIPTextEncode", clip, values=["blurry"])
    made.add(3, "KSampler", model, (6, 0), (7, 0), latent)
    made.add(8, "VAEDecode", (3, 0), (4, 2))
    made.add(9, "SaveImage", (8, 0))
    return made


RIGHT = {
    "prompt": "a fox",
    "negative_prompt": "blurry",
    "steps": 25,
    "seed": 2**53 + 1,
    "guidance_scale": 5.5,
    "scheduler": "DPM++ 2M Karras",
    "width": 640,
    "height": 512,
}


def loras(said: Graphed) -> list[tuple[str, float | None, float | None]]:
    return [(one.adapter, one.weight, one.text_weight) for one in said.wanted]


def test_well_known_nodes_are_read_by_the_order_of_their_values() -> None:
    said = plain().said()
    assert (dict(said.values), said.model, said.notes) == (RIGHT, "m.safetensors", (DRAWN,))


def test_bypassed_and_muted_loaders_do_not_count() -> None:
    made = plain(model=(11, 0), clip=(11, 1))
    made.add(10, "LoraLoader", (4, 0), (4, 1), values=["a.safetensors", 0.5, 0.25])
    made.add(11, "LoraLoader", (10, 0), (10, 1), values=["b.safetensors", 1, 1], mode=4)
    assert (loras(made.said()), dict(made.said().values)) == ([("a", 0.5, 0.25)], RIGHT)
    made.nodes[-1]["mode"] = 2
    said = made.said()
    assert loras(said) == []
    assert "model not understood: KSampler (node 3) is given none that is known" in said.notes


def test_nodes_that_are_only_drawn_are_passed_through() -> None:
    made = plain(model=(22, 0))
    made.add(20, "Reroute", (4, 0))
    made.add(21, "SetNode", (20, 0), values=["model"])
    made.add(22, "GetNode", values=["model"])
    made.add(23, "PrimitiveNode", values=[77, "fixed"])
    made.add(24, "Note", values=["a note"])
    seed = {"name": "seed", "type": "INT", "widget": {"name": "seed"}, "link": 99}
    made.nodes[4]["inputs"].append(seed)
    made.links.append([99, 23, 0, 3, 4, "INT"])
    assert dict(made.said().values) == RIGHT | {"seed": 77}


def test_newer_workflows_name_their_values() -> None:
    made = plain(model=(10, 0), clip=(10, 1))
    made.add(
        10,
        "LoraLoader",
        (4, 0),
        (4, 1),
        values=[
            {"version": 1, "textWidgetName": "text"},
            "<lora:a:1>",
            [{"name": "a", "strength": 0.5, "clipStrength": 0.25, "active": True}],
        ],
    )
    made.nodes[-1]["type"] = "Lora Loader (LoraManager)"
    made.add(30, "My Own Latents", values=[320, 256], names=("width", "height"))
    made.links = [link if link[1] != 5 else [link[0], 30, *link[2:]] for link in made.links]
    said = made.said()
    assert loras(said) == [("a", 0.5, 0.25)]
    assert (said.values["width"], said.values["height"]) == (320, 256)


def test_rows_of_power_loaders() -> None:
    made = plain(model=(10, 0), clip=(10, 1))
    rows = [
        {},
        {"type": "x"},
        {"on": True, "lora": "a.safetensors", "strength": 0.5, "strengthTwo": None},
        {"on": False, "lora": "off.safetensors", "strength": 1},
        {},
        "",
    ]
    made.add(10, "LoraLoader", (4, 0), (4, 1), values=rows)
    made.nodes[-1]["type"] = "Power Lora Loader (rgthree)"
    assert loras(made.said()) == [("a", 0.5, None)]


def test_subgraphs_are_opened() -> None:
    made = plain(model=(40, 0))
    made.add(40, "one-of-mine", (4, 0), (4, 1))
    inner = {
        "id": "one-of-mine",
        "nodes": [
            {
                "id": 1,
                "type": "LoraLoader",
                "mode": 0,
                "widgets_values": ["a.safetensors", 0.5, 0.25],
                "inputs": [
                    {"name": "model", "type": "MODEL", "link": 1},
                    {"name": "clip", "type": "CLIP", "link": 2},
                ],
            }
        ],
        "links": [
            {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 1, "target_slot": 0, "type": "MODEL"},
            {"id": 2, "origin_id": -10, "origin_slot": 1, "target_id": 1, "target_slot": 1, "type": "CLIP"},
            {"id": 3, "origin_id": 1, "origin_slot": 0, "target_id": -20, "target_slot": 0, "type": "MODEL"},
        ],
    }
    said = made.said(definitions={"subgraphs": [inner]})
    assert (loras(said), said.model) == ([("a", 0.5, 0)], "m.safetensors")


def test_group_nodes_and_unknown_values_are_told() -> None:
    made = plain()
    made.add(50, "workflow>my group", (9, 0))
    made.nodes[4] |= {"type": "Somebody's KSampler", "widgets_values": [1, 2, 3]}
    said = made.said()
    assert "group nodes of a drawn workflow are not opened: workflow>my group (node 50)" in said.notes
    for what in ("seed", "steps", "guidance scale", "sampler"):
        assert any(note.startswith(f"{what} not understood") for note in said.notes), what
    assert said.values["prompt"] == "a fox"


def test_a_damaged_graph_beside_a_drawn_workflow() -> None:
    made = plain()
    drawn = json.dumps({"nodes": made.nodes, "links": made.links})
    said = read_comfyui("a.png", {"prompt": '{"3": ', "workflow": drawn})
    assert said is not None
    assert dict(said.values) == RIGHT
    assert any(note.startswith("its text 'prompt' is not valid JSON") for note in said.notes)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("LoraLoader|pysssss", [{"content": "a.safetensors", "image": None}, 0.5, 0.5, "[none]"]),
        ("Lora Loader Stack (rgthree)", ["a.safetensors", 0.5, "None", 1, "None", 1, "None", 1]),
        ("NdSuperLoraLoader", [json.dumps([{"lora": "a.safetensors", "enabled": True, "strength": 0.5}])]),
        ("PCLazyLoraLoader", ["a fox <lora:a:0.5>"]),
    ],
)
def test_values_of_further_loaders(monkeypatch: pytest.MonkeyPatch, kind: str, values: list[Any]) -> None:
    monkeypatch.setitem(INPUTS, kind, INPUTS["LoraLoader"])
    made = plain((10, 0), (10, 1))
    made.add(10, kind, (4, 0), (4, 1), values=values)
    said = made.said()
    assert loras(said) == [("a", 0.5, None)]
    assert said.notes == (DRAWN,)
