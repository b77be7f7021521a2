"""The texts of ComfyUI's nodes, through the nodes that make them. None means: not understood, or not there."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from pipelines.errors import RequestError
from studio.pictures.comfyui_graph import Graph, Node
from studio.pictures.comfyui_values import choice, only_input, plain_number, truth, whole

LONGEST_TEXT = 200_000
"""Most characters of a text that is made of others."""
_Text = Callable[[str], str | None]
"""Name of an input -> its text."""
_TEXTS = ("populated_text", "text", "string", "value", "prompt", "Text", "STRING", "String", "str", "text_positive",
          "positive", "text_a", "string_a", "text_0", "anything", "any", "input", "source",
          "trigger_words")  # fmt: skip
_JOINED = re.compile(r"(?:text|string|str|prompt|input|trigger_words|any)_?(?:[a-z]|\d{1,3})?", re.IGNORECASE)
_DELIMITERS = ("delimiter", "separator", "concat_delimiter", "join_str")
_JOINS = re.compile(r"concat|join|combine|append|merge|multi.?text", re.IGNORECASE)
_TEXT_KIND = re.compile(
    r"text|string|prompt|primitive|literal|show|display|reroute|note|positive|negative|debug", re.IGNORECASE
)

_CHANCE = re.compile(r"wildcard|dynamic|random|dprandom", re.IGNORECASE)
_CUTS = re.compile(r"substring|regex|split|slice|truncate|extract|shuffle|(?<!multi)line", re.IGNORECASE)
"""Kinds that make another text of the one that they are given."""


def text(graph: Graph, value: object, role: str = "positive", depth: int = 0) -> str | None:
    """The text that a value is or links to. Raises RequestError for one that is too long."""
    if isinstance(value, str):
        return _checked(graph, value)
    linked = graph.link(value)
    if linked is None:
        found = plain_number(value)
        return None if found is None else str(found)
    graph.check_depth(depth)
    key = ("text", linked[0].id, linked[1], role)
    return cast("str | None", graph.remembered(key, lambda: _text(graph, *linked, role, depth)))


def _text(graph: Graph, node: Node, slot: int, role: str, depth: int) -> str | None:
    graph.visit(node)

    def of(name: str) -> str | None:
        return text(graph, node.inputs.get(name), role, depth + 1)

    if (names := graph.passed_on(node)) is not None:
        return of(names[0]) if names else None
    found_text = _made(graph, node, slot, role, of)
    return None if found_text is None else _checked(graph, found_text)


def _made(graph: Graph, node: Node, slot: int, role: str, of: _Text) -> str | None:
    """What a node makes of its texts."""
    kind = node.kind
    if kind.startswith("StringFunction"):
        return _string_function(graph, node, of)
    if node.has("find", "find_1") and node.has("replace"):
        whole_text = next((of(name) for name in ("string", "text") if node.has(name)), None)
        old, new = of("find"), of("replace")
        return _replaced(graph, whole_text, old, new or "") if whole_text is not None and old else whole_text
    if isinstance(words := node.inputs.get("toggle_trigger_words"), list):
        return ", ".join(_active(words))
    if "lora" in node.bare_kind.lower() and slot > 0 and not node.has("populated_text"):
        graph.note(f"the trigger words that {node.label} adds to the prompt are not in the picture")
        return ""
    if re.match("String(Trim|Case)|CaseConverter", kind):
        whole_text = of("string")
        mode = choice(graph, node.inputs.get("mode"), "mode") or ""
        mode = mode.lower()
        if whole_text is None:
            return None
        changes = {
            "uppercase": whole_text.upper(),
            "lowercase": whole_text.lower(),
            "both": whole_text.strip(),
        }
        if mode not in changes:
            graph.note(f"the text of {node.label} is taken without its change")
        return changes.get(mode, whole_text)
    if kind == "StringSubstring":
        whole_text = of("string")
        cut = [whole(graph, node.inputs.get(name)) for name in ("start", "end")]
        if whole_text is not None and None not in cut:
            return whole_text[slice(*cut)]
    joined = [name for name in _ordered(node) if _JOINED.fullmatch(name)]
    if len(joined) > 1 and (node.has(*_DELIMITERS) or _JOINS.search(kind)):
        return _join(graph, node, joined, of)
    if kind == "Text String":
        return of(("text", "text_b", "text_c", "text_d")[min(max(slot, 0), 3)])
    for name in _preferred(role):
        if node.has(name) and (found := of(name)) is not None:
            _doubt(graph, node, found)
            return found
        if graph.link(node.inputs.get(name)):  # other texts of the node are not what it passes on
            return None
    only = only_input(graph, node, str)
    found = None if only is None else of(only)
    if found is not None:
        _doubt(graph, node, found)
    return found


def _preferred(role: str) -> Sequence[str]:
    return (role, f"text_{role}", f"{role}_prompt", *_TEXTS) if role == "negative" else _TEXTS


def _doubt(graph: Graph, node: Node, found: str) -> None:
    """Notes where a text may not be what was drawn."""
    style = node.inputs.get("style", node.inputs.get("styles"))
    if isinstance(style, str) and style.strip().lower() not in ("", "none", "base", "no style", "sai-none"):
        graph.note(f"the style {style[:60]!r} of {node.label} is not added to the prompt")
    if node.has("populated_text"):
        return
    if _CHANCE.search(node.kind) and re.search(r"\{[^{}]*\||__[^\s_]", found):
        graph.note(f"the wildcards of {node.label} stand in the prompt as they were written")
    elif _CUTS.search(node.kind) or not (_TEXT_KIND.search(node.kind) or _CHANCE.search(node.kind)):
        graph.note(f"the prompt's text is what goes into {node.label}, which may have changed it")


def _join(graph: Graph, node: Node, names: Sequence[str], of: _Text) -> str | None:
    mark = next((of(name) for name in _DELIMITERS if node.has(name)), None)
    if node.has("linebreak_addition"):
        mark = "\n" if truth(graph, node.inputs["linebreak_addition"]) else ""
    if mark is None:
        mark = ", " if node.kind.startswith("Prompt") else "" if node.kind.startswith("Str") else " "
    mark = mark.replace("\\n", "\n").replace("\\t", "\t")
    clean = truth(graph, node.inputs.get("clean_whitespace"))
    found = []
    for name in names:
        part = _part(graph, node, name, of)
        if part is None:
            continue
        part = part.strip() if clean else part
        if part or clean is None:
            found.append(part)
    length = sum(map(len, found)) + len(mark) * len(found)
    return _checked(graph, mark.join(found), length) if found else None


def _part(graph: Graph, node: Node, name: str, of: _Text) -> str | None:
    found = of(name)
    if found is None and graph.link(node.inputs.get(name)):
        graph.note(f"prompt not understood in part: input {name[:60]!r} of {node.label}")
    return found


def _string_function(graph: Graph, node: Node, of: _Text) -> str:
    first, second, third = (_part(graph, node, name, of) or "" for name in ("text_a", "text_b", "text_c"))
    tidy = node.inputs.get("tidy_tags") == "yes"
    if node.inputs.get("action") == "replace":
        if second.startswith("/"):
            graph.note(f"the text of {node.label} is taken without its replacements")
        known = second and not second.startswith("/")
        found = _replaced(graph, first, second, third) if known else first
    else:
        found = (", " if tidy else "").join(filter(None, (first, second, third)))
    if tidy:
        found = re.sub(r"\s{2,}", " ", found).replace(" ,", ",")
        found = re.sub(r",{2,}", ",", found).strip()
    return found


def _replaced(graph: Graph, found: str, old: str, new: str) -> str:
    _checked(graph, found, len(found) + found.count(old) * len(new))
    return found.replace(old, new)


def _active(words: Sequence[object]) -> list[str]:
    return [
        one["text"]
        for one in words
        if isinstance(one, Mapping) and isinstance(one.get("text"), str) and one.get("active") is True
    ]


def _ordered(node: Node) -> list[str]:
    """The names of a node's inputs: a, b, c and 1, 2, 10 in order, others as they stand."""
    names = list(node.inputs)
    places = {name: place for place, name in enumerate(names)}

    def key(name: str) -> tuple[int, int | str]:
        match = re.search(r"(\d{1,6})$", name)
        if match:
            return (1, int(match[1]))
        return (0, places[name]) if not re.fullmatch(r"\w+_[a-z]", name) else (0, name)

    letters = [name for name in names if re.fullmatch(r"\w+_[a-z]", name)]
    others = [name for name in names if name not in set(letters)]
    return sorted(letters) + sorted(others, key=key)


def _checked(graph: Graph, found: str, length: int | None = None) -> str:
    if (length or len(found)) > LONGEST_TEXT:
        raise RequestError(
            f"{graph.name}: the prompt of its workflow has more than {LONGEST_TEXT} characters; set it up by hand"
        )
    return found
