"""The prompt syntax of A1111's web UI, read into plain words and weights. Pure: no torch.

This is the "attention" syntax as A1111's web UI documents it and as it behaves there:

    (fox)        weight 1.1          ((fox))     1.1 * 1.1: nested weights multiply
    [fox]        weight 1 / 1.1      (fox:1.3)   weight 1.3
    \\(  \\)  \\[  \\]  \\:  \\|  \\\\       the character itself
    BREAK                            the following words start a new chunk of the text encoder

Unpaired brackets are no error. A closing one without an opening one is an ordinary character (so is
`:1.3)`). An opening one that is never closed weights all that follows. Square brackets take no number:
`[fox:1.3]` is the words `fox:1.3` at 1 / 1.1. All other text is kept character by character: `C++`, `fox:1`,
`:)` and `a\\b` mean what they say.

Three things differ from A1111. BREAK works inside brackets too (there it becomes a word). A lone backslash
stays (there it vanishes). `(a:1.2.3)` is text at 1.1 (there it crashes). Prompt editing, alternation and AND
(`[a:b:0.5]`, `[a|b]`) are taken out before, by `pipelines.text.editing`.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from typing import NamedTuple

from pipelines.bounds import MOST_CHUNKS
from pipelines.errors import PromptError
from pipelines.text.tags import LoraTag, take_tags, write_tag

STRONGER = 1.1
WEAKER = 1 / 1.1
DEEPEST = 200  # brackets of one sort open at once: far more than anybody needs, and a bound on a hostile prompt's time

_MARK = re.compile(
    r"""
      \\(?P<literal>[()\[\]:|\\])
    | (?P<open>[(\[])
    | :\s*(?P<weight>[+-]?(?:\d++(?:\.\d*+)?|\.\d++))\s*\)
    | (?P<close>[)\]])
    | (?:(?<!\s)\s+)?\b(?P<break>BREAK)\b\s*
    """,
    re.VERBOSE,
)


class WeightedText(NamedTuple):
    """Words that share one weight."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt's words and weights.

    sections: the parts between the BREAKs, each a tuple of runs. Neighbouring runs differ in weight and none
        is empty, so a section without words is ().
    """

    sections: tuple[tuple[WeightedText, ...], ...]

    @property
    def weighted(self) -> bool:
        """Whether any words have a weight other than 1."""
        return any(run.weight != 1 for section in self.sections for run in section)

    @property
    def words(self) -> str:
        """The words alone, without brackets and weights, sections joined by a space."""
        sections = ("".join(run.text for run in section) for section in self.sections)
        return " ".join(words for words in sections if words)


def parse(text: str) -> ParsedPrompt:
    """The words and weights of a prompt whose tags are already taken out. Takes time linear in its length.

    Raises PromptError for a weight that is not finite, for more than `DEEPEST` brackets of one sort open at
    once, and for a BREAK that opens more than `MOST_CHUNKS` chunks.
    """
    pieces = [_Section()]
    pending: dict[str, list[tuple[int, int]]] = {"(": [], "[": []}  # where each open bracket stands
    end = 0
    for mark in _MARK.finditer(text):
        _add(pieces, text[end : mark.start()])
        end = mark.end()
        if mark["literal"]:
            _add(pieces, mark["literal"])
        elif mark["break"]:
            pieces.append(_Section())
            if len(pieces) > MOST_CHUNKS + 1:  # one at the end opens no chunk
                raise PromptError(f"more than {MOST_CHUNKS} chunks are opened by BREAK; take some out")
        elif mark["open"]:
            pending[mark["open"]].append((len(pieces) - 1, pieces[-1].begin()))
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
    return ParsedPrompt(tuple(_runs(section) for section in pieces))


class _Section:
    """The text between two BREAKs, divided into stretches at the brackets: the words and the weight of each."""

    def __init__(self) -> None:
        self.words: list[list[str]] = []
        self.weights: list[float] = []
        self._open = False  # whether more words belong to the last stretch

    def begin(self) -> int:
        """The index of the stretch that begins here."""
        self._open = False
        return len(self.words)

    def add(self, text: str) -> None:
        if not self._open:
            self.words.append([])
            self.weights.append(1.0)
            self._open = True
        self.words[-1].append(text)

    def weigh(self, start: int, factor: float) -> None:
        """Multiply the weight of everything from `start` on."""
        self.weights[start:] = [weight * factor for weight in self.weights[start:]]
        self._open = False


def _add(pieces: list[_Section], text: str) -> None:
    if text:
        pieces[-1].add(text)


def _weigh(pieces: list[_Section], start: tuple[int, int], factor: float) -> None:
    """Multiply the weight of everything from `start` (section, stretch) on."""
    first, offset = start
    for index in range(first, len(pieces)):
        pieces[index].weigh(offset if index == first else 0, factor)


def _runs(section: _Section) -> tuple[WeightedText, ...]:
    """The section as runs. Neighbours of equal weight become one run, so that they are tokenised as one text."""
    runs: list[WeightedText] = []
    stretches = zip(section.weights, section.words, strict=True)
    for weight, own in itertools.groupby(stretches, key=lambda stretch: stretch[0]):
        text = "".join(word for _, words in own for word in words)
        if not math.isfinite(weight):
            raise PromptError(
                f"the weight of {text.strip()[:60]!r} is too large; give weights of about 0.1 to 2"
            )
        runs.append(WeightedText(text, weight))
    return tuple(runs)


__all__ = ["LoraTag", "ParsedPrompt", "WeightedText", "parse", "take_tags", "write_tag"]
