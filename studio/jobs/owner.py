"""Who owns a job: a login, else a browser, else all programs that call without a login together."""

from __future__ import annotations

import hashlib

PROGRAMS = "programs"
"""The owner of jobs that programs ask for where nobody logs in."""


def owner_of(login: str | None, browser: str | None = None) -> str:
    """The owner's name. login: the name of a logged-in user. browser: the random id that a page keeps in its
    browser."""
    if login:
        return f"login:{login}"
    return f"browser:{browser}" if browser else PROGRAMS


def folder_of(owner: str) -> str:
    """The name of the folder that holds only this owner's files. So a path says whose a file is."""
    return hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()[:32]
