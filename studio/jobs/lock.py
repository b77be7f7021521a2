"""One server for each home: a lock that the system releases when the process ends, and its holder's address."""

from __future__ import annotations

from contextlib import suppress
from types import TracebackType

from filelock import FileLock, Timeout

from pipelines.errors import SetupError
from pipelines.home import Home


class HomeLock:
    """Held while a server runs in a home. Use as a context manager. Raises SetupError where another process holds
    it."""

    def __init__(self, home: Home) -> None:
        home.made(home.path)
        self._lock = FileLock(home.path / "studio.lock")
        self._address = home.path / "studio.address"  # not in the lock's file, which every attempt empties
        self._home = home

    def __enter__(self) -> HomeLock:
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise SetupError(
                f"a studio is already running in {self._home.path}: open {self._where()}, or give this one another "
                "--home"
            ) from error
        except OSError as error:
            raise SetupError(
                f"{self._lock.lock_file} cannot be written ({error.strerror or error}); let the studio write there, or "
                "give another --home"
            ) from error
        return self

    def tell(self, address: str) -> None:
        """Notes this server's address, for the message to a second server, if it can be written."""
        with suppress(OSError):
            self._address.write_text(address, encoding="utf-8")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._address.unlink(missing_ok=True)
        self._lock.release()

    def _where(self) -> str:
        try:
            return self._address.read_text(encoding="utf-8").strip() or "it"
        except OSError:
            return "it (it is still starting)"
