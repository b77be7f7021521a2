"""The LoRAs in ComfyUI's nodes, whatever pack a node is from: names and strengths, without what is off or empty.

A node is read by the words in the names of its inputs: `lora_name`, `lora_01`, `lora_2_name` name a file;
`strength_model`, `model_str_1`, `clip_weight_2` are strengths; `switch_1`, `toggle` turn it off. Some nodes hold
objects ({"on", "lora", "strength", "strengthTwo"}), lists of objects ({"name", "strength", "active"}), or tags.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from composers.plan import Schedule
from pipelines.bounds import MOST_ADAPTERS
from pipelines.errors import StudioError
from pipelines.home.plain import read_json
from studio.pictures.comfyui_graph import Graph, Node
from studio.pictures.comfyui_nodes import EMPTY
from studio.pictures.comfyui_schedules import BLOCKS, is_scheduled_loader, loras
from studio.pictures.comfyui_texts import text
from studio.pictures.comfyui_values import choice, number, plain_number, truth, whole

MOST_OF_A_NODE = 4 * MOST_ADAPTERS
"""Most LoRAs that one node is read for."""

_LIKE = re.compile(r"lora|lycoris|loha|lokr|hypernet|\bloras?\b", re.IGNORECASE)
_CHANCE = re.compile(r"random|cycl|shuffle", re.IGNORECASE)
_APPLIES = re.compile(r"combin|merge|concat|apply|reroute|pass|switch|loader", re.IGNORECASE)
"""Kinds that only pass stacks on."""
_WORD = re.compile(r"[a-z]+|\d+")
_TAG = re.compile(r"<(?:lora|lyco):([^:<>]{1,400}+)((?::[^:<>]{0,400})*+)>", re.IGNORECASE)
_STRENGTHS = {"strength", "str", "weight", "wt", "strengths"}
_NAMES = {"lora", "name", "file", "lycoris", "filename", "model", "path"}
_SWITCHES = {"switch", "on", "enabled", "enable", "toggle", "active"}
_STACKS = ("lora_stack", "optional_lora_stack", "LORA_STACK", "prev_lora", "lora_stack_a", "lora_stack_b",
           "lora_stack1", "lora_stack2", "stack")  # fmt: skip
_OF_MODEL = ("strength", "strength_model", "strengthModel", "model_strength", "weight")
_OF_CLIP = ("strengthClip", "clipStrength", "strengthTwo", "strength_clip", "clip_strength")
_ASKS = re.compile("LoraManager|rgthree|SuperLora", re.IGNORECASE)
"""Kinds whose objects are off where they do not say that they are on."""
_COUNTS = ("lora_count", "num_loras", "num_lora", "count")
_TAGGED = ("loras", "lora_syntax", "lora_text", "lora_tags", "text", "lora_string")


class Said(NamedTuple):
    """One LoRA as a node's own inputs say it; as in `Entry`."""

    name: str
    model: float | None
    clip: float | None
    schedule: Schedule | None = None


@dataclass(frozen=True)
class Entry:
    """One LoRA of a node. model, clip: its strengths; None where they are not understood. place: the node that applies
    it, and its place there. schedule: when it acts; None for throughout."""

    name: str
    model: float | None
    clip: float | None
    place: tuple[str, ...]
    schedule: Schedule | None = None


def is_like(node: Node) -> bool:
    """Whether a node looks like one that loads LoRAs."""
    return (
        bool(_LIKE.search(node.bare_kind))
        or is_scheduled_loader(node)
        or any(_is_name(name) or name in _STACKS[:3] or name in _TAGGED[:4] for name in node.inputs)
    )


def entries(graph: Graph, node: Node) -> list[Entry]:
    """The LoRAs that a node applies, in order: those of the stack that it is given, then its own.

    Nodes that are read are added to `graph.understood`; LoRA-like ones that are not in it were not understood.
    """
    return cast("list[Entry]", graph.remembered(("loras", node.id), lambda: _entries(graph, node)))


def _entries(graph: Graph, node: Node) -> list[Entry]:
    found: list[Entry] = []
    passed: set[str] = set()
    pending: list[tuple[Node, bool]] = [(node, False)]
    while pending:
        one, stacked = pending.pop()
        if one.id in passed:
            continue
        passed.add(one.id)
        graph.visit(one)
        chosen = graph.passed_on(one) if stacked else None
        ways = chosen[:1] if chosen is not None else _stacks(one)
        if not ways and stacked and not is_like(one):
            ways = [name for name, value in one.inputs.items() if graph.link(value)][:1]
        if (
            stacked
            and chosen is None
            and not is_like(one)
            and not _APPLIES.search(one.kind)
            and one not in graph.blind
        ):
            graph.blind.append(one)
        if is_like(one) and not (one.off and _own_off(graph, one)):
            own = _own(graph, one)
            if own is not None:
                graph.understood.add(one.id)
                found = [
                    Entry(said.name, said.model, said.clip, (node.id, one.id, str(place)), said.schedule)
                    for place, said in enumerate(own)
                ] + found
            elif (
                ways
                and (not stacked or _APPLIES.search(one.kind))
                and all(graph.link(one.inputs[name]) for name in ways)
            ):
                graph.understood.add(one.id)
        for name in ways:
            linked = graph.link(one.inputs.get(name))
            if linked is not None:
                pending.append((linked[0], True))
    return found


def _stacks(node: Node) -> list[str]:
    """The inputs by which a node is given stacks."""
    return [name for name in node.inputs if name in _STACKS or re.fullmatch(r"lora_stack_?\w{1,3}", name)]


def _own_off(graph: Graph, node: Node) -> bool:
    graph.understood.add(node.id)
    graph.note(f"left out: the LoRAs of {node.label}, which the drawn workflow turns off")
    return True


def _own(graph: Graph, node: Node) -> list[Said] | None:
    """The LoRAs in a node's own inputs; None where there is nothing that can be understood."""
    if "hypernet" in node.kind.lower():
        return None
    state = next(
        (node.inputs[name] for name in ("toggle", "switch", "enabled", "active") if node.has(name)), None
    )
    if truth(graph, state) is False or truth(graph, node.inputs.get("bypass")) is True:
        return []
    if is_scheduled_loader(node):
        name = next((one for one in ("text", "prompt_schedule") if node.has(one)), None)
        said = None if name is None else text(graph, node.inputs[name])
        return None if said is None else [Said(*one) for one in loras(graph, node, said)]
    objects = _objects(graph, node)
    numbered = _numbered(graph, node) if objects is None else None
    if _CHANCE.search(node.kind):  # what was drawn is not in the graph
        return [] if numbered == [] else None
    if objects is not None:
        return objects
    if numbered is not None:
        _note_blocks(graph, node, numbered)
        return numbered
    for name in _TAGGED:
        if node.has(name) and (said := text(graph, node.inputs[name])) is not None:
            found = list(tags(said))
            if "lbw=" in said.lower():
                graph.note(BLOCKS)
            known = found or not said.strip() or "tag" in node.kind.lower()  # of a prompt, tags alone count
            return found if known else None
    empty = re.search("power lora loader", node.kind, re.IGNORECASE) or node.has(*_COUNTS)
    return [] if empty else None


def tags(said: str) -> Iterator[Said]:
    """The LoRAs of `<lora:name:model:clip>` tags."""
    for count, match in enumerate(_TAG.finditer(said)):
        if count == MOST_OF_A_NODE:
            return
        parts = match[2].split(":")[1:]
        given = [part for part in parts if not re.match(r"\s*lbw=", part, re.IGNORECASE)]
        numbers = [_real(part) for part in given[:2]]
        model = numbers[0] if numbers else 1.0
        clip = numbers[1] if len(numbers) > 1 and numbers[1] is not None else model
        yield Said(match[1].strip(), model, clip)


def _objects(graph: Graph, node: Node) -> list[Said] | None:
    """The LoRAs in objects, and in lists of objects; None where the node holds none."""
    found: list[Said] = []
    understood = False
    for name, value in node.inputs.items():
        if isinstance(value, str) and "lora" in name.lower() and value.lstrip()[:1] == "[":
            value = _listed(value)
        rows = value if isinstance(value, list) and not graph.link(value) else [value]
        if isinstance(value, list) and not value and "lora" in name.lower():
            understood = True
        for row in rows[:MOST_OF_A_NODE]:
            called = next((row[key] for key in ("lora", "name", "lora_name") if key in row), None) \
                if isinstance(row, Mapping) else None  # fmt: skip
            if not isinstance(row, Mapping) or not ("lora" in row or (isinstance(value, list) and called)):
                continue
            understood = True
            asked = [row[key] for key in ("enabled", "on", "active") if key in row]
            on = truth(graph, asked[0]) if asked else not _ASKS.search(node.kind)
            if on and isinstance(called, str) and called.strip().lower() not in EMPTY:
                found.append(Said(called, *_of_row(graph, row)))
    return found if understood else None


def _numbered(graph: Graph, node: Node) -> list[Said] | None:
    """The LoRAs in inputs with or without a number; None where no input names one."""
    named: dict[int, str] = {}
    kinds: dict[tuple[int, str], str] = {}
    for name in node.inputs:
        words = _WORD.findall(name.lower())
        place = next((int(word[:6]) for word in words if word.isdigit()), 0)
        plain = {word for word in words if not word.isdigit()}
        if _is_name(name):
            named.setdefault(place, name)
        elif plain & _STRENGTHS:
            half = "model" if {"model", "unet"} & plain else "clip" if {"clip", "te"} & plain else "both"
            kinds.setdefault((place, half), name)
        elif plain & _SWITCHES and len(plain - {"lora"}) == 1:
            kinds.setdefault((place, "on"), name)
    if not named:
        return None
    most = next((node.inputs[key] for key in _COUNTS if node.has(key)), None)
    limit = whole(graph, most) if most is not None else None
    mode = node.inputs.get("input_mode", node.inputs.get("mode"))
    found: list[Said] = []
    only = whole(graph, node.inputs.get("select")) if "switch" in node.kind.lower() else None
    for place, key in sorted(named.items())[:MOST_OF_A_NODE]:
        if (limit is not None and place > limit) or (only is not None and place != only):
            continue
        called = choice(graph, node.inputs[key], "lora_name")
        if called is not None and (linked := graph.link(node.inputs[key])) is not None:
            graph.understood.add(linked[0].id)  # it only names the file
        if called is None:
            if graph.link(node.inputs[key]) or isinstance(node.inputs[key], Mapping):
                return None
            continue
        on = kinds.get((place, "on"))
        if called.strip().lower() in EMPTY or (on and truth(graph, node.inputs[on]) is False):
            continue
        both = kinds.get((place, "both"), kinds.get((0, "both")))
        model, clip = kinds.get((place, "model")), kinds.get((place, "clip"))
        if mode in ("simple", "Simple") and both:
            model = clip = both
        strength = _strength(graph, node, model or both)
        text_strength = _strength(graph, node, clip or both) if clip or both else strength
        found.append(Said(called, strength, text_strength))
    return found


def _is_name(name: str) -> bool:
    words = {word for word in _WORD.findall(name.lower()) if not word.isdigit()}
    return bool(words & {"lora", "lycoris"}) and words <= _NAMES


def _strength(graph: Graph, node: Node, name: str | None) -> float | None:
    return None if name is None else _float(number(graph, node.inputs[name]))


def _note_blocks(graph: Graph, node: Node, found: Sequence[Said]) -> None:
    vector = node.inputs.get("block_vector", node.inputs.get("lbw"))
    if found and isinstance(vector, str) and not re.fullmatch(r"[\s,]*(1(\.0*)?[\s,]*)*", vector[:1000]):
        graph.note(f"the strengths by block of {node.label} are left out: {vector[:60]!r}")


def _of_row(graph: Graph, row: Mapping[str, object]) -> tuple[float | None, float | None]:
    """The strengths in an object: the model's, and the text encoder's, which is the same where it is not given."""
    model = next((row[name] for name in _OF_MODEL if row.get(name) is not None), None)
    clip = next((row[name] for name in _OF_CLIP if row.get(name) is not None), model)
    return _float(number(graph, model)), _float(number(graph, clip))


def _float(found: float | None) -> float | None:
    return None if found is None else float(found)


def _real(value: object) -> float | None:
    return _float(plain_number(value))


def _listed(value: str) -> object:
    try:
        return read_json(value, "the list", most=10_000)
    except StudioError:
        return value
