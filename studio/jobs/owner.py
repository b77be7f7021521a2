"""Whose job it is: a login's, else a browser's, else that of all programs that call without a login."""

from __future__ import annotations

PROGRAMS = "programs"
"""Owner of what is asked for through an API where nobody logs in."""


def owner_of(login: str | None, browser: str | None = None) -> str:
    """login: the name somebody is logged in by. browser: the random id that a page keeps in its browser."""
    if login:
        return f"login:{login}"
    return f"browser:{browser}" if browser else PROGRAMS
