"""What an adapter file is, told from its header alone. No tensor is loaded and no model is needed, so a library of
thousands of files is listed in seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.adapters.adapter import AdapterMetadata, span
from pipelines.adapters.container import UnparsedHeader, adapter_path, open_header
from pipelines.adapters.kinds import ADAPTER_KINDS, FLAGGED
from pipelines.adapters.kinds.papers import check_header
from pipelines.adapters.metadata import describe
from pipelines.adapters.origin import Origin, origin_by_metadata
from pipelines.adapters.peft_settings import PeftSettings, peft_settings
from pipelines.adapters.sidecars import Sidecars, read_sidecars
from pipelines.adapters.starts import check_starts
from pipelines.adapters.stated_scales import UNREAD_SETTINGS, stated_in
from pipelines.adapters.structure import Structure, read_structure
from pipelines.errors import AdapterFileError, AdapterFormatError
from pipelines.home.answers import answered
from pipelines.home.plain import reading


@dataclass(frozen=True)
class Inspection:
    """What one adapter file is.

    size: in bytes. kinds: its types. refused: why it cannot be applied, "" where nothing speaks against it.
    namings: the naming schemes of its keys. modules: component -> how many layers it changes there. A file that does
        not say which of two text encoders it means has the component "text_encoder?".
    ranks: (lowest, highest), None for types without a rank.
    dtypes: of the weights, the most frequent first.
    origin: the family it was made for, and how that is known.
    text_width: the width of the text embeddings that it reads, None where none of its layers tells.
    metadata: from the file and from the notes beside it. sidecars: these notes, and the preview.
    stated: the file's own metadata, as they are in its header.
    terms: what its layers become, by type. needs_base: whether that depends on the base weights. elsewhere: what other
    programs draw differently, by type.
    """

    path: Path
    size: int
    kinds: tuple[str, ...]
    refused: str
    namings: tuple[str, ...]
    modules: Mapping[str, int]
    ranks: tuple[int, int] | None
    dtypes: tuple[str, ...]
    origin: Origin
    text_width: int | None
    metadata: AdapterMetadata
    sidecars: Sidecars
    stated: Mapping[str, str]
    terms: tuple[str, ...] = ()
    needs_base: bool = False
    elsewhere: tuple[str, ...] = ()

    @property
    def exactness(self) -> str:
        """Whether it is drawn exactly, or why it is not."""
        if self.refused:
            return f"not drawn: {self.refused}"
        return "exact, from the base model's own weights" if self.needs_base else "exact"

    @property
    def family(self) -> str:
        """ "sd1", "sd2", "sdxl", another family's name, or "unknown"."""
        return self.origin.family

    def to_dict(self) -> dict[str, Any]:
        """All but `text_width`, as values that JSON can hold."""
        metadata = dataclasses.asdict(self.metadata)
        return {
            "path": str(self.path),
            "size": self.size,
            "kinds": list(self.kinds),
            "refused": self.refused,
            "terms": list(self.terms),
            "exactness": self.exactness,
            "elsewhere": list(self.elsewhere),
            "namings": list(self.namings),
            "modules": dict(self.modules),
            "ranks": None if self.ranks is None else list(self.ranks),
            "dtypes": list(self.dtypes),
            "family": self.origin.family,
            "family_label": self.origin.label,
            "evidence": self.origin.evidence,
            **{name: list(value) if isinstance(value, tuple) else value for name, value in metadata.items()},
            "preview": None if self.sidecars.preview is None else str(self.sidecars.preview),
            "sidecars": list(self.sidecars.files),
        }

    def __str__(self) -> str:
        modules = ", ".join(f"{component} {count}" for component, count in self.modules.items()) or "none"
        rank = "" if self.ranks is None else f", rank {span(self.ranks)}"
        rows = {
            "type": f"{' + '.join(self.kinds) or 'unknown'}{rank}, {', '.join(self.dtypes) or 'no weights'}",
            "terms": "; ".join(self.terms),
            "exact": self.exactness if self.kinds and not self.refused else "",
            "layers": modules,
            "naming": " + ".join(self.namings),
            "made for": str(self.origin),
            "title": self.metadata.title,
            "triggers": ", ".join(self.metadata.triggers)
            + (f"  (from {self.metadata.trigger_source})" if self.metadata.triggers else ""),
            "category": self.metadata.category,
            "weight": "" if self.metadata.preferred_weight is None else f"{self.metadata.preferred_weight:g}",
            "refused": self.refused,
        }
        lines = [f"{self.path.name}  ({self.size / 2**20:.1f} MB)"]
        lines += [f"  {name:<9} {value}" for name, value in rows.items() if value]
        return "\n".join([*lines, *(f"  elsewhere {line}" for line in self.elsewhere)])


def inspect_file(path: Path) -> Inspection:
    """Look at one file, or at the one in a PEFT or diffusers folder.

    Raises AdapterFileError where it is not a readable safetensors file, and NoAnswer.
    """
    with reading(f"{path.name}:", AdapterFileError, "take it away"):  # a list must not end at one file
        return _inspected(*answered(path, lambda: _opened(path)))


def _inspected(path: Path, opened: UnparsedHeader, beside: Sidecars) -> Inspection:
    structure, metadata = read_structure(opened)
    refusal, settings = _by_settings(path, metadata, structure)
    unread = not structure.has_alphas and any(
        one.own_scale_of("") not in (None, 1.0) or one.alpha_pattern for one in settings
    )
    return Inspection(
        path=path,
        size=opened.size,
        kinds=structure.kinds,
        refused=structure.refusal or refusal,
        namings=structure.namings,
        modules=structure.modules,
        ranks=structure.ranks,
        dtypes=structure.dtypes,
        origin=structure.origin or origin_by_metadata(metadata) or Origin(),
        text_width=structure.text_width,
        metadata=describe(metadata, beside),
        sidecars=beside,
        stated=metadata,
        terms=structure.terms,
        needs_base=structure.needs_base,
        elsewhere=structure.elsewhere + ((UNREAD_SETTINGS,) if unread else ()),
    )


def _opened(path: Path) -> tuple[Path, UnparsedHeader, Sidecars]:
    """(the weights file, its unparsed header, the notes beside it)."""
    path = adapter_path(path)
    return path, open_header(path), read_sidecars(path)


def _by_settings(
    path: Path, metadata: Mapping[str, str], structure: Structure
) -> tuple[str, tuple[PeftSettings, ...]]:
    """(why the settings that come with the weights rule them out, "" where they do not; those in PEFT's own place)."""
    own: Mapping[str, PeftSettings] = {}
    try:
        own = peft_settings(path, metadata)
        check_starts(path, own)
        settings = [own] if own else [one.settings for one in stated_in(path, metadata) if not one.odd]
        for flag in sorted({flag for found in settings for one in found.values() for flag in one.flags}):
            if FLAGGED[flag].name not in structure.kinds:
                said = f"{path.name}: its settings say {FLAGGED[flag].name}, but it holds none; fetch a whole file"
                return said, tuple(own.values())
        if structure.kinds:
            check_header(path.name, metadata, structure.kinds)
        for kind in ADAPTER_KINDS:
            if kind.name in structure.kinds:
                kind.check_metadata(path.name, metadata)
    except AdapterFormatError as error:
        return str(error), tuple(own.values())
    return "", tuple(own.values())
