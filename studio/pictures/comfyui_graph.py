"""ComfyUI's graph of nodes: who is linked to whom, within bounds.

A picture holds it as the text `prompt`, JSON of what ran: {id: {"class_type": kind, "inputs": {name: value}}}. A value
[id, slot] is a link to an output of another node. Everything here is a stranger's: links may lead nowhere or in a
circle, and a node may hold anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from composers.shown import shown
from pipelines.errors import RequestError
from pipelines.home.plain import read_json, short
from studio.drafts.picture_file import MOST_SAID
from studio.pictures.comfyui_nodes import LINKED, PIPES, VALUES, VIA

MOST_NODES = 5_000
"""Most nodes of a workflow."""
MOST_WORK = 50_000
"""Most nodes that are visited while a workflow is followed, each visit counted."""
DEEPEST = 60
"""Most texts, numbers and prompts that may be made of each other."""
MOST_INPUTS = 2_000
"""Most inputs of one node."""
LONGEST_KIND = 200
"""Most characters of a node's kind, and of the name of one of its inputs."""
MOST_NOTES = 40
OFF = (2, 4)
"""The modes of nodes that a drawn workflow leaves out: muted and bypassed."""

_NO_WORDS = re.compile(r"clip|model|vae|control_net|image|mask|latent|pixels", re.IGNORECASE)
_SCALARS = re.compile(
    r"seed|step|cfg|width|height|size|batch|text|string|prompt|scale|strength|denoise|name|sigma|schedul|mask"
    r"|control_net|ratio|count|index|bool|amount",
    re.IGNORECASE,
)
"""Names of inputs that are no way to a model, prompt or latent."""


@dataclass(frozen=True)
class Node:
    """One node. off: the drawn workflow beside the graph says that it is muted or bypassed."""

    id: str
    kind: str
    inputs: Mapping[str, Any]
    off: bool = False

    @property
    def label(self) -> str:
        """The node as a note names it."""
        return f"{short(self.kind)} (node {short(self.id)})"

    @property
    def bare_kind(self) -> str:
        """The kind without the name of LoRA Manager, whose other nodes load no LoRA."""
        return re.sub(r"\(?lora ?manager\)?", "", self.kind, flags=re.IGNORECASE)

    def has(self, *names: str) -> bool:
        return any(self.inputs.get(name) is not None for name in names)


@dataclass
class Graph:
    """A picture's nodes, and what is noted while they are followed.

    name: the picture's, for messages. chosen: the names of the inputs of which a switch passes one on, best first; None
    for a node that is no switch. left: what was met and is left out. stuck: where a prompt is not understood.
    understood: the ids of the LoRA loaders that were read. blind: nodes where LoRAs come from, of kinds that nobody
    knows. memory: what was found before, so that nothing is followed twice.
    """

    name: str
    nodes: Mapping[str, Node]
    chosen: Callable[[Graph, Node], list[str] | None] = lambda graph, node: None
    notes: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    stuck: str = ""
    blind: list[Node] = field(default_factory=list)
    understood: set[str] = field(default_factory=set)
    memory: dict[tuple[object, ...], Any] = field(default_factory=dict)
    _work: int = 0

    def note(self, text: str) -> None:
        """Keeps a note once; beyond `MOST_NOTES`, none."""
        if text not in self.notes and len(self.notes) <= MOST_NOTES:
            self.notes.append(text if len(self.notes) < MOST_NOTES else "more than these is not understood")

    def leave(self, what: str) -> None:
        """Keeps what is left out, once; beyond `MOST_NOTES`, that there is more."""
        if what not in self.left and len(self.left) <= MOST_NOTES:
            self.left.append(what if len(self.left) < MOST_NOTES else "and more")

    def passed_on(self, node: Node) -> list[str] | None:
        """What `chosen` says of a node, which is asked once."""
        return cast("list[str] | None", self.remembered(("switch", node.id), lambda: self.chosen(self, node)))

    def remembered(self, key: tuple[object, ...], find: Callable[[], Any]) -> Any:
        """What `find` found when it was first asked under this key."""
        if key not in self.memory:
            self.memory[key] = find()
        return self.memory[key]

    def visit(self, node: Node) -> None:
        """Counts a visit. Raises RequestError for too many."""
        self._work += 1
        if self._work > MOST_WORK:
            raise RequestError(
                f"{self.name}: its workflow has {len(self.nodes)} nodes and links that take too long to be followed; "
                "set it up by hand"
            )

    def check_depth(self, depth: int) -> None:
        """Raises RequestError for more than `DEEPEST` of something that is made of something else."""
        if depth > DEEPEST:
            raise RequestError(
                f"{self.name}: its workflow makes texts, numbers or prompts of each other more than {DEEPEST} deep; "
                "set it up by hand"
            )

    def link(self, value: object) -> tuple[Node, int] | None:
        """The node and the output that a value links to; None for any other value, and for a link into nowhere."""
        if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int)):
            return None
        slot = value[1]
        node = self.nodes.get(
            value[0] if isinstance(value[0], str) else str(value[0]) if abs(value[0]) < 2**64 else ""
        )
        if node is None or isinstance(slot, bool) or not isinstance(slot, int):
            return None
        return node, slot

    def trail(self, value: object, role: str) -> Iterator[tuple[Node, int]]:
        """The nodes that a link leads back to, one after another, along inputs of one role (as "model")."""
        found = self.link(value)
        passed: set[str] = set()
        while found is not None:
            node, slot = found
            if node.id in passed:
                self.note(f"its links run in a circle at {node.label}")
                return
            passed.add(node.id)
            self.visit(node)
            yield node, slot
            found = self.link(self.before(node, role))

    def before(self, node: Node, role: str) -> object:
        """The link by which a node gets what it passes on in this role; None where it has none."""
        chosen = self.passed_on(node)
        if chosen is not None:
            ways = [name for name in chosen if self.link(node.inputs.get(name))]
            if "merge" in node.kind.lower():  # of several pipes, the first that holds it
                ways.sort(key=lambda name: not self._holds(node.inputs[name], role))
            return node.inputs[ways[0]] if ways else None
        for name in (*LINKED[role], *PIPES):
            if self.link(node.inputs.get(name)):
                return node.inputs[name]
        others = _NO_WORDS if role in ("positive", "negative") else _SCALARS
        links = [name for name, value in node.inputs.items() if self.link(value) and not others.search(name)]
        like = [name for name in links if role[:4] in name.lower() or re.search("pipe|ctx|bus", name.lower())]
        if like:
            return node.inputs[like[0]]
        links = [name for name in links if not _SCALARS.search(name)]
        return node.inputs[links[0]] if len(links) == 1 else None

    def _holds(self, value: object, role: str) -> bool:
        linked = self.link(value)
        return linked is not None and self.find(linked[0], role) is not None

    def find(self, node: Node, role: str, depth: int = 0) -> tuple[Node, object] | None:
        """The node that holds a value of this role (as "steps"), and the value: this node, or one that it is given
        (its guider, its noise, its pipe). None where there is none."""
        self.check_depth(depth)
        found = self.remembered(("find", node.id, role), lambda: self._find(node, role, depth))
        return cast("tuple[Node, object] | None", found)

    def _find(self, node: Node, role: str, depth: int) -> tuple[Node, object] | None:
        self.visit(node)
        for name in VALUES.get(role, ()) or LINKED[role]:
            value = node.inputs.get(name)
            if value is None or (role in LINKED and not self.link(value) and not _is_text(value, role)):
                continue
            if name in VIA.get(role, ()) and self.link(value):
                continue
            return node, value
        chosen = self.passed_on(node)
        ways = chosen if chosen is not None else [*VIA.get(role, ()), *_pipes(node)]
        for name in ways:
            linked = self.link(node.inputs.get(name))
            if linked is not None and (found := self.find(linked[0], role, depth + 1)) is not None:
                return found
        return None

    def ancestors(self, node: Node) -> list[Node]:
        """All nodes that this one is made of, itself included; of a switch, only those behind the chosen input."""
        found = {node.id: node}
        pending = [node]
        while pending:
            one = pending.pop()
            self._work += 1
            chosen = self.passed_on(one)
            names: Iterable[str] = one.inputs if chosen is None else chosen[:1]
            for name in names:
                linked = self.link(one.inputs.get(name))
                if linked is not None and linked[0].id not in found:
                    found[linked[0].id] = linked[0]
                    pending.append(linked[0])
        return list(found.values())


def _is_text(value: object, role: str) -> bool:
    return isinstance(value, str) and role in ("positive", "negative")


def _pipes(node: Node) -> list[str]:
    more = [name for name in node.inputs if name not in PIPES and re.search("pipe|ctx|context|bus$", name)]
    return [*(name for name in PIPES if name in node.inputs), *more]


def content(text: object, where: str) -> Any:
    """The content of a JSON text; None for anything else. Raises RequestError for one that is too large or damaged."""
    if not isinstance(text, str) or text.lstrip()[:1] != "{":
        return None
    return read_json(
        text, where, most=MOST_SAID, finite=False
    )  # ComfyUI writes NaN for what never equals itself


def nodes_of(said: object, drawn: object, where: str) -> dict[str, Node]:
    """The nodes of a graph; {} where it is none. drawn: the drawn workflow beside it, if any. Raises RequestError for
    too many."""
    if not isinstance(said, Mapping):
        return {}
    check_count(len(said), where)
    off = _off(drawn)
    found = {}
    for number, node in said.items():
        kind = node.get("class_type") if isinstance(node, Mapping) else None
        inputs = node.get("inputs") if isinstance(node, Mapping) else None
        if isinstance(kind, str):
            own = inputs if isinstance(inputs, Mapping) else {}
            if len(own) > MOST_INPUTS:
                raise RequestError(
                    f"{where}: its node {shown(number)} has {len(own)} inputs, more than {MOST_INPUTS}; set it up by "
                    "hand"
                )
            plain = {name: _unwrapped(value) for name, value in own.items() if len(name) <= LONGEST_KIND}
            found[number] = Node(number, kind[:LONGEST_KIND], plain, off.get(number) == kind)
    return found


def check_count(count: int, where: str) -> None:
    """Raises RequestError for too many nodes."""
    if count > MOST_NODES:
        raise RequestError(
            f"{where}: its workflow has {count} nodes, more than {MOST_NODES}; set it up by hand"
        )


def _unwrapped(value: object) -> object:
    """Lists are wrapped, so that they are not taken for links."""
    return value["__value__"] if isinstance(value, Mapping) and "__value__" in value else value


def _off(drawn: object) -> dict[str, str]:
    """The nodes that the drawn workflow leaves out: id -> kind."""
    nodes = drawn.get("nodes") if isinstance(drawn, Mapping) else None
    return {
        str(node["id"]): str(node.get("type"))
        for node in (nodes if isinstance(nodes, list) else [])
        if isinstance(node, Mapping) and node.get("mode") in OFF and isinstance(node.get("id"), str | int)
    }
