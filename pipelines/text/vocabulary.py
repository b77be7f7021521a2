"""The words that a small model knows, and which of a prompt's words it does not."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from pipelines.bounds import LONGEST_WORD
from pipelines.errors import StudioError
from pipelines.text.tags import take_tags

Vocabulary = Mapping[str, Mapping[str, tuple[str, ...]]]
"""Category -> word -> its synonyms; {} is a model that knows all words."""

GLUE = frozenset((
    "a", "an", "the", "in", "on", "at", "of", "and", "with", "to", "by", "is", "it",
    "from", "under", "over", "near", "wearing", "holding", "style", "picture",
    "portrait", "sitting", "standing", "while", "very",
))  # fmt: skip
"""Words that only hold a prompt together."""


MOST_TOLD = 30
"""Unknown words that are looked up; whoever pastes a text in another language need not read them all."""


def known(vocabulary: Vocabulary, triggers: Iterable[str] = ()) -> frozenset[str]:
    """Single words, in lower case: those of the vocabulary, their synonyms, and those that adapters bring."""
    phrases = [word for words in vocabulary.values() for word in words]
    phrases += [other for words in vocabulary.values() for others in words.values() for other in others]
    return frozenset(part for phrase in (*phrases, *triggers) for part in _words(phrase)) | GLUE


def unknown(prompt: str, vocabulary: Vocabulary, triggers: Iterable[str] = ()) -> dict[str, str]:
    """The first MOST_TOLD of the prompt's words that the model does not know, each with the nearest one that it
    does, or ""."""
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
