"""What a picture says and what is not taken over, as notes for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

MOST_TOLD = 40
"""Most settings, tags or LoRAs that one note names; more are only counted."""
LONGEST_TOLD = 60
"""Most characters of one name in a note."""
LONGEST_NOTE = 300
"""Most characters of one reason in a note."""


def told(said: Sequence[str]) -> str:
    """The first few of these texts, and how many more there are."""
    more = len(said) - MOST_TOLD
    return ", ".join(said[:MOST_TOLD]) + (f" and {more} more" if more > 0 else "")


def left_out(ignored: Iterable[str], unread: Mapping[str, str]) -> list[str]:
    """The notes on settings that were not taken over. ignored: settings that mean nothing here. unread: setting -> what
    is wrong with its value."""
    names = [" ".join(name.split())[:LONGEST_TOLD] for name in ignored]
    notes = [f"not taken over: {told(names)}"] if names else []
    whys = [f"{name[:LONGEST_TOLD]} not taken over: {why[:LONGEST_NOTE]}" for name, why in unread.items()]
    if len(whys) > MOST_TOLD:
        whys = [*whys[:MOST_TOLD], f"{len(whys) - MOST_TOLD} more settings not taken over"]
    return notes + whys
