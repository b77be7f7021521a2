"""Whose job it is: a login's, else a browser's, else that of all programs that call without a login."""

from __future__ import annotations

import hashlib

PROGRAMS = "programs"
"""Owner of what is asked for through an API where nobody logs in."""


def owner_of(login: str | None, browser: str | None = None) -> str:
    """login: the name somebody is logged in by. browser: the random id that a page keeps in its browser."""
    if login:
        return f"login:{login}"
    return f"browser:{browser}" if browser else PROGRAMS


def folder_of(owner: str) -> str:
    """The name of a folder that holds one owner's files alone, so that a path says whose they are."""
    return hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()[:32]
