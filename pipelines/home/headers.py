"""The header of a safetensors file, as JSON: counted before anything is made of it, so that each takes little time and
memory, whatever its bytes are.

Layout (https://github.com/huggingface/safetensors#format): an unsigned 64-bit little-endian length; that many bytes of
JSON, {"name": {"dtype", "shape", "data_offsets"}, "__metadata__": {str: str}}; then the data.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from composers.shown import shown
from pipelines.home.files import whole_text
from pipelines.home.plain import DEEPEST, check_json_size

LONGEST_HEADER = 12 * 2**20
"""The longest header that is read, in bytes. Real ones, even with thumbnails, stay below a third of it."""
MOST_TENSORS = 20_000
"""Most tensors of one file. A whole SDXL checkpoint has 2,500; an adapter of every layer, in the many parts of
its kind, fewer than 15,000."""
MOST_NOTES = 10_000
"""Most entries of one file's metadata."""
LONGEST_NAME = 10_000
"""Characters in a tensor's name. Real ones have some hundred."""
MOST_AXES = 8
"""Axes of one tensor."""

_MOST_VALUES = MOST_TENSORS * (6 + MOST_AXES) + 2 * MOST_NOTES


def check_header(text: bytes) -> None:
    """Raises ValueError for a header that holds too much, or nests it too deep. Nothing is made of it."""
    check_json_size(text, _MOST_VALUES, DEEPEST)


def parse_header(text: bytes) -> tuple[dict[str, Any], Mapping[str, str]]:
    """(the entry of each tensor as it stands there, the metadata as texts).

    Raises ValueError and RecursionError for what is no header, or holds too much.
    """
    check_header(text)
    content = json.loads(text, object_pairs_hook=_unique)
    if not isinstance(content, dict):
        raise ValueError("the header is no JSON object")
    metadata = texts_of(content.pop("__metadata__", None))
    if len(content) > MOST_TENSORS:
        raise ValueError(f"the header names {len(content)} tensors, more than {MOST_TENSORS}")
    for name in content:
        if len(name) > LONGEST_NAME:
            raise ValueError(f"a tensor's name has {len(name)} characters, more than {LONGEST_NAME}")
    return content, metadata


def split_header(text: bytes) -> tuple[bytes, Mapping[str, str]] | None:
    """(the tensors' JSON, the metadata), without parsing the tensors; None where they cannot be separated.

    That takes metadata that comes first, as all known writers put it, or none. The tensors' JSON is an object of its
    own, which is valid exactly if the whole header is. The header must have passed `check_header`.
    """
    text = text.rstrip(_BLANKS)
    first = _METADATA_FIRST.match(text)
    if first is None:
        plain = b"__metadata__" not in text and b"\\" not in text  # an escape may spell the name
        return (text, {}) if plain else None
    try:
        decoded = str(memoryview(text)[first.end() :], "utf-8")
        metadata, end = _DECODER.raw_decode(decoded)
        texts = texts_of(metadata)
    except (ValueError, RecursionError):
        return None
    follow = _NEXT_KEY.match(decoded, end)
    if follow is None:
        return None
    tensors = b"{" + decoded[follow.end() - 1 :].encode()
    if b"__metadata__" in tensors or b"\\" in tensors:
        return None  # they may stand there twice
    return tensors, texts


def texts_of(metadata: object) -> Mapping[str, str]:
    """The metadata as texts, which the format demands; other values become their JSON. What is no object is {}.

    Raises ValueError for too many.
    """
    if not isinstance(metadata, dict):
        return {}
    if len(metadata) > MOST_NOTES:
        raise ValueError(f"the metadata have {len(metadata)} entries, more than {MOST_NOTES}")
    return {
        whole_text(key): whole_text(value) if isinstance(value, str) else json.dumps(value)
        for key, value in metadata.items()
    }


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"{shown(counts.most_common(1)[0][0])} occurs twice")
    return fields


_BLANKS = b" \t\n\r"  # JSON's
_METADATA_FIRST = re.compile(rb'\{[ \t\n\r]*"__metadata__"[ \t\n\r]*:[ \t\n\r]*')
_NEXT_KEY = re.compile(r'[ \t\n\r]*,[ \t\n\r]*"')
_DECODER = json.JSONDecoder(object_pairs_hook=_unique)
