"""One recipe through the nodes of many packs: every graph says the same, and nothing is lost in silence."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import strategies as st

from pipelines.errors import RequestError
from studio.drafts.draft import Wanted
from studio.pictures.comfyui import Graphed, read_comfyui

from ...fuzzing import cases
from .comfy_recipes import graph
from .comfy_writer import Recipe

SOLVERS = {
    ("dpmpp_2m", "karras"): "DPM++ 2M Karras",
    ("euler", "karras"): "Euler Karras",
    ("euler_ancestral", "normal"): "Euler a",
    ("dpmpp_2m_sde_gpu", "karras"): "DPM++ 2M SDE Karras",
}
MIXES = (
    (),
    (("fox", 0.8, 0.4), ("hat", 1.0, 1.0)),
    (("fox", 0.7, 0.7),),
    (("a", 0.5, 0.0), ("b", -1.0, 0.3), ("c", 2.0, 2.0)),
)


def recipe(seed: int) -> Recipe:
    dice = random.Random(seed)
    sampler, spacing = dice.choice(list(SOLVERS))
    return Recipe(
        prompt=dice.choice(["a fox on a hill, (red hat:1.2)", "embedding:style, a café", "one"]),
        seed=dice.choice([0, 7, 2**53 + 1, 2**64 - 1]),
        steps=dice.choice([1, 25, 40]),
        sampler=sampler,
        spacing=spacing,
        vae=dice.choice(["", "soft.safetensors"]),
        loras=dice.choice(MIXES),
        clip_skip=dice.choice([0, 1, 2]),
    )


def told(said: Graphed) -> dict[str, Any]:
    values = said.values
    return {
        "texts": (values["prompt"], values["negative_prompt"]),
        "numbers": (
            values["seed"],
            values["steps"],
            values["guidance_scale"],
            values["width"],
            values["height"],
        ),
        "scheduler": values["scheduler"],
        "clip skip": values.get("clip_skip") or 0,
        "files": (said.model, said.vae or ""),
        "loras": [(one.adapter, one.weight, _text(one)) for one in said.wanted],
        "notes": said.notes,
    }


def _text(one: Wanted) -> float | None:
    return one.weight if one.text_weight is None else one.text_weight


def check(seed: int) -> None:
    made = recipe(seed)
    nodes = graph(made, seed)
    said = read_comfyui("a.png", {"prompt": json.dumps(nodes)})
    assert said is not None
    assert told(said) == {
        "texts": (made.prompt, made.negative),
        "numbers": (made.seed, made.steps, made.cfg, made.width, made.height),
        "scheduler": SOLVERS[made.sampler, made.spacing],
        "clip skip": made.clip_skip,
        "files": (made.model, made.vae),
        "loras": list(made.loras),
        "notes": (),
    }, json.dumps(nodes)


@pytest.mark.parametrize("seed", range(40))
def test_a_recipe_is_the_same_through_all_nodes(seed: int) -> None:
    check(seed)


@cases(ci=60, slow=5_000, seed=st.integers(100, 2**32))
def test_many_more_recipes(seed: int) -> None:
    check(seed)


@cases(ci=60, slow=5_000, seed=st.integers(0, 2**32))
def test_what_a_changed_node_hides_is_told(seed: int) -> None:
    """One node of the graph is of a kind that nobody knows: what it held is read all the same, or a note names it."""
    made = recipe(seed)
    nodes = graph(made, seed)
    dice = random.Random(seed)
    number = dice.choice([one for one, node in nodes.items() if "Save" not in node["class_type"]])
    hidden = nodes[number]
    links = {
        name: value for name, value in hidden["inputs"].items() if isinstance(value, list) and len(value) == 2
    }
    nodes[number] = {"class_type": "Unknown", "inputs": {"own": {"x": 1}} | links}
    said = None
    with suppress(RequestError):  # it had no sampler left
        said = read_comfyui("a.png", {"prompt": json.dumps(nodes)})
    if said is None:
        return
    whole = told(said)
    same = (
        whole["texts"] == (made.prompt, made.negative)
        and whole["numbers"] == (made.seed, made.steps, made.cfg, made.width, made.height)
        and whole["files"] == (made.model, made.vae)
        and whole["loras"] == list(made.loras)
        and whole["clip skip"] == made.clip_skip
    )
    assert same or said.notes, (hidden, json.dumps(nodes))
