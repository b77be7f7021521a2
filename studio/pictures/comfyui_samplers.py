"""How a sampler of ComfyUI was set: seed, steps, guidance, solver and spacing, and how much noise it began with."""

from __future__ import annotations

import re
from dataclasses import dataclass

from composers.shown import shown
from pipelines.schedulers import named
from studio.pictures.comfyui_graph import Graph, Node
from studio.pictures.comfyui_math import Number
from studio.pictures.comfyui_nodes import NO_GUIDANCE, PLAIN_GUIDERS, SOLVERS, SPACINGS, VIA
from studio.pictures.comfyui_values import choice, number, truth, whole

_USUAL = {"eta": 1.0, "s_noise": 1.0}
"""What a sampler's node says where it is left as it comes."""


@dataclass(frozen=True)
class Settings:
    """How a sampler was set; None for what it does not say. begun, ended: the steps that it began and ended with, of
    `steps`. solver: the scheduler's name here, or ComfyUI's own where there is none."""

    seed: int | None
    steps: int | None
    cfg: float | None
    solver: str | None
    denoise: float
    begun: int
    ended: int | None


def settings(graph: Graph, sampler: Node) -> Settings:
    """How a sampler was set. Notes what is not understood."""
    seed = _whole(graph, sampler, "seed")
    steps = _whole(graph, sampler, "steps")
    if steps is None:
        steps = _manual_steps(graph, sampler)
    cfg = _number(graph, sampler, "cfg")
    guider = graph.link(sampler.inputs.get("guider"))
    if cfg is None and guider is not None and guider[0].kind.startswith(NO_GUIDANCE):
        cfg = 1.0
    if (
        guider is not None
        and guider[0].has("cfg", "negative")
        and not guider[0].kind.startswith(PLAIN_GUIDERS)
    ):
        graph.leave(guider[0].label)
    for what, role, value in (
        ("seed", "seed", seed),
        ("steps", "steps", steps),
        ("guidance scale", "cfg", cfg),
    ):
        if value is None:
            graph.note(f"{what} not understood: {_source(graph, sampler, role)}")
    refined = whole(graph, sampler.inputs.get("refine_at_step"))
    if refined is not None and refined >= 0:
        graph.leave(f"the refiner from step {refined} on")
    for name in ("script", "xyPlot", "hook_opt", "noise_hook"):
        if (linked := graph.link(sampler.inputs.get(name))) is not None:
            graph.leave(linked[0].label)
    varied = number(graph, sampler.inputs.get("variation_strength"))
    if varied:
        graph.leave(f"the variation seed of {sampler.label}")
    added = graph.find(sampler, "add_noise")
    if added is not None and truth(graph, added[1]) is False:
        graph.note(f"{sampler.label} added no noise of its own, so the seed does not tell the picture")
    if any(node.kind.startswith("DisableNoise") for node in _given(graph, sampler, "noise")):
        graph.note(f"{sampler.label} added no noise of its own, so the seed does not tell the picture")
    for node in _given(graph, sampler, "sigmas"):
        if re.search("split|flip|extend|multiply|setfirst|manual", node.kind, re.IGNORECASE):
            graph.leave(node.label)
    for node in _given(graph, sampler, "sampler"):
        for name, usual in _USUAL.items():
            value = number(graph, node.inputs.get(name))
            if value is not None and value != usual:
                graph.leave(f"{name}={float(value):g} of {node.label}")
        if node.inputs.get("solver_type", "midpoint") != "midpoint":
            graph.leave(f"solver_type={shown(node.inputs['solver_type'])} of {node.label}")
    denoise = _number(graph, sampler, "denoise")
    return Settings(
        seed=seed,
        steps=steps,
        cfg=None if cfg is None else float(cfg),
        solver=_solver(graph, sampler),
        denoise=1.0 if denoise is None else float(denoise),
        begun=_whole(graph, sampler, "start") or 0,
        ended=_whole(graph, sampler, "end"),
    )


def _solver(graph: Graph, sampler: Node) -> str | None:
    solver = _choice(graph, sampler, "sampler")
    if solver is None:
        given = _given(graph, sampler, "sampler")
        solver = next((SOLVERS[node.kind] for node in given if node.kind in SOLVERS), None)
    spacing = _choice(graph, sampler, "scheduler")
    if spacing is None:
        given = _given(graph, sampler, "sigmas")
        spacing = next((SPACINGS[node.kind] for node in given if node.kind in SPACINGS), None)
    if solver is None and spacing is not None and not sampler.has("sampler", "sampler_name"):
        solver, spacing = spacing, ""
    if solver is None:
        graph.note(f"sampler not understood: {_source(graph, sampler, 'sampler')}")
        return None
    return named(solver, spacing or "")


def _source(graph: Graph, sampler: Node, role: str) -> str:
    """Where a value comes from that is not understood."""
    held = graph.find(sampler, role)
    linked = graph.link(held[1]) if held is not None else None
    if linked is None and held is None:
        linked = next((one for way in VIA[role] if (one := graph.link(sampler.inputs.get(way)))), None)
    return f"it comes from {linked[0].label}" if linked else f"{sampler.label} does not say it plainly"


def _manual_steps(graph: Graph, sampler: Node) -> int | None:
    """The steps of sigmas that are written out: one less than there are."""
    for node in _given(graph, sampler, "sigmas"):
        said = node.inputs.get("sigmas")
        if isinstance(said, str):
            return max(len(re.findall(r"[^\s,;]+", said[:20_000])) - 1, 1)
    return None


def _given(graph: Graph, sampler: Node, way: str) -> list[Node]:
    """The nodes that a sampler is given its noise, sigmas or solver by."""
    found: list[Node] = []
    linked = graph.link(sampler.inputs.get(way))
    while linked is not None and linked[0] not in found and len(found) < 20:
        found.append(linked[0])
        chosen = graph.passed_on(linked[0])
        names = chosen[:1] if chosen is not None else (way, "sigmas", "samples")
        linked = next((one for name in names if (one := graph.link(linked[0].inputs.get(name)))), None)
    return found


def _number(graph: Graph, sampler: Node, role: str) -> Number | None:
    found = graph.find(sampler, role)
    return None if found is None else number(graph, found[1], role)


def _whole(graph: Graph, sampler: Node, role: str) -> int | None:
    found = graph.find(sampler, role)
    value = None if found is None else whole(graph, found[1], role)
    return value if value is not None and value >= 0 else None


def _choice(graph: Graph, sampler: Node, role: str) -> str | None:
    found = graph.find(sampler, role)
    assert role in VIA
    return None if found is None else choice(graph, found[1], role)
