"""Words on the page: those that a small model does not know, chips to insert, random prompts, and completions."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape, unescape

from composers.plan import Use
from pipelines.text.tags import write_tag
from pipelines.text.vocabulary import Vocabulary
from studio.library.card import Card


def words_of(description: str) -> list[str]:
    """The paragraphs of a note as plain text. Notes of LoRA sites are HTML: its tags are removed, and with them
    pictures and scripts.

    This takes linear time for every text. The standard library's parser takes quadratic time for broken tags.
    """
    found: list[str] = []
    hidden, end = False, 0
    for tag in _TAG.finditer(description):
        found.append("" if hidden else description[end : tag.start()])
        end, name = tag.end(), tag["name"].casefold()
        if name in ("script", "style"):
            hidden = not tag["closing"]
        found.append("\n" if name in _BREAKS else "")
    found.append("" if hidden else description[end:])
    paragraphs = unescape("".join(found)).split("\n")
    return [text for text in (" ".join(part.split()) for part in paragraphs) if text]


_TAG = re.compile(r"<(?P<closing>/?)(?P<name>[!a-zA-Z0-9]*+)[^<>]*+>")
_BREAKS = ("p", "br", "li", "div", "tr", "h1", "h2", "h3", "h4", "h5", "h6")


def unknown_html(found: Mapping[str, str]) -> str:
    """A line about unknown words, as HTML; "" if there are none. found: word -> a similar known word, or ""."""
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
    """A random prompt that the model can draw, as "a fox wearing a crown, holding a cake, in the garden"."""

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
    """The prompt, with the trigger words that it does not contain yet appended."""
    seen = prompt.casefold()
    missing = [word for word in triggers if word.casefold() not in seen]
    return ", ".join(part for part in (prompt.rstrip(" ,"), *missing) if part)


def _article(word: str) -> str:
    return f"{'an' if word[:1] in 'aeiou' else 'a'} {word}"


def examples(prompts: Iterable[str]) -> str:
    """Buttons that fill in a whole prompt."""
    buttons = "".join(
        f'<button type="button" data-prompt="{escape(prompt, quote=True)}">{escape(prompt)}</button>'
        for prompt in prompts
    )
    return f'<div class="chips">{buttons}</div>'


def completions(kind: str, pairs: Iterable[tuple[str, str]]) -> str:
    """The completions of the prompt box, for the page's script. pairs: (what is inserted, what is matched and shown).

    kind: "loras" are offered after "<lora:", "triggers" and "words" anywhere.
    """
    said = escape(json.dumps([list(pair) for pair in pairs], ensure_ascii=False), quote=True)
    return f'<span hidden data-complete="{kind}" data-entries="{said}"></span>'


def lora_completions(cards: Iterable[Card]) -> str:
    """Completions of LoRA tags, each with the strength that its file prefers."""
    return completions(
        "loras",
        (
            (
                write_tag(Use(card.name, 1.0 if card.preferred_weight is None else card.preferred_weight)),
                card.name,
            )
            for card in cards
        ),
    )


def word_completions(vocabulary: Vocabulary) -> str:
    """Completions of the model's words and their synonyms."""
    return completions(
        "words",
        (
            (word, shown)
            for group in vocabulary.values()
            for word, synonyms in group.items()
            for shown in (word, *synonyms)
        ),
    )
