"""Bounds of a search: so few words and characters that none holds up the others for long."""

from __future__ import annotations

from pipelines.bounds import check_text
from pipelines.errors import RequestError

MOST_WORDS = 20
LONGEST_SEARCH = 500
"""Characters."""


def words_of(search: str) -> list[str]:
    """The words of a search. Raises RequestError for too many, and for too many characters."""
    words = check_text("the search", search, LONGEST_SEARCH).split()
    if len(words) > MOST_WORDS:
        raise RequestError(f"the search has {len(words)} words, more than {MOST_WORDS}; leave some out")
    return words
