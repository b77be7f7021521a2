"""What was said of one picture.

A Draft holds only what was said. Laid over another one, it overrides only that. Its values have the names of Request's
fields (`studio.drafts.fields`). When a Draft is made, the LoRA tags of its prompt are read; from then on they are
adapters like the others. `build` makes a Request of it, which judges every value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from composers.errors import StudioError
from composers.plan import Composer, Schedule, Use, settings
from composers.shown import shown
from pipelines.errors import RequestError
from pipelines.request import Request
from pipelines.text.tags import LoraTag, take_tags
from studio.drafts.input_images import InputImage, read_input

if TYPE_CHECKING:
    from PIL import Image

MOST_PICTURES = 10_000
"""The most pictures of one job."""
HIGHEST_SEED = 2**64 - 1
"""The largest seed that a request takes."""
NEW_SEED = -1
"""A seed that stands for a new one, on every front, as in A1111."""
USE_FIELDS = tuple(entry.name for entry in fields(Use))


@dataclass(frozen=True)
class Wanted:
    """An adapter that a picture asks for, before it is looked up. Its fields are those of `Use`.

    adapter: the name or path that was said. weight: None takes the strength that the file prefers, or 1 where it
    prefers none. named: a prompt's tag or a picture asks for it, and these name no paths of this computer; two that
    differ in nothing else are equal. Nothing is checked here; `use` and `check` do that.
    """

    adapter: str
    weight: float | None = None
    text_weight: float | None = None
    blocks: tuple[tuple[str, float], ...] = ()
    schedule: Schedule | None = None
    pinned: bool = False
    band: Any = None
    text_scheduled: bool = False
    named: bool = field(default=False, compare=False)

    def use(self, name: str, preferred: float | None) -> Use:
        """The use of the adapter that is loaded under `name`. preferred: the strength that its file prefers, if any.

        Raises ComposerError as `Use` does.
        """
        weight = self.weight if self.weight is not None else 1.0 if preferred is None else preferred
        said = {field: getattr(self, field) for field in USE_FIELDS}
        return Use(**{**said, "adapter": name, "weight": weight})

    def check(self) -> None:
        """Raises StudioError for a name, strength, block, schedule or band that no request takes."""
        Request("", adapters=(self.use(self.adapter, None),))

    def over(self, base: Wanted) -> Wanted:
        """The adapter of `base`, with every value that is said here in place of its own.

        A weight that is said here replaces the text weight of `base` too.
        """
        own = {
            name: getattr(self, name) for name in USE_FIELDS if getattr(self, name) != getattr(_PLAIN, name)
        }
        if "weight" in own:
            own["text_weight"] = self.text_weight
        return replace(base, **{**own, "adapter": base.adapter})


_PLAIN = Wanted("")


def wanted_of(tag: LoraTag) -> Wanted:
    """The adapter that a tag of a prompt asks for. Raises PromptError."""
    use = tag.use()
    weight = None if tag.bare else use.weight
    said = {field: getattr(use, field) for field in USE_FIELDS}
    return Wanted(**{**said, "weight": weight}, named=True)


@dataclass(frozen=True)
class Draft:
    """What was said of one picture.

    values: Request's fields by name, without `adapters` and pictures. The prompt is given with its LoRA tags and kept
    without them. wanted: the adapters; those of tags come last. images: the pictures that it is given, by the names of
    Request's fields. where: where it was said, for messages ("" for flags). Raises PromptError for tags that cannot be
    read.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    wanted: tuple[Wanted, ...] = ()
    images: Mapping[str, InputImage] = field(default_factory=dict)
    where: str = ""

    def __post_init__(self) -> None:
        prompt = self.values.get("prompt")
        if not isinstance(prompt, str) or "<" not in prompt:
            return
        try:
            text, tags = take_tags(prompt)
            tagged = tuple(map(wanted_of, tags))
        except StudioError as error:
            raise placed(error, self.where) from error
        if tagged:
            object.__setattr__(self, "values", {**self.values, "prompt": text})
            object.__setattr__(self, "wanted", (*self.wanted, *tagged))

    def over(self, base: Draft) -> Draft:
        """Both drafts in one. Where both say something, this one wins.

        An adapter in both keeps its place in `base`, and its values are laid over those there (`Wanted.over`). `where`
        is that of `base`.
        """
        own = list(self.wanted)
        kept = []
        for old in base.wanted:
            place = next(
                (n for n, one in enumerate(own) if one.adapter.casefold() == old.adapter.casefold()), None
            )
            kept.append(old if place is None else own.pop(place).over(old))
        return Draft(
            {**base.values, **self.values},
            (*kept, *own),
            {**base.images, **self.images},
            base.where,
        )

    def said(self) -> bool:
        """Whether anything is said in it."""
        return bool(self.values or self.wanted or self.images)

    @property
    def seed(self) -> Any:
        """The seed that is said, unchecked; None where a new one is asked for."""
        seed = self.values.get("seed")
        return None if seed == NEW_SEED else seed

    def with_value(self, name: str, value: object) -> Draft:
        return replace(self, values={**self.values, name: value})

    def build(
        self,
        look_up: Callable[[Wanted], Use],
        read_image: Callable[[str, InputImage], Image.Image] = read_input,
    ) -> Request:
        """The request of this draft. Where its method names adapters, it names them as they are loaded.

        look_up: finds an adapter's file. read_image: reads the picture of a field; where the request is only to be
        judged, `sized_like` is enough. Raises StudioError, whose message begins with `where`.
        """
        try:
            uses = tuple(look_up(wanted) for wanted in self.wanted)
            images = {name: read_image(name, source) for name, source in self.images.items()}
            values = dict(self.values)
            if isinstance(composer := values.get("composer"), Composer):
                names = {
                    wanted.adapter.casefold(): use.adapter
                    for wanted, use in zip(self.wanted, uses, strict=True)
                }
                values["composer"] = naming(composer, names)
            return Request(**{"prompt": "", **values, "adapters": uses, **images})
        except StudioError as error:
            raise placed(error, self.where) from error


def naming(composer: Composer, names: Mapping[str, str]) -> Composer:
    """The method, with new names of the adapters that its settings name. names: by the present, case-folded one."""
    changed = {
        setting.name: name
        for setting in settings(type(composer))
        if setting.annotation == "str"
        and (name := names.get(str(getattr(composer, setting.name)).casefold()))
    }
    return replace(composer, **changed)


def placed(error: StudioError, where: str) -> StudioError:
    """The same error with `where` before its message, unless the message begins with that already."""
    if not where or str(error).startswith(where):
        return error
    return type(error)(f"{where}: {error}")


def check_count(count: object, what: str = "count", most: int = MOST_PICTURES) -> int:
    """The count, if it is a whole number in 1 … `most`. Raises RequestError otherwise. what: its name in messages."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise RequestError(f"{what}={shown(count)} must be a whole number above 0")
    if count > most:
        raise RequestError(f"{what}={shown(count)}: at most {most} pictures are made at once; ask for fewer")
    return count


def counted(draft: Draft, count: object, first_seed: object) -> list[Draft]:
    """`count` copies of the draft, with seeds that rise by 1 from `first_seed`. All is checked before any is made.

    Raises RequestError for a count outside 1 … MOST_PICTURES, and for seeds outside 0 … 2**64 - 1.
    """
    number = check_count(count)
    if isinstance(first_seed, bool) or not isinstance(first_seed, int) or not 0 <= first_seed <= HIGHEST_SEED:
        raise RequestError(f"seed={shown(first_seed)} must be a whole number in 0 … {HIGHEST_SEED}")
    if first_seed + number - 1 > HIGHEST_SEED:
        raise RequestError(
            f"seed={first_seed}: the last of {number} seeds would lie beyond {HIGHEST_SEED}; begin lower"
        )
    return [draft.with_value("seed", first_seed + place) for place in range(number)]
