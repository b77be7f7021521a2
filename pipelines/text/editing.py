"""A1111's prompt editing, alternation and AND: what the prompts say at each step. Pure: no torch.

    [fox:cat:0.5]    "fox" first, then "cat" (editing); 0.5 is a fraction of the steps, 5 without a point a step
    [cat:0.5]        nothing first, then "cat"          [fox::0.5]    "fox" first, then nothing
    [fox|cat]        "fox" and "cat" by turns, one step each (alternation); there may be more than two
    a AND b :1.2     two prompts, each with a weight of its own; without a number it is 1

Edits may lie within each other, in round brackets, and in each part of an AND. A bracket that is none of these keeps
its meaning in `pipelines.text.prompt`. The colon of `embedding:name` belongs to the name. A backslash before a bracket,
a colon or a bar takes its meaning away; `and` in small letters is the word.

The rule of time is A1111's (`modules/prompt_parser.py`): the first text stands while the index of the step, from 0, is
at most ⌊when * steps⌋, or at most the step given; where that is 0, it never stands. An alternation stands at its first
text for two steps, then changes at every step. Steps are those that really run. Negative prompts know editing and
alternation, but no AND.

Source of AND: composable diffusion (Liu et al. 2022, arXiv 2206.01714).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from composers.shown import shown
from pipelines.bounds import STRONGEST
from pipelines.errors import PromptError

MOST_TEXTS = 64
"""Distinct texts of one picture, both prompts and all steps together."""
DEEPEST = 200
"""Brackets that may lie within each other."""

_NAMED = r"(?<!\w)(?i:embedding):(?!\s*+(?:[\]:|]|[-+.\d]++\s*+\]))"
"""What ComfyUI writes before an embedding's name: its colon divides nothing. `[embedding:0.5]` is about the word."""
_MARK = re.compile(rf"\\.|<\s*\w+\s*:(?:\\.|[^<>\\\n])*>|{_NAMED}|[\[\]():|]", re.DOTALL)
_WHEN = re.compile(r"\s*([+-]?(?:\d++(?:\.\d*+)?|\.\d++)(?:[eE][+-]?\d{1,3})?)\s*")
_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r":\s*([+-]?(?:\d++\.?\d*+|\.\d++))\s*$")


@dataclass(frozen=True)
class Edit:
    """`[before:after:when]`. when: a fraction of the steps, or the index of a step where `whole`. cuts: the places of
    its colons in the prompt."""

    before: tuple[Piece, ...]
    after: tuple[Piece, ...]
    when: float
    whole: bool
    cuts: tuple[int, ...]

    def last(self, count: int) -> int:
        """The index of the last step of `before`, in a run of `count` steps; -1 where there is none."""
        last = math.floor(max(min(self.when if self.whole else self.when * count, count), 0))
        return last or -1

    @property
    def border(self) -> float:
        """When `after` begins, as in `Span`; 0 is at once."""
        if self.whole:
            return self.when + 1 if self.when >= 1 else 0.0
        if self.when <= 0:
            return 0.0
        return self.when + _AFTER if self.when < 1 else NEVER


@dataclass(frozen=True)
class Alternation:
    """`[one|other|…]`. cuts: the places of its bars in the prompt."""

    options: tuple[tuple[Piece, ...], ...]
    cuts: tuple[int, ...]


Piece = str | Edit | Alternation


@dataclass(frozen=True)
class Wording:
    """What one picture's prompts say.

    texts: the distinct ones; None is a negative prompt that is not given. positive: for each step, (index of a text,
    weight) for each part of an AND. negative: for each step, the index of a text.
    """

    texts: tuple[str | None, ...]
    positive: tuple[tuple[tuple[int, float], ...], ...]
    negative: tuple[int, ...]


@lru_cache(maxsize=256)
def wording(prompt: str, negative: str | None, count: int) -> Wording:
    """What the prompts of a picture say at each of its `count` steps.

    Raises PromptError for more than `MOST_TEXTS` distinct texts, for brackets more than `DEEPEST` deep, for a weight
    beyond -100 … 100, and where all weights are 0.
    """
    places: dict[str | None, int] = {}

    def place(text: str | None) -> int:
        found = places.setdefault(text, len(places))
        if found == MOST_TEXTS:
            raise PromptError(
                f"the prompts stand for more than {MOST_TEXTS} different texts over {count} steps; take out some of "
                "their [a:b:0.5] and [a|b]"
            )
        return found

    parts = [(_timed(text), weight) for text, weight in parts_of(prompt)]
    against = None if negative is None else _timed(negative)
    said, unsaid = [], []
    for index in range(count):
        said.append(tuple((place(at(index, count)), weight) for at, weight in parts))
        unsaid.append(place(None if against is None else against(index, count)))
    return Wording(tuple(places), tuple(said), tuple(unsaid))


Span = tuple[float, float]
"""From when to when: a fraction of the steps below 1, or the index of a step from 1 on, as in
`composers.plan.Schedule`. `NEVER` is after the end."""
NEVER = math.inf
_AFTER = 1e-7
"""An edit at a fraction comes after the step that lies on it."""


def spans_of(text: str, marks: Sequence[str]) -> tuple[Span | None, ...]:
    """When the words of a prompt stand that hold each of these marks; None where no edit has a say.

    An alternation has none here: what it holds stands throughout. Raises PromptError for edits within each other of
    which one counts in steps and the other in fractions, and as `pieces_of` does.
    """
    found: dict[str, Span | None] = dict.fromkeys(marks)

    def look(pieces: Sequence[Piece], span: Span | None) -> None:
        for piece in pieces:
            if isinstance(piece, str):
                found.update((mark, span) for mark in marks if mark in piece)
            elif isinstance(piece, Edit):
                look(piece.before, _within(span, (0.0, piece.border)))
                look(piece.after, _within(span, (piece.border, NEVER)))
            else:
                for option in piece.options:
                    look(option, span)

    look(pieces_of(text), None)
    return tuple(found.values())


def _within(outer: Span | None, inner: Span) -> Span:
    if outer is None:
        return inner
    (begin, end), (first, last) = outer, inner
    numbers = [moment for moment in (begin, end, first, last) if 0 < moment < NEVER]
    if min(numbers, default=0) < 1 <= max(numbers, default=0):
        raise PromptError(
            "a LoRA tag stands in two edits, of which one counts in steps and the other in fractions of them; "
            "write both in the same way"
        )
    return max(begin, first), min(end, last)


def parts_of(prompt: str) -> tuple[tuple[str, float], ...]:
    """(text, weight) of each prompt that AND joins. Without AND the prompt is the only one, as it stands."""
    parts = _AND.split(prompt)
    if len(parts) == 1:
        return ((prompt, 1.0),)
    found = []
    for part in parts:
        match = _WEIGHT.search(part)
        weight = float(match[1]) if match else 1.0
        if not abs(weight) <= STRONGEST:
            raise PromptError(
                f"the weight {shown(weight)} of {shown(part.strip())} must lie in {-STRONGEST:g} … {STRONGEST:g}"
            )
        if weight:
            found.append(((part[: match.start()] if match else part).strip(), weight))
    if not found:
        raise PromptError("all prompts joined by AND have the weight 0; give one of them another")
    return tuple(found)


def pieces_of(text: str) -> tuple[Piece, ...]:
    """A prompt as words, edits and alternations. LoRA tags count as words. Raises PromptError for too many brackets."""
    open_: list[_Bracket] = [_Bracket("")]
    end = 0
    for mark in _MARK.finditer(text):
        inner = open_[-1]
        inner.add(text[end : mark.start()])
        end = mark.end()
        sign = mark[0]
        if sign in ("[", "("):
            if len(open_) > DEEPEST:
                raise PromptError(f"more than {DEEPEST} brackets lie within each other; close some")
            open_.append(_Bracket(sign))
        elif sign in (":", "|") and inner.sign == "[":
            inner.cut(sign, mark.start())
        elif (sign == "]" and inner.sign == "[") or (sign == ")" and inner.sign == "("):
            open_.pop()
            open_[-1].parts[-1].extend(inner.closed())
        else:
            inner.add(sign)
    open_[-1].add(text[end:])
    while len(open_) > 1:  # what is never closed is no bracket
        inner = open_.pop()
        open_[-1].parts[-1].extend(inner.plain())
    return tuple(_joined(open_[0].parts[0]))


class _Bracket:
    """A bracket that is open, and what is in it: the parts between its colons and bars. sign: "[", "(", or ""."""

    def __init__(self, sign: str) -> None:
        self.sign = sign
        self.parts: list[list[Piece]] = [[]]
        self.cuts: list[str] = []
        self.places: list[int] = []

    def add(self, text: str) -> None:
        if text:
            self.parts[-1].append(text)

    def cut(self, sign: str, place: int) -> None:
        self.cuts.append(sign)
        self.places.append(place)
        self.parts.append([])

    def plain(self) -> Iterator[Piece]:
        """All that is in it, as if it had never been a bracket; without its end."""
        yield self.sign
        for cut, part in zip(("", *self.cuts), self.parts, strict=True):
            yield cut
            yield from part

    def closed(self) -> Iterator[Piece]:
        """What it means, now that it is closed."""
        signs = {*self.cuts}
        if signs == {"|"}:
            yield Alternation(tuple(tuple(_joined(part)) for part in self.parts), tuple(self.places))
            return
        when = None
        if signs == {":"} and len(self.cuts) <= 2 and all(isinstance(one, str) for one in self.parts[-1]):
            when = _WHEN.fullmatch("".join(map(str, self.parts[-1])))
        if when is None:
            yield from self.plain()
            yield "]" if self.sign == "[" else ")"
            return
        before = self.parts[0] if len(self.cuts) == 2 else []
        number = float(when[1])
        yield Edit(
            tuple(_joined(before)),
            tuple(_joined(self.parts[-2])),
            number,
            not re.search("[.eE]", when[1]),
            tuple(self.places),
        )


def _joined(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """The pieces, with neighbouring words in one text."""
    words: list[str] = []
    for piece in pieces:
        if isinstance(piece, str):
            words.append(piece)
            continue
        if words:
            yield "".join(words)
            words = []
        yield piece
    if words and (text := "".join(words)):
        yield text


def escaped(text: str) -> str:
    """A prompt whose edits, alternations and ANDs are mere words, as they are for programs that know none of them.

    Raises PromptError as `pieces_of` does.
    """
    places: list[int] = []

    def look(pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            if isinstance(piece, str):
                continue
            places.extend(piece.cuts)
            for inner in piece.options if isinstance(piece, Alternation) else (piece.before, piece.after):
                look(inner)

    look(pieces_of(text))
    for place in sorted(places, reverse=True):
        text = f"{text[:place]}\\{text[place:]}"
    return _AND.sub("and", text)  # the tokenizers read small letters alone


def remarks(prompt: str, count: int) -> tuple[str, ...]:
    """What a user might not expect of a prompt's edits over `count` steps, for the record of a picture."""
    found = []

    def look(pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            if isinstance(piece, Edit):
                if piece.border == NEVER and piece.after:
                    found.append(
                        f"{_shown(piece.after)} never comes: {piece.when:g} is after the end of the run; a fraction of "
                        "the steps lies below 1, and the number of a step has no point"
                    )
                elif piece.last(count) >= count - 1 and piece.after:
                    moment = piece.when if piece.whole else math.floor(piece.when * count)
                    found.append(
                        f"{_shown(piece.after)} never comes: it would after step {moment:g}, and the last of the "
                        f"{count} steps is {count - 1}"
                    )
                look(piece.before)
                look(piece.after)
            elif isinstance(piece, Alternation):
                for option in piece.options:
                    look(option)
            else:
                found.extend(
                    f"{shown(mark[0])} is no edit and no alternation, so it is drawn as words; write [a:b:0.5] or [a|b]"
                    for mark in _INNERMOST.finditer(re.sub(rf"\\.|{_NAMED}", "", piece))
                    if "|" in mark[0] or mark[0].count(":") > 1
                )

    look(pieces_of(prompt))
    left = _UNCLOSED.search(re.sub(rf"\\.|{_NAMED}", "", prompt))
    if left is not None and ("|" in left[0] or left[0].count(":") > 1):
        found.append(f"{shown(left[0])} is not closed, so it is drawn as words; write [a:b:0.5] or [a|b]")
    return tuple(dict.fromkeys(found))


_INNERMOST = re.compile(r"\[[^\[\]]*\]")
"""A bracket with no other in it. In words, its bars and its second colon have no meaning."""
_UNCLOSED = re.compile(r"\[[^\[\]]*\Z")
"""A bracket that nothing closes, with no other in it."""


def _shown(pieces: Sequence[Piece]) -> str:
    return shown("".join(piece if isinstance(piece, str) else "…" for piece in pieces).strip())


def _timed(text: str) -> Callable[[int, int], str]:
    """(index of a step, number of steps) -> what a prompt says there."""
    pieces = pieces_of(text)
    if all(isinstance(piece, str) for piece in pieces):
        return lambda index, count: text
    return lambda index, count: "".join(_at(pieces, index, count))


def _at(pieces: Sequence[Piece], index: int, count: int) -> Iterator[str]:
    for piece in pieces:
        if isinstance(piece, str):
            yield piece
        elif isinstance(piece, Edit):
            yield from _at(piece.before if index <= piece.last(count) else piece.after, index, count)
        else:
            turn = max(index - 1, 0) % len(piece.options)
            yield from _at(piece.options[turn], index, count)
