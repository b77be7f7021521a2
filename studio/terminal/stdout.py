"""Standard output when nobody can read it any more."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def abandon_stdout() -> None:
    """Sends what is still to be written nowhere. Python would try once more when it ends, and fail in other words."""
    with suppress(OSError, ValueError):  # it may be closed, or no file at all
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
