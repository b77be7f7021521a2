"""Takes settings out of an object of JSON that another program wrote: by name, with their types checked, and with a
note on whatever is left."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from composers.errors import StudioError
from composers.shown import shown
from pipelines.bounds import LONGEST_PROMPT, check_text
from pipelines.schedulers import named
from pipelines.text.clip_skip import Counting
from studio.pictures import numbers, terms
from studio.pictures.loras import Loras, stem
from studio.pictures.notes import left_out

EMPTY: tuple[object, ...] = (None, "", "None", "none", "null", [], {})
"""Values that say nothing, beside False, which equals the number 0."""
LONGEST_TAGGED = 10 * LONGEST_PROMPT
"""Most characters of a prompt with its LoRA tags."""
_SIZE = re.compile(r"\D{0,3}([0-9]{1,9}+)\D{1,4}+([0-9]{1,9}+)\D{0,3}")

PROMPT = ("prompt", "positive_prompt", "c", "text_prompts", "positive")
NEGATIVE = ("negative_prompt", "uc", "negative_prompts", "negative")
STEPS = ("steps", "num_inference_steps", "sampling_steps", "num_steps")
GUIDANCE = ("cfg_scale", "guidance_scale", "cfg", "scale", "guidance")
SEED = ("seed", "noise_seed", "image_seed")
SAMPLER = ("sampler", "sampler_name", "sampler_id", "sampling_method")
SPACING = ("scheduler", "scheduler_name", "schedule_type", "noise_schedule", "schedule")
MODEL = (
    "model", "base_model", "base_model_name", "use_stable_diffusion_model", "stable_diffusion_model", "ckpt",
    "ckpt_name", "checkpoint", "model_name", "model_weights",
)  # fmt: skip
MODEL_HASH = ("model_hash", "base_model_hash", "ckpt_hash")
SIZE = ("resolution", "size")


class Taking:
    """The settings of an object. Names count alike however they are spelled: "CFG Scale", "cfg_scale", "cfgscale"."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self._said = {key: value for key, value in said.items() if value is not False and value not in EMPTY}
        self._keys: dict[str, str] = {}
        for key in self._said:
            self._keys.setdefault(_plain(key), key)
        self._taken: set[str] = set()
        self.unread: dict[str, str] = {}
        self.loras = Loras()

    def any(self, *names: str) -> Any:
        """The first value of these names that says anything; None where there is none."""
        for name in names:
            key = self._keys.get(_plain(name))
            if key is not None and key not in self._taken:
                self._taken.add(key)
                return self._said[key]
        return None

    def has(self, *names: str) -> bool:
        return any(_plain(name) in self._keys for name in names)

    def _typed(self, names: tuple[str, ...], read: Any, kind: str) -> Any:
        for name in names:
            key = self._keys.get(_plain(name))
            value = self.any(name)
            if value is None or key is None:
                continue
            found = read(value)
            if found is not None:
                return found
            self.unread[key] = f"{shown(value)} must be {kind}"
        return None

    def text(self, *names: str) -> str | None:
        return self._typed(names, lambda value: value if isinstance(value, str) else None, "text")  # type: ignore[no-any-return]

    def texts(self, *names: str) -> str | None:
        """The texts of a list, joined by commas."""
        return self._typed(names, _joined, "texts")  # type: ignore[no-any-return]

    def whole(self, *names: str) -> int | None:
        return self._typed(names, numbers.whole, "a whole number")  # type: ignore[no-any-return]

    def real(self, *names: str) -> float | None:
        return self._typed(names, numbers.real, "a number")  # type: ignore[no-any-return]

    def seed(self, *names: str) -> int | None:
        """The seed, exactly."""
        found = self.whole(*(names or SEED))
        if found is None:
            return None
        try:
            return terms.seed(found)
        except StudioError as error:
            self.unread["seed"] = str(error)
            return None

    def clip_skip(self, counting: Counting, *names: str, first: int = 1) -> dict[str, Any]:
        """The values of a request that a clip skip stands for. first: the number that skips nothing."""
        found = self.whole(*(names or ("clip_skip",)))
        if found is None:
            return {}
        try:
            return terms.clip_skip(abs(found) if names else found, counting, first)
        except StudioError as error:
            self.unread["clip_skip"] = str(error)
            return {}

    def sampler(self) -> str | None:
        """The sampler and its schedule. A program that knows one of the names alone calls its sampler by it."""
        name = self.text(*SAMPLER)
        spacing = self.text(*SPACING)
        return named(name or spacing or "", spacing or "" if name else "") or None

    def size(self) -> tuple[int | None, int | None]:
        """Width and height, from two numbers, or from one text, as in "(832, 1216)", or a list."""
        width, height = self.whole("width"), self.whole("height")
        if width is not None and height is not None:
            self.any(*SIZE)
            return width, height
        pair = self._typed(SIZE, _pair, "a width and a height")
        return pair or (width, height)

    def model(self) -> str:
        """The checkpoint's name; "" where it is not given."""
        name = self._typed(MODEL, _name, "a name")
        return stem(name) if name else ""

    def vae(self) -> str | None:
        """The VAE's name; None where it is not given, or the model's own."""
        name = self._typed(("vae", "vae_model"), _name, "a name")
        return stem(name) if name and name.lower() not in ("automatic", "default (model)") else None

    def pass_over(self, *names: str) -> None:
        """These say nothing of how the picture looks."""
        for name in names:
            key = self._keys.get(_plain(name))
            if key is not None:
                self._taken.add(key)

    def left(self) -> list[str]:
        """The names of all settings that were neither taken nor passed over. One that is 0 is off, and is no loss."""
        return [key for key, value in self._said.items() if key not in self._taken and value != 0]

    def values(self) -> dict[str, Any]:
        """What nearly all programs say by about the same names, by Request's. Raises RequestError for a prompt that is
        too long."""
        width, height = self.size()
        prompt, negative = self.text(*PROMPT), self.text(*NEGATIVE)
        for name, said in (("prompt", prompt), ("negative_prompt", negative)):  # before it is translated
            check_text(name, said or "", LONGEST_TAGGED)
        return {
            "prompt": prompt or "",
            "negative_prompt": negative,
            "steps": self.whole(*STEPS),
            "guidance_scale": self.real(*GUIDANCE),
            "seed": self.seed(),
            "scheduler": self.sampler(),
            "width": width,
            "height": height,
        }

    def notes(self, more: Iterable[str] = ()) -> tuple[str, ...]:
        """One note on what was left, and one on each value that cannot be read. more: further notes."""
        return (*left_out([*self.left(), *self.loras.ignored], self.unread), *more)


def _plain(name: str) -> str:
    return "".join(sign for sign in name.casefold() if sign.isalnum())


def _joined(value: object) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return ", ".join(one for one in value if one.strip())
    return None


def _pair(value: object) -> tuple[int, int] | None:
    if isinstance(value, str) and (found := _SIZE.fullmatch(value)):
        return int(found[1]), int(found[2])
    if isinstance(value, list) and len(value) == 2:
        first, second = map(numbers.whole, value)
        return None if first is None or second is None else (first, second)
    return None


def _name(value: object) -> str | None:
    if isinstance(value, Mapping):  # InvokeAI's
        value = next(
            (value[key] for key in ("name", "model_name", "modelFileName", "label") if value.get(key)), None
        )
    return value if isinstance(value, str) else None
