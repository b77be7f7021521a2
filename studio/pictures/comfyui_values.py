"""The numbers and names of ComfyUI's nodes, through the nodes that they come from.

Whole numbers stay exact: no seed passes through a float. None means: not understood, or not there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

from pipelines.bounds import LONGEST_NAME
from studio.pictures import numbers
from studio.pictures.comfyui_graph import Graph, Node
from studio.pictures.comfyui_math import Number, calculate, evaluate
from studio.pictures.comfyui_nodes import VALUES

_DRAWN_BY_CHANCE = re.compile(r"random|counter|increment|cycle|iterat|primitive_list", re.IGNORECASE)
_NUMBERS = ("value", "int", "number", "integer", "INT", "Number", "float", "FLOAT", "int_value", "float_value",
            "Value", "seed", "noise_seed", "val", "any", "anything", "input", "source", "number_a")  # fmt: skip
_NUMBER_KIND = re.compile(
    r"int\b|integer|float|number|seed|primitive|constant|literal|value\b|reroute|convert|show|display",
    re.IGNORECASE,
)
_SIZES = ("resolution", "dimensions", "aspect_ratio", "empty_latent_aspect", "preset", "ratio", "size")
_SIZE = re.compile(r"(?<!\d)(\d{2,5})\s*[x\u00d7]\s*(\d{2,5})(?!\d)")


def plain_number(value: object) -> Number | None:
    """A number, or a text that is one; None for anything else. A whole number is an int, unless it is given as a
    float."""
    found = None if isinstance(value, float) else numbers.whole(value)
    return numbers.real(value) if found is None else found


def number(graph: Graph, value: object, role: str = "", depth: int = 0) -> Number | None:
    """The number that a value is or links to. role: what it is for, as "seed"; nodes that hold several numbers are
    asked by it."""
    linked = graph.link(value)
    if linked is None:
        return plain_number(value)
    graph.check_depth(depth)
    key = ("number", linked[0].id, linked[1], role)
    return cast("Number | None", graph.remembered(key, lambda: _number(graph, *linked, role, depth)))


def _number(graph: Graph, node: Node, slot: int, role: str, depth: int) -> Number | None:
    graph.visit(node)

    def of(name: str) -> Number | None:
        return number(graph, node.inputs.get(name), role, depth + 1)

    if (names := graph.passed_on(node)) is not None:
        return next((found for name in names[:1] if (found := of(name)) is not None), None)
    if node.has("Xi") and node.has("Xf"):  # a slider
        return of("Xf" if truth(graph, node.inputs.get("isfloatX")) else "Xi")
    said = ("expression", "math_expression", *(("value",) if "math" in node.kind.lower() else ()))
    expression = next((value for name in said if isinstance(value := node.inputs.get(name), str)), None)
    if expression is not None:
        result = evaluate(expression, of)
        return int(result) if result is not None and slot == 0 and abs(result) < numbers.EXACT else result
    operation = node.inputs.get("operation", node.inputs.get("op"))
    if isinstance(operation, str):
        pair = next((two for two in (("a", "b"), ("number_a", "number_b")) if node.has(two[0])), ("a", "b"))
        left, right = of(pair[0]), of(pair[1])
        return None if left is None or right is None else calculate(operation, left, right)
    if _DRAWN_BY_CHANCE.search(node.kind) and node.has(
        "min", "max", "minimum", "maximum", "start", "step", "mode"
    ):
        return None
    if role in ("width", "height") and (both := size(graph, node, depth + 1)) is not None:
        return both[role == "height"]
    held = graph.find(node, role) if role in VALUES else None
    if held is not None and (found := number(graph, held[1], role, depth + 1)) is not None:
        return found
    only = only_input(
        graph, node, (int, float)
    )  # of a node that is given several, nobody knows what it makes of them
    return of(only) if only is not None and (only in _NUMBERS or _NUMBER_KIND.search(node.kind)) else None


def size(graph: Graph, node: Node, depth: int = 0) -> tuple[int, int] | None:
    """The width and the height that a node states, by its numbers or by a text such as "832 x 1216"; None where it
    states none."""
    said = next((value for name in _SIZES if isinstance(value := node.inputs.get(name), str)), "")
    match = None if "custom" in said.lower() else _SIZE.search(said[:200])
    if match is not None:
        width, height = int(match[1]), int(match[2])
        own = [
            number(graph, node.inputs.get(f"{side}_override"), depth=depth) for side in ("width", "height")
        ]
        width, height = (
            int(one) if one and one > 0 else side for one, side in zip(own, (width, height), strict=True)
        )
        return (height, width) if truth(graph, node.inputs.get("swap_dimensions")) else (width, height)
    found = []
    for role in ("width", "height"):
        value = next((node.inputs[name] for name in VALUES[role] if node.inputs.get(name) is not None), None)
        side = None if value is None else number(graph, value, role, depth)
        if side is None or side <= 0 or side != int(side):
            return None
        found.append(int(side))
    return found[0], found[1]


def whole(graph: Graph, value: object, role: str = "") -> int | None:
    """The whole number that a value is or links to; None for a float that may have lost digits."""
    return numbers.whole(number(graph, value, role))


def truth(graph: Graph, value: object) -> bool | None:
    """Whether a value, or what it links to, is on."""
    for _ in range(8):
        linked = graph.link(value)
        if linked is None:
            break
        graph.visit(linked[0])
        names = ("value", "boolean", "bool", "Boolean", "BOOLEAN", "any", "input")
        value = next((linked[0].inputs[name] for name in names if name in linked[0].inputs), None)
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        word = value.strip().lower()
        return True if word in _YES else False if word in _NO else None
    found = plain_number(value)
    return None if found is None else bool(found)


_YES = ("true", "on", "yes", "enable", "enabled", "1")
_NO = ("false", "off", "no", "disable", "disabled", "0", "none")


def choice(graph: Graph, value: object, role: str) -> str | None:
    """The name that a value is or links to, as of a sampler or a file."""
    for _ in range(12):
        if isinstance(value, Mapping):  # with a picture of the file beside it
            value = value.get("content")
        linked = graph.link(value)
        if linked is None:
            break
        node = linked[0]
        graph.visit(node)
        chosen = graph.passed_on(node)
        if role in VALUES and (held := graph.find(node, role)) is not None:
            value = held[1]
            continue
        names = (
            chosen[:1]
            if chosen is not None
            else (*VALUES.get(role, ()), role, "value", "text", "string", "any", "input")
        )
        value = next((node.inputs[name] for name in names if node.inputs.get(name) is not None), None)
    return value if isinstance(value, str) and 0 < len(value) <= LONGEST_NAME else None


def only_input(graph: Graph, node: Node, kinds: type | tuple[type, ...]) -> str | None:
    """The name of the node's only input that is of these kinds or a link; None where there are several."""
    names = [
        name
        for name, value in node.inputs.items()
        if (isinstance(value, kinds) and not isinstance(value, bool)) or graph.link(value)
    ]
    return names[0] if len(names) == 1 else None
