"""How a value is shown in a message: on one line, short, and readable for every program, whatever the value is."""

from __future__ import annotations

import reprlib

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxfrozenset = 6
_SHORT.maxstring = _SHORT.maxlong = 60
_SHORT.maxother = 120


def shown(value: object) -> str:
    """As Python writes it, long parts cut out. Costs no more for a large value than for a small one."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes no number of more than some thousand digits
        return f"a number of about {value.bit_length() * 3 // 10} digits" if isinstance(value, int) else "…"
