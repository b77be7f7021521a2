"""Embeddings: words of one's own, which stand for trained vectors (textual inversion).

Gal et al. 2022 (arXiv 2208.01618). The vectors take the place of tokens. A prompt names an embedding by its word,
`a fox in nilo-style`, or as ComfyUI does, `embedding:nilo-style`. Case does not matter. The vectors are never written
into the model: they travel with each text that names them. `pipelines.embeddings` reads the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

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


def mentions(text: str, embeddings: Sequence[TextualInversion]) -> Iterator[Mentioned]:
    """The text as words and embeddings, in order."""
    if not embeddings:
        yield text
        return
    by_name = {one.name.casefold(): one for one in embeddings}
    end = 0
    for match in _pattern(by_name).finditer(text):
        if match.start() > end:
            yield text[end : match.start()]
        end = match.end()
        yield by_name[match["name"].casefold()]
    if end < len(text):
        yield text[end:]


def names_in(text: str, names: Iterable[str]) -> tuple[str, ...]:
    """Those of the names that the text mentions, as they are given, in order."""
    by_name = {name.casefold(): name for name in names}
    if not by_name:
        return ()
    found = (by_name[match["name"].casefold()] for match in _pattern(by_name).finditer(text))
    return tuple(dict.fromkeys(found))


def unknown_in(text: str, names: Iterable[str]) -> tuple[str, ...]:
    """The embeddings that a text asks for as ComfyUI does (`embedding:name`), and that are none of these names."""
    known = {name.casefold() for name in names}
    asked = (match[1].removesuffix(".safetensors").removesuffix(".pt") for match in _ASKED.finditer(text))
    return tuple(dict.fromkeys(name for name in asked if name.casefold() not in known))


_ASKED = re.compile(r"(?<!\w)embedding:\s*([\w.\-]{1,200})", re.IGNORECASE)


def _pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Finds any of the names as a word of its own. The longest one wins."""
    words = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.compile(
        rf"(?<![\w-])(?:embedding:\s*)?(?P<name>{words})(?:\.safetensors|\.pt)?(?![\w-])", re.IGNORECASE
    )


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
    "TextualInversion",
    "is_within",
    "mentions",
    "names_in",
    "put_in",
    "tokens_of",
    "unknown_in",
]
