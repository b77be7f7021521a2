"""Elements and their compositions, counted as ComposLoRA counts them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

CATEGORIES = ("character", "clothing", "style", "background", "object")
"""ComposLoRA's categories, in its order, which is also the order in prompt and mix."""
NEW, NARROW, BLORA, MIXED = "new word", "narrow instance", "b-lora", "mixed"
"""Kinds that built-in adapters state. MIXED is a composition of several kinds."""


@dataclass(frozen=True)
class Element:
    """One thing that a picture should show, and its adapter.

    name: for tables. adapter: name or path. words: the trigger words, by which the prompt names it.
    weight: its strength if the method's strength is 1. kind: the adapter's kind, "" if nothing states it.
    """

    name: str
    adapter: str
    category: str
    words: str
    weight: float = 1.0
    kind: str = ""


@dataclass(frozen=True)
class Composition:
    """The elements of one picture, in the order of prompt and mix."""

    elements: tuple[Element, ...]

    @property
    def name(self) -> str:
        return " + ".join(element.name for element in self.elements)

    @property
    def size(self) -> int:
        """The number of elements: k in the tables."""
        return len(self.elements)

    @property
    def words(self) -> str:
        """All trigger words, in order."""
        return ", ".join(element.words for element in self.elements)

    @property
    def kind(self) -> str:
        """The kind of all elements, or "mixed" if they differ."""
        kinds = {element.kind for element in self.elements}
        return kinds.pop() if len(kinds) == 1 else MIXED

    def led_by(self, category: str) -> tuple[Element, ...]:
        """The elements, the one of that category first, the others in their order."""
        return tuple(sorted(self.elements, key=lambda element: element.category != category))

    def has(self, category: str) -> bool:
        return any(element.category == category for element in self.elements)


def compositions(elements: Sequence[Element], size: int) -> list[Composition]:
    """Every composition of `size` elements: one character, and one of each of size - 1 other categories.

    This is how ComposLoRA counts (Zhong et al. 2024, arXiv 2402.16843, section 4): 3, 2, 2, 2, 2 elements give 24, 72,
    96, 48 compositions of sizes 2 … 5. Where there is no character, any category may be left out.
    """
    categories = [name for name in CATEGORIES if any(element.category == name for element in elements)]
    categories += sorted({element.category for element in elements} - set(categories))
    fixed = [name for name in categories if name == CATEGORIES[0]]
    others = [name for name in categories if name not in fixed]
    found = []
    for chosen in itertools.combinations(others, size - len(fixed)) if size >= len(fixed) else ():
        pools = [[element for element in elements if element.category == name] for name in (*fixed, *chosen)]
        found += [Composition(members) for members in itertools.product(*pools)]
    return found


def spread(items: Sequence[Composition], most: int | None) -> list[Composition]:
    """At most `most` of the items, evenly spaced, so that no element is favoured by its place."""
    if most is None or len(items) <= most:
        return list(items)
    return [items[(2 * place + 1) * len(items) // (2 * most)] for place in range(most)]
