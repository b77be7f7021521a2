"""The texts in a picture under the names by which the readers know them, wherever in the file they lie.

A JPEG or a WebP file has no named texts. There, A1111, Forge, SwarmUI, Fooocus and Civitai write into EXIF's user
comment what they write into a PNG as `parameters`, and ComfyUI `prompt:{…}` and `workflow:{…}` into the tags Make and
Model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from pipelines.errors import StudioError
from pipelines.home.plain import read_json
from studio.drafts import picture_file
from studio.drafts.png_texts import EARLIER
from studio.pictures import infotext

CHUNK = "lora-studio"
PARAMETERS = "parameters"
COMMENTS = (
    "UserComment",
    "XPComment",
    "ImageDescription",
    "comment",
    "Comment",
    "Description",
    "description",
    "generation_data",
    "metadata",
    "Parameters",
)
"""Where a text may lie that a PNG has as `parameters`, the likeliest first."""
TAGS = ("Make", "Model", "ImageDescription", "UserComment", "XPComment", "Software")
"""Where texts may lie that begin with their name and a colon."""
NAMED = ("prompt", "workflow", PARAMETERS, "invokeai_metadata")
KNOWN = (CHUNK, PARAMETERS, "prompt", "invokeai_metadata", "sd-metadata", "Dream")
"""Texts by which a picture says how it was made."""
_OBJECT = re.compile(r'[\s\ufeff]*+(?:\{\s*+["\'}]|\[\s*+[\[{"]|"\{)')
_NAME = re.compile(rf"\s*({'|'.join(NAMED)})\s*:\s*(?=[{{\[])", re.IGNORECASE)


def read_texts(source: Path | IO[bytes], name: str = "") -> dict[str, str]:
    """The texts of a picture by the readers' names. name: what messages call it. Raises RequestError for a file that is
    no picture, or too large (see `studio.drafts.picture_file`)."""
    if not name and isinstance(source, Path):
        name = source.name
    found = picture_file.texts(source, name)
    for tag in TAGS:
        if (named := _NAME.match(found.get(tag, ""))) is not None:
            found.setdefault(named[1].lower(), found[tag][named.end() :])
            del found[tag]
    _choose(found)
    if not any(known in found for known in KNOWN):
        for tag in COMMENTS:
            if (
                tag in found and found.get("Software") == "Draw Things"
            ):  # a line with a dash is its negative prompt
                found[tag] = found[tag].replace("\n-", f"\n{infotext.NEGATIVE} ", 1)
            if tag in found and _says(found[tag]):
                found[PARAMETERS] = found[tag] if tag in ("Comment", "Description") else found.pop(tag)
                break
    for name, graph in _graphs(found.get(PARAMETERS, "")).items():
        found.pop(PARAMETERS, None)
        found.setdefault(name, graph)
    return found


def _choose(found: dict[str, str]) -> None:
    """Of two texts `parameters` the later one counts, unless only the earlier one tells settings."""
    before = PARAMETERS + EARLIER
    if before in found and not _says(found[PARAMETERS]):
        if _says(found[before]):
            found[PARAMETERS], found[before] = found[before], found[PARAMETERS]
        else:
            del found[before]


def _says(text: str) -> bool:
    """Whether a text tells settings."""
    return is_object(text) or infotext.is_infotext(text)


def doubled(texts: Mapping[str, str]) -> tuple[str, ...]:
    """A note for each text by which a picture says how it was made and that it holds twice."""
    return tuple(
        f"it holds two texts {name!r} that differ; the later one that tells settings counts"
        for name in KNOWN
        if name + EARLIER in texts
    )


def is_object(text: str) -> bool:
    """Whether the text is meant as JSON, well formed or not, or as a dict of Python."""
    return _OBJECT.match(text) is not None


def objects(texts: Mapping[str, str]) -> dict[str, Any]:
    """The texts that are JSON, read. One that is damaged is left out."""
    found = {}
    for name, text in texts.items():
        if name != CHUNK and text.lstrip("\ufeff \t\r\n")[:1] in ("{", "[", '"'):
            try:
                found[name] = read_json(
                    text.strip("\ufeff\0 \r\n\t"), "it", most=picture_file.MOST_SAID, finite=False
                )
            except StudioError:
                continue
    return found


def _graphs(text: str) -> dict[str, str]:
    """ComfyUI's graph, and the drawn one, which some programs write as a user comment: the graph alone, or both as
    `prompt` and `workflow` of an object, as they are or packed once more; {} where there is none."""
    if "class_type" not in text or not is_object(text):
        return {}
    said = objects({PARAMETERS: text}).get(PARAMETERS)
    if not isinstance(said, dict) or "extraMetadata" in said:
        return {}
    if any(isinstance(one, dict) and "class_type" in one for one in said.values()):
        return {"prompt": text}
    both = {name: said[name] for name in ("prompt", "workflow") if isinstance(said.get(name), dict | str)}
    packed = {name: one if isinstance(one, str) else json.dumps(one) for name, one in both.items()}
    graph = packed.get("prompt", "").lstrip()
    return packed if graph.startswith("{") and '"class_type"' in graph else {}
