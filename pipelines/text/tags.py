"""Reads and writes the adapter tags in a prompt: `<lora:fox:0.8>` and its extensions. Pure: no torch.

    <lora:fox>                     strength 1           <lora:fox:0.8>        text encoder and UNet at 0.8
    <lora:fox:0.5:0.8>             text encoder 0.5, UNet 0.8 (A1111's order; other programs swap them)
    <lora:fox:te=0.5:unet=0.8>     the same by name
    <lora:fox:0.8:lbw=…>           strengths by block: `block@factor,…`, a preset's name, or numbers
    <lora:fox:0.8:start=0.2>       on from 20 % of the steps; `stop=0.6` is off from there, `step=0.2-0.6` says both
    <lora:fox:0.8:step=1@0,0.5@0.4>    factors on the UNet's strength, each from its moment on
    <lora:fox:0.4@0,0.8@0.5>       strengths, each from its moment on; the text encoder gets the strongest

`<lyco:…>` means `<lora:…>`. Where only `te=` is given, it counts for both halves (A1111's rule). Beside a positional
number, it sets the text encoder alone.

Moments. After `@`, a number up to 1 is a fraction of the steps, and a whole number above 1 is a step number; steps
count from 0. In `start=`, `stop=` and `step=a-b`, a whole number without a point is a step number. The fraction 1 is
the end of the run. A strength holds until the next moment, and nothing is interpolated. (The extension that brought
`w@pos` draws straight lines instead.)

`<lora:fox:80%>` and `<lora:fox:0,8>` mean 0.8.

A tag within an edit is on while the edit's words stand: `[<lora:fox:0.8>:0.5]` from half of the steps on, and
`[<lora:fox:0.8>::5]` to the step 5 (see `pipelines.text.editing`; in A1111's web UI it is on throughout). So is its
text encoder's part.

A colon, an angle bracket or a backslash in a value has a backslash before it.

Sources: A1111's web UI (positional order, te, unet, dyn), LoRA Block Weight (lbw, start, stop, step),
LoRA Control (w@pos).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace

from composers.errors import ComposerError
from composers.plan import Schedule, Use
from composers.shown import shown
from pipelines.bounds import LONGEST_NAME, MOST_ADAPTERS, MOST_BLOCKS, MOST_POINTS
from pipelines.errors import PromptError
from pipelines.text.editing import NEVER, Span, spans_of

Blocks = tuple[tuple[str, float], ...]
Points = tuple[tuple[float, float], ...]
PARTS = ("content", "style")
"""The values of `lbw` that stand for the model's own block map (B-LoRA)."""
PRESETS: dict[str, tuple[Blocks, float]] = {
    "ALL": ((), 1.0),
    "NONE": ((("mid_block", 0.0),), 0.0),  # unlisted blocks are at 0, so this is nothing at all
    **{
        name: (((f"@{name}", 1.0),), 1.0)
        for name in ("INALL", "INS", "IND", "MIDD", "OUTD", "OUTS", "OUTALL")
    },
}
"""Preset -> its blocks, and the factor on the text encoder."""
_NUMBERED = re.compile(r"(?:IN|M|OUT)\d\d")

RIGHT_FORM = "write <lora:name:0.8>, <lora:name:te=0.5:unet=0.8>, or add lbw=, start=, stop= or step="
NAMED = ("te", "unet", "dyn", "lbw", "start", "stop", "step")

_TAG = re.compile(
    r"<\s*(?P<kind>lora|lyco|hypernet)\s*:(?P<body>(?:\\.|[^<>\\\n])*)(?P<end>>)?", re.IGNORECASE
)
_HEAD = re.compile(r"<\s*+\w++\s*+:\s*+[^\s,]*+")
"""How far a tag reaches that is not closed: to the next comma or white space."""
_NUMBER = re.compile(r"[+-]?(?:\d++(?:\.\d*+)?|\.\d++)(?:[eE][+-]?\d++)?")
_DECIMAL_COMMA = re.compile(r"\s*[+-]?[0-9]++,[0-9]++\s*")
_CLOSING = re.compile(r"[)\]]|:\s*[-+.\d]+\s*\)")
_NOTHING_LEFT = re.compile(r"\[\s*(?::\s*){1,2}[+-]?(?:\d++\.?\d*+|\.\d++)\s*\]")
"""An edit of which only the moment is left, because it held nothing but tags."""
_SEPARATORS = " \t\r\n\f\v,"


@dataclass(frozen=True)
class LoraTag:
    """One tag as it was written.

    weight: the UNet's strength. text_weight: the text encoder's; None means `weight`.
    points: (start, factor on `weight`) pairs as in `Schedule`. edited: they come from an edit around the tag, and
        act on the text encoder too.
    lbw: the text of `lbw`, which `use` reads; "" where there is none.
    dyn: the rank to which A1111's dynamic rank would cut the adapter.
    bare: the tag holds a name and nothing else. source: the tag's own text, for messages.
    """

    name: str
    weight: float = 1.0
    text_weight: float | None = None
    points: Points = ()
    lbw: str = ""
    dyn: int | None = None
    bare: bool = field(default=False, compare=False)
    source: str = field(default="", compare=False)
    edited: bool = False

    def use(self) -> Use:
        """The tag as a use of the adapter.

        What only a model can tell stays symbolic: a preset, a vector or a single block of `lbw` becomes the block
        "@NAME" (see `pipelines.blocks`). Step numbers stay starts of 1 and above.

        Raises PromptError for a dynamic rank, for an `lbw` that means nothing, for moments that do not rise, and for
        strengths whose product is no finite number.
        """
        told = _shortened(self.source or self.name)
        if self.dyn is not None:
            raise PromptError(f"{told}: a dynamic rank (dyn={self.dyn}) is not supported; drop it")
        blocks, text = self._blocks()
        text_weight = self.text_weight
        if text != 1:
            text_weight = (self.weight if text_weight is None else text_weight) * text
        try:
            schedule = Schedule(self.points) if self.points else None
        except ComposerError as error:
            starts = [start for start, _ in self.points]
            raise PromptError(f"{told}: the moments {shown(starts)} must rise from 0 on") from error
        try:
            return Use(self.name, self.weight, text_weight, blocks, schedule, text_scheduled=self.edited)
        except ComposerError as error:
            raise PromptError(
                f"{told}: the product of its strengths is not finite; write smaller ones"
            ) from error

    def _blocks(self) -> tuple[Blocks, float]:
        """What `lbw` means: blocks, and a factor on the text encoder's strength. Raises PromptError."""
        told = _shortened(self.source or self.name)
        word = self.lbw.strip()
        if not word:
            return (), 1.0
        if word.lower() in PARTS:
            return ((f"@{word.lower()}", 1.0),), 0.0
        upper = "M00" if word.upper() == "MID" else word.upper()
        if upper in PRESETS:
            return PRESETS[upper]
        if _NUMBERED.fullmatch(upper):
            return ((f"@{upper}", 1.0),), 0.0
        if "," in word and "@" not in word:
            factors = [piece.strip() for piece in word.split(",")]
            if any(_read_number(factor) is None for factor in factors):
                raise PromptError(
                    f"{told}: lbw={_shortened(word)}: every factor must be a number (R, U and X of the extension are "
                    "random or inherited)"
                )
            if len(word) >= LONGEST_NAME:
                raise _malformed(
                    self.source or self.name, f"{len(factors)} factors are more than any model has"
                )
            return ((f"@{','.join(factors)}", 1.0),), float(factors[0])
        entries = word.split(",")
        if len(entries) > MOST_BLOCKS:
            raise _malformed(self.source or self.name, f"{len(entries)} blocks are more than {MOST_BLOCKS}")
        found = [
            (name.strip(), _read_number(factor))
            for name, factor in (entry.rpartition("@")[::2] for entry in entries)
        ]
        blocks = tuple((name, factor) for name, factor in found if name and factor is not None)
        if len(blocks) < len(entries):
            raise PromptError(
                f"{told}: lbw={_shortened(word)} is not a known block list; "
                "name the blocks, as in lbw=mid_block@1,up_blocks.1@0.5"
            )
        return blocks, 1.0


def take_tags(text: str) -> tuple[str, tuple[LoraTag, ...]]:
    """The prompt without its adapter tags, and the tags in order.

    Commas and white space around a tag are tidied. A text without tags comes back as it is, and so does every other
    `<…>`. Raises PromptError for a malformed tag, for `<hypernet:…>`, for a tag within another, and for more tags than
    a picture may have adapters.
    """
    return _taken(text, None)


def sift_tags(text: str) -> tuple[str, tuple[LoraTag, ...], tuple[str, ...]]:
    """As `take_tags`, for a prompt of another program. Nothing is refused.

    Tags that cannot be read, or that mean nothing here, are taken out too. The third value says why, once for each
    reason. A tag that is not closed ends at the next comma or white space.
    """
    unread: list[str] = []
    kept, tags = _taken(text, unread)
    return kept, tags, tuple(dict.fromkeys(unread))


def _taken(text: str, unread: list[str] | None) -> tuple[str, tuple[LoraTag, ...]]:
    """The text without its tags, and the tags. unread: takes what is wrong with a tag; where it is None, that is
    raised."""
    kept = ""
    tags: list[LoraTag] = []
    end = 0
    for match in _TAG.finditer(text):
        between = text[end : match.start()]
        kept = _seam(kept, between) if end and between.strip(_SEPARATORS) else kept + between
        end = match.end()
        try:
            if len(tags) == MOST_ADAPTERS:
                raise PromptError(
                    f"the prompt has more than {MOST_ADAPTERS} adapter tags, the most of one picture; take some out"
                )
            tag = _read(match)
            if unread is not None:
                tag.use()
            tags.append(tag)
        except PromptError as error:
            if unread is None:
                raise
            unread.append(str(error))
            if match["end"] is None and (head := _HEAD.match(match[0])):
                end = match.start() + head.end()
    if not end:
        return text, ()
    kept = _seam(kept, text[end:])
    if tags and "[" in text:
        tags = _scheduled(text, tags, unread)
        while (left := _NOTHING_LEFT.search(kept)) is not None:
            kept = _seam(kept[: left.start()], kept[left.end() :])
    if unread is None and (left := _TAG.search(kept)) is not None:  # what is read once is never read again
        raise PromptError(
            f"a tag stands within another, around {_shortened(left[0])}; write them one after the other"
        )
    return kept, tuple(tags)


def _scheduled(text: str, tags: list[LoraTag], unread: list[str] | None) -> list[LoraTag]:
    """The tags, with the schedules of the edits in which they stand ("[<lora:fox:1>:0.5]")."""
    marks = [f"\0{place}\0" for place in range(len(tags))]  # no prompt may hold a NUL
    taken = iter(marks)
    sources = {tag.source for tag in tags}
    marked = _TAG.sub(lambda match: next(taken, "") if match[0].strip() in sources else "", text)
    kept = []
    try:
        spans = spans_of(marked, marks)
    except PromptError as error:
        if unread is None:
            raise
        unread.append(str(error))
        return tags
    for tag, span in zip(tags, spans, strict=True):
        try:
            kept.append(tag if span is None else _during(tag, span))
        except PromptError as error:
            if unread is None:
                raise
            unread.append(str(error))
    return kept


def _during(tag: LoraTag, span: Span) -> LoraTag:
    """The tag, on during a span alone. Raises PromptError for a tag that has moments of its own."""
    if tag.points:
        raise PromptError(
            f"{_shortened(tag.source)}: it stands in an edit and has moments of its own; give it either of them"
        )
    begin, end = span
    points: list[tuple[float, float]] = [] if begin == 0 else [(0.0, 0.0)]
    if 0 < begin < end:
        points += [(begin, 1.0)] if begin < NEVER else []
    if begin < end < NEVER:
        points.append((end, 0.0))
    return replace(tag, points=tuple(points) if begin < end else ((0.0, 0.0),), edited=True)


def write_tag(use: Use) -> str:
    """A use of a resolved request as a tag.

    A text strength is written in the named form, so that every reader agrees on the order. `take_tags` reads back the
    same use, without `pinned`, `band` and `text_scheduled`, which no tag can say. This holds for resolved uses alone: a
    vector of block factors cannot be written, and the step number 1 would be read as the fraction 1.
    """
    parts = [re.sub(r"([:<>\\])", r"\\\1", use.adapter)]
    if use.text_weight is None:
        parts.append(_written(use.weight))
    else:
        parts += [f"te={_written(use.text_weight)}", f"unet={_written(use.weight)}"]
    if use.blocks:
        blocks = ",".join(f"{name}@{_written(factor)}" for name, factor in use.blocks)
        parts.append("lbw=" + re.sub(r"([:<>\\])", r"\\\1", blocks))
    if use.schedule is not None and use.schedule.points:
        parts.append(
            "step=" + ",".join(f"{_written(f)}@{_written(start)}" for start, f in use.schedule.points)
        )
    return f"<lora:{':'.join(parts)}>"


def _read(match: re.Match[str]) -> LoraTag:
    """The tag that a match of the pattern stands for. Raises PromptError."""
    source = match[0].strip()
    told = _shortened(source)
    if match["kind"].lower() == "hypernet":
        raise PromptError(f"{told}: hypernetworks are not supported; remove the tag")
    if match["end"] is None:
        raise PromptError(f"the tag {told!r} is not closed by '>'; {RIGHT_FORM}")
    name, *rest = (re.sub(r"\\([:<>\\])", r"\1", part).strip() for part in _split(match["body"]))
    if not name:
        raise _malformed(source, "it names no adapter")
    if len(name) > LONGEST_NAME:
        raise _malformed(source, f"its name has {len(name)} characters, more than {LONGEST_NAME}")
    named, positional = _sorted_parts(source, rest)
    weight, text_weight, factors = _strengths(source, named, positional)
    limits = _limits(source, named)
    if factors and limits:
        raise _malformed(source, "give either strengths with moments (w@pos) or start=, stop=, step=")
    rank = named.get("dyn", positional[2])
    if rank is not None and not (re.fullmatch("[0-9]{1,9}", rank) and int(rank) > 0):
        raise _malformed(source, f"dyn={_shortened(rank)} is not a rank")
    dyn = None if rank is None else int(rank)
    points = tuple(point for point in factors or limits if point[0] != NEVER)
    return LoraTag(name, weight, text_weight, points, named.get("lbw", ""), dyn, not rest, source)


def _split(body: str) -> list[str]:
    """The inside of a tag, split at the colons that have no backslash before them."""
    return re.findall(r"(?:^|:)((?:\\.|[^:\\]|\\$)*)", body)


def _sorted_parts(source: str, parts: list[str]) -> tuple[dict[str, str], list[str | None]]:
    """The named values of a tag, and its three positional ones (te, unet, dyn), None where not given.

    parts: what follows the name. Raises PromptError.
    """
    named: dict[str, str] = {}
    positional: list[str | None] = []
    for part in parts:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            positional.append(part)
        elif key.lower() not in NAMED:
            raise _malformed(
                source, f"{_shortened(key)}= is not known (known: {', '.join(name + '=' for name in NAMED)})"
            )
        elif key.lower() in named:
            raise _malformed(source, f"{key}= is given twice")
        else:
            named[key.lower()] = value
    if len(positional) > 3:
        raise _malformed(
            source, f"{len(positional)} values stand without a name, at most 3 can (te, unet, dyn)"
        )
    return named, [*positional, None, None, None][:3]


def _strengths(
    source: str, named: dict[str, str], positional: list[str | None]
) -> tuple[float, float | None, Points]:
    """The UNet's strength, the text encoder's (None: the same), and the factors on the UNet's. Raises PromptError."""
    first = positional[0]
    text, unet = named.get("te"), named.get("unet", positional[1])
    if unet is None and (text is None or first is None):  # one number, or none at all, for both
        both = text if first is None else first
        weight, factors = (1.0, ()) if both is None else _strength(source, "strength", both)
        return weight, None, factors
    weight, factors = _strength(source, "unet", unet if unet is not None else first or "")
    text = text if text is not None else first if first is not None else "1"
    if "@" in text:
        raise _malformed(source, "the text encoder's strength cannot change during the run")
    return weight, _number(source, "te", text), factors


def _strength(source: str, key: str, text: str) -> tuple[float, Points]:
    """A strength and the factors on it: `0.8` is (0.8, ()), and `0.4@0,0.8@0.5` is 0.8 with the factors 0.5 and 1."""
    if "@" not in text:
        return _number(source, key, text), ()
    points = _points(source, key, text)
    strongest = max((strength for _, strength in points), key=abs)
    if points[0][0] > 0:  # the first strength also holds before its moment
        points.insert(0, (0.0, points[0][1]))
    if strongest == 0:
        return 0.0, ()
    return strongest, tuple((moment, strength / strongest) for moment, strength in points)


def _limits(source: str, named: dict[str, str]) -> Points:
    """What `start=`, `stop=` and `step=` say, as points of a schedule. Raises PromptError."""
    step = named.get("step")
    if step is not None and ("start" in named or "stop" in named):
        raise _malformed(source, "give either step= or start= and stop=")
    if step is not None and "@" in step:
        return tuple(_points(source, "step", step))
    start, stop = named.get("start"), named.get("stop")
    if step is not None:
        start, dash, stop = (piece.strip() for piece in step.partition("-"))
        if not dash:
            raise _malformed(source, f"step={_shortened(step)} is not a range such as step=0.2-0.6")
    factors: list[tuple[float, float]] = []
    if start is not None:
        begin = _boundary(source, "start", start)
        if begin > 0:
            factors += [(0.0, 0.0), (begin, 1.0)]
    if stop is not None:
        factors.append((_boundary(source, "stop", stop), 0.0))
    return tuple(factors)


def _boundary(source: str, key: str, text: str) -> float:
    """The moment of `start=` or `stop=` as in `Schedule`; NEVER for the end of the run. Raises PromptError."""
    if re.fullmatch(r"\d++", text) and (step := _read_number(text)) is not None:
        return step
    at = _number(source, key, text)
    if not 0 <= at <= 1:
        raise _malformed(
            source, f"{key}={_shortened(text)} is neither a fraction of the steps (0 … 1) nor a step number"
        )
    return NEVER if at == 1 else at


def _points(source: str, key: str, text: str) -> list[tuple[float, float]]:
    """The (start, w) pairs of `w@pos,…`, which commas or semicolons separate. Raises PromptError."""
    points: list[tuple[float, float]] = []
    entries = re.split("[,;]", text)
    if len(entries) > MOST_POINTS:
        raise _malformed(source, f"{len(entries)} moments are more than {MOST_POINTS}")
    for entry in entries:
        value, _, place = entry.partition("@")
        at = _number(source, key, place)
        if at < 0 or (at > 1 and at != int(at)):
            raise _malformed(
                source,
                f"{_shortened(place.strip())} is neither a fraction of the steps (0 … 1) nor a step number",
            )
        points.append((NEVER if at == 1 else at, _number(source, key, value)))
    return points


def _read_number(text: str) -> float | None:
    """The number that a text is; None for any other text, and for a number that is too large."""
    text = text.strip()
    number = float(text) if _NUMBER.fullmatch(text) else math.inf
    return number if math.isfinite(number) else None


def _number(source: str, key: str, text: str) -> float:
    percent = text.rstrip().endswith("%")
    plain = text.rstrip().removesuffix("%")
    number = _read_number(plain.replace(",", ".") if _DECIMAL_COMMA.fullmatch(plain) else plain)
    if number is None:
        raise _malformed(source, f"{_shortened(text.strip())!r} ({key}) is not a number")
    return number / 100 if percent else number


def _written(number: float) -> str:
    """A text that reads back as the same number; a whole one has no point."""
    return repr(int(number)) if number == int(number) and abs(number) < 1e15 else repr(number)


def _malformed(source: str, why: str) -> PromptError:
    return PromptError(f"the tag {_shortened(source)} cannot be read: {why}; {RIGHT_FORM}")


def _shortened(source: str) -> str:
    """A text for a message: at most 120 characters, all of which can be written as UTF-8."""
    short = source if len(source) <= 120 else source[:119] + "…"
    return short.encode("utf-8", "backslashreplace").decode()


def _seam(left: str, right: str) -> str:
    """Two texts joined where a tag was taken out between them. One separator stays; at an edge, none does."""
    before = left.rstrip(_SEPARATORS)
    after = right.lstrip(_SEPARATORS)
    if not before or before[-1] in "([" or not after or _CLOSING.match(after):
        return before + after
    removed = left[len(before) :] + right[: len(right) - len(after)]
    space = "\n" if "\n" in removed else " " if removed.strip(",") else ""
    return before + ("," if "," in removed else "") + space + after
