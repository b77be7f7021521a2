"""How NovelAI says how a picture was made: PNG texts `Description` (the prompt), `Source` (the model) and `Comment`,
JSON with the settings. In a WebP file all of them are one object of JSON.

`{fox}` weighs 1.05 and `[fox]` 1/1.05; since its fourth model also `1.3::fox::`. Round brackets are words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipelines.bounds import check_text
from pipelines.errors import StudioError
from pipelines.home.plain import read_json
from studio.drafts.picture_file import MOST_SAID
from studio.pictures.foreign import Foreign
from studio.pictures.taking import LONGEST_TAGGED, Taking

PROGRAM = "NovelAI"
STEP = 1.05
DEEPEST = 40
"""Deepest nesting of brackets that is weighed; deeper ones weigh nothing more."""
_SOURCE = re.compile(r"(.{1,200}?)\s+([A-Z0-9]{4,16})")
_MARK = re.compile(r"(?:(?=-)|(?<![0-9]))-?+(?:[0-9]++(?:\.[0-9]++)?+|\.[0-9]++)::|::|[{}\[\]()]")
"""A number is tried only from its first digit, so that no text takes quadratic time."""
_NOTHING = (
    "signed_hash", "hide_debug_overlay", "request_type", "n_samples", "version", "uncond_scale", "v4_prompt",
    "v4_negative_prompt", "legacy", "add_original_image", "legacy_v3_extend", "legacy_uc", "explike_fine_detail",
    "prefer_brownian", "deliberate_euler_ancestral_bug", "generation_time", "stream", "image_format",
)  # fmt: skip


def read(said: Mapping[str, Any]) -> Foreign | None:
    """What the texts say, by their names; None where they are not NovelAI's."""
    comment = said.get("Comment", said.get("comment"))
    software = said.get("Software", said.get("software"))
    if isinstance(comment, str):
        try:
            comment = read_json(comment, "it", most=MOST_SAID, finite=False)
        except StudioError:
            return None
    if not isinstance(comment, Mapping):
        return None
    source = said.get("Source", said.get("source"))
    if software != PROGRAM and not ("uc" in comment and isinstance(source, str)):
        return None
    taking = Taking({key: value for key, value in comment.items() if key != "characterPrompts"})
    values = taking.values()
    prompt = values["prompt"] or said.get("Description") or said.get("description")
    check_text("prompt", prompt if isinstance(prompt, str) else "", LONGEST_TAGGED)
    values["prompt"] = weighted(prompt) if isinstance(prompt, str) else ""
    if values["negative_prompt"]:
        values["negative_prompt"] = weighted(values["negative_prompt"])
    values["guidance_rescale"] = taking.real("cfg_rescale")
    captions = _captions(comment.get("v4_prompt"))
    strength = taking.real("strength")
    start = comment.get("request_type") not in (None, "PromptGenerateRequest") and strength is not None
    if start:
        values["strength"] = strength
    model = _SOURCE.fullmatch(source) if isinstance(source, str) else None
    taking.pass_over(*_NOTHING)
    notes = [f"{captions} prompts of single characters not taken over"] if captions else []
    return Foreign(
        PROGRAM,
        values,
        (),
        model[1] if model else source if isinstance(source, str) else "",
        model[2] if model else "",
        notes=taking.notes(notes),
        from_picture=start,
    )


def _captions(said: object) -> int:
    """How many characters have a prompt of their own."""
    caption = said.get("caption") if isinstance(said, Mapping) else None
    own = caption.get("char_captions") if isinstance(caption, Mapping) else None
    return len(own) if isinstance(own, list) else 0


def weighted(text: str) -> str:
    """The prompt with NovelAI's weights as we write them, and its round brackets as words. Brackets that are not closed
    are words too."""
    pieces: list[str] = []
    begun: list[tuple[str, int, float]] = []  # a bracket, its piece, its weight
    end = 0
    for mark in _MARK.finditer(text):
        pieces.append(text[end : mark.start()])
        sign, end = mark[0], mark.end()
        if sign in "()":
            pieces.append(f"\\{sign}")
        elif sign in ("{", "[") or (len(sign) > 2 and sign.endswith("::")):
            if begun and begun[-1][0] == "::" and sign.endswith("::"):
                _close(pieces, begun.pop())
            weight = {"{": STEP, "[": 1 / STEP}.get(sign) or float(sign.removesuffix("::"))
            begun.append(("::" if sign.endswith("::") else sign, len(pieces), weight))
            pieces.append("" if sign.endswith("::") else _word(sign))
        elif begun and begun[-1][0] == {"}": "{", "]": "[", "::": "::"}[sign]:
            _close(pieces, begun.pop())
        else:
            pieces.append(_word(sign))
    pieces.append(text[end:])
    return "".join(pieces)


def _close(pieces: list[str], begun: tuple[str, int, float]) -> None:
    _, place, weight = begun
    pieces[place] = "("
    pieces.append(f":{weight:.4g})")


def _word(sign: str) -> str:
    return f"\\{sign}" if sign in "[]" else sign
