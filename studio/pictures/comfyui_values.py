"""The numbers and texts of ComfyUI's nodes, through the nodes that they come from.

Whole numbers stay exact: no seed passes through a float. None means: not understood, or not there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from pipelines.bounds import LONGEST_NAME
from pipelines.errors import RequestError
from studio.pictures.comfyui_graph import Graph, Node
from studio.pictures.comfyui_math import Number, calculate, evaluate
from studio.pictures.comfyui_nodes import VALUES

LONGEST_TEXT = 200_000
"""Most characters of a text that is made of others."""
EXACT = 2**53
"""Whole numbers up to this are exact as floats."""
LONGEST_NUMBER = 40
"""Characters."""

_Text = Callable[[str], str | None]
"""Name of an input -> its text."""
_WHOLE = re.compile(r"\s*[+-]?[0-9]{1,39}\s*")
_REAL = re.compile(r"\s*[+-]?(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,3})?\s*")
_DRAWN_BY_CHANCE = re.compile(r"random|counter|increment|cycle|iterat|primitive_list", re.IGNORECASE)
_NUMBERS = ("value", "int", "number", "integer", "INT", "Number", "float", "FLOAT", "int_value", "float_value",
            "Value", "seed", "noise_seed", "val", "any", "anything", "input", "source", "number_a")  # fmt: skip
_TEXTS = ("populated_text", "text", "string", "value", "prompt", "Text", "STRING", "String", "str", "text_positive",
          "positive", "text_a", "string_a", "text_0", "anything", "any", "input", "source",
          "trigger_words")  # fmt: skip
_NUMBER_KIND = re.compile(
    r"int\b|integer|float|number|seed|primitive|constant|literal|value\b|reroute|convert|show|display",
    re.IGNORECASE,
)
_SIZES = ("resolution", "dimensions", "aspect_ratio", "empty_latent_aspect", "preset", "ratio", "size")
_SIZE = re.compile(r"(?<!\d)(\d{2,5})\s*[x\u00d7]\s*(\d{2,5})(?!\d)")
_JOINED = re.compile(r"(?:text|string|str|prompt|input|trigger_words|any)_?(?:[a-z]|\d{1,3})?", re.IGNORECASE)
_DELIMITERS = ("delimiter", "separator", "concat_delimiter", "join_str")
_JOINS = re.compile(r"concat|join|combine|append|merge|multi.?text", re.IGNORECASE)
_TEXT_KIND = re.compile(
    r"text|string|prompt|primitive|literal|show|display|reroute|note|positive|negative|debug", re.IGNORECASE
)


def plain_number(value: object) -> Number | None:
    """A number, or a text that is one; None for anything else. A whole number is an int, whatever its length up to 39
    digits."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if abs(value) < 10**39 else None
    if isinstance(value, str) and len(value) <= LONGEST_NUMBER:
        if _WHOLE.fullmatch(value):
            return int(value)
        value = float(value) if _REAL.fullmatch(value) else None
    return value if isinstance(value, float) and math.isfinite(value) else None


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
    said = ("expression", "math_expression", *(("value",) if "math" in node.kind.lower() else ()))
    expression = next((value for name in said if isinstance(value := node.inputs.get(name), str)), None)
    if expression is not None:
        result = evaluate(expression, of)
        return int(result) if result is not None and slot == 0 and abs(result) < EXACT else result
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
    only = _only(
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
    found = number(graph, value, role)
    if isinstance(found, float):
        return int(found) if found == int(found) and abs(found) <= EXACT else None
    return found


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
    only = _only(graph, node, str)
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
    if not node.has("populated_text") and re.search(
        "wildcard|dynamic|random|dprandom", node.kind, re.IGNORECASE
    ):
        if re.search(r"\{[^{}]*\||__[^\s_]", found):
            graph.note(f"the wildcards of {node.label} stand in the prompt as they were written")
    elif not _TEXT_KIND.search(node.kind) and not node.has("populated_text"):
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


def _only(graph: Graph, node: Node, kinds: type | tuple[type, ...]) -> str | None:
    """The name of the node's only input that is of these kinds or a link; None where there are several."""
    names = [
        name
        for name, value in node.inputs.items()
        if (isinstance(value, kinds) and not isinstance(value, bool)) or graph.link(value)
    ]
    return names[0] if len(names) == 1 else None


def _checked(graph: Graph, found: str, length: int | None = None) -> str:
    if (length or len(found)) > LONGEST_TEXT:
        raise RequestError(
            f"{graph.name}: the prompt of its workflow has more than {LONGEST_TEXT} characters; set it up by hand"
        )
    return found
