"""Embeddings: words of one's own, which stand for trained vectors (textual inversion).

Gal et al. 2022 (arXiv 2208.01618). A file holds [n, width] vectors for each text encoder, which take the place of n
tokens. Layouts that are read, all of them safetensors:

    emb_params, string_to_param.*, or the word itself -> SD1.x and SD2.x (A1111, diffusers)
    clip_l and clip_g, or text_encoders_0 and text_encoders_1 -> SDXL's two text encoders

A prompt names one by its word, `a fox in nilo-style`, or as ComfyUI does, `embedding:nilo-style`. Case does not matter.
The vectors are never written into the model: they travel with each text that names them.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from composers.shown import shown
from pipelines.adapters.container import read_header, read_tensors
from pipelines.errors import AdapterFileError, AdapterFormatError, AdapterMismatchError, StudioError
from pipelines.families.family import Family
from pipelines.home.answers import answered

MOST_VECTORS = 75
"""Vectors of one embedding: they are never divided over two chunks of a text."""
LARGEST = 16 * 2**20
"""Bytes of a file: 75 vectors of both of SDXL's encoders in float32 take 600 kB."""

LISTED_FOR = 5.0
"""Seconds for which the list of the folders is good."""

_FIRST = ("clip_l", "text_encoders_0", "emb_params")
_SECOND = ("clip_g", "text_encoders_1")


@dataclass(frozen=True)
class TextualInversion:
    """One embedding. name: its word. vectors: component ("text_encoder", …) -> [n, width] float32, n the same in all.

    Those of one name and file are equal.
    """

    name: str
    sha256: str
    vectors: Mapping[str, Tensor] = field(compare=False, repr=False)

    @property
    def length(self) -> int:
        """How many tokens it takes the place of."""
        return len(next(iter(self.vectors.values())))


def read_embedding(path: Path, name: str, family: Family, widths: Mapping[str, int]) -> TextualInversion:
    """Read an embedding's file. widths: component -> the width of its tokens, for each text encoder of the model.

    Raises AdapterFileError for what cannot be read, AdapterFormatError for another layout, AdapterMismatchError for
    another family, and NoAnswer.
    """
    header = read_header(path)
    if header.size > LARGEST:
        raise AdapterFileError(
            f"{path.name}: {header.size / 2**20:.0f} MB is no embedding's size (at most {LARGEST >> 20}); is it a LoRA?"
        )
    tensors, digest = read_tensors(path, header)
    return embedding_of(path.name, name, digest, tensors, family, widths)


def embedding_of(
    file: str,
    name: str,
    digest: str,
    tensors: Mapping[str, Tensor],
    family: Family,
    widths: Mapping[str, int],
) -> TextualInversion:
    """The embedding that these tensors make. file: for messages. Raises as `read_embedding` does."""
    first = [key for key in tensors if key in _FIRST or key.startswith("string_to_param")]
    second = [key for key in tensors if key in _SECOND]
    if not first and not second and len(tensors) == 1:  # diffusers: the word itself
        first = list(tensors)
    if len(first) > 1 or len(second) > 1 or not first + second:
        raise AdapterFormatError(
            f"{file}: the tensors {shown(sorted(tensors))} are in no layout of an embedding that is known here; "
            "convert it, or fetch another edition"
        )
    found = {
        component: _vectors(file, keys[0], tensors[keys[0]])
        for component, keys in (("text_encoder", first), ("text_encoder_2", second))
        if keys
    }
    made = {component: vectors.shape[1] for component, vectors in found.items()}
    if made != widths:
        raise AdapterMismatchError(
            f"{file}: this embedding has vectors of {_told(made)}, and {family.label} takes {_told(widths)}; it was "
            "made for a model of another family"
        )
    lengths = {len(vectors) for vectors in found.values()}
    if len(lengths) > 1:
        raise AdapterFormatError(
            f"{file}: its text encoders get {sorted(lengths)} vectors; fetch a sound file"
        )
    return TextualInversion(name, digest, found)


def _vectors(file: str, key: str, tensor: Tensor) -> Tensor:
    vectors = tensor[None] if tensor.ndim == 1 else tensor
    if vectors.ndim != 2 or not 1 <= len(vectors) <= MOST_VECTORS or not vectors.is_floating_point():
        raise AdapterFormatError(
            f"{file}: {shown(key)} has the shape {list(tensor.shape)}, and an embedding is 1 to {MOST_VECTORS} vectors"
        )
    vectors = vectors.float()
    if not vectors.isfinite().all():
        raise AdapterFormatError(
            f"{file}: {shown(key)} holds numbers that are not finite; fetch a sound file"
        )
    return vectors


def _told(widths: Mapping[str, int]) -> str:
    return " and ".join(str(width) for width in widths.values()) or "none"


class Embeddings:
    """The embeddings that one model knows. Those in the user's folders are read when a text first mentions them.

    listed: the embeddings in the folders, name -> file. It is asked again after `LISTED_FOR` seconds.
    """

    def __init__(self, family: Family, widths: Mapping[str, int]) -> None:
        self.listed: Callable[[], Mapping[str, Path]] = dict
        self._family, self._widths = family, widths
        self._given: dict[str, TextualInversion] = {}
        self._read: dict[str, tuple[object, TextualInversion | str]] = {}
        self._files: Mapping[str, Path] = {}
        self._listed_at = -math.inf

    def load(self, path: Path, name: str) -> TextualInversion:
        """Read a file and keep it under a name. Raises as `read_embedding` does."""
        found = self._given[name.casefold()] = read_embedding(path, name, self._family, self._widths)
        return found

    def add(self, embedding: TextualInversion) -> None:
        """Keep an embedding, in the place of any other of its name."""
        self._given[embedding.name.casefold()] = embedding

    def remove(self, name: str) -> None:
        """Forget an embedding that was given. Raises KeyError."""
        del self._given[name.casefold()]

    def of(self, text: str | None) -> tuple[TextualInversion, ...]:
        """Those that a text mentions. What cannot be read is left out: `troubles` says why."""
        found = (self._found(name) for name in self._mentioned(text))
        return tuple(one for one in found if isinstance(one, TextualInversion))

    def troubles(self, text: str | None) -> tuple[str, ...]:
        """A line for each embedding that a text mentions, or asks for, and that is drawn as words all the same."""
        found = [why for name in self._mentioned(text) if isinstance(why := self._found(name), str)]
        found += [
            f"there is no embedding {name!r}, so it is drawn as words; put its .safetensors file into a folder of "
            "embeddings"
            for name in unknown_in(text or "", [*self._given, *self._files])
        ]
        return tuple(found)

    def _mentioned(self, text: str | None) -> tuple[str, ...]:
        if not text:
            return ()
        now = time.monotonic()
        if now - self._listed_at > LISTED_FOR:
            self._files, self._listed_at = self.listed(), now
        return names_in(text, dict.fromkeys([*(one.name for one in self._given.values()), *self._files]))

    def _found(self, name: str) -> TextualInversion | str:
        if name.casefold() in self._given:
            return self._given[name.casefold()]
        path = self._files[name]
        try:
            now = answered(path, path.stat)
            stamp: object = (path, now.st_mtime_ns, now.st_size)
            if self._read.get(name, (None, ""))[0] != stamp:
                self._read[name] = (stamp, read_embedding(path, name, self._family, self._widths))
        except (OSError, StudioError) as error:
            self._read[name] = (None, f"the embedding {name!r} is drawn as words: {error}")
        return self._read[name][1]


Mentioned = str | TextualInversion
"""Part of a text: words, or an embedding that stands there."""


def mentions(text: str, embeddings: Sequence[TextualInversion]) -> Iterator[Mentioned]:
    """The text as words and embeddings, in order."""
    if not embeddings:
        yield text
        return
    by_name = {one.name.casefold(): one for one in embeddings}
    end = 0
    for match in _pattern(by_name).finditer(text):
        if match.start() > end:
            yield text[end : match.start()]
        end = match.end()
        yield by_name[match["name"].casefold()]
    if end < len(text):
        yield text[end:]


def names_in(text: str, names: Iterable[str]) -> tuple[str, ...]:
    """Those of the names that the text mentions, as they are given, in order."""
    by_name = {name.casefold(): name for name in names}
    if not by_name:
        return ()
    found = (by_name[match["name"].casefold()] for match in _pattern(by_name).finditer(text))
    return tuple(dict.fromkeys(found))


def unknown_in(text: str, names: Iterable[str]) -> tuple[str, ...]:
    """The embeddings that a text asks for as ComfyUI does (`embedding:name`), and that are none of these names."""
    known = {name.casefold() for name in names}
    asked = (match[1].removesuffix(".safetensors").removesuffix(".pt") for match in _ASKED.finditer(text))
    return tuple(dict.fromkeys(name for name in asked if name.casefold() not in known))


_ASKED = re.compile(r"(?<!\w)embedding:\s*([\w.\-]{1,200})", re.IGNORECASE)


def _pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Finds any of the names as a word of its own. The longest one wins."""
    words = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.compile(
        rf"(?<![\w-])(?:embedding:\s*)?(?P<name>{words})(?:\.safetensors|\.pt)?(?![\w-])", re.IGNORECASE
    )


def put_in(
    states: Tensor, ids: Tensor, embeddings: Sequence[Sequence[TextualInversion]], component: str
) -> Tensor:
    """The tokens' states [rows, tokens, width] with the vectors of embeddings in place.

    ids: [rows, tokens]; those below 0 tell which vector (`tokens_of`). embeddings: of each row.
    """
    found = states.clone()
    for row, token in (ids < 0).nonzero().tolist():
        which, vector = divmod(-1 - int(ids[row, token]), MOST_VECTORS)
        found[row, token] = embeddings[row][which].vectors[component][vector].to(found)
    return found


def tokens_of(which: int, embedding: TextualInversion) -> list[int]:
    """The ids by which the vectors of a text's embedding number `which` stand among its tokens: below 0."""
    return [-1 - (which * MOST_VECTORS + vector) for vector in range(embedding.length)]


def is_within(before: int, after: int) -> bool:
    """Whether two neighbouring tokens are vectors of one embedding."""
    if not (before < 0 and after < 0) or after != before - 1:
        return False
    return (-1 - before) // MOST_VECTORS == (-1 - after) // MOST_VECTORS


__all__ = [
    "Embeddings",
    "TextualInversion",
    "embedding_of",
    "is_within",
    "mentions",
    "names_in",
    "put_in",
    "read_embedding",
    "tokens_of",
    "unknown_in",
]
