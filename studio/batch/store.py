"""The adapters of a batch: read from the disk once if memory allows, resident while they are needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Set
from pathlib import Path

from pipelines.adapters import Adapter, read_adapter
from pipelines.model import Model

HOST_BYTES = 4 * 2**30
"""Adapters kept in the computer's memory."""
DEVICE_BYTES = 4 * 2**30
"""Factors kept on the device beyond those that pictures in flight need."""


class AdapterStore:
    """Disk -> host -> device, each least recently used first out.

    files: name -> file of every adapter that the batch needs on this model.
    """

    def __init__(
        self,
        model: Model,
        files: Mapping[str, Path],
        *,
        host_bytes: int = HOST_BYTES,
        device_bytes: int = DEVICE_BYTES,
    ) -> None:
        self._model = model
        self._files = {name.casefold(): (name, path) for name, path in files.items()}
        self._host: OrderedDict[str, Adapter] = OrderedDict()
        self._resident: OrderedDict[str, None] = OrderedDict()
        self._host_bytes = host_bytes
        self._device_bytes = device_bytes

    def add(self, files: Mapping[str, Path]) -> None:
        """Makes further adapters known."""
        self._files |= {name.casefold(): (name, path) for name, path in files.items()}

    def forget(self, name: str) -> None:
        """Takes an adapter out of the computer's and the device's memory, as its file is another one now."""
        self._host.pop(name, None)
        if self._resident.pop(name, True) is None:
            self._model.bank.unload(name)

    def read(self, name: str) -> Adapter:
        """The adapter, in the computer's memory. Raises AdapterError."""
        name, path = self._files[name.casefold()]
        if name not in self._host:
            self._host[name] = read_adapter(path, self._model.layers, name)
        self._host.move_to_end(name)
        kept = self._host[name]
        while (
            len(self._host) > 1 and sum(adapter.bytes for adapter in self._host.values()) > self._host_bytes
        ):
            self._host.popitem(last=False)
        return kept

    def ensure(self, names: Iterable[str], in_use: Set[str]) -> None:
        """Makes the adapters resident; others make room, but for those in use. Raises AdapterError."""
        wanted = [self._files[name.casefold()][0] for name in names if name.casefold() in self._files]
        kept = {*wanted, *in_use}
        for name in wanted:
            if name not in self._model.bank.adapters:
                self._model.bank.load(self.read(name))
            self._resident[name] = None
            self._resident.move_to_end(name)
        for name in list(self._resident):
            if self._model.bank.bytes <= self._device_bytes:
                return
            if name not in kept:
                del self._resident[name]
                self._model.bank.unload(name)
