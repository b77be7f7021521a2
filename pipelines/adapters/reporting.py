"""The report on a file that was read. Whatever was ignored is mentioned."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from pipelines.adapters.adapter import AdapterMetadata, LoadReport
from pipelines.adapters.container import WEIGHT_DTYPES, Header
from pipelines.adapters.keys import Contents, some
from pipelines.adapters.kinds import AdapterKind, RawLayer, claimants
from pipelines.adapters.origin import Origin, foreign, origin_by_metadata
from pipelines.adapters.peft_settings import PeftSettings
from pipelines.adapters.stated_scales import UNREAD_SETTINGS, UNSEEN
from pipelines.adapters.terms import LayerFactors, ModelLayers

Place = tuple[str, str]  # (component, module)


@dataclass(frozen=True)
class Findings:
    """What was found in a file, for its report.

    file: its name. raw: the layers that were used. settings: PEFT's, by component, from wherever they were found; own:
    those from their own place alone. orphans: the places of alpha values without factors. bundled: the embeddings that
    come with it. notes: what else was found.
    """

    file: str
    header: Header
    contents: Contents
    origin: Origin
    raw: Mapping[Place, RawLayer]
    settings: Mapping[str, PeftSettings]
    own: Mapping[str, PeftSettings]
    orphans: tuple[Place, ...]
    sha256: str
    bundled: Mapping[str, Mapping[str, Tensor]]
    notes: tuple[str, ...] = ()

    def alphas(self) -> list[float]:
        """The alpha of every layer that has one, from the file or from its settings."""
        values = []
        for (component, module), layer in self.raw.items():
            if "alpha" in layer.parts:
                values.append(float(layer.parts["alpha"].double().item()))
            elif (
                component in self.settings
                and (alpha := self.settings[component].alpha_of(module)) is not None
            ):
                values.append(alpha)
        return values


def report(
    name: str,
    model: ModelLayers,
    found: Findings,
    layers: Mapping[str, LayerFactors],
    kinds: Mapping[str, AdapterKind],
    metadata: AdapterMetadata,
) -> LoadReport:
    """The load report of a file. name: of the adapter. layers, kinds: layer name -> its factors, and its type."""
    ranks = [factors.rank for factors in layers.values() if factors.rank] or [0]
    alphas = found.alphas()
    dtypes = Counter(
        found.header.tensors[key].dtype
        for layer in found.raw.values()
        for part, key in layer.keys.items()
        if found.header.tensors[key].dtype in WEIGHT_DTYPES and part != "alpha"
    )
    shapes: dict[AdapterKind, list[dict[str, tuple[int, ...]]]] = defaultdict(list)
    for layer in found.raw.values():
        own = {part: tuple(tensor.shape) for part, tensor in layer.parts.items()}
        shapes[kinds[layer.name]].append(own)
    return LoadReport(
        name=name,
        file=found.file,
        kind=" + ".join(sorted({kind.called(own) for kind, own in shapes.items()})),
        naming=" + ".join(found.contents.namings),
        family=found.origin.family,
        evidence=found.origin.evidence,
        applied={
            part: sum(owner == part and module in targets for owner, module in found.raw)
            for part, targets in model.components.items()
        },
        total={part: len(targets) for part, targets in model.components.items()},
        ranks=(min(ranks), max(ranks)),
        alphas=(min(alphas), max(alphas)) if alphas else None,
        dtype=", ".join(WEIGHT_DTYPES[dtype] for dtype, _ in dtypes.most_common()),
        sha256=found.sha256,
        title=metadata.title,
        triggers=metadata.triggers,
        notes=tuple(_notes(found, model, layers, kinds, len(alphas))),
        doubts=tuple(note for note in found.notes if note != UNSEEN),
        has_alpha=any(kind.has_alpha for kind in kinds.values()),
    )


def _notes(
    found: Findings,
    model: ModelLayers,
    layers: Mapping[str, LayerFactors],
    kinds: Mapping[str, AdapterKind],
    with_alpha: int,
) -> Iterable[str]:
    """Whatever a user might wonder about later. with_alpha: how many layers have an alpha."""
    contents = found.contents
    if contents.bundled:
        yield f"embeddings come with it (bundle_emb): {some(contents.bundled)}"
    yield from found.notes
    if contents.bookkeeping:
        yield f"{some(contents.bookkeeping)} keys hold counters or buffers that change nothing: ignored"
    norms = sum(module in model.norms.get(part, ()) for part, module in found.raw)
    if norms:
        yield f"{norms} norms are changed too"
    if found.orphans:
        yield f"{len(found.orphans)} alpha values lack factors ({'.'.join(found.orphans[0])}): ignored"
    scaled = sum(kind.has_alpha for kind in kinds.values())
    if 0 < with_alpha < scaled:
        yield f"{scaled - with_alpha} of {scaled} layers give no alpha: scale 1 there"
    yield from dict.fromkeys(
        f"other programs, {kind.name}: {line}"
        for layer in found.raw.values()
        for kind in claimants(layer.parts)
        for line in kind.elsewhere({part: tuple(tensor.shape) for part, tensor in layer.parts.items()})
    )
    if any(layer.scale not in (None, 1.0) and "alpha" not in layer.parts for layer in found.raw.values()):
        yield f"other programs: {UNREAD_SETTINGS}"
    if idle := sum(factors.scale == 0 for factors in layers.values()):
        yield f"{idle} layers have alpha 0 and change nothing"
    if all(factors.idle for factors in layers.values()):
        yield "no layer's factors do anything: this file changes nothing (was it ever trained?)"
    said = origin_by_metadata(found.header.metadata)
    if said is not None and said.family != found.origin.family:
        yield f"its metadata speaks of {said.label} ({said.detail}), but its {found.origin.evidence} decided"


def aside_notes(aside: Sequence[str], contents: Contents) -> Iterable[str]:
    """What is said of the few keys that have no place in the model."""
    if aside:
        origin = foreign(aside)
        what = f"of {origin.label}" if origin is not None else "that belong to no layer of this model"
        rest = len(contents.keys) + len(contents.unknown) - len(aside)
        yield f"{some(aside)} keys {what} are left out; the other {rest} are applied"
