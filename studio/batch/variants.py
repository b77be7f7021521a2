"""Wildcards and choices in a prompt: `__animal__` and `{red|green|2::blue}`.

`__animal__` stands for a line of the file animal.txt, `__beasts/cats__` for one of beasts/cats.txt. Lines may contain
choices and wildcards; `#` begins a comment line. In a choice, `2::blue` is twice as likely. Braces and underscores that
are meant literally get a backslash: `\\{`, `\\__`.

This is our own code because the one library for it (dynamicprompts) drops everything after a `#` in a prompt, cannot
read a `%` or an open brace, takes an unknown wildcard for text, and warns with today's pyparsing.
"""

from __future__ import annotations

import difflib
import random
import re
from dataclasses import dataclass, field
from pathlib import Path

from composers.shown import shown
from pipelines.bounds import LONGEST_PROMPT
from pipelines.errors import PromptError, SetupError
from pipelines.home.plain import read_text, reading
from studio.batch.values import MOST_VALUES

DEEPEST = 20
MOST_DRAWN = 100_000
"""Most words and choices that are drawn for one text."""
MOST_WRITTEN = 50_000_000
"""Most characters of all texts of one template together."""
LARGEST_WORDS = 16 * 2**20
"""Most bytes of a wildcard's file."""
_WILDCARD = re.compile(r"(?<![\w\\])__(?P<name>[\w-]{1,100}(?:[/ .][\w-]{1,100}){0,20}?)__(?!\w)")
_ESCAPED = re.compile(r"\\(?:__|[{}|])")
_LIKELIHOOD = re.compile(r"\s*+(?P<weight>\d{1,20}(?:\.\d{0,20}+)?|\.\d{1,20})::")
_MANY = re.compile(r"\s*+[\d-]++\$\$")


@dataclass(frozen=True, repr=False)
class PromptChoice:
    """A choice between several texts, with their weights. Each text is a sequence of words and choices."""

    options: tuple[Template, ...]
    weights: tuple[float, ...]

    def __repr__(self) -> str:
        """Seeds and keys of jobs are drawn from this text, so it stays as it is, whatever the class is called."""
        return f"Choice(options={self.options!r}, weights={self.weights!r})"


Template = tuple["str | PromptChoice", ...]


@dataclass
class Wildcards:
    """The wildcard files of a folder (None: there is none). Each is read when it is first needed."""

    folder: Path | None
    _read: dict[str, PromptChoice] = field(default_factory=dict)

    def choice(self, name: str, depth: int) -> PromptChoice:
        """The choice between the lines of a wildcard's file. Raises PromptError and SetupError."""
        if name not in self._read:
            lines = self._lines(name)
            options = tuple(read_template(line, self, depth + 1) for line in lines)
            self._read[name] = PromptChoice(options, tuple(1.0 for _ in options))
        return self._read[name]

    def _lines(self, name: str) -> list[str]:
        known = self._known()
        path = known.get(name.casefold())
        if path is None:
            near = difflib.get_close_matches(name.casefold(), known, n=1)
            hint = f"did you mean __{near[0]}__? " if near else ""
            place = (
                f"in {self.folder}"
                if self.folder
                else "beside the job file or name its folder with --wildcards"
            )
            raise PromptError(
                f"__{name}__: {hint}Put {name}.txt {place}, or write \\__ for plain underscores"
            )
        with reading(str(path), SetupError, "it must be UTF-8 text, one value a line"):
            text = read_text(path, LARGEST_WORDS)
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        if not lines:
            raise PromptError(f"__{name}__: {path} holds no line; write one value a line")
        if len(lines) > MOST_VALUES:
            raise PromptError(
                f"__{name}__: {path} holds {len(lines)} lines, more than {MOST_VALUES}; split it"
            )
        if (longest := max(map(len, lines))) > LONGEST_PROMPT:
            raise PromptError(
                f"__{name}__: {path} holds a line of {longest} characters, more than {LONGEST_PROMPT}; shorten it"
            )
        return lines

    def _known(self) -> dict[str, Path]:
        if self.folder is None:
            return {}
        with reading(str(self.folder), SetupError, "check the folder"):
            files = sorted(self.folder.rglob("*.txt"))
        return {file.relative_to(self.folder).with_suffix("").as_posix().casefold(): file for file in files}


def read_template(text: str, wildcards: Wildcards, depth: int = 0) -> Template:
    """A prompt as words and choices. Raises PromptError for unmatched braces, for an unknown wildcard, and for more
    than LONGEST_PROMPT characters."""
    if len(text) > LONGEST_PROMPT:
        raise PromptError(
            f"the prompt has {len(text)} characters, more than {LONGEST_PROMPT}; put choices into a wildcard's file"
        )
    if depth > DEEPEST:
        raise PromptError(
            f"wildcards and choices are nested more than {DEEPEST} deep; does a file name itself?"
        )
    template, end = _until(text, 0, wildcards, depth, inside=False)
    assert end == len(text)
    return template


def literal(text: str) -> str:
    """The text with braces and underscores escaped, so that `read_template` takes it literally."""
    return re.sub(r"__|[{}|]", r"\\\g<0>", text)


def _until(text: str, start: int, wildcards: Wildcards, depth: int, *, inside: bool) -> tuple[Template, int]:
    """The template from `start` on, and where it ends: at the end of the text, or at the `|` or `}` that ends an
    option."""
    parts: list[str | PromptChoice] = []
    words: list[str] = []
    place = start
    while place < len(text):
        wildcard = _WILDCARD.match(text, place)
        if escaped := _ESCAPED.match(text, place):
            length = escaped.end() - place
            words.append(text[place + 1 : place + length])
            place += length
        elif text[place] == "{" or wildcard:
            if wildcard:
                choice, place = wildcards.choice(wildcard["name"], depth), wildcard.end()
            else:
                choice, place = _choice(text, place, wildcards, depth)
            parts += ["".join(words), choice] if words else [choice]
            words = []
        elif text[place] == "}" and not inside:
            raise PromptError(
                f"a '}}' without its '{{' before {text[place + 1 : place + 20]!r}; write \\}} for a brace"
            )
        elif text[place] in "|}" and inside:
            break
        else:
            words.append(text[place])
            place += 1
    return (tuple([*parts, "".join(words)] if words else parts), place)


def _choice(text: str, start: int, wildcards: Wildcards, depth: int) -> tuple[PromptChoice, int]:
    """The choice whose `{` is at `start`, and where it ends."""
    if depth > DEEPEST:
        raise PromptError(f"choices are nested more than {DEEPEST} deep")
    if _MANY.match(text, start + 1):
        raise PromptError("'{2$$a|b}', several at once, is not supported; write one {a|b} for each")
    options: list[Template] = []
    weights: list[float] = []
    place = start
    while place < len(text) and text[place] != "}":
        likelihood = _LIKELIHOOD.match(text, place + 1)
        weights.append(float(likelihood["weight"]) if likelihood else 1.0)
        option, place = _until(
            text, likelihood.end() if likelihood else place + 1, wildcards, depth + 1, inside=True
        )
        options.append(option)
    if place >= len(text):
        raise PromptError(
            f"the choice {text[start : start + 20]!r} is not closed by '}}'; write \\{{ for a brace"
        )
    if not sum(weights):
        raise PromptError(
            f"in the choice {shown(text[start : place + 1])} nothing is likely; give a weight above 0"
        )
    return PromptChoice(tuple(options), tuple(weights)), place + 1


def draw(template: Template, seed: int) -> str:
    """One text, the same for the same seed."""
    return _drawn(template, random.Random(f"prompt {seed}"))


def _drawn(template: Template, source: random.Random) -> str:
    words: list[str] = []
    pending: list[str | PromptChoice] = list(reversed(template))
    length = drawn = 0
    while pending:
        part = pending.pop()
        drawn += 1
        if isinstance(part, str):
            words.append(part)
            length += len(part)
        else:
            pending += reversed(source.choices(part.options, part.weights)[0])
        if length > LONGEST_PROMPT or drawn > MOST_DRAWN:  # files that use each other could grow without end
            raise PromptError(
                f"what is drawn for the prompt grows beyond {LONGEST_PROMPT} characters; shorten the wildcards' lines"
            )
    return "".join(words)


def every(template: Template) -> list[str]:
    """All texts of the template, in order; the leftmost choice varies slowest. Raises PromptError for too many, before
    any is made."""
    count, length = size(template)
    if count > MOST_VALUES:
        raise PromptError(
            f"the prompt has {shown(count)} variants, more than {MOST_VALUES}; use variants: random"
        )
    if length > MOST_WRITTEN:
        raise PromptError(
            f"the prompt's {count} variants have {shown(length)} characters, more than {MOST_WRITTEN}; use variants: "
            "random"
        )
    return _all(template)


def size(template: Template) -> tuple[int, int]:
    """How many texts the template stands for, and how many characters these have together. None is made."""
    return _size(template, {})


def _size(template: Template, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """known: choices that were counted already, by identity; a wildcard that is used twice is one choice."""
    count, length = 1, 0
    for part in template:
        if isinstance(part, str):
            own, written = 1, len(part)
        elif id(part) in known:
            own, written = known[id(part)]
        else:
            sizes = [_size(option, known) for option in part.options]
            own, written = sum(own for own, _ in sizes), sum(written for _, written in sizes)
            known[id(part)] = (own, written)
        count, length = count * own, length * own + written * count
        if count > 10**100:  # capped, so that the numbers themselves stay small
            count = 10**100
        if length > 10**100:
            length = 10**100
    return count, length


def _all(template: Template) -> list[str]:
    found = [""]
    for part in template:
        texts = (
            [part] if isinstance(part, str) else [text for option in part.options for text in _all(option)]
        )
        found = [head + tail for head in found for tail in texts]
    return found
