"""Numbers of other programs, exactly: no whole number passes through a float."""

from __future__ import annotations

import math
import re

LONGEST = 100
"""Most characters of a number that is written as a text."""
_WHOLE = re.compile(r"\s*([+-]?[0-9]+)(?:\.0*)?\s*")
_REAL = re.compile(r"\s*[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?\s*")
EXACT = 2**53
"""Floats are whole numbers of their own up to here."""
LARGEST = 2**127
"""A number beyond this is none, whatever it is for."""


def whole(value: object) -> int | None:
    """The whole number that a value of JSON is, as a number or as a text; None for any other value."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if abs(value) <= LARGEST else None
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) <= EXACT else None
    if isinstance(value, str) and len(value) <= LONGEST and (found := _WHOLE.fullmatch(value)):
        return whole(int(found[1]))
    return None


def real(value: object) -> float | None:
    """The finite number that a value of JSON is, as a number or as a text; None for any other value."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and (len(value) > LONGEST or not _REAL.fullmatch(value)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and abs(number) <= LARGEST else None
