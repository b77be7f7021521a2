"""Jobs as the store keeps them and as their owners see them. Plain values; no threads, no device.

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
    """The state of a job, or of one of its pictures."""

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

    seq: its place in the order of arrival. owner: see `studio.jobs.owner`.
    kind: what asked for it: "compose", "compare", …; model: name, path or hub id; vae: another VAE.
    settings: values that its page wants to keep with it. error: why it failed.
    attempts: how often it was begun since one of its pictures was last finished.
    created, began, ended: seconds since 1970. fault: why its row cannot be read; "" for a sound one.
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
    fault: str = ""


@dataclass(frozen=True)
class PictureRow:
    """One picture of a job as it is stored. draft: as `studio.drafts.entries.read_draft` reads it, with a seed.

    file: its path, relative to the home's folder if it lies there. record: see `pipelines.record`.
    suspect: it was in the making when the studio died, and has not been drawn to its end, alone, since.
    deaths: how often the studio died while it alone was in the making. steps: those that a finished one took.
    fault: why its row cannot be read; "" for a sound one.
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
    fault: str = ""


@dataclass(frozen=True)
class PictureView:
    """One picture as its owner sees it. step, count: it has done `step` of `count` steps. preview: a file that shows it
    while it is made."""

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
    """A job's pictures in numbers. by_state: how many there are in each state.

    known: pictures whose number of steps is known; together they have done `step` of `count` steps.
    unet_rows: rows evaluated for the finished pictures, in full or shallow.
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
    """One job as its owner sees it, without its pictures, of which there may be thousands.

    position: its place in the queue, from 1; 0 once it is running or over. message: its state in a sentence.
    seconds_left: an estimate; None where there is none. tally: its pictures in numbers.
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
    """One job with its pictures, or with a slice of them where there are very many.

    vae: the job's own VAE; None is the model's.
    """

    pictures: tuple[PictureView, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    vae: str | None = None

    @property
    def finished(self) -> tuple[PictureView, ...]:
        return tuple(picture for picture in self.pictures if picture.state is JobState.DONE)


@dataclass(frozen=True)
class AtWork:
    """A picture in the making. step, count: it has done `step` of `count` steps. preview: a file that shows it now."""

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

    source: as a job names it; "" where none was asked for yet. loading: what is being done; "" when ready.
    since: when that began, in seconds since 1970. share: how much of it is done, 0 … 1; None where that is unknown.
    error: why it could not be loaded. width_of_text: the width of its text embeddings, which adapters must fit.
    vocabulary: category -> word -> synonyms, of a model with a card. block_map: "@content" -> blocks.
    rows_at_once: most rows of one UNet call at the model's own size.
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
