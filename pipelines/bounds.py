"""How much of anything one request may hold, and the checks for it.

Each bound is checked before any work is done. What exceeds it is refused by its size alone, and the message tells the
size.
"""

from __future__ import annotations

import re

from composers.shown import shown
from pipelines.errors import PromptError, RequestError

LONGEST_PROMPT = 20_000
"""Characters in a prompt, adapter tags included. CLIP makes up to four tokens of one character."""
LONGEST_WORD = 1_000
"""Letters in a row, or other signs in a row. Some tokenizers take time that grows with the square of that."""
MOST_CHUNKS = 64
"""Chunks of 77 tokens in one prompt."""
MOST_CHUNKS_OF_A_PICTURE = 1_024
"""Chunks in all texts of one picture. In text mode per_adapter both prompts are encoded once for each adapter."""
LONGEST_NAME = 1_000
"""Characters in the name of an adapter, a block, a scheduler or a model. Some of these may be paths."""
MOST_ADAPTERS = 100
"""Adapters of one picture, including pinned ones and those given as tags."""
MOST_ROWS = 256
"""UNet rows of one picture at one step: a hundred lanes with their negative twins, and some more."""
MOST_BLOCKS = 1_000
"""Blocks that one adapter is confined to. SDXL's UNet has about as many layers."""
MOST_POINTS = 1_000
"""Points in one adapter's schedule; enough for one at every step."""
STRONGEST = 100.0
"""Strengths, and factors on them, lie in -100 … 100."""
MOST_PIXELS = 80_000_000
"""Width x height of a picture that is read: about 240 MB as RGB, and less than what Pillow warns of."""

_IN_A_ROW = re.compile(r"[^\W\d_]+|(?:[^\w\s]|_)+")


def check_text(name: str, value: object, longest: int) -> str:
    """The value, if it is a text. name: what it is, for messages.

    Raises RequestError for what is not text, is longer than `longest` characters, holds a NUL character, or cannot be
    written as UTF-8.
    """
    if not isinstance(value, str):
        raise RequestError(f"{name}={shown(value)} must be text")
    if len(value) > longest:
        raise RequestError(f"{name} has {len(value)} characters, more than {longest}; shorten it")
    if "\0" in value:
        raise RequestError(f"{name}={shown(value)} holds a NUL character; take it out")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{name}: {value[error.start]!r} at place {error.start + 1} is half a character, which no text can hold; "
            "write it anew"
        ) from None
    return value


def check_words(name: str, text: str) -> None:
    """Raises PromptError for more than LONGEST_WORD letters, or other signs, in a row."""
    if len(text) <= LONGEST_WORD:
        return
    longest = max((found[0] for found in _IN_A_ROW.finditer(text)), key=len, default="")
    if len(longest) > LONGEST_WORD:
        raise PromptError(
            f"{name}: {longest[:20]!r}… has {len(longest)} characters without a space, more than {LONGEST_WORD}; "
            "write it as words"
        )


def check_pixels(name: str, width: int, height: int) -> None:
    """Raises RequestError for a picture of more than MOST_PIXELS pixels."""
    if width * height > MOST_PIXELS:
        raise RequestError(
            f"{name} has {width}x{height} pixels, {width * height / 1e6:.0f} million; at most "
            f"{MOST_PIXELS // 10**6} million are read: make it smaller"
        )
