"""B-LoRA: the content of one adapter in the style of another, each confined to its own blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from composers.errors import ComposerError
from composers.plan import Composer, Lane, Mix, Plan, Prompt, Step, Use, guided, knob
from composers.shown import shown

CONTENT, STYLE = "@content", "@style"
"""Symbolic block names. The pipeline replaces them by the model's own blocks when it resolves a request."""


@dataclass(frozen=True)
class BLora(Composer):
    """Content from one adapter, style from another (Frenkel et al. 2024, arXiv 2403.14572, section 4).

    content, style: the adapters' names; case does not matter. A part without a name takes the next adapter of the mix
        that has no part yet, content first. With one adapter in the mix, the other part stays empty. One adapter may
        be named for both.
    alpha_mode "linear": the mix's weights are the strengths. "square": the strengths are the squares of the weights
        (0.5 -> 0.25, 1.1 -> 1.21), as in the released code, which multiplies both factors of a layer by the weight.

    The adapters do not act on the text encoder. A use that names blocks of its own keeps them.
    """

    name: ClassVar[str] = "blora"
    summary: ClassVar[str] = "One adapter's content in another one's style, block by block. One UNet pass."
    fewest: ClassVar[int] = 1
    most: ClassVar[int | None] = 2

    content: str = knob("", "Content", "The LoRA whose content blocks act; empty: the first of the mix.")
    style: str = knob("", "Style", "The LoRA whose style blocks act; empty: the next of the mix.")
    alpha_mode: Literal["linear", "square"] = knob(
        "linear",
        "Strengths",
        "As given, or squared as in the released code.",
        choices=("linear", "square"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("content", self.content), ("style", self.style)):
            if not isinstance(value, str):
                raise ComposerError(f"blora: {name}={shown(value)} must be an adapter's name")

    def resolved(self, mix: Mix, count: int) -> BLora:
        super().resolved(mix, count)
        content, style = self._parts(mix.uses)
        return replace(self, content=content, style=style)

    def prepared(self, uses: tuple[Use, ...]) -> tuple[Use, ...]:
        content, style = self._parts(uses)
        return tuple(_confined(use, content, style) for use in uses)

    def plan(self, step: Step, mix: Mix) -> Plan:
        uses = self.prepared(mix.uses)
        if self.alpha_mode == "square":
            uses = tuple(replace(use, weight=use.weight**2) for use in uses)
        return guided([Lane(Prompt("positive"), uses, share=1.0)], step)

    def _parts(self, uses: tuple[Use, ...]) -> tuple[str, str]:
        """The names of the content and the style adapter as the mix spells them; "" for an empty part."""
        spelled = {use.adapter.casefold(): use.adapter for use in uses}
        found: dict[str, str] = {}
        for part, name in (("content", self.content), ("style", self.style)):
            if name and name.casefold() not in spelled:
                mix = shown(", ".join(spelled.values()))[1:-1]
                raise ComposerError(
                    f"blora: {part}={shown(name)} is not in the mix ({mix or 'which is empty'}); "
                    "name an adapter of the mix, with a strength other than 0"
                )
            found[part] = spelled.get(name.casefold(), "") if name else ""
        unnamed = [name for name in spelled.values() if name not in found.values()]
        for part in ("content", "style"):
            if not found[part] and unnamed:
                found[part] = unnamed.pop(0)
        if unnamed:
            raise ComposerError(
                f"blora: {shown(unnamed[0])} is neither the content nor the style; take it out of the mix, or pin it"
            )
        return found["content"], found["style"]


def _confined(use: Use, content: str, style: str) -> Use:
    """The use, confined to the blocks of its part and taken off the text encoder."""
    parts = ((CONTENT, content), (STYLE, style))
    blocks = tuple((block, 1.0) for block, name in parts if name == use.adapter)
    return replace(use, text_weight=0.0, blocks=use.blocks or blocks)
