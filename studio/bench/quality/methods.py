"""What is compared: methods with their settings, strengths, and the category that leads the mix.

none                        the base model with the prompt alone
merge@0.8                   every strength times 0.8
switch:interval=3^style     the style's adapter stands first in the mix; the prompt stays as it is
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from composers import Composer, methods, parse, spell
from pipelines.errors import RequestError
from studio.bench.quality.elements import BLORA, CATEGORIES, Composition

NONE = "none"
BASELINE = "merge"
"""The method with which all others are compared, as in the paper."""
DEFAULTS = (
    NONE,
    "merge",
    "merge@0.8",
    "merge@0.6",
    "switch:interval=1",
    "switch:interval=3",
    "switch",
    "switch:convention=code",
    "composite",
    "cmlora",
    "cmlora:refresh=dominant_only",
    "cmlora:refresh=all",
    "cmlora:interval=2,compat=release",
)
"""Name of a method -> its standard rows. Every other method of `composers` has one row, with default settings."""
ORDERS = tuple(f"switch^{category}" for category in CATEGORIES[1:])
"""Rows with another category first, to compare with plain switch, in which the character is first."""
PAIRS = ("merge", "switch", "composite", "blora")
"""The rows for B-LoRA pairs."""

_SPEC = re.compile(
    r"(?P<composer>[^@^]+)(@(?P<strength>[^@^]+))?(\^(?P<first>[\w-]+))?", re.DOTALL | re.VERBOSE
)


@dataclass(frozen=True)
class Method:
    """composer: None is the base model alone. strength: factor on every element's weight.
    first: category whose adapter leads the mix."""

    composer: Composer | None
    strength: float = 1.0
    first: str | None = None

    @property
    def label(self) -> str:
        """The method as text, as `read_method` reads it."""
        if self.composer is None:
            return NONE
        strength = "" if self.strength == 1 else f"@{self.strength:g}"
        return f"{spell(self.composer)}{strength}" + ("" if self.first is None else f"^{self.first}")

    @property
    def family(self) -> str:
        """The method's name, without its settings."""
        return NONE if self.composer is None else self.composer.name

    def suits(self, composition: Composition) -> bool:
        """Whether it can draw the composition: it allows so many adapters, and the leading category is there. The
        method B-LoRA needs adapters that were trained as B-LoRAs.
        """
        if self.composer is None:
            return True
        if self.first is not None and not composition.has(self.first):
            return False
        if self.composer.name == "blora" and composition.kind not in (BLORA, ""):
            return False
        return self.composer.fewest <= composition.size <= (self.composer.most or composition.size)


def read_method(text: str) -> Method:
    """The method of a text. Raises RequestError and ComposerError."""
    match = _SPEC.fullmatch(text.strip())
    if match is None:
        raise RequestError(f"method {text!r}: write METHOD[:SETTINGS][@STRENGTH][^CATEGORY], as in merge@0.8")
    name, strength = match["composer"].strip(), match["strength"] or "1"
    try:
        factor = float(strength)
    except ValueError as error:
        raise RequestError(
            f"method {text!r}: {strength!r} is no strength; write it as in merge@0.8"
        ) from error
    if not 0 < factor <= 10:
        raise RequestError(f"method {text!r}: the strength must be above 0 and at most 10")
    if name.lower() == NONE:
        if match["strength"] or match["first"]:
            raise RequestError(f"method {text!r}: the base model alone has neither strength nor order")
        return Method(None)
    return Method(parse(name), factor, match["first"])


def default_methods(kinds: Sequence[str], *, orders: bool = True) -> list[Method]:
    """The standard rows for compositions of these kinds. Every registered method has at least one."""
    texts = [*DEFAULTS, *(ORDERS if orders else ())]
    known = {read_method(text).family for text in texts}
    texts += [name for name in methods() if name not in known and name != "blora"]
    texts += PAIRS if BLORA in kinds else ()
    return [read_method(text) for text in dict.fromkeys(texts)]
