"""The record of one picture: what was asked for, what was applied, and what it cost."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any

import torch

from composers.plan import Step, Use
from composers.registry import settings_of, spell
from pipelines.families.unet import shallow_modules
from pipelines.model import Model
from pipelines.request import Request
from pipelines.text.clip_skip import Counting, remark
from pipelines.text.editing import remarks
from pipelines.text.embeddings import Names, words_beside
from pipelines.text.other_forms import other_forms
from pipelines.text.vocabulary import unknown


@dataclass(frozen=True)
class Applied:
    """One adapter as it was applied.

    text_weight: its strength in the text encoders. text_scheduled: its schedule acted there too. sha256: of its file.
    layers: how many of the model's layers it changed. band: its frequency band, None for a method that does not use
    bands.
    """

    name: str
    weight: float
    text_weight: float
    blocks: tuple[tuple[str, float], ...]
    schedule: tuple[tuple[float, float], ...]
    pinned: bool
    sha256: str
    layers: int
    band: str | None = None
    text_scheduled: bool = False


@dataclass(frozen=True)
class Record:
    """One picture's record. Sizes are in pixels.

    executed_steps: steps that were made, fewer than `steps` with an initial image.
    composer: the method with the settings that were used, as `composers.parse` reads it.
    strength: of the change to an initial image, None without one.
    model: its name; model_source: what was asked for; model_hash: ten hexadecimal digits.
    unet_rows: rows evaluated in full; unet_calls: the calls in which these stood.
    shallow_rows, shallow_calls: the same for rows that ran the outer blocks alone, on remembered features.
    largest_call: rows of the largest call, of either kind.
    shared: whether any call, of the UNet or of a text encoder, held rows of other pictures too.
    reuse, cut: as asked for, and where features were remembered (see `pipelines.features`).
    feature_bytes: bytes reserved for remembered features.
    seconds: from its start noise to its pixels, waiting included, but not the time for which it was set aside.
    device_seconds: its part, by rows, of the UNet calls' seconds on the device.
    forms: the per-lane forms used (see `pipelines.engine.residency.bank`). threads: torch's threads on the CPU.
    embeddings: those that the prompts mention, name -> SHA-256 of the file.
    adapters_paged: how many adapters were brought onto the device for it (see `pipelines.engine.residency.store`).
    """

    prompt: str
    negative_prompt: str | None
    seed: int
    width: int
    height: int
    steps: int
    executed_steps: int
    guidance_scale: float
    guidance_rescale: float
    scheduler: str
    composer: str
    composer_settings: dict[str, Any]
    text_mode: str
    clip_skip: int | None
    clip_skip_as: Counting
    strength: float | None
    original_size: tuple[int, int]
    crop: tuple[int, int]
    target_size: tuple[int, int]
    adapters: tuple[Applied, ...]
    model: str
    model_source: str
    model_hash: str
    family: str
    unet_rows: int
    unet_calls: int
    shallow_rows: int
    shallow_calls: int
    largest_call: int
    shared: bool
    reuse: int | None
    cut: str | None
    feature_bytes: int
    seconds: float
    device_seconds: float
    device: str
    dtype: str
    forms: tuple[str, ...]
    threads: int
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    adapters_paged: int = 0
    embeddings: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass
class Cost:
    """What one picture has cost so far, in the terms of its `Record`.

    paged: its `adapters_paged`. reasons: why its calls ran slower than they might have.
    """

    rows: int = 0
    calls: int = 0
    shallow_rows: int = 0
    shallow_calls: int = 0
    feature_bytes: int = 0
    largest_call: int = 0
    shared: bool = False
    device_seconds: float = 0.0
    paged: int = 0
    reasons: set[str] = field(default_factory=set)


def make_record(
    request: Request,
    model: Model,
    cost: Cost,
    seconds: float,
    notes: tuple[str, ...] = (),
    embeddings: Mapping[str, str] = MappingProxyType({}),
) -> Record:
    """The record of a finished picture. request: the resolved one. seconds, embeddings: as in `Record`."""
    assert request.seed is not None
    assert request.width is not None
    assert request.height is not None
    assert request.steps is not None
    assert request.guidance_scale is not None
    assert request.scheduler is not None
    assert request.original_size is not None
    assert request.target_size is not None
    checkpoint = model.checkpoint
    return Record(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seed=request.seed,
        width=request.width,
        height=request.height,
        steps=request.steps,
        executed_steps=request.executed_steps,
        guidance_scale=request.guidance_scale,
        guidance_rescale=request.guidance_rescale,
        scheduler=request.scheduler,
        composer=spell(request.composer),
        composer_settings=settings_of(request.composer),
        text_mode=request.text_mode,
        clip_skip=request.clip_skip,
        clip_skip_as=request.clip_skip_as,
        strength=None if request.init_image is None else request.strength,
        original_size=request.original_size,
        crop=request.crop,
        target_size=request.target_size,
        adapters=tuple(_applied(request, model)),
        model=checkpoint.label,
        model_source=checkpoint.source,
        model_hash=checkpoint.hash,
        family=checkpoint.family.name,
        unet_rows=cost.rows,
        unet_calls=cost.calls,
        shallow_rows=cost.shallow_rows,
        shallow_calls=cost.shallow_calls,
        largest_call=cost.largest_call,
        shared=cost.shared,
        reuse=request.reuse,
        cut=request.cut,
        feature_bytes=cost.feature_bytes,
        seconds=round(seconds, 4),
        device_seconds=round(cost.device_seconds, 4),
        device=device_name(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        forms=_forms(request, model, cost),
        threads=torch.get_num_threads(),
        versions=dict(versions()),
        notes=(
            *notes,
            *remarks(request.prompt, request.executed_steps),
            *remarks(request.negative_prompt or "", request.executed_steps),
            *other_forms(request.prompt, request.negative_prompt),
            *_never_on(request.uses, request.executed_steps),
            *remark(request.clip_skip, request.clip_skip_as, checkpoint.family),
            *_unread_embeddings(request, model),
            *_unknown_words(request, model, embeddings),
        ),
        embeddings=dict(embeddings),
        adapters_paged=cost.paged,
    )


def _never_on(uses: Iterable[Use], count: int) -> tuple[str, ...]:
    """A note on each LoRA whose schedule is 0 at every step."""
    return tuple(
        f"LoRA {use.adapter!r} never acts{'' if use.text_scheduled else ' on the UNet'}: its schedule is 0 at each of "
        f"the {count} steps"
        for use in uses
        if use.schedule is not None
        and not any(use.schedule.factor(Step(index, count, 1.0)) for index in range(count))
    )


def _unread_embeddings(request: Request, model: Model) -> tuple[str, ...]:
    adapters = [model.adapter(use.adapter) for use in request.uses]
    texts = request.wording.texts
    return tuple(dict.fromkeys(why for text in texts for why in model.embeddings.troubles(text, adapters)))


def _unknown_words(request: Request, model: Model, embeddings: Iterable[str]) -> tuple[str, ...]:
    """A note on those words of the prompt that neither the model's vocabulary nor an adapter's triggers contain, and
    that name no embedding."""
    card = model.checkpoint.card
    if card is None or not card.vocabulary:
        return ()
    triggers = [word for use in request.uses for word in model.adapter(use.adapter).metadata.triggers]
    words = words_beside(request.prompt, Names(embeddings))
    found = [
        f"{word} (nearest: {near})" if near else word
        for word, near in unknown(words, card.vocabulary, triggers).items()
    ]
    return (f"{model.checkpoint.label} does not know these words: {', '.join(found)}",) if found else ()


def _forms(request: Request, model: Model, cost: Cost) -> tuple[str, ...]:
    forms = set(model.bank.forms("unet"))
    if request.cut and cost.shallow_rows:
        forms |= set(model.bank.forms("unet", shallow_modules(model.unet, request.cut)))
    return tuple(sorted(forms))


def _applied(request: Request, model: Model) -> list[Applied]:
    found = []
    for use in request.uses:
        adapter = model.adapter(use.adapter)
        found.append(
            Applied(
                name=use.adapter,
                weight=use.weight,
                text_weight=use.weight if use.text_weight is None else use.text_weight,
                blocks=use.blocks,
                schedule=use.schedule.points if use.schedule else (),
                pinned=use.pinned,
                sha256=adapter.report.sha256,
                layers=sum(_changes(use, path) for path in adapter.layers),
                band=use.band if request.composer.by_band else None,
                text_scheduled=use.text_scheduled,
            )
        )
    return found


def _changes(use: Use, path: str) -> bool:
    """Whether a use's strengths and blocks leave it any effect on a layer ("unet.…", "text_encoder.…")."""
    component, _, module = path.partition(".")
    if component == "unet":
        return use.weight * use.block_factor(module) != 0
    return (use.weight if use.text_weight is None else use.text_weight) != 0


def device_name(device: torch.device) -> str:
    """A CUDA device's name ("NVIDIA H100 80GB HBM3"), or the device type and the machine ("cpu (x86_64)")."""
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type} ({platform.machine()})"
    )


@cache
def versions() -> tuple[tuple[str, str], ...]:
    """(name, version) of the packages that decide a picture's exact values."""
    names = ("lora-studio", "torch", "diffusers", "transformers")
    return tuple((name, _version(name)) for name in names)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
