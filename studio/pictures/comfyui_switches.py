"""ComfyUI's switches: nodes that pass on one of their inputs."""

from __future__ import annotations

import re

from studio.pictures.comfyui_graph import Graph, Node
from studio.pictures.comfyui_values import number, truth

_SWITCH = re.compile(
    r"switch|conditionalbranch|ifelse|if_else|\bif\b|selector|select any|context merge", re.I
)
_PAIRS = (
    ("on_true", "on_false"),
    ("tt_value", "ff_value"),
    ("if_true", "if_false"),
    ("true_value", "false_value"),
    ("when_true", "when_false"),
    ("true", "false"),
)
_TRUTHS = ("boolean", "switch", "cond", "condition", "bool", "boolean_value", "enabled", "toggle", "value")
_PLACES = ("select", "index", "Input", "input", "selected", "select_input", "choice", "active", "selector")


def chosen(graph: Graph, node: Node) -> list[str] | None:
    """The names of the inputs of which a node passes one on, best first; None for a node that is no switch.

    Notes a switch whose position is not understood.
    """
    pair = next((pair for pair in _PAIRS if node.has(*pair)), None)
    if pair is None and not _SWITCH.search(node.kind):
        return None
    if pair is None and (node.has("text_a") or node.has("model_a") or node.has("number_a") or _letters(node)):
        pair = _letters(node)
    if pair is not None:
        return _of_two(graph, node, pair)
    numbered = _numbered(node)
    place = next((node.inputs[name] for name in _PLACES if node.has(name)), None)
    if place is None or not numbered:
        first = [name for name in numbered or list(node.inputs) if graph.link(node.inputs.get(name))]
        return (first[::-1] if "merge" in node.kind.lower() else first) or None
    count = number(graph, place)
    if count is None and isinstance(place, str) and (match := re.search(r"(\d{1,4})", place)):
        count = int(match[1])
    names = [name for name in numbered if re.search(rf"(?<!\d){int(count or 0)}$", name)]
    if count is None or not names:
        graph.note(f"which input {node.label} passes on is not understood")
        return []
    return names


def _of_two(graph: Graph, node: Node, pair: tuple[str, str]) -> list[str]:
    said = next((node.inputs[name] for name in _TRUTHS if node.has(name)), None)
    on = truth(graph, said)
    if on is None:
        graph.note(f"which input {node.label} passes on is not understood")
        return []
    return [pair[0] if on else pair[1]]


def _letters(node: Node) -> tuple[str, str] | None:
    """The inputs that end in _a and _b."""
    first = next((name for name in node.inputs if name.endswith("_a")), None)
    return (first, f"{first[:-2]}_b") if first is not None and node.has(*_TRUTHS) else None


def _numbered(node: Node) -> list[str]:
    """The inputs that end in a number, in its order: any_01, input1, model2, …"""
    found = [
        (int(match[1]), name)
        for name in node.inputs
        if name not in _PLACES and (match := re.search(r"(\d{1,4})$", name))
    ]
    return [name for _, name in sorted(found)]
