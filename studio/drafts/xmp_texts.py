"""The texts in XMP, Adobe's XML of notes (ISO 16684-1). Only its own characters are read: no entity is expanded but
those of XML itself, and nothing is fetched."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from xml.parsers import expat

CHUNK = "XML:com.adobe.xmp"
"""The name of the PNG text that holds XMP."""
NAMES: Mapping[str, str] = {
    "usercomment": "UserComment",
    "imagedescription": "ImageDescription",
    "description": "Description",
    "creatortool": "Software",
    "parameters": "parameters",
    "prompt": "prompt",
    "workflow": "workflow",
}
"""Property in small letters -> the name of its text. rdf:Description, which holds all properties, is none."""
_STRUCTURE = ("rdf", "x", "xml", "xmlns")
_TAGS = re.compile(r"</?(?:rdf|xml):[^<>]*+>")


def texts(xmp: str | bytes) -> dict[str, str]:
    """The texts by name, of several of one name the first; {} for what is no XMP. Takes linear time."""
    whole = xmp if isinstance(xmp, str) else xmp.decode(_code(xmp), "replace")
    whole = whole.strip("\0 \r\n\t\ufeff")
    if not whole.startswith("<"):
        return {}
    reading = _Reading()
    try:
        reading.read(whole)
    except (expat.ExpatError, ValueError):  # signs of XML stand in a text as they are
        return _searched(whole)
    return {name: text.strip() for name, text in reading.found.items() if text.strip()}


def _code(xmp: bytes) -> str:
    return "utf-16" if xmp[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"


class _Reading:
    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self._open: list[str] = []
        self._said: list[str] = []
        self._name = ""

    def read(self, xmp: str) -> None:
        parser = expat.ParserCreate("utf-8")
        parser.StartElementHandler = self._begin
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.StartDoctypeDeclHandler = self._refuse
        parser.buffer_text = True
        parser.Parse(xmp.encode("utf-8", "replace"), True)

    def _begin(self, name: str, attributes: dict[str, str]) -> None:
        for key, value in attributes.items():
            if (known := _known(key)) is not None:
                self.found.setdefault(known, value)
        if not self._name and (known := _known(name)) is not None:
            self._name, self._said = known, []
            self._open = [name]
        elif self._name and name == self._open[0]:
            self._open.append(name)

    def _end(self, name: str) -> None:
        if self._name and name == self._open[0]:
            self._open.pop()
            if not self._open:
                self.found.setdefault(self._name, "".join(self._said))
                self._name = ""

    def _text(self, text: str) -> None:
        if self._name:
            self._said.append(text)

    def _refuse(self, *_: object) -> None:
        raise ValueError("XMP has no document type")


def _known(name: str) -> str | None:
    prefix, _, local = name.rpartition(":")
    return None if prefix in _STRUCTURE else NAMES.get(local.lower())


def _searched(whole: str) -> dict[str, str]:
    """The texts of XMP that is not well formed, between the tags of their names."""
    found = {}
    for name in ("exif:UserComment", "dc:description", "xmp:CreatorTool"):
        begin = whole.find(f"<{name}>")
        end = whole.find(f"</{name}>", begin)
        if 0 <= begin < end:
            text = html.unescape(_TAGS.sub("", whole[begin + len(name) + 2 : end])).strip()
            if text:
                found[NAMES[name.partition(":")[2].lower()]] = text
    return found
