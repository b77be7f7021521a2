"""ComfyUI's drawn workflow, where a picture has nothing else: its nodes as those of the graph that would run.

A drawn node has its values in a list without names (`widgets_values`). Newer workflows name them beside its links; for
older ones there is a table of well-known nodes (`WIDGETS`). Nodes that are muted, bypassed or only drawn (reroutes,
primitives, set and get) are passed through; subgraphs are opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.errors import RequestError
from studio.pictures.comfyui_graph import LONGEST_KIND, OFF, Node, check_count
from studio.pictures.comfyui_nodes import WIDGETS

DEEPEST = 8
"""Subgraphs within each other."""
LONGEST_WAY = 200
"""Most reroutes, bypassed nodes and borders of subgraphs that one link passes."""
MOST_WORK = 200_000
"""Most steps from node to node while links are followed."""
BEFORE, BEHIND = -10, -20
"""The ids of a subgraph's own ends."""

_AFTER_SEED = ("fixed", "increment", "decrement", "randomize")
_DRAWN_ONLY = (
    "Note",
    "MarkdownNote",
    "Label (rgthree)",
    "Fast Groups Bypasser (rgthree)",
    "Bookmark (rgthree)",
)


@dataclass
class _Drawing:
    """The whole workflow, or a subgraph. links: id -> (node, its output). ends: output of the subgraph -> link into it.
    set_to: name -> link into the set node of that name."""

    nodes: dict[str, Mapping[str, Any]]
    links: dict[str, tuple[str, int]]
    ends: dict[int, object]
    set_to: dict[str, object]


@dataclass
class _Scope:
    """A drawing where it stands. outer, node: the scope that holds it, and its node there. inner: subgraphs in it."""

    prefix: str
    drawing: _Drawing
    work: list[int]
    outer: _Scope | None = None
    node: Mapping[str, Any] | None = None
    inner: dict[str, _Scope] = field(default_factory=dict)


def is_drawn(drawn: object) -> bool:
    """Whether it is a drawn workflow."""
    return isinstance(drawn, Mapping) and isinstance(drawn.get("nodes"), list) and bool(drawn["nodes"])


def drawn_nodes(drawn: Mapping[str, Any], where: str) -> dict[str, Node]:
    """The nodes of a drawn workflow as those of a graph. Raises RequestError for too many."""
    kinds = _subgraphs(drawn)
    scopes = list(_opened(_Scope("", _drawing(drawn), [0]), kinds, [0], where, 0))
    found = {}
    for scope in scopes:
        for number, node in scope.drawing.nodes.items():
            if scope.work[0] > MOST_WORK:
                raise RequestError(
                    f"{where}: its drawn workflow takes too long to be followed; set it up by hand"
                )
            kind = _kind(node)
            if node.get("mode") in OFF or kind in kinds or kind in _DRAWN_ONLY:
                continue
            identity = scope.prefix + number
            found[identity] = Node(identity, kind, _inputs(scope, node, kind))
    return found


def _opened(
    scope: _Scope, kinds: Mapping[str, _Drawing], count: list[int], where: str, depth: int
) -> Iterator[_Scope]:
    count[0] += len(scope.drawing.nodes)
    check_count(count[0], where)
    yield scope
    for number, node in scope.drawing.nodes.items():
        kind = _kind(node)
        if kind in kinds and depth < DEEPEST and node.get("mode") not in OFF:
            inner = _Scope(f"{scope.prefix}{number}:", kinds[kind], scope.work, scope, node)
            scope.inner[number] = inner
            yield from _opened(inner, kinds, count, where, depth + 1)


def _subgraphs(drawn: Mapping[str, Any]) -> dict[str, _Drawing]:
    definitions = drawn.get("definitions")
    listed = definitions.get("subgraphs") if isinstance(definitions, Mapping) else None
    return {
        str(one["id"])[:LONGEST_KIND]: _drawing(one)
        for one in _list(listed)
        if isinstance(one, Mapping) and "id" in one and _list(one.get("nodes"))
    }


def _drawing(drawn: Mapping[str, Any]) -> _Drawing:
    nodes = {
        str(one["id"])[:LONGEST_KIND]: one
        for one in _list(drawn.get("nodes"))
        if isinstance(one, Mapping) and isinstance(one.get("id"), str | int)
    }
    found = _Drawing(nodes, {}, {}, {})
    for link in _list(drawn.get("links")):
        if isinstance(link, Mapping):
            link = [link.get(name) for name in ("id", "origin_id", "origin_slot", "target_id", "target_slot")]
        if isinstance(link, list) and len(link) >= 5 and isinstance(link[2], int):
            number = _text(link[0])
            found.links[number] = (_text(link[1]), link[2])
            if _text(link[3]) == str(BEHIND) and isinstance(link[4], int):
                found.ends.setdefault(link[4], number)
    for one in nodes.values():
        if _kind(one) == "SetNode" and (name := _list(one.get("widgets_values"))[:1]):
            found.set_to.setdefault(_text(name[0]), _link_of(_list(one.get("inputs")), 0))
    return found


def _kind(node: Mapping[str, Any]) -> str:
    return _text(node.get("type"))


def _text(value: object) -> str:
    """An id, a name or a kind as a text; "" for anything else."""
    return (
        str(value)[:LONGEST_KIND]
        if isinstance(value, str) or (isinstance(value, int) and abs(value) < 2**64)
        else ""
    )


def _inputs(scope: _Scope, node: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The inputs of a node: its values by their names, and its links."""
    found = _values(node, kind)
    for one in _list(node.get("inputs"))[:500]:
        if isinstance(one, Mapping) and isinstance(one.get("name"), str) and one.get("link") is not None:
            came = _origin(scope, one["link"])
            if came is not None:
                found[one["name"]] = came
            elif not isinstance(one.get("widget"), Mapping):
                found.pop(one["name"], None)
    return found


def _values(node: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A node's values by their names."""
    values = node.get("widgets_values")
    if isinstance(values, Mapping):
        return {str(name): value for name, value in values.items()}
    found: dict[str, Any] = {}
    rest = [one for one in _list(values)[:500] if not (isinstance(one, Mapping) and "textWidgetName" in one)]
    names = WIDGETS.get(kind) or _names(node)
    place = 0
    for name in names:
        if place >= len(rest):
            break
        if name:
            found[name] = rest[place]
        place += 1
        if name in ("seed", "noise_seed") and place < len(rest) and rest[place] in _AFTER_SEED:
            place += 1 if "" not in names else 0
    for number, value in enumerate(rest, 1):  # rows of LoRA loaders have no names
        if isinstance(value, Mapping) and "lora" in value:
            found[f"lora_{number}"] = value
        if (
            isinstance(value, list)
            and value
            and all(isinstance(row, Mapping) and "name" in row for row in value)
        ):
            found["loras"] = value
    alone = [value for value in rest if not (isinstance(value, str) and value in _AFTER_SEED)]
    if not names and len(alone) == 1 and isinstance(alone[0], str | int | float):
        found["text" if isinstance(alone[0], str) else "value"] = alone[0]
    return found


def _names(node: Mapping[str, Any]) -> Sequence[str]:
    """The names of a node's values as newer workflows give them, () where they do not give all."""
    names = [
        str(one.get("name"))
        for one in _list(node.get("inputs"))[:500]
        if isinstance(one, Mapping) and isinstance(one.get("widget"), Mapping)
    ]
    extra = sum(value in _AFTER_SEED for value in _list(node.get("widgets_values")) if isinstance(value, str))
    count = len(_list(node.get("widgets_values")))
    return names if count - extra <= len(names) <= count else ()


def _origin(scope: _Scope, link: object) -> Any:
    """Where a link comes from: [id, output], or the value of a primitive; None for nothing."""
    here: _Scope | None = scope
    for _ in range(LONGEST_WAY):
        scope.work[0] += 1
        known = here.drawing.links.get(_text(link)) if here is not None else None
        if here is None or known is None:
            return None
        number, slot = known
        if number == str(BEFORE):
            link = _link_of(_list((here.node or {}).get("inputs")), slot)
            here = here.outer
            continue
        node = here.drawing.nodes.get(number)
        if node is None:
            return None
        kind = _kind(node)
        if number in here.inner:
            here = here.inner[number]
            link = here.drawing.ends.get(slot)
        elif kind == "GetNode":
            name = _list(node.get("widgets_values"))[:1]
            link = here.drawing.set_to.get(_text(name[0])) if name else None
        elif node.get("mode") == OFF[0]:
            return None
        elif node.get("mode") == OFF[1]:
            link = _through(node, slot)
        elif kind in ("Reroute", "Reroute (rgthree)", "SetNode"):
            link = _link_of(_list(node.get("inputs")), 0)
        elif kind == "PrimitiveNode":
            values = _list(node.get("widgets_values"))
            return values[0] if values and not isinstance(values[0], list) else None
        else:
            return [here.prefix + number, slot]
    return None


def _link_of(inputs: Sequence[Any], place: int) -> object:
    one = inputs[place] if 0 <= place < len(inputs) else None
    return one.get("link") if isinstance(one, Mapping) else None


def _through(node: Mapping[str, Any], slot: int) -> object:
    """The link that a bypassed node passes on: its first input of the output's kind."""
    outputs = _list(node.get("outputs"))
    kind = (
        outputs[slot].get("type") if 0 <= slot < len(outputs) and isinstance(outputs[slot], Mapping) else None
    )
    same = [
        one
        for one in _list(node.get("inputs"))[:500]
        if isinstance(one, Mapping) and one.get("type") == kind and one.get("link") is not None
    ]
    return same[0].get("link") if kind is not None and same else None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
