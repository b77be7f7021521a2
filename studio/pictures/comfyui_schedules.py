"""Prompts of the pack prompt-control for ComfyUI (asagi4), which know schedules, AND and functions: in our words.

    [a:b:0.3]  [a:0.3]  [a::0.3]     as in A1111; a moment is a part of the noise there, of the steps here
    [a:b:c:0.3,0.7]                  b from 0.3 to 0.7, a before, c after; fewer texts leave a, then c, out
    [SEQ:a:0.2:b:0.6]                a to 0.2, b to 0.6, then nothing
    [a:b:TAG]                        b where the node's tags name it, else a
    [a|b:0.2]                        by turns
    a :1 AND b :2, BREAK, CAT        prompts with shares; chunks
    # …                              a note, up to the end of the line

A LoRA tag acts where a loader of the pack reads the same text, with the model's strength first. Functions such as
STYLE(…) and MASK(…) are left out and named. Other square brackets are words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from composers.plan import Schedule
from pipelines.errors import PromptError
from pipelines.text.tags import sift_tags
from studio.pictures.comfyui_graph import Graph, Node
from studio.pictures.comfyui_values import number
from studio.pictures.loras import stem

MOMENTS = "prompt-control counts the moments of its schedules in parts of the noise; here they are parts of the steps"
MOST_IN_ROW = 50
"""Most texts of one sequence."""
DEEPEST = 100
"""Brackets within each other; deeper ones are words."""

_KINDS = re.compile(
    r"PC(Lazy)?(TextEncode|Lora)\w*|ScheduleTo(Cond|Model)|EditableCLIPEncode|LoRAScheduler|PromptControl\w*"
)
_LOADERS = re.compile(r"PC(Lazy)?Lora\w*|ScheduleToModel|LoRAScheduler|PromptControl\w*")
_TAG = re.compile(
    r"<\s*(?i:lora)\s*:([^:<>\n]{1,400}+)(?::([^:<>\n=]{1,40}+))?(?::([^:<>\n=]{1,40}+))?(:\s*LBW=[^<>\n]{0,400}+)?>",
)
_NOTE = re.compile(r"(\\.)|#[^\n]*", re.DOTALL)
_MARK = re.compile(r"\\.|<[^<>\n]{1,500}>|[\[\]:|]", re.DOTALL)
_MOMENTS = re.compile(r"\s*(\d{1,6}(?:\.\d{0,9})?|\.\d{1,9})(?:\s*,\s*(\d{1,6}(?:\.\d{0,9})?|\.\d{1,9}))?\s*")
_CHOSEN = re.compile(r"\s*([A-Z_]+)\s*")
_AND = re.compile(r"\bAND\b")
_SHARE = re.compile(r":\s*([+-]?(?:\d++\.?\d*+|\.\d++))\s*$")
_FUNCTION = re.compile(
    r"\b(STYLE|MASK|IMASK|MASKW|MASK_SIZE|AREA|FEATHER|COUPLE|ATTN|SHUFFLE|SHIFT|NOISE|SDXL|FILL|TE|CLIP_L|AVG|CUT|NODE"
    r"|NOSTRIP|SEG|DEF|LORA_SCHEDULE)\((?:[^()]|\([^()]*+\))*+\)"
)


@dataclass
class _Bracket:
    """A bracket that is open: the pieces of each of its parts, and the signs between these."""

    pieces: list[list[str]] = field(default_factory=lambda: [[]])
    cuts: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        self.pieces[-1].append(text)

    def parts(self) -> list[str]:
        return ["".join(pieces) for pieces in self.pieces]

    def plain(self) -> str:
        """All that is in it, as words."""
        return "".join(cut + part for cut, part in zip(("", *self.cuts), self.parts(), strict=True))


def is_scheduled(node: Node) -> bool:
    """Whether it is a node of prompt-control."""
    return _KINDS.fullmatch(node.kind) is not None


def is_scheduled_loader(node: Node) -> bool:
    """Whether it is a node of prompt-control that loads the LoRAs of a text."""
    return _LOADERS.fullmatch(node.kind) is not None


def prompts(graph: Graph, node: Node, said: str) -> list[tuple[str, float]]:
    """The prompts that a text of prompt-control stands for, each with its share, without LoRA tags."""
    said = _translated(graph, node, said)
    if _TAG.search(said) and not any(map(is_scheduled_loader, graph.nodes.values())):
        graph.leave(f"the LoRA tags of {node.label}, which no loader of the workflow reads")
    said, *_ = sift_tags(said)
    said = _without_functions(graph, node, re.sub(r"\bCAT\b", "BREAK", said))
    parts = _AND.split(said)
    if len(parts) > 1 and any(part.count("[") != part.count("]") for part in parts):
        graph.note(f"an AND in a schedule of {node.label} is drawn as a word")
        parts = [_AND.sub("and", said)]
    found = []
    for part in parts:
        share = _SHARE.search(part)
        weight = float(share[1]) if share else 1.0
        if weight > 0:
            found.append((" ".join((part[: share.start()] if share else part).split()), weight))
    return found or [("", 1.0)]


def loras(graph: Graph, node: Node, said: str) -> list[tuple[str, float, float, Schedule | None]]:
    """The LoRAs of a text: name, the model's strength, the text encoder's, and when it acts."""
    found = []
    _, tags, unread = sift_tags(in_our_order(graph, _translated(graph, node, said)))
    for why in unread:
        graph.note(f"LoRA tag of {node.label} not understood: {why[:200]}")
    for tag in tags:
        try:
            use = tag.use()
        except PromptError:  # told by `sift_tags`
            continue
        text = use.weight if use.text_weight is None else use.text_weight
        found.append((tag.name, use.weight, text, use.schedule))
    return found


def in_our_order(graph: Graph, said: str) -> str:
    """A prompt with its LoRA tags in our words: there the model's strength stands first. Impact Pack's strengths by
    block (`LBW=…`) are left out and noted."""

    def tag(match: re.Match[str]) -> str:
        name = stem(re.sub(r"\\([\[\]:|])", r"\1", match[1]))
        if match[4]:
            graph.note(BLOCKS)
        if match[3] is None:
            return f"<lora:{name}:{match[2]}>" if match[2] is not None else f"<lora:{name}>"
        return f"<lora:{name}:te={match[3]}:unet={match[2]}>"

    return _TAG.sub(tag, said)


BLOCKS = "the strengths by block (LBW=) of LoRA tags are left out"


def _without_functions(graph: Graph, node: Node, said: str) -> str:
    for name in dict.fromkeys(match[1] for match in _FUNCTION.finditer(said)):
        graph.leave(f"{name}() in the prompt of {node.label}")
    return _FUNCTION.sub("", said)


def _translated(graph: Graph, node: Node, said: str) -> str:
    """The text with its schedules in our words, and its other square brackets as words."""
    said = _NOTE.sub(lambda match: {"\\#": "#"}.get(match[1], match[1] or ""), said)
    steps = number(graph, node.inputs.get("num_steps")) or 0
    tags = {
        one.strip().upper()
        for one in str(node.inputs.get("tags", node.inputs.get("filter_tags", ""))).split(",")
    }
    for name, usual in (("start", 0), ("end", 1)):
        if (limit := number(graph, node.inputs.get(name))) is not None and limit != usual:
            graph.leave(f"{name}={float(limit):g} of {node.label}")
    open_ = [_Bracket()]
    end = deeper = 0
    for mark in _MARK.finditer(said):
        inner = open_[-1]
        inner.add(said[end : mark.start()])
        end = mark.end()
        sign = mark[0]
        if sign == "[" and len(open_) <= DEEPEST:
            open_.append(_Bracket())
        elif sign in (":", "|") and len(open_) > 1 and not deeper:
            inner.cuts.append(sign)
            inner.pieces.append([])
        elif sign == "]" and len(open_) > 1 and not deeper:
            open_.pop()
            meant = _meant(graph, inner, float(steps), tags)
            open_[-1].add(f"\\[{inner.plain()}\\]" if meant is None else meant)
        else:
            deeper = max(deeper + {"[": 1, "]": -1}.get(sign, 0), 0)
            inner.add(f"\\{sign}" if sign in "[]" else sign)
    open_[-1].add(said[end:])
    while len(open_) > 1:
        inner = open_.pop()
        open_[-1].add(f"\\[{inner.plain()}")
    return open_[0].plain()


def _meant(graph: Graph, inner: _Bracket, steps: float, tags: set[str]) -> str | None:
    """What a bracket says in our words; None where it is mere words."""
    parts = inner.parts()
    *texts, last = parts
    if not texts:
        return None
    if "|" in inner.cuts:
        return _by_turns(graph, inner)
    if texts[0].strip() == "SEQ":
        return _in_row(graph, parts[1:], steps)
    if (named := _CHOSEN.fullmatch(last)) is not None:
        first = "" if len(texts) == 1 else texts[0]
        return texts[-1] if named[1] in tags else first
    moments = _MOMENTS.fullmatch(last)
    if moments is None or len(texts) > 3:
        return None
    graph.note(MOMENTS)
    begin = _moment(moments[1], steps)
    if moments[2] is None:
        before, after = ("", texts[0]) if len(texts) == 1 else (texts[0], texts[1])
        return f"[{before}:{after}:{begin}]"
    before = texts[0] if len(texts) == 3 else ""
    during = texts[1] if len(texts) == 3 else texts[0]
    after = texts[-1] if len(texts) > 1 else ""
    return f"[{before}:[{during}:{after}:{_moment(moments[2], steps)}]:{begin}]"


def _by_turns(graph: Graph, inner: _Bracket) -> str | None:
    options = inner.parts()
    if inner.cuts[-1] == ":" and _MOMENTS.fullmatch(options[-1]) is not None:
        options = options[:-1]
    if {*inner.cuts[: len(options) - 1]} != {"|"}:
        return None
    graph.note("prompt-control changes [a|b] with the noise; here it changes at every step")
    return f"[{'|'.join(options)}]"


def _in_row(graph: Graph, parts: Sequence[str], steps: float) -> str | None:
    moments = [_MOMENTS.fullmatch(part) for part in parts[1::2]]
    if len(parts) % 2 or not 2 <= len(parts) <= 2 * MOST_IN_ROW or not all(moments):
        return None
    graph.note(MOMENTS)
    said = ""
    for text, moment in reversed([*zip(parts[::2], moments, strict=True)]):
        said = f"[{text}:{said}:{_moment(moment[1] if moment else '', steps)}]"
    return said


def _moment(said: str, steps: float) -> str:
    """A moment as a fraction of the steps, with a point. steps: of which a number without a point counts some; 0 for
    none."""
    found = float(said)
    if steps >= 1 and "." not in said:
        found = found / steps
    return f"{min(found, 1.0):.6f}".rstrip("0").ljust(3, "0")
