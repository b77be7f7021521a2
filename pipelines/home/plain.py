"""A stranger's text: read within bounds, and what its reader may raise becomes one StudioError.

A reader of JSON, YAML, TOML or of a picture can raise almost anything when the text is made for it: RecursionError,
OverflowError, IndexError, an error of its own library. `reading` is the one place that turns these into an error for
people. Length, depth and number of values are checked before anything uses the content.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from composers.shown import shown
from pipelines.bounds import check_text
from pipelines.errors import RequestError, SetupError, StudioError

MOST_VALUES = 1_000_000
"""Most values of one document. Nested values count, and so do those that an alias stands for."""
DEEPEST = 40
"""Deepest nesting of lists and objects; nothing that we write comes near it."""
LONGEST_FILE = 64 * 2**20
"""Most bytes of a text file."""


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
    return f"cannot be read: {short(fault)}"


def short(value: object) -> str:
    """The text of a value, on one line and with a long middle left out: to quote it in a message."""
    return shown(" ".join(str(value).split()))[1:-1]


def check_plain(
    value: object,
    where: str,
    *,
    longest: int,
    most: int = MOST_VALUES,
    deepest: int = DEEPEST,
    finite: bool = True,
) -> None:
    """Raises RequestError for more than `most` values, for nesting deeper than `deepest`, for texts that are longer
    than `longest` or cannot be encoded, and, if `finite`, for NaN and infinite numbers. Looks at `most` values at
    most."""
    pending: list[tuple[object, int]] = [([value], -1)]
    seen = 0
    while pending:
        whole, depth = pending.pop()
        parts = (*whole.keys(), *whole.values()) if isinstance(whole, dict) else whole
        assert isinstance(parts, list | tuple)
        for one in parts:
            if isinstance(one, str):
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


def read_text(file: Path, longest: int = LONGEST_FILE) -> str:
    """A file of UTF-8 text. Raises SetupError where it cannot be read, and RequestError where it is too large."""
    try:
        if not file.is_file() and file.exists():
            raise SetupError(f"{file} is no file; give one")
        if file.stat().st_size > longest:
            raise RequestError(
                f"{file} has {file.stat().st_size / 2**20:.0f} MB; at most {longest // 2**20} are read: split it"
            )
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SetupError(f"{file} cannot be read ({error.strerror}); check the path") from error


def read_json(
    text: str,
    where: str,
    *,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
    most: int = MOST_VALUES,
    finite: bool = True,
) -> Any:
    """The content of a JSON text, whose own texts may be of any length. pairs: makes each object from its pairs.

    Raises RequestError for invalid JSON, and for too many values; these are counted before any is made.
    """
    signs = text.count(",") + text.count("[") + text.count("{")
    if signs > 5 * most:  # commas stand in texts too
        raise RequestError(f"{where} holds {signs} values or so, far more than {most}; split it")
    try:
        content = json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise RequestError(f"{where} is not valid JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where} is not valid JSON: {shown(str(error))[1:-1]}") from error
    check_plain(content, where, longest=max(len(text), 1), most=most, finite=finite)
    return content
