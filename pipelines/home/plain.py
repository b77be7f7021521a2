"""A stranger's text: read within bounds, and what its reader may raise becomes one StudioError.

A reader of JSON, YAML, TOML or of a picture can raise almost anything when the text is made for it: RecursionError,
OverflowError, IndexError, an error of its own library. `reading` is the one place that turns these into an error for
people. Length, depth and number of values are checked before anything uses the content.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import yaml

from composers.shown import shown
from pipelines.bounds import check_text
from pipelines.errors import RequestError, SetupError, StudioError
from pipelines.home import files

Kept = TypeVar("Kept")

MOST_VALUES = 1_000_000
"""Most values of one document. Nested values count, and so do those that an alias stands for."""
DEEPEST = 40
"""Deepest nesting of lists and objects; nothing that we write comes near it."""
LONGEST_FILE = 64 * 2**20
"""Most bytes of a text file."""
LONGEST_TOML = 2**16
"""Most bytes of a text of settings in TOML."""
LONGEST_YAML = 2**15
"""Most bytes of a text of settings in YAML, whose reader is slow."""
MOST_BRACKETS = 500
"""Most opening brackets in such a text: the time that they take grows with the square of their number."""


@contextmanager
def reading(what: str, error: type[StudioError], remedy: str = "") -> Iterator[None]:
    """Turns whatever the block raises for a stranger's content into `error`, on one short line.

    The block only reads: it does not change anything. A StudioError passes as it is. what: the thing, as the line
    begins. remedy: how the line ends, as in "download it again".
    """
    try:
        yield
    except StudioError:
        raise
    except Exception as fault:
        raise error(f"{what} {_why(fault)}{f'; {remedy}' if remedy else ''}") from fault


def _why(fault: Exception) -> str:
    if isinstance(fault, OSError):
        return f"cannot be read ({fault.strerror or short(fault)})"
    if isinstance(fault, RecursionError):
        return "cannot be read: it is nested too deep"
    if isinstance(fault, MemoryError):
        return "cannot be read: memory ran out"
    if isinstance(fault, KeyError):
        return f"cannot be read: it lacks {short(fault)}"
    return f"cannot be read: {short(fault) or type(fault).__name__}"


def short(value: object) -> str:
    """The text of a value, on one line and with a long middle left out: to quote it in a message."""
    if isinstance(value, int):
        return shown(value)  # Python writes no number of some thousand digits
    return shown(" ".join(str(value).split()))[1:-1]


def check_plain(
    value: object,
    where: str,
    *,
    longest: int | None,
    most: int = MOST_VALUES,
    deepest: int = DEEPEST,
    finite: bool = True,
) -> None:
    """Raises RequestError for more than `most` values, for nesting deeper than `deepest`, for texts that are longer
    than `longest` or cannot be encoded, and, if `finite`, for NaN and infinite numbers. Looks at `most` values at
    most. longest: in characters; None looks at no text."""
    pending: list[tuple[object, int]] = [([value], -1)]
    seen = 0
    while pending:
        whole, depth = pending.pop()
        parts = (*whole.keys(), *whole.values()) if isinstance(whole, dict) else whole
        assert isinstance(parts, list | tuple)
        for one in parts:
            if isinstance(one, str):
                if longest is not None:
                    check_text(where, one, longest)
            elif isinstance(one, dict | list | tuple):
                if depth + 1 == deepest:
                    raise RequestError(f"{where} is nested more than {deepest} deep; make it flat")
                seen += len(one) * 2 if isinstance(one, dict) else len(one)
                if seen > most:
                    raise RequestError(f"{where} holds more than {most} values; split it")
                pending.append((one, depth + 1))
            elif finite and isinstance(one, float) and not math.isfinite(one):
                raise RequestError(f"{where}: {one} is no number; write one")


def read_text(file: Path, longest: int = LONGEST_FILE, decode: Callable[[bytes], str] | None = None) -> str:
    """A file of UTF-8 text, or of what `decode` makes of its bytes. Raises SetupError where it cannot be read,
    RequestError where it is too large, UnicodeDecodeError for other bytes, and whatever `decode` raises."""
    try:
        if files.exists(file):
            if not files.is_regular(file):
                raise SetupError(f"{file} is no file; give one")
            if (size := file.stat().st_size) > longest:
                raise RequestError(
                    f"{file} has {size / 2**20:.0f} MB; at most {longest // 2**20} are read: split it"
                )
        text = files.read_text(file, longest) if decode is None else decode(files.read_regular(file, longest))
        return text.replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise SetupError(f"{file} cannot be read ({error.strerror}); check the path") from error


# -- JSON ------------------------------------------------------------------------------------------------


def read_json(
    text: str | bytes,
    where: str,
    *,
    error: type[StudioError] = RequestError,
    remedy: str = "",
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
    most: int = MOST_VALUES,
    finite: bool = True,
    mended: bool = False,
) -> Any:
    """The content of a JSON text, whose own texts may be of any length. pairs: makes each object from its pairs.

    error: what is raised for invalid JSON, for too many values and for too deep nesting; these are counted before any
    is made. remedy: how its line ends. finite: whether NaN and infinite numbers are refused too. mended: texts are
    taken whatever they hold, and halves of surrogate pairs become question marks; else such texts are refused.
    """
    ending = f"; {remedy}" if remedy else ""
    try:
        check_json_size(text, most)
        text = text if isinstance(text, str) else text.decode("utf-8-sig")
        content = json.loads(text, object_pairs_hook=pairs)
    except TooLarge as fault:
        raise error(f"{where} {fault.said}; {fault.remedy}") from fault
    except (ValueError, RecursionError) as fault:
        raise error(f"{where} is not valid JSON: {short(fault)}{ending}") from fault
    try:
        longest = None if mended else max(len(text), 1)
        check_plain(content, where, longest=longest, most=most, finite=finite)
    except RequestError as fault:
        raise error(str(fault)) from fault
    return _whole(content) if mended and ("\\ud" in text or "\\uD" in text) else content


class TooLarge(ValueError):
    """A text holds too many values, or nests them too deep. said, remedy: as "it is nested …", "make it flat"."""

    def __init__(self, said: str, remedy: str) -> None:
        super().__init__(f"it {said}")
        self.said, self.remedy = said, remedy


def check_json_size(text: str | bytes, most: int = MOST_VALUES, deepest: int = DEEPEST) -> None:
    """Raises TooLarge for a JSON text with more than `most` values, or deeper than `deepest`. Nothing is made of it:
    commas and brackets outside of its texts are counted."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    if (quotes := data.count(b'"') - data.count(b'\\"')) > 4 * most:
        raise TooLarge(f"holds {quotes // 4} values or so, far more than {most}", "split it")
    bare = _TEXTS.sub(b"", data.replace(b"\\\\", b"").replace(b'\\"', b""))
    if (values := sum(map(bare.count, (b",", b"[", b"{")))) > most:
        raise TooLarge(f"holds {values} values or so, far more than {most}", "split it")
    steps = map(_STEPS.__getitem__, bare.translate(None, _NO_BRACKETS))
    if max(accumulate(steps), default=0) > deepest:
        raise TooLarge(f"is nested more than {deepest} deep", "make it flat")


_TEXTS = re.compile(rb'"[^"]*"')
_STEPS = [(sign in b"[{") - (sign in b"]}") for sign in range(256)]
_NO_BRACKETS = bytes(sign for sign in range(256) if not _STEPS[sign])


def _whole(value: Any) -> Any:
    match value:
        case str():
            return files.whole_text(value)
        case list():
            return [_whole(item) for item in value]
        case dict():
            return {files.whole_text(key): _whole(item) for key, item in value.items()}
    return value


def read_kept(file: Path, make: Callable[[Any], Kept]) -> Kept | None:
    """What `make` makes of the JSON in a file that an earlier run has kept; None where the file is not there, or is
    damaged, or another version's: whatever it held is found anew."""
    try:
        with reading(str(file), SetupError):
            return make(read_json(files.read_text(file), str(file)))
    except StudioError:
        return None


# -- TOML and YAML ---------------------------------------------------------------------------------------


def read_toml(text: str, where: str, *, error: type[StudioError], remedy: str = "") -> dict[str, Any]:
    """The content of a TOML text. Raises `error`."""
    with reading(where, error, remedy):
        _check_length(text, LONGEST_TOML)
        if _LONG_KEY.search(text):  # the time that these take grows with the square of their length
            raise ValueError("a key has more than 20 parts")
        return tomllib.loads(text)


_PART = r"""(?:(?<![\w-])[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*"""
_LONG_KEY = re.compile(rf"(?:{_PART}\.[ \t]*){{20}}")


def read_yaml(text: str, where: str, *, error: type[StudioError], remedy: str = "") -> Any:
    """The content of a YAML text, with every number, date and truth value as the text that stands there. Raises
    `error`."""
    with reading(where, error, remedy):
        _check_length(text, LONGEST_YAML)
        if (brackets := text.count("[") + text.count("{")) > MOST_BRACKETS:
            raise ValueError(f"it has {brackets} opening brackets, more than {MOST_BRACKETS}")
        return yaml.load(text, Loader=yaml.BaseLoader)


def _check_length(text: str, longest: int) -> None:
    if len(text) > longest:
        raise ValueError(f"it has {len(text)} characters, more than {longest}")
