"""Prompt syntax as users of A1111's web UI write it, read into plain words and weights. Pure: no torch.

What the field calls "attention" syntax, as A1111's web UI documents and treats it:

    (fox)        weight 1.1          ((fox))     1.1 * 1.1: nested weights multiply
    [fox]        weight 1 / 1.1      (fox:1.3)   weight 1.3
    \\(  \\)  \\[  \\]  \\\\               the character itself
    BREAK                            the following words start a new chunk of the text encoder

Brackets that do not pair are no error: a closing one without an opening one is an ordinary character
(so is `:1.3)`), an opening one that is never closed weighs all that follows. Square brackets take no
number: `[fox:1.3]` are the words `fox:1.3` at 1 / 1.1. All other text is kept to the character: `C++`,
`fox:1`, `:)` and `a\\b` mean what they say. Three corners where A1111 is stricter or odder: BREAK works
inside brackets too (there it becomes a word), a lone backslash stays (there it vanishes), and `(a:1.2.3)`
is text at 1.1 (there it is a crash). Its prompt editing and alternation (`[a:b:0.5]`, `[a|b]`) are not
read: they are weighted words.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

from pipelines.errors import PromptError
from pipelines.text.tags import LoraTag, Moment, take_tags, write_tag

STRONGER = 1.1
WEAKER = 1 / 1.1
DEEPEST = 200  # brackets open at once: far beyond use, and a bound on the time a hostile prompt can take

_MARK = re.compile(
    r"""
      \\(?P<literal>[()\[\]\\])
    | (?P<open>[(\[])
    | :\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)
    | (?P<close>[)\]])
    | (?:(?<!\s)\s+)?\b(?P<break>BREAK)\b\s*
    """,
    re.VERBOSE,
)


class Run(NamedTuple):
    """Words of one weight."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt's words and weights.

    sections: what stands between the BREAKs, each a tuple of runs; neighbouring runs differ in weight
        and none is empty, so that a section without words is ().
    """

    sections: tuple[tuple[Run, ...], ...]

    @property
    def weighted(self) -> bool:
        """Whether any words weigh other than 1."""
        return any(run.weight != 1 for section in self.sections for run in section)

    @property
    def words(self) -> str:
        """The words alone, brackets and weights gone, sections joined by a space."""
        sections = ("".join(run.text for run in section) for section in self.sections)
        return " ".join(words for words in sections if words)


def parse(text: str) -> ParsedPrompt:
    """A prompt without tags -> its words and weights.

    Raises PromptError for a weight that is not a finite number, and for more than 200 open brackets.
    """
    pieces: list[list[Run]] = [[]]  # by section
    pending: dict[str, list[tuple[int, int]]] = {"(": [], "[": []}  # where each open bracket stands
    end = 0
    for mark in _MARK.finditer(text):
        _add(pieces, text[end : mark.start()])
        end = mark.end()
        if mark["literal"]:
            _add(pieces, mark["literal"])
        elif mark["break"]:
            pieces.append([])
        elif mark["open"]:
            pending[mark["open"]].append((len(pieces) - 1, len(pieces[-1])))
            if len(pending[mark["open"]]) > DEEPEST:
                raise PromptError(
                    f"more than {DEEPEST} {mark['open']!r} are open at once; close some, or write \\{mark['open']}"
                )
        elif mark["weight"] and pending["("]:
            _weigh(pieces, pending["("].pop(), float(mark["weight"]))
        elif mark["close"] == ")" and pending["("]:
            _weigh(pieces, pending["("].pop(), STRONGER)
        elif mark["close"] == "]" and pending["["]:
            _weigh(pieces, pending["["].pop(), WEAKER)
        else:
            _add(pieces, mark[0])
    _add(pieces, text[end:])
    for bracket, factor in (("(", STRONGER), ("[", WEAKER)):
        for start in pending[bracket]:
            _weigh(pieces, start, factor)
    return ParsedPrompt(tuple(_joined(section) for section in pieces))


def _add(pieces: list[list[Run]], text: str) -> None:
    if text:
        pieces[-1].append(Run(text))


def _weigh(pieces: list[list[Run]], start: tuple[int, int], factor: float) -> None:
    """Multiply the weight of everything from `start` (section, run) on."""
    first, offset = start
    for index in range(first, len(pieces)):
        section = pieces[index]
        for place in range(offset if index == first else 0, len(section)):
            run = section[place]
            section[place] = Run(run.text, run.weight * factor)
            if not math.isfinite(section[place].weight):
                raise PromptError(
                    f"the weight of {run.text.strip()!r} is too large; give weights of about 0.1 to 2"
                )


def _joined(section: list[Run]) -> tuple[Run, ...]:
    """Neighbours of equal weight become one run, so that they are tokenised as one text."""
    joined: list[Run] = []
    for run in section:
        if joined and joined[-1].weight == run.weight:
            joined[-1] = Run(joined[-1].text + run.text, run.weight)
        else:
            joined.append(run)
    return tuple(joined)


__all__ = ["LoraTag", "Moment", "ParsedPrompt", "Run", "parse", "take_tags", "write_tag"]
