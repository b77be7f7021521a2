"""The world's own renders of compositions of the built-in adapters, drawn by `assets/build/references.py`.

They show what a mix should look like. Their scores are an upper bound; compared with a wrong composition, a lower
bound.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from PIL import Image

from pipelines import assets
from studio.bench.quality.elements import Composition

Key = tuple[str, ...]


class References:
    """The true renders of compositions."""

    def __init__(self, pictures: dict[Key, list[Image.Image]]) -> None:
        self._pictures = pictures

    def of(self, composition: Composition) -> list[Image.Image]:
        """The renders of a composition; empty if none are included."""
        return self._pictures.get(_key(composition), [])


def shipped_references(compositions: Sequence[Composition]) -> References:
    """The included renders of these compositions."""
    folder = assets.root() / "testbed" / "references"
    index = json.loads((folder / "references.json").read_text(encoding="utf-8"))
    side, renders = index["side"], index["renders"]
    wanted = {_key(composition) for composition in compositions}
    found: dict[Key, list[Image.Image]] = {}
    for name, lines in index["sheets"].items():
        with Image.open(folder / name) as opened:
            sheet = opened.convert("RGB")
        for line, adapters in enumerate(lines):
            if tuple(adapters) in wanted:
                boxes = [
                    (side * place, side * line, side * (place + 1), side * (line + 1))
                    for place in range(renders)
                ]
                found[tuple(adapters)] = [sheet.crop(box) for box in boxes]
    return References(found)


def wrong_for(composition: Composition, others: Sequence[Composition]) -> Composition | None:
    """The composition of the same size and kind with the fewest elements in common with this one; None if there is
    none."""
    same = [one for one in others if (one.size, one.kind) == (composition.size, composition.kind)]
    same = [one for one in same if one != composition]
    own = set(composition.elements)
    return min(same, key=lambda one: len(own & set(one.elements)), default=None)


def _key(composition: Composition) -> Key:
    return tuple(element.adapter for element in composition.elements)
