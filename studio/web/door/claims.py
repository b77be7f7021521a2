"""Sessions and events belong to the login that used them first."""

from __future__ import annotations

import re
from collections import OrderedDict

MOST_OF_ONE = 10_000
"""Most names that are remembered for one login. A login that floods the list loses only its own entries."""
_FORM = re.compile(r"[\w.-]{1,128}", re.ASCII)


class Claims:
    """Who first used each name that clients choose (`session_hash`) or are given (`event_id`)."""

    def __init__(self) -> None:
        self._login_of: dict[str, str] = {}
        self._names_of: dict[str, OrderedDict[str, None]] = {}

    def belongs(self, name: object, login: str) -> bool:
        """Whether the name belongs to this login. An unused name now becomes its own. Malformed names belong to
        nobody."""
        if not isinstance(name, str) or not _FORM.fullmatch(name):
            return False
        if self._login_of.setdefault(name, login) != login:
            return False
        own = self._names_of.setdefault(login, OrderedDict())
        own[name] = None
        own.move_to_end(name)
        while len(own) > MOST_OF_ONE:
            forgotten, _ = own.popitem(last=False)
            del self._login_of[forgotten]
        return True
