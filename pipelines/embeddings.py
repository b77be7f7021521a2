"""The embeddings of one model: files of trained vectors, which prompts name by a word (`pipelines.text.embeddings`).

A file holds [n, width] vectors for each text encoder. Layouts that are read, all of them safetensors:

    emb_params, string_to_param.*, or the word itself -> SD1.x and SD2.x (A1111, diffusers)
    clip_l and clip_g, or text_encoders_0 and text_encoders_1 -> SDXL's two text encoders
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from composers.shown import shown
from pipelines.adapters.adapter import LoadReport
from pipelines.adapters.container import read_header, read_tensors
from pipelines.errors import AdapterFileError, AdapterFormatError, AdapterMismatchError, StudioError
from pipelines.families.family import Family
from pipelines.home.answers import answered
from pipelines.text.embeddings import MOST_VECTORS, Names, TextualInversion, names_in, unknown_in

LARGEST = 16 * 2**20
"""Bytes of a file: 75 vectors of both of SDXL's encoders in float32 take 600 kB."""

MOST_BROUGHT = 1_000
"""Embeddings of adapters that are kept ready."""
LISTED_FOR = 5.0
"""Seconds for which the list of the folders is good."""

_FIRST = ("clip_l", "text_encoders_0", "emb_params")
_SECOND = ("clip_g", "text_encoders_1")


class Bringing(Protocol):
    """An adapter, as far as its own embeddings are concerned (see `Adapter.bundled`)."""

    @property
    def report(self) -> LoadReport: ...
    @property
    def bundled(self) -> Mapping[str, Mapping[str, Tensor]]: ...


class Embeddings:
    """The embeddings that one model knows. Those in the user's folders are read when a text first mentions them.

    An adapter may bring its own (`bundle_emb`): they stand for their words in pictures that use this adapter, and come
    before others of the same name.

    listed: the embeddings in the folders, name -> file. It is asked again after `LISTED_FOR` seconds.
    """

    def __init__(self, family: Family, widths: Mapping[str, int]) -> None:
        self.listed: Callable[[], Mapping[str, Path]] = dict
        self._family, self._widths = family, widths
        self._given: dict[str, TextualInversion] = {}
        self._read: dict[str, tuple[object, TextualInversion | str]] = {}
        self._files: Mapping[str, Path] = {}
        self._names = Names(())
        self._bundled: dict[tuple[str, str], TextualInversion | str] = {}
        self._listed_at = -math.inf

    def load(self, path: Path, name: str) -> TextualInversion:
        """Read a file and keep it under a name. Raises as `read_embedding` does."""
        found = self._given[name.casefold()] = read_embedding(path, name, self._family, self._widths)
        self._name()
        return found

    def of(self, text: str | None, adapters: Iterable[Bringing] = ()) -> tuple[TextualInversion, ...]:
        """Those that a text mentions, in a picture that uses these adapters. What cannot be read is left out:
        `troubles` says why."""
        return tuple(one for one in self._all_of(text, adapters) if isinstance(one, TextualInversion))

    def troubles(self, text: str | None, adapters: Iterable[Bringing] = ()) -> tuple[str, ...]:
        """A line for each embedding that a text mentions, or asks for, and that is drawn as words all the same."""
        adapters = tuple(adapters)
        found = [why for why in self._all_of(text, adapters) if isinstance(why, str)]
        brought = Names(word for adapter in adapters for word in adapter.bundled)
        missing = set(unknown_in(text or "", brought))
        found += [
            f"there is no embedding {name!r}, so it is drawn as words; put its .safetensors file into the home's "
            "embeddings"
            for name in unknown_in(text or "", self._names)
            if name in missing
        ]
        return tuple(found)

    def _all_of(self, text: str | None, adapters: Iterable[Bringing]) -> Iterator[TextualInversion | str]:
        brought = {word.casefold(): (word, adapter) for adapter in adapters for word in adapter.bundled}
        for name in names_in(text or "", Names(word for word, _ in brought.values())):
            yield self._brought(*brought[name.casefold()])
        for name in self._mentioned(text):
            if name.casefold() not in brought:
                yield self._found(name)

    def _brought(self, word: str, adapter: Bringing) -> TextualInversion | str:
        """The embedding that an adapter brings for a word; or why it is drawn as words."""
        key = (adapter.report.sha256, word)
        if key not in self._bundled:
            while len(self._bundled) >= MOST_BROUGHT:
                del self._bundled[next(iter(self._bundled))]
            file, digest = adapter.report.file, adapter.report.sha256
            try:
                self._bundled[key] = embedding_of(
                    file, word, digest, adapter.bundled[word], self._family, self._widths
                )
            except StudioError as error:
                self._bundled[key] = f"the embedding {word!r} is drawn as words: {error}"
        return self._bundled[key]

    def _mentioned(self, text: str | None) -> tuple[str, ...]:
        if not text:
            return ()
        now = time.monotonic()
        if now - self._listed_at > LISTED_FOR:
            before, self._files, self._listed_at = self._files, self.listed(), now
            if before.keys() != self._files.keys():
                self._name()
        return names_in(text, self._names)

    def _name(self) -> None:
        self._names = Names([*(one.name for one in self._given.values()), *self._files])

    def _found(self, name: str) -> TextualInversion | str:
        if name.casefold() in self._given:
            return self._given[name.casefold()]
        path = self._files[name]
        stamp: object = None
        try:
            now = answered(path, path.stat)
            stamp = (path, now.st_mtime_ns, now.st_size)
            if self._read.get(name, (None, ""))[0] != stamp:
                self._read[name] = (stamp, read_embedding(path, name, self._family, self._widths))
        except (OSError, StudioError) as error:  # kept too: a faulty file is not read for every text
            self._read[name] = (stamp, f"the embedding {name!r} is drawn as words: {error}")
        return self._read[name][1]


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
    if more := sorted(tensors.keys() - {*first, *second}):
        raise AdapterFormatError(
            f"{file}: beside its vectors it holds {shown(more)}, which are not applied; fetch an edition without them"
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
    if not vectors.is_floating_point():
        raise AdapterFormatError(
            f"{file}: {shown(key)} holds {str(tensor.dtype).removeprefix('torch.')} numbers, and an embedding is 1 to "
            f"{MOST_VECTORS} vectors of floating point numbers; fetch an edition of such"
        )
    if vectors.ndim != 2 or not 1 <= len(vectors) <= MOST_VECTORS:
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
