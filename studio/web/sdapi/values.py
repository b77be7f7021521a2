"""Values as A1111's clients send them: numbers also as text, null for a field left out, and what asks for nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from composers.shown import shown
from pipelines.bounds import LONGEST_NAME, check_text
from pipelines.errors import RequestError

_WHOLE = re.compile(r"[+-]?[0-9]{1,40}")
_REAL = re.compile(r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,3})?")
_EXACT = 2**53
"""Floats up to this number hold every whole number."""
_NOTHING = "", "none", "null", "false", "no", "off", "disabled"
"""Texts that ask for nothing, in lower case."""
_SWITCHES = "enabled", "enable", "is_enabled", "active", "is_active", "ad_tab_enable", "ad_model"
"""Fields of an object which, being off, switch all of it off."""


def text(body: Mapping[str, Any], name: str, longest: int = LONGEST_NAME) -> str:
    """A field's text; "" where it is left out. Raises RequestError."""
    value = body.get(name)
    return "" if value is None else check_text(name, value, longest)


def number(value: object) -> Any:
    """The number that a text holds, None for an empty text; every other value as it is."""
    if not isinstance(value, str):
        return value
    said = value.strip()
    if _WHOLE.fullmatch(said):
        return int(said)
    return float(said) if _REAL.fullmatch(said) else value if said else None


def whole_number(value: object) -> Any:
    """As `number`; and 20.0 is 20, where a float holds it exactly."""
    found = number(value)
    if isinstance(found, float) and found.is_integer() and abs(found) <= _EXACT:
        return int(found)
    return found


def whole(body: Mapping[str, Any], name: str, default: int) -> int:
    """A field's whole number; `default` where it is left out or empty. Raises RequestError."""
    value = whole_number(body.get(name))
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name}={shown(value)} must be a whole number")
    return value


def truth(body: Mapping[str, Any], name: str, default: bool) -> bool:
    """A field's true or false, also as text or as 0 and 1; `default` where it is left out. Raises RequestError."""
    value = body.get(name)
    if value is None or isinstance(value, bool):
        return default if value is None else value
    told = str(number(value)).strip().lower() if isinstance(value, str | int) else ""
    if told in ("true", "yes", "on", "1"):
        return True
    if told in ("false", "no", "off", "0"):
        return False
    raise RequestError(f"{name}={shown(value)} must be true or false")


def asks_nothing(value: object) -> bool:
    """Whether a value is empty, says no, or is an object that is switched off; or a list of such values."""
    match value:
        case None | False:
            return True
        case str():
            return value.strip().lower() in _NOTHING
        case list() | tuple():
            return all(asks_nothing(one) for one in value)
        case dict():
            return not value or switched_off(value)
    return False


def switched_off(value: Mapping[str, Any]) -> bool:
    """Whether one of an object's switches is off."""
    return any(
        name in value and (asks_nothing(value[name]) or number(value[name]) == 0) for name in _SWITCHES
    )
