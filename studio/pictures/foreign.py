"""What a picture of another program says of how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from studio.drafts.draft import Wanted


@dataclass(frozen=True)
class Foreign:
    """What a picture of another program says. values: by Request's names, unchecked. wanted: its LoRAs, without those
    of tags in its prompt. model, digest: name and hash of its model, "" where it gives none. from_picture: it was
    made from another picture. notes: what was not understood. hashes: name of a LoRA -> its hash. vae: name of its
    VAE."""

    program: str
    values: Mapping[str, Any]
    wanted: tuple[Wanted, ...]
    model: str
    digest: str
    from_picture: bool = False
    notes: tuple[str, ...] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)
    vae: str | None = None
