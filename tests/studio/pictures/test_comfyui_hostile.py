"""Graphs of ComfyUI that are made to do harm: they are read or refused at once, with short words."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import strategies as st

from pipelines.errors import RequestError
from studio.pictures.comfyui import read_comfyui

from ...budget import cheap
from ...fuzzing import cases
from ...odd_values import changed_values, json_of, only_refused
from .comfy_graphs import BASE, node
from .comfy_recipes import graph
from .comfy_writer import Recipe

SAMPLER = BASE["3"]["inputs"]


def with_sampler(more: dict[str, Any], **changed: Any) -> dict[str, str]:
    nodes = BASE | more | {"3": node("KSampler", **SAMPLER | changed)}
    return {"prompt": json.dumps(nodes)}


def chain(kind: str, count: int, *names: str, **inputs: Any) -> dict[str, Any]:
    """Nodes a0, a1, …, each linked to the next one by all of these names."""
    return {f"a{n}": node(kind, **inputs, **{name: [f"a{n + 1}", 0] for name in names}) for n in range(count)}


def drawn(**said: Any) -> dict[str, str]:
    return {"workflow": json.dumps(said)}


def reroutes(count: int, targets: int) -> dict[str, str]:
    nodes: list[dict[str, Any]] = [
        {"id": n, "type": "Reroute", "inputs": [{"name": "", "link": n + 1}]} for n in range(count)
    ]
    nodes += [
        {"id": count + n, "type": "KSampler", "inputs": [{"name": f"m{k}", "link": 1} for k in range(100)]}
        for n in range(targets)
    ]
    return drawn(nodes=nodes, links=[[n, n, 0, n - 1, 0, "X"] for n in range(1, count)])


def nested(width: int, depth: int) -> dict[str, str]:
    inner = [
        {
            "id": f"k{n}",
            "nodes": [{"id": k, "type": f"k{n + 1}"} for k in range(width)],
            "links": [[k, -10, 0, k, 0, "X"] for k in range(200)],
        }
        for n in range(depth)
    ]
    return drawn(nodes=[{"id": 1, "type": "k0"}], links=[], definitions={"subgraphs": inner})


LONG = "x" * 3_000_000
CASES: dict[str, dict[str, str]] = {
    "a circle of models": with_sampler({"a0": node("FreeU", model=["a0", 0])}, model=["a0", 0]),
    "a circle of prompts": with_sampler(
        {"a0": node("ConditioningCombine", conditioning_1=["a0", 0], conditioning_2=["a0", 0])},
        positive=["a0", 0],
    ),
    "a circle of texts": with_sampler(
        {
            "6": node("CLIPTextEncode", text=["a0", 0], clip=["4", 1]),
            "a0": node("StringConcatenate", string_a=["a0", 0], string_b="a", delimiter=""),
        }
    ),
    "a circle of numbers": with_sampler({"a0": node("Reroute", value=["a0", 0])}, seed=["a0", 0]),
    "a circle of pipes": with_sampler(
        {"a0": node("Context (rgthree)", base_ctx=["a0", 0])}, seed=["a0", 8], model=["a0", 1]
    ),
    "a circle of switches": with_sampler(
        {"a0": node("Any Switch (rgthree)", any_01=["a0", 0])}, seed=["a0", 0], model=["a0", 0]
    ),
    "a circle of samplers": with_sampler({}, latent_image=["3", 0]),
    "a circle of stacks": with_sampler(
        {
            "a0": node("CR Apply LoRA Stack", model=["4", 0], lora_stack=["a1", 0]),
            "a1": node("CR LoRA Stack", lora_stack=["a1", 0]),
        },
        model=["a0", 0],
    ),
    "a circle of booleans": with_sampler(
        {
            "a0": node("Switch", on_true=["4", 0], on_false=["4", 0], switch=["a1", 0]),
            "a1": node("Bool", value=["a1", 0]),
        },
        model=["a0", 0],
    ),
    "doubled prompts": with_sampler(
        chain("ConditioningCombine", 55, "conditioning_1", "conditioning_2"), positive=["a0", 0]
    ),
    "doubled concatenations": with_sampler(
        chain("ConditioningConcat", 55, "conditioning_to", "conditioning_from")
        | {"a55": node("CLIPTextEncode", text="a" * 999, clip=["4", 1])},
        positive=["a0", 0],
    ),
    "doubled texts": with_sampler(
        chain("StringConcatenate", 55, "string_a", "string_b", delimiter="")
        | {"a55": node("PrimitiveString", value="a" * 99_999)},
        positive=["6", 0],
    )
    | {},
    "doubled numbers": with_sampler(
        chain("MathExpression|pysssss", 55, "a", "b", expression="a+b*a")
        | {"a55": node("PrimitiveInt", value=3)},
        seed=["a0", 0],
    ),
    "doubled pipes": with_sampler(
        chain("Context (rgthree)", 55, "base_ctx", "ctx_02", "pipe"), seed=["a0", 0]
    ),
    "deep prompts": with_sampler(chain("ConditioningSetArea", 4_000, "conditioning"), positive=["a0", 0]),
    "deep models": with_sampler(chain("FreeU", 4_900, "model"), model=["a0", 0]),
    "deep loaders": with_sampler(
        chain("LoraLoader", 4_900, "model", "clip", lora_name="a", strength_model=1, strength_clip=1),
        model=["a0", 0],
    ),
    "deep samplers": with_sampler(
        chain("KSampler", 4_900, "latent_image", **{k: v for k, v in SAMPLER.items() if k != "latent_image"}),
        latent_image=["a0", 0],
    ),
    "deep stacks": with_sampler(
        {"b": node("CR Apply LoRA Stack", model=["4", 0], lora_stack=["a0", 0])}
        | chain("CR LoRA Stack", 4_900, "lora_stack", lora_name_1="a", model_weight_1=1),
        model=["b", 0],
    ),
    "many samplers and many ends": {
        "prompt": json.dumps(
            {
                f"s{n}": node("KSampler", **SAMPLER | {"latent_image": [f"s{(n * 7) % 2400}", 0]})
                for n in range(2_400)
            }
            | {f"e{n}": node("SaveImage", images=[f"s{n}", 0]) for n in range(2_400)}
        )
    },
    "many inputs": with_sampler(
        {"a0": node("LoraLoader", **{f"lora_{n}": "a" for n in range(1_900)}, model=["4", 0])},
        model=["a0", 0],
    ),
    "too many inputs": with_sampler({"a0": node("X", **{f"x{n}": 1 for n in range(5_000)})}),
    "too many nodes": {"prompt": json.dumps({str(n): node("X") for n in range(20_000)})},
    "long names": {"prompt": json.dumps(BASE | {"a": node(LONG, images=["8", 0])})},
    "a long input": with_sampler({"a0": {"class_type": "X", "inputs": {LONG: 1}}}, model=["a0", 0]),
    "a long prompt": with_sampler({"6": node("CLIPTextEncode", text=LONG, clip=["4", 1])}),
    "brackets": with_sampler({"6": node("CLIPTextEncode", text="[" * 150_000, clip=["4", 1])}),
    "round brackets": with_sampler({"6": node("CLIPTextEncode", text="(" * 150_000, clip=["4", 1])}),
    "tags": with_sampler({"6": node("CLIPTextEncode", text="<lora:" * 30_000, clip=["4", 1])}),
    "tags of a loader": with_sampler(
        {"a0": node("LoraTagLoader", text="<lora:a:1>" * 19_000, model=["4", 0])}, model=["a0", 0]
    ),
    "replacements": with_sampler(
        {
            "6": node("CLIPTextEncode", text=["a0", 0], clip=["4", 1]),
            "a0": node("Text Find and Replace", text="a" * 9_999, find="a", replace="b" * 9_999),
        }
    ),
    "huge numbers": with_sampler(
        {"5": node("EmptyLatentImage", width=10**300, height=-1, batch_size=1)},
        seed=10**400,
        steps=10**38,
        cfg=1e308,
        denoise=float("nan"),
    ),
    "powers": with_sampler(
        {"a0": node("MathExpression|pysssss", expression="9" * 40 + "*9" * 100, a=1)}, seed=["a0", 0]
    ),
    "brackets of an expression": with_sampler(
        {"a0": node("MathExpression|pysssss", expression="(" * 290)}, seed=["a0", 0]
    ),
    "signs of an expression": with_sampler(
        {"a0": node("MathExpression|pysssss", expression="-" * 290 + "1")}, seed=["a0", 0]
    ),
    "scales": with_sampler(
        {"5": node("LatentUpscaleBy", scale_by=100, samples=["a0", 0])}
        | chain("LatentUpscaleBy", 4_000, "samples", scale_by=100.0)
        | {"a4000": node("EmptyLatentImage", width=10**38, height=10**38)}
    ),
    "reroutes": reroutes(2_000, 2_000),
    "subgraphs in subgraphs": nested(40, 9),
    "a subgraph in itself": drawn(
        nodes=[{"id": 1, "type": "a"}],
        links=[],
        definitions={
            "subgraphs": [{"id": "a", "nodes": [{"id": n, "type": "a"} for n in range(3)], "links": []}]
        },
    ),
    "odd drawings": drawn(
        nodes=[
            5,
            None,
            {"id": [1]},
            {"id": 1, "type": ["x"], "inputs": 5, "widgets_values": 7},
            {
                "id": 2,
                "type": "KSampler",
                "inputs": [{"name": 5, "link": {}}, {"name": "model", "link": 1}],
                "mode": [4],
            },
        ],
        links=[1, [1, 2], [[1], {}, 0, None, 0], {"id": {}, "origin_slot": 0}],
    ),
}
CASES["doubled texts"] = with_sampler(
    json.loads(CASES["doubled texts"]["prompt"])
    | {"6": node("CLIPTextEncode", text=["a0", 0], clip=["4", 1])}
)


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_graph_is_read_or_refused_at_once(case: str) -> None:
    began = time.process_time()
    said = None
    with only_refused(), suppress(RequestError):
        said = read_comfyui("a.png", CASES[case])
    assert time.process_time() - began < 5
    if said is not None:
        assert len(said.notes) <= 50
        assert sum(map(len, said.notes)) < 20_000
        assert sum(len(one.adapter) for one in said.wanted) < 500_000


@pytest.mark.parametrize("case", ["doubled prompts", "reroutes"])
def test_little_memory_is_taken(case: str) -> None:
    with cheap(10, 100), suppress(RequestError):
        read_comfyui("a.png", CASES[case])


GRAPHS = [BASE, *(graph(Recipe(), seed) for seed in range(12))]


@cases(ci=200, nodes=st.one_of(*(changed_values(one) for one in GRAPHS)))
def test_a_changed_graph_is_read_or_refused(nodes: Any) -> None:
    with only_refused():
        said = read_comfyui("a.png", {"prompt": json_of(nodes)})
        if said is not None:
            json.dumps([*said.notes, said.values["prompt"], said.model]).encode()
