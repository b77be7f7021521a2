"""The passes of ComfyUI that made a picture: from the node that saves it back to the first sampler, and to the latents
that this one began with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from studio.pictures.comfyui_graph import Graph, Node
from studio.pictures.comfyui_nodes import LINKED, PLAIN_IMAGE
from studio.pictures.comfyui_values import number, size

_ASIDE = re.compile(
    r"model|clip|vae|positive|negative|cond|control|mask|guider|sigma|^noise$|^sampler$|lora|seed|step|cfg|width"
    r"|height|text|prompt|ipadapter|style|embeds|script|bbox|segm_|sam_|detector|hook|wildcard|schedul|batch|size"
    r"|denoise|^a$|^b$|^c$|meta|caption|name",
    re.IGNORECASE,
)
"""Names of inputs by which no picture and no latents come."""
_SAVES = re.compile(r"save|image ?output|websocket|export|upload", re.IGNORECASE)
_NO_PICTURE = re.compile(
    r"latent|text|string|lora|checkpoint|model|vae|clip|audio|json|prompt", re.IGNORECASE
)
_SHOWS = re.compile(r"preview|compar|show|display|view", re.IGNORECASE)
_NO_SAMPLER = re.compile(
    r"provider|select|scheduler|presampl|settings|config|guider|context|switch", re.IGNORECASE
)
_SAMPLER = re.compile(r"sampler|unsampl|facedetailer|detailerforeach|ultimatesdupscale", re.IGNORECASE)
_PICTURE = re.compile(
    r"load.?image|vae.?encode|image.?load|loadlatent|load.?latent|inpaint|imagetolatent", re.IGNORECASE
)
_PLAIN = re.compile(r"latent_?upscale|pipe|context|reroute|switch|preview|save|loadimage", re.IGNORECASE)
_PIXELS = ("pixels", "image_to_latent", "image_to_latent_c")


@dataclass(frozen=True)
class Passes:
    """The samplers that made a picture, the first one first. after: what lies between the last and the picture, and
    between them. others: how many samplers beside these made pictures that were saved or joined in."""

    samplers: tuple[Node, ...]
    after: tuple[Node, ...] = ()
    others: int = 0


@dataclass
class Start:
    """What the first sampler began with. size: of the latents, None where they state none. picture: whether there was
    one. nodes: what they came through."""

    size: tuple[int, int] | None = None
    picture: bool = False
    nodes: list[Node] = field(default_factory=list)


def passes(graph: Graph, file_name: str) -> Passes | None:
    """The samplers that made the picture; None where none is found. file_name: the picture's own, which begins as the
    saving node says."""
    nodes = list(graph.nodes.values())
    saved = [node for node in nodes if _saves(graph, node)]
    saved.sort(key=lambda node: not _named(node, file_name))
    previews = [node for node in nodes if _SHOWS.search(node.kind) and _sources(graph, node)]
    chains = []
    for ends in (saved, previews, _last(graph, nodes), _last_samplers(graph, nodes)):
        chains = [chain for end in ends[:100] if (chain := _chain(graph, end)) is not None]
        if chains:
            break
    if not chains:
        return None
    first = chains[0]
    bases = {chain.samplers[0].id for chain in chains}
    return Passes(first.samplers, first.after, first.others + len(bases - {first.samplers[0].id}))


def start(graph: Graph, sampler: Node) -> Start:
    """What a sampler began with."""
    found = Start()
    scale = 1.0
    for node in _upstream(graph, sampler):
        found.nodes.append(node)
        if found.size is None and (both := size(graph, node)) is not None:
            found.size = (int(both[0] * scale), int(both[1] * scale))
        elif found.size is None and node.has("scale_by"):
            factor = number(graph, node.inputs["scale_by"])
            scale *= float(factor) if factor is not None and 0 < factor <= 100 and scale < 1_000 else 1.0
        if _PICTURE.search(node.kind) or any(graph.link(node.inputs.get(name)) for name in _PIXELS):
            found.picture = True
    return found


def is_sampler(graph: Graph, node: Node) -> bool:
    """Whether a node makes latents, or a picture, by denoising."""
    if _NO_SAMPLER.search(node.kind) or node.off:
        return False
    if _SAVES.search(node.kind) and not _SAMPLER.search(node.kind):  # it may write down the settings
        return False
    if node.has("sampler_name") and node.has("steps") and node.has("cfg"):
        return True
    linked = [name for name, value in node.inputs.items() if graph.link(value)]
    if _SAMPLER.search(node.kind):
        return any(re.search("latent|samples|pipe|tuple|guider|model|image", name) for name in linked)
    return {"positive", "negative", "model"} <= set(linked) and node.has("seed", "noise_seed", "steps")


def _chain(graph: Graph, end: Node) -> Passes | None:
    """The samplers from the first one to this end, which may be a sampler itself."""
    samplers: list[Node] = []
    passed: set[str] = set()
    after: list[Node] = []
    others = 0
    level = [end] if is_sampler(graph, end) else _samplers_before(graph, end, after)
    while level:
        fresh = [node for node in level if node.id not in passed]
        if not fresh:
            break
        passed.add(fresh[0].id)
        others += len(fresh) - 1
        samplers.insert(0, fresh[0])
        between: list[Node] = []
        level = _samplers_before(graph, fresh[0], between)
        after += between if level else []
    return Passes(tuple(samplers), tuple(after), others) if samplers else None


def _samplers_before(graph: Graph, node: Node, between: list[Node]) -> list[Node]:
    """The nearest samplers that a node's pictures and latents come from; `between` gets what lies between."""
    found: list[Node] = []
    for one in _upstream(graph, node, found):
        between.append(one)
    return found


def _upstream(graph: Graph, node: Node, samplers: list[Node] | None = None) -> Iterator[Node]:
    """The nodes that a node's pictures and latents come from, nearest first, without samplers and what lies behind
    them."""
    passed = {node.id}
    level = _sources(graph, node)
    while level:
        following: list[Node] = []
        for one in level:
            if one.id in passed:
                continue
            passed.add(one.id)
            graph.visit(one)
            if is_sampler(graph, one):
                if samplers is not None:
                    samplers.append(one)
                continue
            yield one
            following += _sources(graph, one)
        level = following


def _sources(graph: Graph, node: Node) -> list[Node]:
    chosen = graph.passed_on(node)
    names = chosen[:1] if chosen is not None else [name for name in node.inputs if not _ASIDE.search(name)]
    own = [name for name in LINKED["latent"] if name in names]
    ordered = dict.fromkeys([*own, *names])
    return [linked[0] for name in ordered if (linked := graph.link(node.inputs.get(name))) is not None]


def _saves(graph: Graph, node: Node) -> bool:
    kind = re.sub("with(out)? metadata|w/ ?metadata", "", node.kind.lower())
    return bool(_SAVES.search(kind)) and not _NO_PICTURE.search(kind) and bool(_sources(graph, node))


def _named(node: Node, file_name: str) -> bool:
    prefix = node.inputs.get("filename_prefix")
    last = prefix.replace("\\", "/").rsplit("/", 1)[-1] if isinstance(prefix, str) else ""
    return bool(last) and file_name.startswith(last)


def _last(graph: Graph, nodes: Sequence[Node]) -> list[Node]:
    """The nodes of other kinds that nothing comes after."""
    used = {linked[0].id for node in nodes for value in node.inputs.values() if (linked := graph.link(value))}
    return [
        node
        for node in nodes
        if node.id not in used and not is_sampler(graph, node) and _sources(graph, node)
    ]


def _last_samplers(graph: Graph, nodes: Sequence[Node]) -> list[Node]:
    """The samplers that no other sampler goes on from."""
    samplers = [node for node in nodes if is_sampler(graph, node)][:200]
    earlier = {one.id for node in samplers for one in _samplers_before(graph, node, [])}
    return [node for node in samplers if node.id not in earlier] or samplers[:1]


def changes_after(graph: Graph, found: Passes) -> list[Node]:
    """What was done to the picture between and after the passes, beside encoding and decoding."""
    return [
        node
        for node in found.after
        if not node.kind.startswith(PLAIN_IMAGE) and not _PLAIN.search(node.kind) and _sources(graph, node)
    ]
