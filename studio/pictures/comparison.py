"""How a picture that was rendered again differs from the old one.

Pictures are promised to be equal bit for bit if both were rendered alone, on the same device, in the same precision and
with the same versions. If the old one came from a shared batch, fp32 stays within 2/255. The comparison says which
holds, and names what was different between the runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines import Record
from studio.drafts.picture_file import upright

TOLERANCE = 2
"""How far (of 255) a picture may differ in fp32 from the same one out of a shared batch."""


@dataclass(frozen=True)
class Comparison:
    """largest, mean: difference of the pictures' values, 0 … 255; largest is None where the sizes differ. reasons: what
    was different between the two runs."""

    largest: int | None
    mean: float
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        why = f" ({'; '.join(self.reasons)})" if self.reasons else ""
        if self.largest is None:
            return f"another size than the picture{why}"
        if self.largest == 0:
            return "equal to the picture, bit for bit"
        if self.largest <= TOLERANCE:
            return f"within {TOLERANCE}/255 of the picture{why}"
        return f"different from the picture: by up to {self.largest}/255, {self.mean:.2f}/255 on average{why}"


def compare(old_file: Path, old: Mapping[str, Any], image: Image.Image, record: Record) -> Comparison:
    """Compares the new picture with the old one. old: the record in the old one. Raises
    RequestError where the old one cannot be read."""
    before = np.asarray(upright(old_file, old_file.name).convert("RGB"), dtype=np.int16)
    after = np.asarray(image.convert("RGB"), dtype=np.int16)
    reasons = tuple(_reasons(old, record.to_dict()))
    if before.shape != after.shape:
        return Comparison(None, 0.0, reasons)
    difference = np.abs(before - after)
    return Comparison(int(difference.max()), float(difference.mean()), reasons)


def _reasons(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What was different between the two runs, as far as their records say."""
    found = ["it came from a shared batch"] if old.get("shared") else []
    for key, label in (("device", "on"), ("dtype", "in"), ("model_hash", "with model weights")):
        if old.get(key) != new[key]:
            found.append(f"made {label} {old.get(key)}, now {new[key]}")
    versions = old.get("versions")
    for name, version in new["versions"].items():
        before = versions.get(name) if isinstance(versions, dict) else None
        if before != version:
            found.append(f"made with {name} {before}, now {version}")
    if not found and old.get("threads") != new["threads"]:
        found.append(f"made on {old.get('threads')} threads, now {new['threads']}")
    return found
