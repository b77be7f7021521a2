"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """The path with `~` expanded. "~somebody" stays as it is where there is no such user. Unlike `Path.expanduser`, it
    never raises."""
    try:
        return Path(os.path.expanduser(path))
    except ValueError:  # it holds what no name of a user can hold
        return Path(path)
