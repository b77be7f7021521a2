"""The words that a small model knows, and the words of a prompt that it does not know."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from pipelines.bounds import LONGEST_WORD
from pipelines.errors import StudioError
from pipelines.text.tags import take_tags

Vocabulary = Mapping[str, Mapping[str, tuple[str, ...]]]
"""Category -> word -> its synonyms. {} stands for a model that knows all words."""

GLUE = frozenset((
    "a", "an", "the", "in", "on", "at", "of", "and", "with", "to", "by", "is", "it",
    "from", "under", "over", "near", "wearing", "holding", "style", "picture",
    "portrait", "sitting", "standing", "while", "very",
))  # fmt: skip
"""Words that only hold a prompt together. They count as known, and are never proposed."""


MOST_TOLD = 30
"""Unknown words that are reported. Nobody who pastes a text in another language needs to read them all."""


def known(vocabulary: Vocabulary, triggers: Iterable[str] = ()) -> frozenset[str]:
    """The known words, single and in lower case: the vocabulary's, their synonyms, the adapters' triggers, `GLUE`."""
    phrases = [word for words in vocabulary.values() for word in words]
    phrases += [other for words in vocabulary.values() for others in words.values() for other in others]
    return frozenset(part for phrase in (*phrases, *triggers) for part in _words(phrase)) | GLUE


def unknown(prompt: str, vocabulary: Vocabulary, triggers: Iterable[str] = ()) -> dict[str, str]:
    """The first `MOST_TOLD` words of the prompt that the model does not know -> the nearest word that it knows, or "".

    {} for a model without a vocabulary, and for a prompt whose tags cannot be read.
    """
    if not vocabulary:
        return {}
    try:
        prompt, _ = take_tags(prompt)
    except StudioError:
        return {}
    familiar = known(vocabulary, triggers)
    found: dict[str, str] = {}
    for word in dict.fromkeys(_words(prompt)):
        if len(found) == MOST_TOLD:
            break
        if word not in familiar and word.rstrip("s") not in familiar and not word.isdigit():
            near = difflib.get_close_matches(word[:LONGEST_WORD], familiar - GLUE, n=1, cutoff=0.7)
            found[word[:LONGEST_WORD]] = near[0] if near else ""
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z][a-z'-]*", text.casefold())
