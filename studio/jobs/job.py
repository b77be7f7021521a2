"""What a job is, as the store keeps it and as a viewer sees it. Plain values; no thread and no device.

queued -> running -> done | failed | cancelled
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from pipelines.families.family import Defaults


class JobState(StrEnum):
    """Of a job, and of each of its pictures."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True)
class Job:
    """One job as it is stored.

    seq: its place in the order of arrival. owner: the login's name, else a random id of the browser.
    kind: "compose", "compare", … as its page calls it. model: name, path or hub id; vae: another VAE.
    settings: whatever its page wants to find again. error: why it failed.
    attempts: how often it was begun since one of its pictures was last finished.
    created, began, ended: seconds since 1970.
    """

    seq: int
    id: str
    owner: str
    kind: str
    title: str
    model: str
    vae: str | None
    settings: Mapping[str, Any]
    state: JobState
    error: str
    attempts: int
    created: float
    began: float | None
    ended: float | None


@dataclass(frozen=True)
class PictureRow:
    """One picture of a job as it is stored. draft: as `studio.drafts.entries.read_draft` reads it, its seed included.

    file: where it was saved, from the home's folder if it lies inside. record: see `pipelines.record`.
    suspect: it was in the making when the studio died, and was not tried alone to the end since.
    deaths: how often it was so, and no other picture was. steps: that a finished one took.
    """

    job: str
    index: int
    label: str
    draft: Mapping[str, Any]
    state: JobState
    error: str
    file: str | None
    record: Mapping[str, Any] | None
    ended: float | None
    suspect: bool = False
    deaths: int = 0
    steps: int = 0


@dataclass(frozen=True)
class PictureView:
    """One picture as its owner sees it. step of count: where it is; preview: as it stands, while it is made."""

    index: int
    label: str
    prompt: str
    state: JobState
    seed: int
    step: int = 0
    count: int = 0
    file: Path | None = None
    preview: Path | None = None
    record: Mapping[str, Any] | None = None
    error: str = ""


@dataclass(frozen=True)
class Tally:
    """A job's pictures in numbers. by_state: how many there are of each.

    step of count: of those whose number of steps is known, and how many these are.
    unet_rows: evaluated for the finished ones, in full or shallow.
    """

    by_state: Mapping[JobState, int] = field(default_factory=dict)
    step: int = 0
    count: int = 0
    known: int = 0
    unet_rows: int = 0

    @property
    def total(self) -> int:
        return sum(self.by_state.values())

    @property
    def done(self) -> int:
        return self.by_state.get(JobState.DONE, 0)

    @property
    def over(self) -> int:
        return sum(count for state, count in self.by_state.items() if state.over)


@dataclass(frozen=True)
class JobHead:
    """One job as its owner sees it, without its pictures: there may be thousands.

    position: its place in the queue, from 1; 0 once it is running or over. message: its state in a sentence.
    seconds_left: as far as is known. tally: its pictures in numbers.
    """

    id: str
    kind: str
    title: str
    model: str
    state: JobState
    position: int
    message: str
    error: str
    created: float
    ended: float | None
    seconds_left: float | None
    tally: Tally

    @property
    def unet_rows(self) -> int:
        return self.tally.unet_rows


@dataclass(frozen=True)
class JobView(JobHead):
    """One job with its pictures: with a slice of them, where there are very many.

    vae: where it is not the model's own.
    """

    pictures: tuple[PictureView, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    vae: str | None = None

    @property
    def finished(self) -> tuple[PictureView, ...]:
        return tuple(picture for picture in self.pictures if picture.state is JobState.DONE)


@dataclass(frozen=True)
class AtWork:
    """The picture of a job that is in the making. step of count: where it is; preview: as it stands."""

    step: int
    count: int
    preview: Path | None


@dataclass(frozen=True)
class GalleryPicture:
    """One finished picture. draft: as it was asked for; record: what was applied and what it cost."""

    job: str
    index: int
    label: str
    file: Path
    prompt: str
    draft: Mapping[str, Any]
    record: Mapping[str, Any]
    ended: float


@dataclass(frozen=True)
class ModelState:
    """The model that is loaded, or being loaded.

    source: as a job names it; "" where none was asked for yet. loading: what is going on; "" when ready.
    since: when that began, in seconds since 1970. share: how much of it is done, 0 to 1; None where nobody knows.
    error: why it could not be loaded. width_of_text: numbers in a text embedding, which adapters must fit.
    vocabulary: category -> word -> synonyms, of a model with a card. block_map: "@content" -> blocks.
    rows_at_once: UNet rows a call may hold at the model's own size.
    """

    source: str = ""
    label: str = ""
    loading: str = ""
    since: float = 0.0
    share: float | None = None
    error: str = ""
    family: str = ""
    defaults: Defaults | None = None
    size_unit: int = 8
    width_of_text: int = 0
    block_map: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    vocabulary: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    description: str = ""
    adapters: tuple[str, ...] = ()
    device: str = ""
    dtype: str = ""
    rows_at_once: int = 0

    @property
    def ready(self) -> bool:
        return self.defaults is not None and not self.loading
