"""Wildcards and choices in a prompt: `__animal__` and `{red|green|2::blue}`.

`__animal__` is a line of the file animal.txt, `__beasts/cats__` one of beasts/cats.txt; lines may hold choices
and wildcards themselves, and `#` starts a comment line. In a choice `2::blue` is twice as likely. A brace or
underscores that mean themselves get a backslash: `\\{`, `\\__`.

Small and our own: the one library for this (dynamicprompts) drops whatever follows a `#` in a prompt, cannot
read a `%` or an open brace, takes an unknown wildcard for text, and warns with today's pyparsing.
"""

from __future__ import annotations

import difflib
import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.errors import PromptError, SetupError
from studio.batch.values import MOST_VALUES

DEEPEST = 20
_WILDCARD = re.compile(r"(?<![\w\\])__(?P<name>[\w-]+(?:[/ .][\w-]+)*?)__(?!\w)")
_ESCAPED = re.compile(r"\\(?:__|[{}|])")
_LIKELIHOOD = re.compile(r"\s*(?P<weight>\d+\.?\d*|\.\d+)::")
_MANY = re.compile(r"\s*[\d-]+\$\$")


@dataclass(frozen=True)
class Choice:
    """One of several texts, with their likelihoods; each text is a sequence of words and choices."""

    options: tuple[Template, ...]
    weights: tuple[float, ...]


Template = tuple["str | Choice", ...]


@dataclass
class Wildcards:
    """The wildcard files of a folder (None: there is none), read when first asked for."""

    folder: Path | None
    _read: dict[str, Choice] = field(default_factory=dict)

    def choice(self, name: str, depth: int) -> Choice:
        """The lines of a wildcard's file. Raises PromptError and SetupError."""
        if name not in self._read:
            lines = self._lines(name)
            options = tuple(read_template(line, self, depth + 1) for line in lines)
            self._read[name] = Choice(options, tuple(1.0 for _ in options))
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
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise SetupError(f"{path} cannot be read ({error}); it must be text, one value a line") from error
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        if not lines:
            raise PromptError(f"__{name}__: {path} holds no line; write one value a line")
        return lines

    def _known(self) -> dict[str, Path]:
        if self.folder is None:
            return {}
        files = sorted(self.folder.rglob("*.txt"))
        return {file.relative_to(self.folder).with_suffix("").as_posix().casefold(): file for file in files}


def read_template(text: str, wildcards: Wildcards, depth: int = 0) -> Template:
    """A prompt as words and choices. Raises PromptError for a brace without its pair and an unknown wildcard."""
    if depth > DEEPEST:
        raise PromptError(
            f"wildcards and choices are nested more than {DEEPEST} deep; does a file name itself?"
        )
    template, end = _until(text, 0, wildcards, depth, inside=False)
    assert end == len(text)
    return template


def literal(text: str) -> str:
    """A text that `read_template` reads as itself, whatever braces and underscores it holds."""
    return re.sub(r"__|[{}|]", r"\\\g<0>", text)


def _until(text: str, start: int, wildcards: Wildcards, depth: int, *, inside: bool) -> tuple[Template, int]:
    """The template from `start` to the end, or to the `|` or `}` that ends an option."""
    parts: list[str | Choice] = []
    words = ""
    place = start
    while place < len(text):
        wildcard = _WILDCARD.match(text, place)
        if escaped := _ESCAPED.match(text, place):
            length = escaped.end() - place
            words, place = words + text[place + 1 : place + length], place + length
        elif text[place] == "{" or wildcard:
            if wildcard:
                choice, place = wildcards.choice(wildcard["name"], depth), wildcard.end()
            else:
                choice, place = _choice(text, place, wildcards, depth)
            parts += [words, choice] if words else [choice]
            words = ""
        elif text[place] == "}" and not inside:
            raise PromptError(
                f"a '}}' without its '{{' before {text[place + 1 : place + 20]!r}; write \\}} for a brace"
            )
        elif text[place] in "|}" and inside:
            break
        else:
            words, place = words + text[place], place + 1
    return (tuple([*parts, words] if words else parts), place)


def _choice(text: str, start: int, wildcards: Wildcards, depth: int) -> tuple[Choice, int]:
    """The choice whose `{` stands at `start`, and where it ends."""
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
            f"in the choice {text[start : place + 1]!r} nothing is likely; give a weight above 0"
        )
    return Choice(tuple(options), tuple(weights)), place + 1


def draw(template: Template, seed: int) -> str:
    """One text, the same for the same seed."""
    return _drawn(template, random.Random(f"prompt {seed}"))


def _drawn(template: Template, source: random.Random) -> str:
    return "".join(
        part if isinstance(part, str) else _drawn(source.choices(part.options, part.weights)[0], source)
        for part in template
    )


def every(template: Template) -> list[str]:
    """All texts, in order; a choice on the left varies slowest. Raises PromptError for too many."""
    found = list(itertools.islice(_all(template), MOST_VALUES + 1))
    if len(found) > MOST_VALUES:
        raise PromptError(f"the prompt has more than {MOST_VALUES} variants; use variants: random")
    return found


def _all(template: Sequence[str | Choice]) -> Iterator[str]:
    if not template:
        yield ""
        return
    first, rest = template[0], template[1:]
    heads = [first] if isinstance(first, str) else (text for option in first.options for text in _all(option))
    for head in heads:
        for tail in _all(rest):
            yield head + tail
