"""The adapter store: disk -> host -> device. Host and device are bounded in bytes; the least recently used leaves
first.

    known     every adapter that was loaded, with its report and metadata: a few kilobytes each, kept until unloaded
    host      factors as the file has them, each adapter's in one block (page-locked where the device is a GPU)
    device    factors in the bank, ready to be selected

Adapters that pictures in flight use are held, and never leave the device. Adapters on the device are on the host too.
So leaving the device costs nothing, and coming back is one copy, on a stream of its own beside the steps. An adapter
that has left both is read again from its file, which must not have changed.
"""

from __future__ import annotations

import weakref
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.adapters.adapter import Adapter, AdapterMetadata, LoadReport
from pipelines.adapters.pinned import Packed, pack
from pipelines.adapters.reading import read_adapter
from pipelines.adapters.terms import ModelLayers
from pipelines.engine.residency.bank import Bank
from pipelines.engine.residency.limits import LevelStats, Limits, StoreStats
from pipelines.errors import AdapterError, AdapterFileError
from pipelines.families.family import FamilyName
from pipelines.faults import out_of_memory


@dataclass(frozen=True)
class KnownAdapter:
    """What is known of an adapter, wherever its factors are.

    path, family: as it was loaded. path is None for one that came from no file, and never leaves the host.
    layers: "unet.…" and the like. numbers: how many numbers its factors have. bundled: the embeddings that come with it
    (see `Adapter`).
    """

    name: str
    path: Path | None
    family: FamilyName | None
    report: LoadReport
    metadata: AdapterMetadata
    layers: frozenset[str]
    numbers: int
    bundled: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict, compare=False, repr=False)


class Hold:
    """Keeps adapters on the device until `release`, or until this object is garbage.

    paged: how many had to be brought there for it.
    """

    def __init__(self, held: Counter[str], names: tuple[str, ...]) -> None:
        self.paged = 0
        held.update(names)
        self._release = weakref.finalize(self, held.subtract, names)
        self._release.atexit = False

    def release(self) -> None:
        """Let the adapters go. A second call does nothing."""
        self._release()


@dataclass
class _Counts:
    hits: int = 0
    misses: int = 0
    evictions: int = 0


@dataclass
class _Arriving:
    """An adapter on its way to the device. event: passed when it is there; None where the device is not CUDA."""

    factors: Mapping[str, Any]
    block: Tensor
    event: torch.cuda.Event | None


@dataclass
class _Shelves:
    """The adapters on the host, on the device, and on their way there; the least recently used first."""

    host: OrderedDict[str, Packed] = field(default_factory=OrderedDict)
    device: OrderedDict[str, None] = field(default_factory=OrderedDict)
    arriving: OrderedDict[str, _Arriving] = field(default_factory=OrderedDict)


class AdapterStore:
    """The adapters of one model. Not safe for several threads at once, like the model itself."""

    def __init__(self, bank: Bank, layers: ModelLayers, dtype: torch.dtype) -> None:
        self._bank = bank
        self._layers = layers
        self._device, self._dtype = torch.device("cpu"), dtype
        self._limits = Limits()
        self._files: dict[str, tuple[str, Path]] = {}  # case-folded name -> its spelling, its file
        self._known: dict[str, KnownAdapter] = {}
        self._shelves = _Shelves()
        self._held: Counter[str] = Counter()
        self._host_counts, self._device_counts = _Counts(), _Counts()
        self._stream: torch.cuda.Stream | None = None

    # -- what there is -----------------------------------------------------------------------------------

    @property
    def known(self) -> Mapping[str, KnownAdapter]:
        """Every adapter that was loaded, by name, in the order of loading."""
        return self._known

    @property
    def limits(self) -> Limits:
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        """New limits take effect at once, except for adapters that are held."""
        self._limits = limits
        self._make_room(0)
        self._trim_host()

    @property
    def stats(self) -> StoreStats:
        host_limit, device_limit = self._limits.on(self._device)
        host, shelf = self._host_counts, self._shelves
        device = self._device_counts
        return StoreStats(
            known=len(self._known),
            held=len(self._held_names),
            host=LevelStats(
                host.hits, host.misses, host.evictions, len(shelf.host), self._host_bytes, host_limit
            ),
            device=LevelStats(
                device.hits,
                device.misses,
                device.evictions,
                len(shelf.device) + len(shelf.arriving),
                self._device_bytes,
                device_limit,
            ),
            pinned=sum(packed.bytes for packed in shelf.host.values() if packed.block.is_pinned()),
        )

    # -- coming and going --------------------------------------------------------------------------------

    def add(self, files: Mapping[str, Path]) -> None:
        """Make adapters known by name. Their files are read when they are first asked for. files: name -> file."""
        self._files |= {name.casefold(): (name, path) for name, path in files.items()}

    def load(self, path: Path, name: str, family: FamilyName | None = None) -> LoadReport:
        """Read a file and keep it as `name`; on the device too, if there is room.

        family: the base family it was made for, where its metadata is wrong. Raises AdapterError.
        """
        if name.casefold() in (other.casefold() for other in self._known):
            raise AdapterError(
                f"an adapter named {name!r} is already loaded; unload it or choose another adapter_name"
            )
        self._host_counts.misses += 1
        adapter = self._register(read_adapter(path, self._layers, name, family=family), path, family)
        self.add({name: path})
        if self._device_bytes + self._size(name) <= self._limits.on(self._device)[1]:
            self._arrive(name)
        return adapter.report

    def read(self, name: str) -> Adapter:
        """The adapter in the host's memory, read from its file if need be.

        Raises AdapterError, and KeyError for a name that was never added.
        """
        name = self._spelled(name)
        if name in self._shelves.host:
            self._host_counts.hits += 1
            self._shelves.host.move_to_end(name)
            return self._shelves.host[name].adapter
        self._host_counts.misses += 1
        known = self._known.get(name)
        if known is None:
            path = self._files[name.casefold()][1]
            return self._register(read_adapter(path, self._layers, name), path, None)
        assert known.path is not None, f"{name} has no file, and left the host"
        adapter = read_adapter(known.path, self._layers, name, family=known.family)
        if adapter.report.sha256 != known.report.sha256:
            raise AdapterFileError(
                f"{known.path} is another file than when {name!r} was loaded; unload it and load it again"
            )
        return self._keep(adapter)

    def ensure(self, names: Iterable[str]) -> None:
        """Load the adapters of these names for which files were added, unless they are loaded. Raises AdapterError."""
        for name in names:
            if name.casefold() in self._files and self._spelled(name) not in self._known:
                self.read(name)

    def unload(self, name: str) -> None:
        """Forget an adapter, except where its file is. Raises AdapterError while pictures use it."""
        if name in self._held_names:
            raise AdapterError(f"{name!r} is in use by pictures in the making; unload it when they are done")
        self._leave(name)
        self._shelves.host.pop(name, None)
        self._known.pop(name, None)

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Follow the bank, which has moved to this device and dtype. On CUDA, host blocks become page-locked."""
        self._device, self._dtype = device, dtype
        self._shelves.arriving.clear()
        pinned = device.type == "cuda"
        for name, packed in self._shelves.host.items():
            if pinned and not packed.block.is_pinned():
                self._shelves.host[name] = pack(packed.adapter, pinned=True)
                if name in self._bank.adapters:
                    self._bank.adapters[name] = self._shelves.host[name].adapter
        self._make_room(0)

    # -- the device --------------------------------------------------------------------------------------

    def fits(self, names: Iterable[str]) -> bool:
        """Whether these adapters have room on the device beside those held. If none are held, they always have."""
        held = self._held_names
        needed = held | {self._spelled(name) for name in names}
        return not held or needed == held or self._sizes(needed) <= self._limits.on(self._device)[1]

    def exceeds(self, names: Iterable[str]) -> bool:
        """Whether these adapters by themselves exceed the device's limit."""
        return self._sizes({self._spelled(name) for name in names}) > self._limits.on(self._device)[1]

    def portions(self, asks: Sequence[Iterable[str]]) -> list[range]:
        """The asks, divided into ranges whose adapters have room on the device at once, beside those held.

        asks: for each, its adapters' names. A range has at least one ask, even if that has no room.
        """
        limit = self._limits.on(self._device)[1]
        found: list[range] = []
        first, needed = 0, self._held_names
        for place, ask in enumerate(asks):
            own = frozenset(self._spelled(name) for name in ask)
            if place > first and not own <= needed and self._sizes(needed | own) > limit:
                found.append(range(first, place))
                first, needed = place, self._held_names
            needed |= own
        return [*found, range(first, len(asks))] if asks else []

    def hold(self, names: Iterable[str]) -> Hold:
        """Bring adapters onto the device and keep them there.

        Raises AdapterError for an adapter that is not loaded, a file that cannot be read again, or too little memory.
        """
        wanted = tuple(dict.fromkeys(self._spelled(name) for name in names))
        for name in wanted:
            if name not in self._known:
                raise AdapterError(
                    f"adapter {name!r} was unloaded while a picture with it waited; load it again"
                )
        hold = Hold(self._held, wanted)
        try:
            for name in wanted:
                hold.paged += self._bring(name)
            self._make_room(0)  # an earlier picture may have needed more than the limit
        except BaseException:
            hold.release()
            raise
        return hold

    @contextmanager
    def holding(self, names: Iterable[str]) -> Iterator[None]:
        """Within: the adapters are on the device. Raises as `hold`."""
        hold = self.hold(names)
        try:
            yield
        finally:
            hold.release()

    def prefetch(self, names: Iterable[str]) -> None:
        """Start to bring adapters onto the device that will be needed soon. Others that are not held make room.

        Does nothing where the device is the host: there would be nothing to overlap with. Files that cannot be read are
        left for `hold` to report.
        """
        if not self._overlaps:
            return
        soon = tuple(dict.fromkeys(self._spelled(name) for name in names))
        limit = self._limits.on(self._device)[1]
        for name in soon:
            if name not in self._known or name in self._shelves.device or name in self._shelves.arriving:
                continue
            if self._sizes(self._held_names | {name} | set(self._shelves.arriving)) > limit:
                return
            try:
                self.read(name)
            except AdapterError:
                continue
            self._make_room(self._size(name), keep=frozenset(soon))
            self._start(name)

    def _bring(self, name: str) -> bool:
        """Bring an adapter onto the device; others make room. Returns whether it had to be copied now."""
        if name in self._shelves.device:
            self._device_counts.hits += 1
            self._shelves.device.move_to_end(name)
            return False
        if name in self._shelves.arriving:
            self._device_counts.hits += 1
        else:
            self._device_counts.misses += 1
            self.read(name)
            self._make_room(self._size(name))
        self._arrive(name)
        return True

    def _start(self, name: str) -> None:
        """Begin to copy an adapter to the device. It is on the host."""
        packed = self._shelves.host[name]
        if self._device.type != "cuda":
            self._shelves.arriving[name] = _Arriving(packed.adapter.layers, packed.block, None)
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            block = packed.block.to(self._device, non_blocking=True)
            event = self._stream.record_event()
        self._shelves.arriving[name] = _Arriving(packed.factors_in(block), block, event)

    def _arrive(self, name: str) -> None:
        """Finish the copy: put the factors into the bank, on the stream that will use them. Raises AdapterError."""
        if name not in self._shelves.arriving:
            self._start(name)
        arriving = self._shelves.arriving.pop(name)
        if arriving.event is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(arriving.event)
            arriving.block.record_stream(current)
        try:
            self._bank.load(self._shelves.host[name].adapter, arriving.factors)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise AdapterError(
                f"the device's memory has no room for {name!r}; set less aside for adapters (lora_vram), or draw "
                "fewer or smaller pictures at once"
            ) from error
        self._shelves.device[name] = None

    def _make_room(self, size: int, keep: frozenset[str] = frozenset()) -> None:
        """Let adapters leave the device until `size` bytes are free; but none that is held or in `keep`."""
        limit = self._limits.on(self._device)[1]
        kept = self._held_names | keep
        for name in [*self._shelves.arriving, *self._shelves.device]:
            if self._device_bytes + size <= limit:
                return
            if name not in kept:
                self._leave(name)
                self._device_counts.evictions += 1

    def _leave(self, name: str) -> None:
        self._shelves.arriving.pop(name, None)
        if name in self._shelves.device:
            del self._shelves.device[name]
            self._bank.unload(name)

    # -- the host ----------------------------------------------------------------------------------------

    def _register(self, adapter: Adapter, path: Path | None, family: FamilyName | None) -> Adapter:
        self._known[adapter.name] = KnownAdapter(
            adapter.name,
            path,
            family,
            adapter.report,
            adapter.metadata,
            frozenset(adapter.layers),
            sum(factors.numbers for factors in adapter.layers.values()),
            adapter.bundled,
        )
        return self._keep(adapter)

    def _keep(self, adapter: Adapter) -> Adapter:
        packed = pack(adapter, pinned=self._device.type == "cuda")
        self._shelves.host[adapter.name] = packed
        self._trim_host(keep=adapter.name)
        return packed.adapter

    def _trim_host(self, keep: str = "") -> None:
        """Let adapters leave the host until its limit holds; but none that is on the device, or has no file."""
        limit = self._limits.on(self._device)[0]
        needed = {keep, *self._shelves.device, *self._shelves.arriving}
        for name in list(self._shelves.host):
            if self._host_bytes <= limit:
                return
            if name not in needed and self._known[name].path is not None:
                del self._shelves.host[name]
                self._host_counts.evictions += 1

    @property
    def _overlaps(self) -> bool:
        """Whether copies to the device run beside its other work."""
        return self._device.type == "cuda"

    # -- sizes and names ---------------------------------------------------------------------------------

    def _spelled(self, name: str) -> str:
        """The name as it was added or loaded, for a name in any case."""
        return self._files.get(name.casefold(), (name, None))[0]

    @property
    def _held_names(self) -> frozenset[str]:
        return frozenset(name for name, count in self._held.items() if count > 0)

    def _size(self, name: str) -> int:
        """Bytes that an adapter takes on the device, in the model's dtype; 0 for one that is not loaded."""
        known = self._known.get(name)
        return known.numbers * self._dtype.itemsize if known else 0

    def _sizes(self, names: Iterable[str]) -> int:
        return sum(self._size(name) for name in names)

    @property
    def _device_bytes(self) -> int:
        return self._sizes([*self._shelves.device, *self._shelves.arriving])

    @property
    def _host_bytes(self) -> int:
        return sum(packed.bytes for packed in self._shelves.host.values())
