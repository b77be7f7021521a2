"""ComfyUI's prompts: from a conditioning back to the words that were encoded.

Combined conditionings are AND's prompts here, with the same share each; concatenated ones are parts with BREAK between
them. Both mean the same there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from pipelines.errors import RequestError, StudioError
from pipelines.text.editing import escaped
from studio.pictures.comfyui_graph import Graph, Node
from studio.pictures.comfyui_nodes import LINKED, MODEL_NAMES, PLAIN_CONDITIONING
from studio.pictures.comfyui_schedules import in_our_order, is_scheduled, prompts
from studio.pictures.comfyui_texts import LONGEST_TEXT, text
from studio.pictures.comfyui_values import choice, number, truth, whole

MOST_PARTS = 50
"""Most prompts that are joined by AND."""

_TEXTS = (
    "populated_text",
    "text",
    "prompt",
    "string",
    "wildcard_text",
    "t5xxl",
    "caption",
    "prompt_schedule",
)
_SLOTS = {"Efficient Loader": {1: "positive", 2: "negative"}}
_TWO_OUTPUTS = re.compile(r"controlnet|control net|inpaintmodel|instantid", re.IGNORECASE)
_PLAIN = re.compile(r"pipe|context|ctx|bus\b|reroute|tuple|sampler|sampling|settings|guider", re.IGNORECASE)
_MANY = re.compile(r"^conditioning_?\d+$|^cond\d$|^input\d+$")
_CHUNKS = re.compile(r"ImpactWildcardEncode|Wildcard ?Encode", re.IGNORECASE)
"""Kinds that divide a prompt at BREAK."""
_ENCODES = re.compile(r"encode|prompt|conditioning|clip", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """Words that were encoded. weight: their share. node: where; None for none."""

    words: str
    weight: float = 1.0
    node: Node | None = None


def parts(graph: Graph, node: Node, value: object, role: str, depth: int = 0) -> list[Part] | None:
    """The words of a conditioning, by a value that links to it or is a text in `node`. None where it is not understood.

    role: "positive" or "negative".
    """
    graph.check_depth(depth)
    if isinstance(value, str):
        return _encoded(graph, node, role)
    linked = graph.link(value)
    if linked is None:
        return None
    role = _role(*linked, role)
    key = ("parts", linked[0].id, role)
    return cast("list[Part] | None", graph.remembered(key, lambda: _parts(graph, linked[0], role, depth)))


def _parts(graph: Graph, node: Node, role: str, depth: int) -> list[Part] | None:
    graph.visit(node)
    if graph.passed_on(node) is not None:
        before = graph.before(node, role)
        return parts(graph, node, before, role, depth + 1) if graph.link(before) else None
    if node.kind == "ConditioningZeroOut":
        graph.leave(node.label)
        return [Part("", node=None)]
    if node.off:
        return parts(graph, node, graph.before(node, role), role, depth + 1)
    if _reads_text(graph, node, role):
        return _encoded(graph, node, role)
    if (several := _several(graph, node, role, depth)) is not None:
        return several
    found = graph.find(node, role)
    if found is None or (found[0] is node and isinstance(found[1], str)):
        before = graph.before(node, role)
        if not graph.link(before):
            graph.stuck = node.label
            return None
        return parts(graph, node, before, role, depth + 1)
    _pass(graph, node)
    return _strengthened(graph, node, parts(graph, found[0], found[1], role, depth + 1))


def joined(graph: Graph, found: Sequence[Part], role: str) -> str:
    """One prompt that says what these say together."""
    words: dict[str, float] = {}
    for part in found:
        words[part.words] = words.get(part.words, 0.0) + part.weight
    total = sum(words.values())
    if len(words) == 1:
        return next(iter(words))
    if role == "negative" or len(words) > MOST_PARTS or total <= 0:
        graph.note(f"the {role} prompt is joined of {len(words)}, which acted apart from each other")
        return ", ".join(filter(None, words))
    return " AND ".join(f"{one} :{weight / total:.4g}" for one, weight in words.items())


def clip_of(graph: Graph, part: Part) -> object:
    """The link to the text encoder that encoded the words."""
    if part.node is None:
        return None
    if part.node.has(*MODEL_NAMES):
        return [part.node.id, 0]
    return next(
        (part.node.inputs[name] for name in LINKED["clip"] if graph.link(part.node.inputs.get(name))), None
    )


def sizes(graph: Graph, node: Node | None, width: int | None, height: int | None) -> dict[str, Any]:
    """SDXL's size conditioning, where it differs from the picture's own size."""
    if node is None or not node.has("target_width", "crop_w"):
        return {}
    if truth(graph, node.inputs.get("with_SDXL")) is False:  # its sizes have no say
        return {}
    read = {
        name: whole(graph, node.inputs.get(name))
        for name in ("width", "height", "crop_w", "crop_h", "target_width", "target_height")
    }
    found: dict[str, Any] = {}
    for name, pair in (
        ("original_size", ("height", "width")),
        ("target_size", ("target_height", "target_width")),
    ):
        both = (read[pair[0]], read[pair[1]])
        if all(both) and both != (height, width):  # 0 stands for the picture's own
            found[name] = both
    crop = (read["crop_h"] or 0, read["crop_w"] or 0)
    return found | ({"crop": crop} if crop != (0, 0) else {})


def plain_words(said: str, *, chunks: bool = False) -> str:
    """A prompt in ComfyUI's syntax, in ours: square brackets, bars, AND and BREAK are mere words there. chunks: BREAK
    has its meaning."""
    said = re.sub(r"(?<!\\)([\[\]])", r"\\\1", said)
    if not chunks:
        said = re.sub(r"\bBREAK\b", "break", said)
    try:
        return escaped(said)
    except StudioError:  # too many brackets, which rendering will name
        return re.sub(r"\bAND\b", "and", said)


def _role(node: Node, slot: int, role: str) -> str:
    if _TWO_OUTPUTS.search(node.kind) and node.has("positive") and node.has("negative"):
        return {0: "positive", 1: "negative"}.get(slot, role)
    return _SLOTS.get(node.kind, {}).get(slot, role)


def _reads_text(graph: Graph, node: Node, role: str) -> bool:
    """Whether the node encodes words itself."""
    if node.has(*MODEL_NAMES):
        return node.has(role, f"{role}_g", f"{role}_l")
    if isinstance(node.inputs.get(role), str) or isinstance(node.inputs.get(f"{role}_g"), str):
        return True
    if node.has("text_g", "text_l", "prompt_g", "prompt_l", "clip_l"):
        return True
    has_clip = any(graph.link(node.inputs.get(name)) for name in LINKED["clip"])
    if any(graph.link(node.inputs.get(name)) for name in LINKED[role]):
        return False
    return node.has(*_TEXTS) and (has_clip or bool(_ENCODES.search(node.kind)))


def _encoded(graph: Graph, node: Node, role: str) -> list[Part] | None:
    """The words that a node encodes."""

    def of(name: str) -> str | None:
        return text(graph, node.inputs.get(name), role) if node.has(name) else None

    own = next((name for name in (role, f"{role}_prompt", *_TEXTS) if node.has(name)), None)
    lone = None if own is None else of(own)
    pairs = ((f"{role}_g", f"{role}_l"), ("text_g", "text_l"), ("prompt_g", "prompt_l"), ("clip_g", "clip_l"))
    pair = next((two for two in pairs if node.has(*two)), None)
    said = lone
    if own is not None and lone is None:
        pair = None
    if pair is not None and (not lone or truth(graph, node.inputs.get("with_SDXL")) or node.has("t5xxl")):
        words = [one.strip() for name in pair if (one := of(name)) is not None]
        words = list(dict.fromkeys([*words, *([lone.strip()] if lone else [])]))
        if len(words) > 1 and all(words):
            graph.note(f"{node.label} gave each text encoder words of its own; here they are one prompt")
        said = ", ".join(filter(None, words)) if words else None
    if said is None:
        graph.stuck = _text_source(graph, node, role)
        return None
    first = [name for name in node.inputs if re.fullmatch(rf"trigger_words\d*|prepend_{role}(_g)?", name)]
    before = [one for name in first if (one := of(name))]
    said = ", ".join(filter(None, [*before, said])) if before else said
    if is_scheduled(node):
        return [Part(words, weight, node) for words, weight in prompts(graph, node, said)]
    parser = choice(graph, node.inputs.get("parser"), "parser")
    theirs = parser not in (None, "comfy", "comfy++") or truth(graph, node.inputs.get("a1111_prompt_style"))
    said = said if theirs else plain_words(said, chunks=bool(_CHUNKS.search(node.kind)))
    return [Part(in_our_order(graph, said), node=node)]


def _text_source(graph: Graph, node: Node, role: str) -> str:
    """Where the words come from that are not understood."""
    links = (graph.link(node.inputs.get(name)) for name in (role, *_TEXTS, "text_g", "text_l"))
    return next((linked[0].label for linked in links if linked is not None), node.label)


def _several(graph: Graph, node: Node, role: str, depth: int) -> list[Part] | None:
    """The words of a node that puts conditionings together; None for any other node."""
    names = [name for name in node.inputs if _MANY.match(name) and graph.link(node.inputs[name])]
    ends = ("conditioning_to", "conditioning_from")
    if node.has(*ends) and all(node.has(name) for name in ends):
        first, second = (parts(graph, node, node.inputs[name], role, depth + 1) for name in ends)
        if not first or not second:
            if first or second:
                graph.note(f"{role} prompt not understood in part: it comes through {node.label}")
            return first or second
        if "average" in node.kind.lower():
            share = number(graph, node.inputs.get("conditioning_to_strength"))
            graph.note(f"{node.label} mixed two prompts; the stronger one is taken")
            return second if share is not None and share < 0.5 else first
        if sum(len(one.words) + len(second[0].words) for one in first) > LONGEST_TEXT:
            raise RequestError(
                f"{graph.name}: the prompt of its workflow has more than {LONGEST_TEXT} characters; set it up by hand"
            )
        return [replace(one, words=f"{one.words} BREAK {second[0].words}".strip()) for one in first]
    if len(names) < 2:
        return None
    found: list[Part] = []
    for name in names:
        one = parts(graph, node, node.inputs[name], role, depth + 1)
        if one is None:
            graph.note(f"{role} prompt not understood in part: input {name} of {node.label}")
        found += one or []
        if len(found) > 1_000:
            break
    operation = node.inputs.get("operation")
    if isinstance(operation, str) and operation.lower().startswith(("concat", "average")):
        graph.note(
            f"{node.label} put prompts together in a way that is not understood; they are joined by AND"
        )
    return found[:1_000] or None


def _pass(graph: Graph, node: Node) -> None:
    """Keeps what a conditioning passes through and is left out."""
    if not _PLAIN.search(node.kind) and not node.kind.startswith(PLAIN_CONDITIONING):
        graph.leave(node.label)


def _strengthened(graph: Graph, node: Node, found: list[Part] | None) -> list[Part] | None:
    share = number(graph, node.inputs.get("strength")) if node.kind.startswith("ConditioningSet") else None
    if not found or share is None or share <= 0:
        return found
    return [replace(one, weight=one.weight * min(float(share), 100.0)) for one in found]
