"""Takes the texts of A1111 and the programs that follow it apart: prompt, negative prompt, and settings by key.

The settings are the last line with at least `FEWEST_KNOWN` known keys, with the lines behind it, and with those before
it where a program broke it in two. What is neither a setting nor a part of a prompt is kept as a scrap, to be named.
Reading takes linear time, whatever the text is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from composers.shown import shown
from pipelines.errors import StudioError
from pipelines.home.plain import read_json
from studio.drafts.fields import FIELDS
from studio.drafts.picture_file import MOST_SAID

FEWEST_KNOWN = 3
NEGATIVE = "Negative prompt:"

MOST_PAIRS = 1_000
"""Most settings that are read; the rest is counted as one scrap."""
MOST_UNCLOSED = 20
"""Most values whose bracket is looked for in vain; after that, brackets are words."""

ALIASES: Mapping[str, str] = {
    "cfg": "CFG scale",
    "guidance": "CFG scale",
    "guidance scale": "CFG scale",
    "cfgscale": "CFG scale",
    "sampler name": "Sampler",
    "sampling method": "Sampler",
    "scheduler": "Schedule type",
    "schedule": "Schedule type",
    "clipskip": "Clip skip",
    "clip-skip": "Clip skip",
    "resolution": "Size",
    "base model": "Model",
    "checkpoint": "Model",
    "base model hash": "Model hash",
    "denoise": "Denoising strength",
    "denoising": "Denoising strength",
    "sampling steps": "Steps",
}
"""Other programs' keys in small letters -> A1111's."""
OTHERS = (
    "Model", "Model hash", "Size", "Denoising strength", "Clip skip", "Lora hashes", "Lora weights", "TI hashes",
    "Hashes", "Version", "Schedule type", "VAE", "VAE hash", "ENSD", "Eta", "RNG", "Refiner", "Refiner switch at",
    "Variation seed", "Variation seed strength", "Seed resize from", "Face restoration", "Hires upscale", "Hires steps",
    "Hires upscaler", "Hires resize", "Hires prompt", "Hires negative prompt", "Hires sampler", "Hires schedule type",
    "Hires CFG Scale", "Hires checkpoint", "Hires Module 1", "First pass size", "Mask blur", "Conditional mask weight",
    "Civitai resources", "Civitai metadata", "Created Date", "Distilled CFG Scale", "Module 1", "Module 2", "Module 3",
    "ADetailer model", "ADetailer prompt", "ADetailer negative prompt", "ADetailer confidence", "ADetailer version",
    "Width", "Height",
    "Token merging ratio", "NGMS", "Tiling", "Batch size", "Batch pos", "Emphasis", "Pad conds",
    "Discard penultimate sigma",
    "ControlNet 0", "ControlNet 1", "Performance", "Sharpness", "ADM Guidance", "Raw prompt", "Raw negative prompt",
    "App", "Operations", "Pipeline", "Parser", "Template", "Negative Template", "Seed Mode", "Shift",
    "Beta schedule alpha",
    "Sampler sigma", "Sampler spacing", "LoRA networks", "Embeddings", "Raw prompt", "User",
    "AddNet Enabled", "AddNet Module 1", "AddNet Model 1", "AddNet Weight A 1", "AddNet Weight B 1",
)  # fmt: skip
"""Keys that A1111 and the programs that follow it write, beside those of a request's fields."""
SPELLED: Mapping[str, str] = {
    **{key.lower(): key for key in OTHERS},
    **{one.key.lower(): one.key for one in FIELDS if one.key},
    **ALIASES,
}
"""A known key in small letters -> the key by which it is read."""
_REST = ("Template", "Negative Template")
"""Keys whose value is all that follows, where they begin a line."""

# all quantifiers are possessive, so that nothing is matched twice and no text takes quadratic time
_GAP = re.compile(r"[\s,]*+")
_KEY = re.compile(r"(?P<key>[^\W_][\w /+.()'&-]{0,99}+):(?!//)[ \t]*+")
_QUOTED = re.compile(r'(?P<value>"(?:[^"\\]|\\.)*+")[ \t]*+(?=[,\n]|$)', re.DOTALL)
_OPENING = re.compile(r',[ \t]*[^\W_][\w /+.-]{0,99}:[ \t]*"$')
"""The quote that begins the next value, where an earlier one is not closed."""
_NEXT = re.compile(r",[ \t]*+[^\W_][\w /+.-]{0,99}+:")
_END = re.compile(r"[ \t]*+(?=[,\n]|$)")
_BARE = re.compile(r"[^,\n]*+")
_LINE = re.compile(r"[^\n]*+")
_MARK = re.compile(r'\\.|["\[\]{}]', re.DOTALL)
_STEPS = re.compile(r"(?<![^\s,])(?:sampling )?steps:[ \t]*+[0-9]", re.IGNORECASE)
_DIGITS = re.compile(r"[+-]?+[0-9]++")
_HASH = re.compile(r"(?:0x)?+[0-9a-fA-F]{8,64}+")
_NEGATIVE = re.compile(r"\s*+negative prompt[:\uff1a]", re.IGNORECASE)
_NEGATIVE_WITHIN = re.compile(r"(?:^|\s)negative prompt:[ \t]*+", re.IGNORECASE)
_SURE = re.compile(
    r"\s*+(?:sampling )?steps[ \t]*+[:=\uff1a][ \t]*+[0-9]++(?P<rest>.*)", re.IGNORECASE | re.DOTALL
)
"""A line that begins with a number of steps."""
_OTHER_SIGNS = re.compile(r"[=;|\uff0c\uff1a\uff1b]")
_BETWEEN = re.compile(r"([,;|\uff0c\uff1b])")
_EQUALS = re.compile(r"[:=\uff1a]")
_NAMED = re.compile(r"[^\W_][\w /+.()'&-]{0,99}+")


@dataclass(frozen=True)
class Settings:
    """pairs: key -> value, a known key as A1111 spells it, the first where it stands twice. broken: key -> what is
    wrong with its value's quotes or brackets. scraps: what is no setting."""

    pairs: Mapping[str, str] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)
    scraps: tuple[str, ...] = ()


def taken_apart(text: str) -> tuple[str, str | None, Settings]:
    """The prompt, the negative prompt (None where there is none), and the settings."""
    lines = _whole(text).strip("\n").split("\n")
    plain = [*map(_respelled, lines)]
    begin = _first_line(plain)
    if begin is None:
        return *_prompts(lines), Settings()
    before, block = lines[:begin], plain[begin:]
    if _SURE.match(block[0]):
        block[0] = _respelled(block[0], fewest=1)
    late = next((place for place, line in enumerate(block) if place and _NEGATIVE.match(line)), None)
    if late is not None:  # a program that writes it behind the settings
        before, block = [*before, *block[late:]], block[:late]
    steps = _STEPS.search(block[0])
    words = block[0][: steps.start()].rstrip(" ,") if steps is not None else ""
    if steps is not None and _are_words(words, alone=not any(line.strip() for line in before)):
        before += _NEGATIVE_WITHIN.sub(f"\n{NEGATIVE} ", words, count=1).strip("\n").split("\n")
        block[0] = block[0][steps.start() :]
    return *_prompts(before), settings("\n".join(block))


def _are_words(text: str, *, alone: bool) -> bool:
    """Whether a text before the settings, in their line, is a part of the prompt: a line break is lost. alone: whether
    no lines are before."""
    if not text.strip() or _known_in(text):
        return False
    return _NEGATIVE_WITHIN.search(text) is not None or (alone and ":" not in text.partition(",")[0])


def without_settings(prompt: str) -> tuple[str, list[str]]:
    """A prompt without the lines of settings in it, and these: another line holds the settings."""
    kept: list[str] = []
    cut: list[str] = []
    for line in prompt.split("\n"):
        plain = _respelled(line, fewest=2 if _SURE.match(line) else FEWEST_KNOWN)
        known, sure = len(_known_in(plain)), _SURE.match(line)
        if known < FEWEST_KNOWN and not (sure and (known > 1 or not sure["rest"].strip())):
            kept.append(line)
            continue
        steps = _STEPS.search(plain)
        words = plain[: steps.start()].rstrip(" ,") if steps is not None else ""
        if steps is not None and words and _are_words(words, alone=True):
            kept.append(words)
            plain = plain[steps.start() :]
        cut.append(f"other settings: {plain.strip()}")
    return ("\n".join(kept), cut) if cut else (prompt, [])


def _respelled(line: str, fewest: int = FEWEST_KNOWN) -> str:
    """A line of at least `fewest` known keys with a colon behind each and a comma between them, where it is written
    with other signs, as in "Steps=20; Seed=7"; any other line as it is."""
    if not _OTHER_SIGNS.search(line) or len(_known_in(line)) >= FEWEST_KNOWN:
        return line
    written: list[str] = []
    known: set[str] = set()
    quoted = False
    between = ""
    for place, piece in enumerate(_BETWEEN.split(line, maxsplit=2 * MOST_PAIRS)):
        if place % 2:
            between = piece
            continue
        sign = None if quoted else _EQUALS.search(piece)
        key = piece[: sign.start()].strip() if sign is not None else ""
        if key in _REST:
            return line
        if sign is not None and _NAMED.fullmatch(key):
            if key.lower() in SPELLED:
                known.add(SPELLED[key.lower()])
            between = between and ", "
            value = piece[sign.end() :]
            piece = f"{key}: {value.strip()}"
        written += (between, piece)
        quoted ^= bool(piece.count('"') % 2)
    return "".join(written) if len(known) >= fewest else line


def _whole(text: str) -> str:
    return text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def is_infotext(text: str) -> bool:
    """Whether the text holds settings, or a negative prompt."""
    lines = _whole(text).split("\n")
    return _first_line([*map(_respelled, lines)]) is not None or any(map(_NEGATIVE.match, lines))


def _first_line(lines: list[str]) -> int | None:
    """Where the settings begin; None where there are none."""
    last = next((n for n in reversed(range(len(lines))) if len(_known_in(lines[n])) >= FEWEST_KNOWN), None)
    if last is None:
        single = _first_of_single(lines)
        return _last_of_steps(lines) if single is None else single
    seen = _known_in(lines[last])
    while last:
        known = _known_in(lines[last - 1])
        if len(known) < FEWEST_KNOWN or not seen.isdisjoint(known):
            break
        if "Steps" in seen and not lines[last - 1].rstrip().endswith(","):
            break
        last -= 1
        seen |= known
    return last


def _last_of_steps(lines: list[str]) -> int | None:
    """The last line, where it begins with a number of steps; lines of a single setting may follow it."""
    for place in reversed(range(len(lines))):
        if _SURE.match(lines[place]):
            return place
        key, colon, _ = lines[place].partition(":")
        if lines[place].strip() and not (
            colon and key.strip().lower() in SPELLED and not _NEGATIVE.match(lines[place])
        ):
            return None
    return None


def _first_of_single(lines: list[str]) -> int | None:
    """Where settings begin that stand in lines of their own, each of which begins with a known key; None where there
    are none. Only with a number of steps or a seed among them they are no prompt."""
    begin, known, sure = None, set[str](), False
    for place in reversed(range(len(lines))):
        key, colon, value = lines[place].partition(":")
        name = SPELLED.get(key.strip().lower()) if colon else None
        if name is not None and name not in known and not _NEGATIVE.match(lines[place]):
            begin = place
            known.add(name)
            sure = sure or (name in ("Steps", "Seed") and value.strip()[:1].isdigit())
        elif lines[place].strip():
            if len(known) >= FEWEST_KNOWN and sure:
                break
            begin, known, sure = None, set(), False
    return begin if len(known) >= FEWEST_KNOWN and sure else None


def _known_in(line: str) -> set[str]:
    """The known keys in a line, by the places where a key may stand."""
    if ":" not in line or line.partition(":")[0].strip() in _REST:
        return set()
    pieces = (piece.partition(":") for piece in line.split(",")[: 2 * MOST_PAIRS])
    found = {SPELLED[name] for key, colon, _ in pieces if colon and (name := key.strip().lower()) in SPELLED}
    if "Steps" not in found and _STEPS.search(line):
        found.add("Steps")
    return found


def _prompts(lines: list[str]) -> tuple[str, str | None]:
    begin = next((place for place, line in enumerate(lines) if _NEGATIVE.match(line)), None)
    if begin is None:
        whole = "\n".join(lines)
        within = _NEGATIVE_WITHIN.search(whole)  # a line break is lost
        return (whole[: within.start()].rstrip(), whole[within.end() :]) if within else (whole, None)
    negative = []
    for line in lines[begin:]:
        marked = _NEGATIVE.match(line)
        negative.append(line if marked is None else line[marked.end() :].removeprefix(" "))
    return "\n".join(lines[:begin]), "\n".join(negative)


def settings(text: str) -> Settings:
    """The settings of a text that holds nothing else."""
    reading = _Reading(text)
    reading.read()
    return Settings(reading.pairs, reading.broken, tuple(reading.scraps))


class _Reading:
    def __init__(self, text: str) -> None:
        self._text, self._place = text, 0
        self._unclosed = 0
        self.pairs: dict[str, str] = {}
        self.broken: dict[str, str] = {}
        self.scraps: list[str] = []

    def read(self) -> None:
        text = self._text
        last = ""
        while True:
            gap = _GAP.match(text, self._place)
            assert gap is not None
            fresh = "\n" in gap[0] or not self._place
            self._place = gap.end()
            if self._place == len(text):
                return
            if len(self.pairs) + len(self.scraps) >= MOST_PAIRS:
                self.scraps.append(text[self._place :])
                return
            key = _KEY.match(text, self._place)
            if key is None:
                self._scrap(last if gap[0] == "," else "")
                continue
            self._place = key.end()
            name = " ".join(key["key"].split())
            name = SPELLED.get(name.lower(), name)
            value, wrong = self._value(rest=fresh and name in _REST)
            if last.lower().endswith("hashes") and name.lower() not in SPELLED and _HASH.fullmatch(value):
                self.pairs[last] += f", {key['key'].strip()}: {value}"  # a list that has lost its quotes
                continue
            if name in self.pairs or name in self.broken:
                self.scraps.append(f"another {name}: {value}")
            elif wrong:
                self.broken[name] = wrong
            else:
                self.pairs[name] = value
                last = name

    def _scrap(self, last: str) -> None:
        """What stands where a key should: the decimals behind a comma, or nothing that is understood."""
        piece = _BARE.match(self._text, self._place)
        assert piece is not None
        self._place = max(piece.end(), self._place + 1)
        said = piece[0].strip()
        if _DIGITS.fullmatch(said) and _DIGITS.fullmatch(self.pairs.get(last, "")):
            self.pairs[last] += f",{said}"
        elif said:
            self.scraps.append(said)

    def _value(self, *, rest: bool) -> tuple[str, str]:
        """A value, and what is wrong with it, "" where nothing is."""
        text, place = self._text, self._place
        sign = text[place : place + 1]
        if rest and sign != '"':
            return self._lines(), ""
        if sign == '"':
            quoted = _QUOTED.match(text, place)
            if quoted is not None and not _OPENING.search(quoted["value"][-120:]):
                self._place = quoted.end()
                return _unquoted(quoted["value"])
        elif sign and sign in "[{" and self._unclosed < MOST_UNCLOSED:
            end = _closed(text, place)
            if end is not None and _END.match(text, end) and _is_whole(text[place:end]):
                self._place = end
                return text[place:end], ""
            self._unclosed += 1
        bare = _BARE.match(text, place)
        assert bare is not None
        self._place = bare.end()
        said = bare[0].strip()
        return said, "" if said[:1] not in ('"', "[", "{") or _is_word(
            said
        ) else f"{shown(said)} is not closed"

    def _lines(self) -> str:
        """All that follows, up to a line that begins with another such key."""
        found: list[str] = []
        for line in _lines_from(self._text, self._place):
            if found and line.partition(":")[0].strip() in _REST:
                break
            found.append(line)
        said = "\n".join(found)
        self._place += len(said)
        return said.strip()


def _lines_from(text: str, place: int) -> Iterator[str]:
    while place <= len(text):
        line = _LINE.match(text, place)
        assert line is not None
        yield line[0]
        place = line.end() + 1


def _closed(text: str, begin: int) -> int | None:
    """Where the bracket at `begin` is closed, behind that; None where it is not."""
    depth, quoted = 0, False
    for mark in _MARK.finditer(text, begin):
        sign = mark[0]
        if sign == '"':
            quoted = not quoted
        elif not quoted and sign in "[{":
            depth += 1
        elif not quoted and sign in "]}":
            depth -= 1
            if depth == 0:
                return mark.end()
    return None


def _is_whole(said: str) -> bool:
    """Whether a value from one bracket to another is one value, and not a broken one with the next settings in it."""
    return read_value(said) is not None or not _NEXT.search(said)


def _is_word(said: str) -> bool:
    """Whether a value that begins with a bracket is closed within itself, as in "[model] v2"."""
    return said[0] != '"' and _closed(said, 0) is not None


def _unquoted(text: str) -> tuple[str, str]:
    """The text that a JSON string stands for, and what is wrong with it."""
    try:
        found = read_json(text.replace("\n", "\\n").replace("\t", "\\t"), "it", most=1)
    except StudioError:  # also where an escape stands for half a character, which cannot be written
        found = None
    return (found, "") if isinstance(found, str) else ("", f"{shown(text)} is not a quoted text")


def read_value(said: str) -> Any:
    """The JSON of a value in brackets; None for any other value."""
    if not said.startswith(("[", "{")):
        return None
    try:
        return read_json(said, "it", most=MOST_SAID, finite=False)
    except StudioError:
        return None
