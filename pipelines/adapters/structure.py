"""What the names, shapes and types of a file's tensors say of it, without its metadata and notes.

Files of one make (the same base, trainer and rank) describe their tensors in the same bytes, so what is known of one is
known of all. In a library of thousands, only the first file of each make is taken apart.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.adapters.container import WEIGHT_DTYPES, TensorEntry, UnparsedHeader
from pipelines.adapters.keys import COMPONENTS, Address, Contents, quoted, sort_keys
from pipelines.adapters.kinds import INTEGERS, AdapterKind, claimants
from pipelines.adapters.origin import Origin, origin_by_layers, something_else, text_width

_EITHER_TEXT = "text_encoder?"
_REMEMBERED = 4096  # structures of about two kilobytes


@dataclass(frozen=True)
class Structure:
    """The part of an `Inspection` that follows from the tensors. Fields of the same name mean the same.

    has_alphas: whether it holds any alpha.
    refusal: why no model can take such tensors, "" where one might. origin: None where only metadata can tell.
    data: bytes that the tensors take.
    """

    kinds: tuple[str, ...]
    terms: tuple[str, ...]
    needs_base: bool
    elsewhere: tuple[str, ...]
    has_alphas: bool
    refusal: str
    namings: tuple[str, ...]
    modules: Mapping[str, int]
    ranks: tuple[int, int] | None
    dtypes: tuple[str, ...]
    origin: Origin | None
    text_width: int | None
    data: int


def structure_of(tensors: Mapping[str, TensorEntry]) -> Structure:
    """The structure, found by looking at every tensor. tensors: name -> entry of the header."""
    contents = sort_keys(tensors)
    layers: dict[Address, dict[str, str]] = defaultdict(dict)
    for key in contents.keys:
        layers[key.address][key.part] = key.text
    all_kinds = {address: _kinds_of(frozenset(parts)) for address, parts in layers.items()}
    kinds = {address: found[0] for address, found in all_kinds.items() if found}
    used = dict.fromkeys(kind for found in all_kinds.values() for kind in found)
    own = {key.address for key in contents.keys if key.familiar or contents.foreign}
    counts = Counter(_component(address) for address in kinds if address in own)
    weights = Counter(tensors[key.text].dtype for key in contents.keys if key.part not in INTEGERS)
    return Structure(
        kinds=_kind_names(kinds, layers, tensors),
        terms=tuple(dict.fromkeys(f"{kind.name}: {kind.terms}" for kind in used if kind.terms)),
        needs_base=any(kind.needs_base for kind in used),
        elsewhere=tuple(
            dict.fromkeys(
                f"{kind.name}: {line}"
                for address, found in all_kinds.items()
                for kind in found
                for line in kind.elsewhere(
                    {part: tensors[key].shape for part, key in layers[address].items()}
                )
            )
        ),
        has_alphas=any(key.part == "alpha" for key in contents.keys),
        refusal=_refusal(contents, {address: kind for address, kind in kinds.items() if address in own}),
        namings=contents.namings,
        modules={part: counts[part] for part in (*COMPONENTS, _EITHER_TEXT) if counts[part]},
        ranks=_ranks(layers, tensors),
        dtypes=tuple(WEIGHT_DTYPES.get(dtype, dtype) for dtype, _ in weights.most_common()),
        origin=origin_by_layers(contents, tensors),
        text_width=text_width(contents, tensors),
        data=max((entry.end for entry in tensors.values()), default=0),
    )


class Structures:
    """Remembers structures by the sha256 of the JSON that describes the tensors. Safe for several threads.

    most: how many are remembered; the oldest is forgotten first.
    """

    def __init__(self, most: int = _REMEMBERED) -> None:
        self._most = most
        self._known: dict[bytes, Structure] = {}
        self._lock = threading.Lock()

    def read(self, opened: UnparsedHeader) -> tuple[Structure, Mapping[str, str]]:
        """The structure and the metadata of a file. Raises AdapterFileError for a damaged one."""
        if opened.tensors is None or opened.metadata is None:
            header = opened.parse()
            return structure_of(header.tensors), header.metadata
        mark = hashlib.sha256(opened.tensors).digest()
        with self._lock:
            known = self._known.get(mark)
        if known is not None and known.data == opened.available:
            return known, opened.metadata
        header = opened.parse()  # if known but of another length, this raises what is wrong with it
        structure = structure_of(header.tensors)
        with self._lock:
            while len(self._known) >= self._most:
                del self._known[next(iter(self._known))]
            self._known[mark] = structure
        return structure, header.metadata


read_structure = Structures().read
"""`Structures.read`, with one memory for the whole process."""


@functools.cache  # there are only a few combinations, and each layer asks for one
def _kinds_of(parts: frozenset[str]) -> tuple[AdapterKind, ...]:
    return claimants(parts)


def _kind_names(
    kinds: Mapping[Address, AdapterKind],
    layers: Mapping[Address, Mapping[str, str]],
    tensors: Mapping[str, TensorEntry],
) -> tuple[str, ...]:
    """The adapter types in the file, the most frequent first."""
    found: dict[AdapterKind, list[dict[str, tuple[int, ...]]]] = defaultdict(list)
    for address, kind in kinds.items():
        found[kind].append({part: tensors[key].shape for part, key in layers[address].items()})
    counts = Counter[str]()
    for kind, shapes in found.items():
        counts[kind.called(shapes)] += len(shapes)
    return tuple(name for name, _ in counts.most_common())


def _refusal(contents: Contents, kinds: Mapping[Address, AdapterKind]) -> str:
    """Why no model could take such a file, as far as its tensors tell; "" where one might."""
    refused = {kind.name: kind.refusal for kind in kinds.values() if kind.refusal}
    if not refused and contents.unsupported is not None:
        refused = {contents.unsupported[1].name: contents.unsupported[1].refusal}
    if refused:
        return f"{' and '.join(refused)} not applied yet: {next(iter(refused.values()))}"
    if contents.unknown and contents.foreign:
        first = (contents.halves or contents.unknown)[0]
        what = something_else(contents.unknown) or "no adapter format known here"
        return f"{len(contents.unknown)} keys not understood ({quoted(first)}): {what}"
    return "" if kinds else "no adapter layers in it"


def _component(address: Address) -> str:
    return address.components[0] if len(address.components) == 1 else _EITHER_TEXT


def _ranks(
    layers: Mapping[Address, Mapping[str, str]], tensors: Mapping[str, TensorEntry]
) -> tuple[int, int] | None:
    shapes = [
        tensors[parts[half]].shape
        for parts in layers.values()
        for half in ("down", "inner")  # their first axis is the rank
        if half in parts
    ]
    ranks = [shape[0] for shape in shapes if shape]
    return (min(ranks), max(ranks)) if ranks else None
