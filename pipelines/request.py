"""A Request asks for one picture. It is the one gate: what makes no sense is refused here, before any work."""

from __future__ import annotations

import dataclasses
import difflib
import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TYPE_CHECKING, Literal, get_args

from composers.errors import ComposerError
from composers.merge import Merge
from composers.plan import (
    Band,
    Composer,
    Knob,
    Lane,
    Mix,
    Plan,
    Setting,
    Step,
    TextMode,
    Use,
    knob,
    settings,
    text_uses,
)
from composers.shown import shown
from pipelines.bounds import (
    LONGEST_NAME,
    LONGEST_PROMPT,
    MOST_ADAPTERS,
    MOST_BLOCKS,
    MOST_POINTS,
    MOST_ROWS,
    STRONGEST,
    check_pixels,
    check_text,
    check_words,
)
from pipelines.errors import RequestError
from pipelines.families.family import Cut, Defaults
from pipelines.text.clip_skip import Counting

if TYPE_CHECKING:
    from PIL import Image

    from pipelines.blocks import Layout
    from pipelines.text.editing import Wording

LARGEST_SIDE = 16384
FARTHEST = 4 * LARGEST_SIDE
"""Pixels. SDXL's size conditioning may speak of a picture that is larger than any that is drawn."""
MOST_STEPS = 1000
MOST_BLUR = 1024
"""Pixels by which a mask's edges may be blurred."""
MOST = 1e300
"""The largest number of a field that has no range of its own."""
SEEDS = 2**32
"""Seeds that are drawn lie below this."""
MaskContent = Literal["original", "fill", "noise", "nothing"]
MaskArea = Literal["whole picture", "only masked"]


@dataclass(frozen=True)
class Facts:
    """What a request must know of the model that will render it.

    label: what messages call the model. defaults: for what a request leaves open.
    adapters: the names of the loaded adapters. size_unit: widths and heights are multiples of this many pixels.
    block_map: symbolic block ("@content", "@style") -> the model's own block names.
    unet_layers: dotted names of the UNet's layers. adapter_layers: adapter -> the layers that it changes, as "unet.…".
    cuts: the cuts at which features can be remembered, the preferred one first.
    bands: adapter -> its frequency band.
    """

    label: str
    defaults: Defaults
    adapters: tuple[str, ...]
    size_unit: int
    block_map: Mapping[str, tuple[str, ...]]
    unet_layers: Collection[str] = ()
    adapter_layers: Mapping[str, Collection[str]] | None = None
    cuts: tuple[Cut, ...] = ()
    bands: Mapping[str, Band] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """The part of this by which block names are read."""
        from pipelines.blocks import Layout

        return Layout(self.label, self.block_map, self.unet_layers, self.adapter_layers)


@dataclass(frozen=True)
class Request:
    """One picture. None means: as the model's card, its folder or its family says.

    The knob of each field has its label, help, unit and range. Flags, job files, pages and arguments are made from
    these (`studio.drafts.fields`). What the knobs do not say:

    prompt: it may hold A1111's weights (`(word:1.2)`, `[word]`, BREAK), its editing, alternation and AND
        (`pipelines.text.editing`), words of embeddings, and `<lora:name:0.8>` tags. Tags join `adapters` when the
        request is resolved. At most 20000 characters, and 1000 letters, or other signs, in a row.
    negative_prompt: "" is the encoded empty text. None is what diffusers does without one: zeros where the model forces
        them for empty prompts, else the encoded empty text.
    adapters: names with strengths, or `Use`s in order. At most 100, tags included. Strengths and factors lie in
        -100 … 100.
    seed: None draws one in 0 … 2**32 - 1.
    width, height: multiples of the model's unit. With an initial image, None is the image's own side, rounded down to
        such a multiple.
    scheduler: a name of `pipelines.schedulers`, or an alias; "model" is the model's own scheduler.
    init_image: at most 80 million pixels. It is resized to `width` x `height`.
    mask: see `pipelines.inpainting`. At most 80 million pixels; it is resized to the initial image. With the mask area
        "only masked", width and height are those at which that part is drawn, the model's own where they are None.
    clip_skip, clip_skip_as: see `pipelines.text.clip_skip`.
    reuse: only for methods that do not plan this themselves. A new turn of Switch starts in full. None is off.
    cut: see `pipelines.features`; None is the family's.
    original_size, target_size: None is the picture's own size.

    Raises RequestError and PromptError for a value beyond its bounds (`pipelines.bounds`). `resolved` judges the rest.
    """

    prompt: str = field(metadata={"knob": Knob("Prompt", "What to draw.")})
    _: KW_ONLY
    negative_prompt: str | None = knob(None, "Negative prompt", "What to keep out of the picture.")
    adapters: Mapping[str, float] | Sequence[Use] = knob((), "LoRAs", "The mix: LoRAs and their strengths.")
    composer: Composer = knob(Merge(), "Method", "How the LoRAs are combined, as in switch:interval=3.")
    seed: int | None = knob(
        None,
        "Seed",
        "What the noise is drawn from; without one it is another each time.",
        low=0,
        high=2**64 - 1,
    )
    steps: int | None = knob(None, "Steps", "Sampling steps.", low=1, high=MOST_STEPS)
    guidance_scale: float | None = knob(
        None, "Guidance scale", "How strongly the prompt guides; 1 or less means none.", low=0, high=1000
    )
    guidance_rescale: float = knob(
        0.0, "Guidance rescale", "How much of strong guidance's contrast is taken back.", low=0, high=1
    )
    width: int | None = knob(None, "Width", "In pixels.", unit="px", low=1, high=LARGEST_SIDE)
    height: int | None = knob(None, "Height", "In pixels.", unit="px", low=1, high=LARGEST_SIDE)
    scheduler: str | None = knob(
        None,
        "Sampler",
        "As A1111 names it: Euler, DPM++ 2M Karras, …; other programs' names are understood too.",
    )
    init_image: Image.Image | None = knob(None, "Start from a picture", "A picture to start from.")
    strength: float = knob(
        0.8,
        "How far to change that picture",
        "The part of the steps that run, of a picture that starts from another.",
        low=0,
        high=1,
    )
    mask: Image.Image | None = knob(
        None, "Mask", "Which part of that picture is drawn anew: white is, black is kept."
    )
    mask_blur: int = knob(
        4,
        "Mask blur",
        "How soft the mask's edges are, in that picture's pixels.",
        unit="px",
        low=0,
        high=MOST_BLUR,
    )
    mask_content: MaskContent = knob(
        "original",
        "Masked content",
        "What the masked part starts from: the original, a fill with the colours around it, noise, or nothing.",
        choices=get_args(MaskContent),
    )
    mask_area: MaskArea = knob(
        "whole picture",
        "Inpaint area",
        "Whether the whole picture is drawn, or only the masked part at full size, which is pasted into it.",
        choices=get_args(MaskArea),
    )
    mask_padding: int = knob(
        32,
        "Masked area padding",
        "How much around the masked part is drawn with it.",
        unit="px",
        low=0,
        high=LARGEST_SIDE,
    )
    clip_skip: int | None = knob(
        None, "Clip skip", "Layers of the text encoder to skip; 0 skips none.", low=0, high=100
    )
    clip_skip_as: Counting = knob(
        "diffusers",
        "Clip skip as",
        "Who counted it: diffusers (for the positive prompt alone), a1111, forge or comfyui (for both prompts).",
        choices=get_args(Counting),
    )
    text_mode: TextMode = knob(
        "merged",
        "Text mode",
        "Which LoRAs the text encoder sees: all of them merged, the first, or those of each pass (per_adapter).",
        choices=get_args(TextMode),
    )
    reuse: int | None = knob(
        None,
        "Reuse",
        "Deep features are computed every so many steps and remembered between; 1 is always.",
        low=1,
        high=100,
    )
    cut: Cut | None = knob(None, "Cut", "Where the remembered features end.", choices=get_args(Cut))
    original_size: tuple[int, int] | None = knob(
        None, "Original size", "SDXL's size conditioning: height, width.", unit="px", low=0, high=FARTHEST
    )
    crop: tuple[int, int] = knob(
        (0, 0), "Crop", "SDXL's crop conditioning: top, left.", unit="px", low=-FARTHEST, high=FARTHEST
    )
    target_size: tuple[int, int] | None = knob(
        None, "Target size", "SDXL's target size: height, width.", unit="px", low=0, high=FARTHEST
    )

    def __post_init__(self) -> None:
        if not isinstance(self.composer, Composer):
            raise RequestError(
                f"composer={shown(self.composer)} must be a method such as Switch(), not a {_kind(self.composer)}"
            )
        for own in dataclasses.fields(self.composer):
            if isinstance(value := getattr(self.composer, own.name), str):
                check_text(f"{self.composer.name}: {own.name}", value, LONGEST_NAME)
        object.__setattr__(self, "adapters", _uses(self.adapters))
        for setting in SETTINGS:
            _check(setting, getattr(self, setting.name))
        if self.reuse is not None and self.composer.plans_reuse:
            raise RequestError(
                f"reuse={self.reuse}: {self.composer.name} decides by itself what is reused; leave reuse out and "
                "set its refresh and interval"
            )
        if self.scheduler is not None:
            from pipelines.schedulers import canonical  # `--help` reads the fields, and needs no more

            canonical(self.scheduler)
        for name in ("init_image", "mask"):
            if getattr(self, name) is not None:
                _check_image(name, getattr(self, name))
        if self.mask is not None and self.init_image is None:
            raise RequestError("a mask belongs to a picture to start from; give init_image too")

    @property
    def uses(self) -> tuple[Use, ...]:
        """The adapters as uses, in order."""
        assert isinstance(self.adapters, tuple)
        return self.adapters

    def resolved(self, facts: Facts) -> Request:
        """This request with every question answered for one model.

        Tags are adapters, names are those of loaded adapters, and blocks are the model's own. The fields that are None
        afterwards mean it: `negative_prompt`, `clip_skip`, `init_image` and `mask` as above, `reuse` off, and `cut`
        where nothing is remembered. Raises RequestError, PromptError and ComposerError for what this model cannot
        render.
        """
        from pipelines.blocks import placed
        from pipelines.schedulers import canonical
        from pipelines.text.tags import take_tags

        defaults = facts.defaults
        width, height = self._size(facts)
        prompt, tags = take_tags(self.prompt)
        request = replace(
            self,
            prompt=prompt,
            seed=random.randrange(SEEDS) if self.seed is None else self.seed,
            steps=defaults.steps if self.steps is None else self.steps,
            guidance_scale=defaults.guidance_scale if self.guidance_scale is None else self.guidance_scale,
            width=width,
            height=height,
            scheduler=canonical(self.scheduler or defaults.scheduler),
            original_size=self.original_size or (height, width),
            target_size=self.target_size or (height, width),
        )
        if not request.executed_steps:
            raise RequestError(
                f"strength={self.strength:g} of {request.steps} steps leaves no step to run; raise strength or steps"
            )
        _ = request.wording  # what cannot be said is refused here
        layout = facts.layout
        tagged = (tag.use() for tag in tags)
        uses = [_named(use, facts) for use in _uses((*self.uses, *tagged)) if use.weight or use.text_weight]
        uses = [_timed(use, request.executed_steps) for use in uses]
        members = iter(self.composer.prepared(tuple(use for use in uses if not use.pinned)))
        uses = [placed(use if use.pinned else next(members), layout) for use in uses]
        if self.composer.by_band:
            uses = [_banded(use, facts) for use in uses]
        request = replace(request, adapters=uses, cut=self._cut(facts))
        return replace(request, composer=self.composer.resolved(request.mix, request.executed_steps))

    @property
    def mix(self) -> Mix:
        """The adapters that are not pinned, and how the text encoder sees them."""
        return Mix(tuple(use for use in self.uses if not use.pinned), self.text_mode)

    @property
    def draws_part(self) -> bool:
        """Whether only a part of the initial image is drawn, which is pasted into it."""
        return self.mask is not None and self.mask_area == "only masked"

    @property
    def executed_steps(self) -> int:
        """The solver steps of a resolved request that really run. An initial image leaves out the first ones."""
        assert self.steps is not None
        return min(int(self.steps * self.strength), self.steps) if self.init_image is not None else self.steps

    def plans(self) -> tuple[Plan, ...]:
        """The plans of a resolved request, one for each step that runs.

        They are the composer's, with schedules multiplied into the strengths, the pinned adapters on every lane, and
        `reuse` applied. Raises RequestError for more than `MOST_ROWS` rows a step.
        """
        assert self.guidance_scale is not None
        pinned = tuple(use for use in self.uses if use.pinned)
        count = self.executed_steps
        steps = [Step(index, count, self.guidance_scale) for index in range(count)]
        plans = [
            _worded(_driven(self.composer.plan(step, self.mix), pinned, self.uses, step), self.wording, step)
            for step in steps
        ]
        if (most := max(len(plan.lanes) for plan in plans)) > MOST_ROWS:
            raise RequestError(
                f"the picture takes {most} UNet rows a step, more than {MOST_ROWS}; join fewer prompts by AND, or take "
                "fewer LoRAs"
            )
        return tuple(plans if self.reuse is None else _reusing(plans, self.reuse))

    @property
    def wording(self) -> Wording:
        """What the prompts of a resolved request say at each step that runs. Raises PromptError."""
        from pipelines.text.editing import wording

        return wording(self.prompt, self.negative_prompt, self.executed_steps)

    def _cut(self, facts: Facts) -> Cut | None:
        """Where features are remembered; None where nothing is. Raises RequestError for a cut that the model lacks."""
        if self.reuse is None and not self.composer.plans_reuse:
            return None
        if self.cut is not None and self.cut not in facts.cuts:
            offered = " or ".join(facts.cuts) or "none"
            raise RequestError(f"cut={self.cut!r} leaves nothing out of {facts.label}; its cuts: {offered}")
        return self.cut or next(iter(facts.cuts), None)

    def _size(self, facts: Facts) -> tuple[int, int]:
        given, unit = (facts.defaults.width, facts.defaults.height), facts.size_unit
        if self.init_image is not None and not self.draws_part:
            given = self.init_image.size
            given = (max(given[0] // unit, 1) * unit, max(given[1] // unit, 1) * unit)
        width, height = self.width or given[0], self.height or given[1]
        for name, side in (("width", width), ("height", height)):
            if side % unit:
                near = max(round(side / unit), 1) * unit
                raise RequestError(
                    f"{name}={side} must be a multiple of {unit} pixels for {facts.label}; try {near}"
                )
        return width, height


def _timed(use: Use, steps: int) -> Use:
    """The use with the step numbers of its schedule as fractions of the run. Raises RequestError where they do not
    rise."""
    try:
        return use if use.schedule is None else replace(use, schedule=use.schedule.over(steps))
    except ComposerError as error:
        raise RequestError(f"adapter {shown(use.adapter)}: {error}") from error


def _uses(adapters: Mapping[str, float] | Sequence[Use]) -> tuple[Use, ...]:
    """The adapters as uses. Raises RequestError, also for a name that stands twice."""
    if not isinstance(adapters, Mapping | Sequence) or isinstance(adapters, str):
        raise RequestError(f"adapters must be {{name: strength}} or a list of Use, found {shown(adapters)}")
    if len(adapters) > MOST_ADAPTERS:
        raise RequestError(
            f"{len(adapters)} adapters are more than one picture may have ({MOST_ADAPTERS}); leave some out"
        )
    if isinstance(adapters, Mapping):
        for name, weight in adapters.items():
            check_text("the name of an adapter", name, LONGEST_NAME)
            if isinstance(weight, bool) or not isinstance(weight, int | float):
                raise RequestError(f"weight of adapter {shown(name)}={shown(weight)} must be a number")
            _bounded(f"weight of adapter {shown(name)}", weight)
        adapters = [Use(name, float(weight)) for name, weight in adapters.items()]
    seen: set[str] = set()
    for use in adapters:
        if not isinstance(use, Use):
            raise RequestError(f"adapters must be {{name: strength}} or a list of Use, found {shown(use)}")
        _check_use(use)
        if use.adapter.lower() in seen:
            raise RequestError(
                f"adapter {shown(use.adapter)} stands twice in this request; give it one strength"
            )
        seen.add(use.adapter.lower())
    return tuple(adapters)


def _check_use(use: Use) -> None:
    """Raises RequestError for names and numbers beyond their bounds."""
    check_text("the name of an adapter", use.adapter, LONGEST_NAME)
    where = f"of adapter {shown(use.adapter)}"
    points = use.schedule.points if use.schedule is not None else ()
    for what, entries, most in (("blocks", use.blocks, MOST_BLOCKS), ("moments", points, MOST_POINTS)):
        if len(entries) > most:
            raise RequestError(f"{len(entries)} {what} {where} are more than {most}; leave some out")
    for what, number in (("weight", use.weight), ("text_weight", use.text_weight)):
        _bounded(f"{what} {where}", number)
    for block, factor in use.blocks:
        check_text(f"the name of a block {where}", block, LONGEST_NAME)
        _bounded(f"block {shown(block)} {where}", factor)
    for start, factor in points:
        _bounded(f"schedule {where} from {start:g} on", factor)


def _bounded(name: str, strength: float | None) -> None:
    """Raises RequestError for a strength or factor beyond -STRONGEST … STRONGEST. None passes."""
    if strength is not None and not -STRONGEST <= strength <= STRONGEST:
        raise RequestError(f"{name}={shown(strength)} must be a number in {-STRONGEST:g} … {STRONGEST:g}")


def _named(use: Use, facts: Facts) -> Use:
    """The use under the name by which its adapter is loaded; case does not matter. Raises RequestError."""
    loaded = {name.lower(): name for name in facts.adapters}
    if use.adapter.lower() not in loaded:
        near = difflib.get_close_matches(use.adapter, facts.adapters, n=3, cutoff=0.4)
        hint = (
            f"did you mean {' or '.join(map(shown, near))}?"
            if near
            else "load it with load_lora_weights(file) first"
        )
        raise RequestError(f"adapter {shown(use.adapter)} is not loaded: {hint}")
    return replace(use, adapter=loaded[use.adapter.lower()])


def _banded(use: Use, facts: Facts) -> Use:
    """The use with its band: what it says itself, else what the model knows of the adapter, else "high"."""
    return use if use.pinned else replace(use, band=use.band or facts.bands.get(use.adapter, "high"))


def _reusing(plans: Sequence[Plan], interval: int) -> list[Plan]:
    """The plans with each lane fresh at every `interval`-th step, counted from the step at which it came in."""
    found = []
    since: dict[object, int] = {}
    for index, plan in enumerate(plans):
        since = {lane.memory: since.get(lane.memory, index) for lane in plan.lanes}
        lanes = [replace(lane, fresh=(index - since[lane.memory]) % interval == 0) for lane in plan.lanes]
        found.append(replace(plan, lanes=tuple(lanes), max_age=interval))
    return found


def _driven(plan: Plan, pinned: tuple[Use, ...], members: tuple[Use, ...], step: Step) -> Plan:
    """The plan with the pinned adapters, and with the strengths of its step. members: all adapters of the picture."""
    factors = {use.adapter: _factor(use, step) for use in members if use.text_scheduled}
    lanes = []
    for lane in plan.lanes:
        uses = tuple(_at(use, step) for use in (*lane.uses, *pinned))
        texts = lane.prompt.text_uses + text_uses(pinned)
        texts = text_uses(replace(use, weight=use.weight * factors.get(use.adapter, 1.0)) for use in texts)
        lanes.append(replace(lane, uses=uses, prompt=replace(lane.prompt, text_uses=texts)))
    return replace(plan, lanes=tuple(lanes))


def _worded(plan: Plan, wording: Wording, step: Step) -> Plan:
    """The plan with the texts of its step. A positive lane becomes one for each prompt that AND joins."""
    said, unsaid = wording.positive[step.index], wording.negative[step.index]
    total = math.fsum(weight for _, weight in said)
    total = 1.0 if abs(total - 1) < 1e-9 else total
    scale = plan.rule.scale if total == 1 else max(plan.rule.scale, 1.0)
    twins = total != 1 and all(lane.prompt.role == "positive" for lane in plan.lanes)
    found: dict[object, Lane] = {}
    for lane in plan.lanes:
        if lane.prompt.role == "negative":
            own = [replace(lane, prompt=replace(lane.prompt, text=unsaid))]
        else:
            own = [
                replace(lane, prompt=replace(lane.prompt, text=text), share=lane.share * weight)
                for text, weight in said
            ]
        if twins:
            own.append(replace(lane, prompt=replace(lane.prompt, role="negative", text=unsaid)))
        for one in own:  # two parts may say the same for a while
            twin = found.get(one.key)
            found[one.key] = one if twin is None else replace(twin, share=twin.share + one.share)
    return replace(plan, lanes=tuple(found.values()), rule=replace(plan.rule, scale=scale, total=total))


def _at(use: Use, step: Step) -> Use:
    """The use at one step, as the engine takes it: its blocks, and its strength times its schedule's factor."""
    return Use(use.adapter, use.weight * _factor(use, step), blocks=use.blocks)


def _factor(use: Use, step: Step) -> float:
    return use.schedule.factor(step) if use.schedule else 1.0


PROMPTS = ("prompt", "negative_prompt")
SETTINGS = settings(Request)


def _check(setting: Setting, value: object) -> None:
    """Raises RequestError for a value that the setting does not take, and PromptError for such words of a prompt."""
    name, own = setting.name, setting.knob
    if value is None and setting.optional:
        return
    if own.choices:
        if value not in own.choices:
            *others, last = own.choices
            raise RequestError(f"{name}={shown(value)} must be {', '.join(others)} or {last}")
    elif setting.annotation == "str":
        text = check_text(name, value, LONGEST_PROMPT if name in PROMPTS else LONGEST_NAME)
        if name in PROMPTS:
            check_words(name, text)
    elif setting.annotation == "bool":
        if not isinstance(value, bool):
            raise RequestError(f"{name}={shown(value)} must be true or false")
    elif setting.annotation == "int":
        if isinstance(value, bool) or not isinstance(value, int) or not _within(own, value):
            raise RequestError(f"{name}={shown(value)} must be a whole number{_range(own)}")
    elif setting.annotation == "float":
        if isinstance(value, bool) or not isinstance(value, int | float) or not _within(own, value):
            raise RequestError(f"{name}={shown(value)} must be a number{_range(own)}")
    elif setting.annotation == "tuple[int, int]":
        sides = value if isinstance(value, tuple | list) else ()
        if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
            raise RequestError(
                f"{name}={shown(value)} must be two whole numbers of pixels, as in (1024, 768)"
            )
        if not all(_within(own, side) for side in sides):
            raise RequestError(f"{name}={shown(value)} must be two numbers of pixels{_range(own)}")


def _within(own: Knob, value: float) -> bool:
    low, high = own.low, own.high
    return (-MOST if low is None else low) <= value <= (MOST if high is None else high)


def _range(own: Knob) -> str:
    low, high = own.low, own.high
    if low is None and high is None:
        return ""
    if high is None:
        return f", {low:g} or above"
    return f", {high:g} at most" if low is None else f" in {_plain(low)} … {_plain(high)}"


def _plain(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def _check_image(name: str, value: object) -> None:
    """Raises RequestError for what is no PIL image, and for one of too many pixels."""
    from PIL import Image

    if not isinstance(value, Image.Image):
        raise RequestError(f"{name} must be a PIL image, not a {_kind(value)}")
    check_pixels(name, *value.size)


def _kind(value: object) -> str:
    return type(value).__name__
