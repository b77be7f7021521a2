"""The words that a small model knows, on the page: those that it does not, chips to insert, a prompt by chance."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from pipelines.text.vocabulary import Vocabulary


def unknown_html(found: Mapping[str, str]) -> str:
    """A line for the page; "" where all is known."""
    if not found:
        return ""
    said = ", ".join(
        f"<mark>{escape(word)}</mark>" + (f" (did you mean {escape(near)}?)" if near else "")
        for word, near in found.items()
    )
    return f'<p class="unknown small-note">The model does not know {said}. It draws all the same.</p>'


def chips(words: Iterable[str]) -> str:
    """Buttons that insert their word into the prompt."""
    buttons = "".join(
        f'<button type="button" data-word="{escape(word, quote=True)}">{escape(word)}</button>'
        for word in words
    )
    return f'<div class="chips">{buttons}</div>'


def by_chance(vocabulary: Vocabulary, dice: random.Random) -> str:
    """A prompt that the model can draw: "a fox wearing a crown, holding a cake, in the garden"."""

    def one(category: str) -> str:
        return dice.choice(sorted(vocabulary[category])) if vocabulary.get(category) else ""

    worn = dice.choice([name for name in ("clothing", "hat") if vocabulary.get(name)] or [""])
    held = one("object") if dice.random() < 0.6 else ""
    parts = [_article(one("character") or "picture") + (f" wearing {_article(one(worn))}" if worn else "")]
    if held:
        parts.append(f"holding {_article(held)}")
    if place := one("background"):
        parts.append(f"in the {place}")
    if dice.random() < 0.3 and (style := one("style")):
        parts.append(f"{style} style")
    return ", ".join(parts)


def with_triggers(prompt: str, triggers: Sequence[str]) -> str:
    """The prompt with those trigger words that it does not hold yet."""
    seen = prompt.casefold()
    missing = [word for word in triggers if word.casefold() not in seen]
    return ", ".join(part for part in (prompt.rstrip(" ,"), *missing) if part)


def _article(word: str) -> str:
    return f"{'an' if word[:1] in 'aeiou' else 'a'} {word}"
