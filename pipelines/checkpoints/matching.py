"""The stored weights of one part, matched to those that it must have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from pipelines.checkpoints.stored import Turn, Weight, listed
from pipelines.errors import ModelError

Shape = tuple[int, ...]
Spell = Callable[[str, Shape], Iterator[tuple[str, Shape, Turn]]]
"""How a part spells a stored weight: (its name in the part, shape, what is done to the tensor), once or more."""


def matched(
    file: str,
    kind: str,
    names: Mapping[str, str],
    stored: Mapping[str, Shape],
    expected: Mapping[str, Shape],
    spell: Spell,
    left_out: Callable[[str], bool],
) -> tuple[dict[str, Weight], list[str]]:
    """(name -> where the weight is, for all that are expected; the keys that are not understood).

    file, kind: what the file is called, and what it should be. names: key -> name within the part, as stored. stored:
    key -> shape. Raises ModelError where weights are missing, stand there twice, or have another shape.
    """
    weights: dict[str, Weight] = {}
    unknown = []
    for key, name in names.items():
        for plain, shape, turn in spell(name, stored[key]):
            if plain in weights:
                raise ModelError(
                    f"{file} holds one weight twice, as {listed([weights[plain].key])} and {listed([key])}; use "
                    "another copy"
                )
            if plain in expected:
                weights[plain] = Weight(key, shape, turn)
            elif not left_out(plain):
                unknown.append(key)
                break
    if missing := [name for name in expected if name not in weights]:
        odd = f" (not understood, {len(unknown)}: {listed(unknown)})" if unknown else ""
        raise ModelError(
            f"{file} lacks weights that {kind} has: {len(missing)} of {len(expected)}, such as {listed(missing)}{odd}; "
            "use a complete copy"
        )
    for name, weight in weights.items():
        if weight.shape != expected[name]:
            label = kind.removeprefix("a ").removesuffix(" model")
            raise ModelError(
                f"{file} looks like {label} but cannot be loaded: {listed([weight.key])} has the shape "
                f"{list(stored[weight.key])}, where {list(expected[name])} belongs. Try another copy of the model"
            )
    return weights, unknown
