"""Forms that other programs and their extensions know, and that are drawn as words here. Pure: no torch."""

from __future__ import annotations

import itertools
import re

from composers.shown import shown

MOST_TOLD = 5
"""Most pieces of a prompt that one note names."""

_FORMS = re.compile(
    r"""
      \)\s?\d{1,3}\.\d{1,6}                 # ((fox)1.3): the colon is missing
    | :\s?\d{1,3},\d{1,6}\s?\)              # (fox:1,3): a decimal comma
    | [\uff08\uff3b][^\uff09\uff3d]{0,60}[\uff09\uff3d]?   # full-width brackets
    | [\w)]{2,40}(?:\+\+|--)(?![\w+-])      # fox++ (InvokeAI)
    | \{[^{}|]{0,200}\|[^{}]{0,200}\}       # {red|blue} (dynamic prompts)
    | __[\w/*-]{1,60}__                     # __animal__ (wildcards)
    | \bAND_[A-Z]{2,20}\b                   # AND_PERP (neutral prompt)
    | <[^<>\n]{1,100}>                      # <ti:x:1>, <lora x:0.8>, <word>
    """,
    re.VERBOSE,
)
_ESCAPED = re.compile(r"\\.")
_AND = re.compile(r"\bAND\b")


def other_forms(prompt: str, negative: str | None) -> tuple[str, ...]:
    """A note on each prompt that holds such forms. prompt: without its LoRA tags."""
    notes = []
    for text, where in ((prompt, ""), (negative or "", " in the negative prompt")):
        found = (match[0].strip() for match in _FORMS.finditer(_ESCAPED.sub(" ", text)))
        pieces = [shown(piece) for piece in itertools.islice(dict.fromkeys(found), MOST_TOLD + 1)]
        if pieces:
            more = ", …" if len(pieces) > MOST_TOLD else ""
            notes.append(
                f"no form here{where}, so drawn as words: {', '.join(pieces[:MOST_TOLD])}{more}; `lora-studio render "
                "--help` lists the forms"
            )
    if _AND.search(negative or ""):
        notes.append("a negative prompt knows no AND: it is drawn as the word")
    return tuple(notes)
