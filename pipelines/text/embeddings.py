"""Embeddings: words of one's own, which stand for trained vectors (textual inversion).

Gal et al. 2022 (arXiv 2208.01618). The vectors take the place of tokens. A prompt names an embedding by its word,
`a fox in nilo-style`, or as ComfyUI does, `embedding:nilo-style`. Case does not matter. The vectors are never written
into the model: they travel with each text that names them. `pipelines.embeddings` reads the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

MOST_VECTORS = 75
"""Vectors of one embedding: they are never divided over two chunks of a text."""


@dataclass(frozen=True)
class TextualInversion:
    """One embedding. name: its word. vectors: component ("text_encoder", …) -> [n, width] float32, n the same in all.

    Those of one name and file are equal.
    """

    name: str
    sha256: str
    vectors: Mapping[str, Tensor] = field(compare=False, repr=False)

    @property
    def length(self) -> int:
        """How many tokens it takes the place of."""
        return len(next(iter(self.vectors.values())))


Mentioned = str | TextualInversion
"""Part of a text: words, or an embedding that stands there."""


class Names:
    """Names of embeddings, by which texts are searched. A search takes no longer for thousands of names.

    names: of two that differ in case alone, the first counts. A name without any letter or digit is never found.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._by_name: dict[str, str] = {}
        for name in names:
            self._by_name.setdefault(name.casefold(), name)
        self._by_word: dict[str, list[_Name]] = {}
        for name in sorted(self._by_name.values(), key=len, reverse=True):  # the longest one wins
            if word := _WORD.search(name):
                self._by_word.setdefault(word[0].casefold(), []).append(_Name(name, word.start()))

    def __bool__(self) -> bool:
        return bool(self._by_name)

    def mentioned(self, text: str) -> Iterator[tuple[int, int, str]]:
        """(start, end, name) of each mention in a text, in order: a word of its own, with what marks it."""
        end = 0
        for word in _WORD.finditer(text) if self else ():
            for name in self._by_word.get(word[0].casefold(), ()):
                start = word.start() - name.before
                if start >= end and (found := name.pattern.match(text, start)):
                    mark = _MARK.search(text, max(end, start - _LONGEST_MARK), start)
                    start, end = mark.start() if mark else start, found.end()
                    yield start, end, name.name
                    break


class _Name:
    """A name, how many characters stand before its first word, and the pattern that finds it where it begins."""

    def __init__(self, name: str, before: int) -> None:
        self.name, self.before = name, before

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(rf"(?<![\w-]){re.escape(self.name)}(?:\.safetensors|\.pt)?(?![\w-])", re.IGNORECASE)


_WORD = re.compile(r"\w+")
_LONGEST_MARK = 200
_MARK = re.compile(r"(?<!\w)embedding:\s*(?:[\w.\- ]+[/\\])*\Z", re.IGNORECASE)
"""What ComfyUI writes before a name, with the folders that the file is in there."""


def mentions(text: str, embeddings: Sequence[TextualInversion]) -> Iterator[Mentioned]:
    """The text as words and embeddings, in order."""
    by_name = {one.name: one for one in embeddings}
    after = 0
    for start, end, name in Names(by_name).mentioned(text):
        if start > after:
            yield text[after:start]
        after = end
        yield by_name[name]
    if after < len(text):
        yield text[after:]


def words_beside(text: str, names: Names) -> str:
    """The text without its mentions of these names."""
    words, after = [], 0
    for start, end, _ in names.mentioned(text):
        words.append(text[after:start])
        after = end
    return " ".join([*words, text[after:]])


def names_in(text: str, names: Names) -> tuple[str, ...]:
    """Those of the names that the text mentions, each once, in order."""
    return tuple(dict.fromkeys(name for _, _, name in names.mentioned(text)))


def unknown_in(text: str, names: Names) -> tuple[str, ...]:
    """The embeddings that a text asks for as ComfyUI does (`embedding:name`), and that are none of these names."""
    known = {start for start, _, _ in names.mentioned(text)}
    asked = [match[1] for match in _ASKED.finditer(text) if match.start() not in known]
    return tuple(dict.fromkeys(name.removesuffix(".safetensors").removesuffix(".pt") for name in asked))


_ASKED = re.compile(r"(?<!\w)embedding:\s*([\w.\-/\\]{0,199}\w)", re.IGNORECASE)


def put_in(
    states: Tensor, ids: Tensor, embeddings: Sequence[Sequence[TextualInversion]], component: str
) -> Tensor:
    """The tokens' states [rows, tokens, width] with the vectors of embeddings in place.

    ids: [rows, tokens]; those below 0 tell which vector (`tokens_of`). embeddings: of each row.
    """
    found = states.clone()
    for row, token in (ids < 0).nonzero().tolist():
        which, vector = divmod(-1 - int(ids[row, token]), MOST_VECTORS)
        found[row, token] = embeddings[row][which].vectors[component][vector].to(found)
    return found


def tokens_of(which: int, embedding: TextualInversion) -> list[int]:
    """The ids by which the vectors of a text's embedding number `which` stand among its tokens: below 0."""
    return [-1 - (which * MOST_VECTORS + vector) for vector in range(embedding.length)]


def is_within(before: int, after: int) -> bool:
    """Whether two neighbouring tokens are vectors of one embedding."""
    if not (before < 0 and after < 0) or after != before - 1:
        return False
    return (-1 - before) // MOST_VECTORS == (-1 - after) // MOST_VECTORS


__all__ = [
    "Names",
    "TextualInversion",
    "is_within",
    "mentions",
    "names_in",
    "put_in",
    "tokens_of",
    "unknown_in",
    "words_beside",
]
