"""What a sampler of ComfyUI was loaded with: model, VAE, LoRAs with both strengths, and clip skip."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from studio.drafts.draft import Wanted
from studio.pictures.comfyui_graph import Graph, Node
from studio.pictures.comfyui_loras import Entry, entries, is_like
from studio.pictures.comfyui_nodes import BAKED, EMPTY, MODEL_NAMES, PLAIN_MODEL
from studio.pictures.comfyui_prompts import Part, clip_of
from studio.pictures.comfyui_values import choice, whole
from studio.pictures.loras import stem

_PLAIN = re.compile(
    r"pipe|context|ctx|bus\b|reroute|tuple|sampler|presampling|settings|switch|passthrough|guider|encode|prompt",
    re.IGNORECASE,
)
_BESIDE = re.compile(r"(cnet|control_?net)_stack|hooks?$", re.IGNORECASE)
"""Inputs of loaders that bring something that is left out."""
_CHANGES = re.compile(r"layerdiffusion|dynamiccfg|noisein|merge", re.IGNORECASE)
_CLIP_NAMES = ("clip_name", "clip_name1", "text_encoder", "clip_name_1")
_SKIPS = ("stop_at_clip_layer", "clip_skip", "base_clip_skip")
_OVERRIDES = ("model_override", "clip_override", "optional_model", "optional_clip")


@dataclass(frozen=True)
class Loaded:
    """model: its name, "" for none. unread: LoRA-like nodes that were not understood."""

    model: str
    vae: str | None
    wanted: tuple[Wanted, ...]
    clip_skip: int | None
    unread: tuple[Node, ...]


@dataclass
class _Way:
    """What lies on the way of a model, or of a text encoder, from its loader on. complete: the way ends at a loader."""

    found: list[Entry] = field(default_factory=list)
    name: str = ""
    skip: int | None = None
    complete: bool = False


def loaded(
    graph: Graph, sampler: Node, positive: Sequence[Part], negative: Sequence[Part], made: Sequence[Node]
) -> Loaded:
    """What a sampler was loaded with. made: the samplers and the nodes between them and the picture, by which the VAE
    is found."""
    held = graph.find(sampler, "model")
    model = _way(graph, held[1] if held else [sampler.id, 0], "model", sampler)
    links = [link for part in positive if (link := clip_of(graph, part)) is not None]
    clip = _way(graph, links[0] if links else None, "clip")
    if any(part.node is not None and part.node.kind == "ScheduleToCond" for part in positive):
        clip.complete = False  # it loads the LoRAs of its text itself
    against = [link for part in negative if (link := clip_of(graph, part)) is not None]
    for link in (*links[1:20], *against[:20]):
        other = _way(graph, link, "clip")
        if {one.place for one in other.found} != {one.place for one in clip.found}:
            graph.note("its prompts were encoded with different LoRAs; those of the first prompt are taken")
        if (other.skip or 0) != (clip.skip or 0):
            graph.note(
                "its prompts were encoded with different clip skips; that of the first prompt is taken"
            )
    unread = [
        node
        for node in graph.ancestors(sampler)
        if is_like(node) and node.id not in graph.understood and not node.off
    ]
    unread += [node for node in graph.blind if node not in unread]
    return Loaded(
        model=model.name,
        vae=_vae(graph, sampler, made),
        wanted=tuple(_wanted(graph, model, clip)),
        clip_skip=clip.skip,
        unread=tuple(unread),
    )


def _way(graph: Graph, value: object, role: str, sampler: Node | None = None) -> _Way:
    """The way back from a link to the loader."""
    way = _Way()
    for node, _ in graph.trail(value, role):
        if is_like(node):
            way.found = [*entries(graph, node), *way.found]
        for key, value in node.inputs.items():
            if _BESIDE.search(key) and (linked := graph.link(value)) is not None:
                graph.leave(linked[0].label)
        if node.off:
            continue
        if role == "clip" and way.skip is None:
            way.skip = _skip(graph, node)
        name = _name(graph, node, MODEL_NAMES if role == "model" else (*MODEL_NAMES, *_CLIP_NAMES))
        if name and not any(graph.link(node.inputs.get(key)) for key in _OVERRIDES):
            way.name, way.complete = name, True
            if role == "clip" and not node.has(*MODEL_NAMES):
                graph.leave(f"the text encoder {name[:60]} of {node.label}")
            break
        _note(graph, node, role, sampler)
    return way


def _note(graph: Graph, node: Node, role: str, sampler: Node | None) -> None:
    """Keeps what changes a model on its way, beside LoRAs."""
    if node is sampler or (is_like(node) and node.id in graph.understood) or node.has(*_SKIPS):
        return
    plain = node.kind.startswith(PLAIN_MODEL) or _PLAIN.search(node.kind)
    if is_like(node) or (plain and not _CHANGES.search(node.kind)):
        return
    if graph.passed_on(node) is None and len(node.inputs) > 1:
        graph.leave(node.label)


def _skip(graph: Graph, node: Node) -> int | None:
    """The layers of the text encoder that a node skips; ComfyUI counts the last layer as -1."""
    value = next((node.inputs[name] for name in _SKIPS if node.has(name)), None)
    layer = None if value is None else whole(graph, value, "stop_at_clip_layer")
    return max(abs(layer) - 1, 0) if layer and abs(layer) <= 100 else None


def _name(graph: Graph, node: Node, names: Sequence[str]) -> str:
    for name in names:
        if node.has(name):
            found = choice(graph, node.inputs[name], name)
            if found is not None and found.strip().lower() not in EMPTY:
                return found
    return ""


def _vae(graph: Graph, sampler: Node, made: Sequence[Node]) -> str | None:
    """The name of the VAE that decoded the picture; None for the model's own."""
    nodes = [node for node in made if graph.link(node.inputs.get("vae"))]
    decoders = [node for node in nodes if "encode" not in node.kind.lower() or "decode" in node.kind.lower()]
    for node in (*decoders[:1], sampler):
        held = graph.find(node, "vae")
        one = node
        for one, _ in graph.trail(held[1], "vae") if held is not None else _itself(graph, node):
            name = choice(graph, one.inputs["vae_name"], "vae_name") if one.has("vae_name") else None
            if name is not None:
                return None if name.strip().lower() in BAKED else name
            if one.has(*MODEL_NAMES):
                return None
        if held is not None:
            graph.note(f"VAE not understood: it comes from {one.label}")
            return None
    return None


def _itself(graph: Graph, node: Node) -> Iterator[tuple[Node, int]]:
    yield from graph.trail([node.id, 0], "vae")


def _wanted(graph: Graph, model: _Way, clip: _Way) -> list[Wanted]:
    """The LoRAs of both ways, in order. One that is loaded twice acts with the sum of its strengths."""
    on_clip = {one.place for one in clip.found}
    on_model = {one.place for one in model.found}
    found: dict[str, tuple[Entry, float | None, float | None]] = {}
    for one in (*model.found, *(entry for entry in clip.found if entry.place not in on_model)):
        weight = one.model if one.place in on_model else 0.0
        text = one.clip if one.place in on_clip or not clip.complete else 0.0
        if weight is None or text is None:
            graph.note(f"the strength of LoRA {stem(one.name)[:60]!r} is not understood")
            text = None
        elif weight == 0 and text == 0:
            continue
        key = stem(one.name).casefold()
        if key not in found:
            found[key] = (one, weight, text)
            continue
        known, before, text_before = found[key]
        if (
            known.name != one.name
            or known.schedule != one.schedule
            or None in (before, text_before, weight, text)
        ):
            graph.note(f"LoRA {stem(one.name)[:60]!r} is loaded more than once; the first is taken")
            continue
        found[key] = (known, (before or 0) + (weight or 0), (text_before or 0) + (text or 0))
        graph.note(f"LoRA {stem(one.name)[:60]!r} is loaded more than once; its strengths are added")
    return [
        Wanted(
            stem(one.name),
            weight,
            None if text == weight else text,
            schedule=one.schedule,
            text_scheduled=one.schedule is not None,
        )
        for one, weight, text in found.values()
    ]
