"""Reads how ComfyUI made a picture: by the links of its graph, back from the node that saved it.

The first sampler of the picture gives the settings; its model, prompts and latents are followed to their ends, through
the nodes of the common packs (`studio.pictures.comfyui_nodes`). What lies on the way and is not understood is noted.
Loaders that are off, empty, of strength 0, or not linked to that sampler do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.errors import RequestError
from studio.drafts.draft import Wanted
from studio.pictures.comfyui_drawn import drawn_nodes, is_drawn
from studio.pictures.comfyui_graph import Graph, Node, content, nodes_of
from studio.pictures.comfyui_loaders import Loaded, loaded
from studio.pictures.comfyui_nodes import NO_GUIDANCE
from studio.pictures.comfyui_passes import Start, changes_after, passes, start
from studio.pictures.comfyui_prompts import Part, joined, parts, sizes
from studio.pictures.comfyui_samplers import Settings, settings
from studio.pictures.comfyui_switches import chosen
from studio.pictures.comfyui_values import whole
from studio.pictures.notes import told

DRAWN = (
    "read from the drawn workflow alone, since the graph that ran is not in the picture: a seed that changes after "
    "each run may be the next one's"
)
PASSES = ("", "", "two", "three", "four", "five")


@dataclass(frozen=True)
class Graphed:
    """What a graph says. values: by Request's names, unchecked. wanted: its LoRAs, without those of tags in its prompt.
    model, vae: names of files, "" and None for none. from_picture: it was made from another picture."""

    values: Mapping[str, Any]
    wanted: tuple[Wanted, ...]
    model: str
    vae: str | None
    from_picture: bool
    notes: tuple[str, ...]


def read_comfyui(name: str, texts: Mapping[str, str]) -> Graphed | None:
    """What a picture's graph says; None where its texts hold none. name: the picture's file name. texts: `prompt`, the
    graph that ran, and `workflow`, the drawn one.

    Raises RequestError where it cannot be followed to a sampler, where it is damaged, and for one that is too large.
    """
    ran, fault = _content(texts.get("prompt"), f"{name}: its text 'prompt'")
    drawn, drawn_fault = _content(texts.get("workflow"), f"{name}: its text 'workflow'")
    graph = Graph(name, nodes_of(ran, drawn, name), chosen)
    if not graph.nodes and is_drawn(drawn):
        graph.nodes = drawn_nodes(drawn, name)
        graph.note(DRAWN)
        closed = [
            node.label for node in graph.nodes.values() if node.kind.startswith(("workflow>", "workflow/"))
        ]
        if closed:
            graph.note(f"group nodes of a drawn workflow are not opened: {told(closed)}")
    if graph.nodes and (fault or drawn_fault):
        graph.note(str(fault or drawn_fault).removeprefix(f"{name}: "))
    if not graph.nodes:
        if fault is not None and "class_type" in texts["prompt"]:
            raise fault
        return None
    made = passes(graph, name)
    if made is None:
        kinds = ", ".join(dict.fromkeys(node.kind[:40] for node in list(graph.nodes.values())[:8]))
        raise RequestError(
            f"{name}: no sampler is found in its ComfyUI workflow of {len(graph.nodes)} nodes ({kinds}); set it up by "
            "hand"
        )
    sampler = made.samplers[0]
    if len(made.samplers) > 1:
        count = len(made.samplers)
        number = PASSES[count] if count < len(PASSES) else str(count)
        later = ", ".join(node.label for node in made.samplers[1:5])
        graph.note(f"the first of {number} passes is taken; left out: {later}")
    if made.others:
        graph.note(
            f"{made.others} more {'sampler' if made.others == 1 else 'samplers'} made pictures in this workflow; the "
            f"settings are those of {sampler.label}"
        )
    for node in changes_after(graph, made):
        graph.leave(node.label)
    return _read(graph, sampler, [*made.samplers, *made.after])


def _content(text: object, where: str) -> tuple[Any, RequestError | None]:
    try:
        return content(text, where), None
    except RequestError as fault:
        return None, fault


def _read(graph: Graph, sampler: Node, made: list[Node]) -> Graphed:
    set_to = settings(graph, sampler)
    began = start(graph, sampler)
    width, height = began.size or (None, None)
    for node in began.nodes:
        batch = whole(graph, node.inputs.get("batch_size"))
        if batch is not None and batch > 1:
            graph.note(f"{node.label} made {batch} pictures at once, of which only the first has this seed")
    strength = _strength(graph, sampler, set_to, began)
    if began.size is None and strength is None:
        graph.note("size not understood: the latents that it began with do not state one")
    positive, negative = (_prompt(graph, sampler, role) for role in ("positive", "negative"))
    found = loaded(graph, sampler, positive, negative, made)
    values: dict[str, Any] = {
        "prompt": joined(graph, positive, "positive") if positive else "",
        "negative_prompt": joined(graph, negative, "negative") if negative else None,
        "steps": set_to.steps,
        "seed": set_to.seed,
        "guidance_scale": set_to.cfg,
        "scheduler": set_to.solver,
        "width": width,
        "height": height,
        **({} if found.clip_skip is None else {"clip_skip": found.clip_skip, "clip_skip_as": "comfyui"}),
        **sizes(graph, positive[0].node if positive else None, width, height),
    }
    if strength is not None:
        values["strength"] = strength
    _note_loaders(graph, sampler, found)
    if graph.left:
        graph.note(f"left out: {', '.join(graph.left)}")
    return Graphed(values, found.wanted, found.model, found.vae, strength is not None, tuple(graph.notes))


def _prompt(graph: Graph, sampler: Node, role: str) -> list[Part]:
    """The words of one prompt; [] for none, and for one that is not understood, which is noted."""
    guider = graph.link(sampler.inputs.get("guider"))
    if guider is not None and guider[0].kind.startswith(NO_GUIDANCE) and role == "negative":
        return []
    if guider is not None and guider[0].has("cond2") and role == "positive":
        graph.leave(f"the second prompt of {guider[0].label}")
    held = graph.find(sampler, role)
    if held is None:
        if role == "positive":
            graph.note(f"prompt not understood: {sampler.label} is given none that is known")
        return []
    graph.stuck = ""
    found = parts(graph, held[0], held[1], role)
    if found is None:
        linked = graph.link(held[1])
        source = graph.stuck or (linked[0].label if linked else sampler.label)
        what = "prompt" if role == "positive" else "negative prompt"
        graph.note(f"{what} not understood: it comes from {source}")
    return found or []


def _strength(graph: Graph, sampler: Node, set_to: Settings, began: Start) -> float | None:
    """The strength by which it was made from another picture; None where it was not."""
    steps, ended = set_to.steps, set_to.ended
    strength = min(max(set_to.denoise, 0.0), 1.0)
    if steps and 0 < set_to.begun < steps:
        strength = (steps - set_to.begun) / steps
    if steps and ended is not None and ended < steps:
        graph.note(f"{sampler.label} ended at step {ended} of {steps}")
    inpainted = [node for node in began.nodes if "inpaint" in node.kind.lower() or "NoiseMask" in node.kind]
    for node in inpainted:
        graph.leave(node.label)
    if began.picture and (strength < 1 or inpainted):
        if set_to.denoise < 1 and steps:
            graph.note(
                f"ComfyUI runs all {steps} steps at denoise {set_to.denoise:g}; here that part of the steps runs, so "
                f"{round(steps / max(strength, 0.01))} steps are as many"
            )
        return strength
    if began.picture:
        graph.note("it began with another picture's size, and kept nothing else of it")
    elif strength < 1:
        graph.note(f"{sampler.label} began with denoise {strength:g} and no picture, which is left out")
    return None


def _note_loaders(graph: Graph, sampler: Node, found: Loaded) -> None:
    if found.unread:
        names = told([node.label for node in found.unread])
        what = "LoRA loader" if len(found.unread) == 1 else "LoRA loaders"
        graph.note(f"{len(found.unread)} {what} not understood: {names}")
    if not found.model:
        graph.note(f"model not understood: {sampler.label} is given none that is known")
