"""Scores pictures. All scores are higher for better pictures, and None if they cannot be computed.

presence   share of the elements that the classifier reads from the picture (built-in world only)
complete   1 if it reads them all, else 0
clip       CLIPScore (Hessel et al. 2021, arXiv 2104.08718, as torchmetrics scales it): 100 * max(cosine, 0) of
           picture and trigger words
fidelity   likeness to the world's own renders of the composition: mean cosine of the classifier's features
identity   likeness to each element's own picture (its adapter alone, same seed): mean cosine of CLIP embeddings
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from PIL import Image

from studio.bench.quality.cells import QualityCell, single
from studio.bench.quality.drawing import Shot
from studio.bench.quality.elements import Composition
from studio.bench.quality.eyes import Array, ClipEye, WorldEye
from studio.bench.quality.references import References, wrong_for

MANY = 256
"""Pictures that are open at once."""
TRUE, WRONG = "true renders", "wrong renders"
"""The bounds: the world's own renders, of the right composition and of a wrong one."""


@dataclass(frozen=True)
class Scores:
    """The scores of one picture, as above. elements: category -> whether its element is there."""

    presence: float | None = None
    complete: float | None = None
    clip: float | None = None
    fidelity: float | None = None
    identity: float | None = None
    elements: Mapping[str, bool] = field(default_factory=dict)


NAMES = tuple(one.name for one in fields(Scores) if one.name != "elements")


@dataclass(frozen=True)
class Scored:
    """One row of the results. method: its label, or the name of a bound. shot: None for the bounds."""

    composition: Composition
    method: str
    seed: int
    scores: Scores
    shot: Shot | None = None


@dataclass(frozen=True)
class Eyes:
    """The models that score. world, references: None if the pictures are not of the built-in world. clip: None if it is
    not used."""

    world: WorldEye | None
    clip: ClipEye | None
    references: References | None


def measure(
    shots: Mapping[QualityCell, Shot], cells: Sequence[QualityCell], eyes: Eyes, tell: Callable[[int], None]
) -> list[Scored]:
    """The scores of the cells that are drawn. tell: called with the number of further cells that are done."""
    looker = _Looker(eyes, [cell.composition for cell in cells])
    alone = looker.singles(shots, cells)
    found = []
    there = [cell for cell in cells if cell in shots]
    for at in range(0, len(there), MANY):
        some = there[at : at + MANY]
        pictures = [_opened(shots[cell].file) for cell in some]
        scores = looker.scores(pictures, [cell.composition for cell in some], [alone(cell) for cell in some])
        for cell, own in zip(some, scores, strict=True):
            found.append(Scored(cell.composition, cell.method.label, cell.seed, own, shots[cell]))
        tell(len(some))
    return found


def bounds(compositions: Sequence[Composition], eyes: Eyes) -> list[Scored]:
    """The scores of the world's own renders, and of those of wrong compositions. Empty outside the built-in world."""
    if eyes.references is None:
        return []
    looker = _Looker(eyes, compositions)
    found = []
    for name in (TRUE, WRONG):
        asked: list[tuple[Composition, int, Image.Image, Sequence[int]]] = []
        for composition in compositions:
            source = composition if name == TRUE else wrong_for(composition, compositions)
            renders = [] if source is None else eyes.references.of(source)
            places = range(len(renders))
            for place in places:  # a true render is compared only with the other ones
                rest = [other for other in places if other != place] if name == TRUE else list(places)
                asked.append((composition, place, renders[place], rest))
        if not asked:
            continue
        scores = looker.scores(
            [picture for _, _, picture, _ in asked],
            [composition for composition, *_ in asked],
            [None] * len(asked),
            [rest for *_, rest in asked],
        )
        found += [
            Scored(composition, name, place, own)
            for (composition, place, *_), own in zip(asked, scores, strict=True)
        ]
    return found


class _Looker:
    """Scores pictures. What many of them share is computed once."""

    def __init__(self, eyes: Eyes, compositions: Iterable[Composition]) -> None:
        self._eyes = eyes
        unique = list(dict.fromkeys(compositions))
        self._texts: dict[str, Array] = {}
        if eyes.clip is not None and unique:
            words = list(dict.fromkeys(one.words for one in unique))
            self._texts = dict(zip(words, eyes.clip.texts(words), strict=True))
        self._features: dict[Composition, Array] = {}
        if eyes.world is not None and eyes.references is not None:
            renders = {one: pictures for one in unique if (pictures := eyes.references.of(one))}
            flat = [picture for pictures in renders.values() for picture in pictures]
            features = eyes.world.features(flat) if flat else np.zeros((0, 1), np.float32)
            at = 0
            for one, pictures in renders.items():
                self._features[one] = features[at : at + len(pictures)]
                at += len(pictures)

    def singles(
        self, shots: Mapping[QualityCell, Shot], cells: Sequence[QualityCell]
    ) -> Callable[[QualityCell], Array | None]:
        """cell -> [elements, width]: embeddings of the pictures of its elements alone; None if one is missing."""
        clip = self._eyes.clip
        wanted = {single(one, cell.seed) for cell in cells for one in cell.composition.elements}
        there = [cell for cell in wanted if cell in shots]
        known: dict[QualityCell, Array] = {}
        if clip is not None and there:
            seen = clip.pictures([_opened(shots[cell].file) for cell in there])
            known = dict(zip(there, seen, strict=True))

        def find(cell: QualityCell) -> Array | None:
            own = [single(element, cell.seed) for element in cell.composition.elements]
            return np.stack([known[one] for one in own]) if all(one in known for one in own) else None

        return find

    def scores(
        self,
        pictures: Sequence[Image.Image],
        compositions: Sequence[Composition],
        alone: Sequence[Array | None],
        rest: Sequence[Sequence[int] | None] | None = None,
    ) -> list[Scores]:
        """The scores of pictures. rest: for each, the renders of its composition to compare it with; None is all."""
        world, clip = self._eyes.world, self._eyes.clip
        read = world.read(pictures) if world is not None else [{}] * len(pictures)
        features = world.features(pictures) if world is not None and self._features else None
        embedded = clip.pictures(pictures) if clip is not None else None
        found = []
        for place, composition in enumerate(compositions):
            elements = self._elements(composition, read[place])
            renders = self._features.get(composition)
            if rest is not None and renders is not None and (own := rest[place]) is not None:
                renders = renders[list(own)]
            singles = alone[place]
            whole = len(elements) == composition.size
            found.append(
                Scores(
                    presence=float(np.mean(list(elements.values()))) if whole else None,
                    complete=float(all(elements.values())) if whole else None,
                    clip=None
                    if embedded is None
                    else 100 * max(float(embedded[place] @ self._texts[composition.words]), 0.0),
                    fidelity=None
                    if features is None or renders is None or not len(renders)
                    else float((renders @ features[place]).mean()),
                    identity=None
                    if embedded is None or singles is None
                    else float((singles @ embedded[place]).mean()),
                    elements=elements,
                )
            )
        return found

    def _elements(self, composition: Composition, read: Mapping[str, str]) -> dict[str, bool]:
        """category -> whether its element is read, for elements that the classifier knows."""
        if self._eyes.world is None:
            return {}
        found = {}
        for element in composition.elements:
            label = self._eyes.world.label(element)
            if label is not None:
                part, _, word = label.partition(":")
                found[element.category] = read[part] == word
        return found


def _opened(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")
