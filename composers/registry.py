"""The composition methods, found by the modules in this folder, and how a method is written as text."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from composers.errors import ComposerError
from composers.plan import Composer
from composers.shown import shown

_PART = re.compile(r"(?:[^\\,]|\\.|\\\Z)*+", re.DOTALL)
"""A setting, up to a comma without a backslash before it."""
_ESCAPED = re.compile(r"(?<!\\)(\\++)(,|\Z)")


@cache
def methods() -> Mapping[str, type[Composer]]:
    """name -> class of every composition method, in alphabetical order."""
    found: dict[str, type[Composer]] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)], "composers."):
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(kind, Composer) and not inspect.isabstract(kind):
                found[kind.name] = kind
    return dict(sorted(found.items()))


def build(name: str, settings: Mapping[str, object]) -> Composer:
    """The method of that name (case does not matter) with these settings.

    Raises ComposerError for an unknown name, an unknown setting, or a setting's bad value.
    """
    kind = methods().get(name.lower())
    if kind is None:
        near = difflib.get_close_matches(name.lower(), methods(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ComposerError(f"unknown method {shown(name)}: {hint}methods are {', '.join(methods())}")
    known = [setting.name for setting in dataclasses.fields(kind)]
    for setting in settings:
        if setting not in known:
            has = f"its settings are {', '.join(known)}" if known else "it has no settings"
            raise ComposerError(f"{kind.name} has no setting {shown(setting)}: {has}")
    return kind(**settings)


def parse(text: str) -> Composer:
    """The method that a text names: 'switch', or 'switch:interval=3,convention=code'. `spell` writes such texts.

    A comma inside a value is written as a backslash and a comma, and a backslash before one, or at the end, as two.
    Raises ComposerError as `build` does, and for a setting without "=".
    """
    name, _, rest = text.strip().partition(":")
    kind = methods().get(name.lower())
    texts = {f.name for f in dataclasses.fields(kind) if isinstance(f.default, str)} if kind else set()
    settings: dict[str, object] = {}
    for part in filter(None, _PART.findall(rest)):
        key, equals, value = part.partition("=")
        if not equals:
            raise ComposerError(
                f"method {shown(text)}: write its settings as name=value, separated by commas"
            )
        key, value = key.strip(), _ESCAPED.sub(_plain, value.strip())
        settings[key] = value if key in texts else _value(value)
    return build(name, settings)


def settings_of(composer: Composer) -> dict[str, object]:
    """The method's settings, name -> value, as `build` takes them."""
    return {setting.name: getattr(composer, setting.name) for setting in dataclasses.fields(composer)}


def spell(composer: Composer) -> str:
    """The text that `parse` reads back as this method. Settings at their default are left out."""
    changed = [
        re.sub(
            r"(?<!\\)\\++(?=,|\Z)", r"\g<0>\g<0>", f"{setting.name}={getattr(composer, setting.name)}"
        ).replace(",", "\\,")
        for setting in dataclasses.fields(composer)
        if getattr(composer, setting.name) != setting.default
    ]
    return composer.name + (":" + ",".join(changed) if changed else "")


def _plain(escaped: re.Match[str]) -> str:
    count = len(escaped[1])
    return "\\" * ((count - 1) // 2) + "," if escaped[2] else "\\" * ((count + 1) // 2)


def _value(text: str) -> object:
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
