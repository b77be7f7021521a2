"""Messages for users on other computers: the same words, without paths of this computer."""

from __future__ import annotations

import re
from pathlib import Path

from pipelines.home import Home

_PATH = re.compile(r"(?<![\w.:/\\])(?:~|[A-Za-z]:|file:)?(?:[/\\]+[^\s/\\:;,'\"()<>|]+)+[/\\]*")
"""An absolute path, up to a character that ends one in a sentence. It may be one of a Windows share, or have doubled
backslashes. A web address is none: a colon precedes its slashes."""
_PARTS = re.compile(r"[/\\]")


def without_places(text: str, home: Home) -> str:
    """The text with every absolute path shortened to its last part; one of a single part is not told.

    The home's folders are looked for by name, so that paths in them are found even where they contain spaces.
    """
    roots = home.roots
    known = {home.path, *roots.models, *roots.loras, *roots.vae, Path.home()}
    for folder in sorted(map(str, known), key=len, reverse=True):
        text = re.sub(rf"{re.escape(folder)}(?:[/\\])", "", text)
        text = re.sub(rf"{re.escape(folder)}(?![\w.-])", Path(folder).name, text)
    return _PATH.sub(_last, text)


def _last(found: re.Match[str]) -> str:
    """The last part of a path. A path of one part, such as /etc, is not told at all; </b> is none."""
    parts = [part for part in _PARTS.split(found[0]) if part and part != "~"]
    if len(parts) > 1:
        return parts[-1]
    if found.string[: found.start()].endswith("<"):
        return found[0]
    return "a folder elsewhere" + ("." if found[0].endswith(".") else "")
