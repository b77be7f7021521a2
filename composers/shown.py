"""How a value is shown in an error message: on one line and short, whatever the value is."""

from __future__ import annotations

import reprlib

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxfrozenset = 6
_SHORT.maxstring = _SHORT.maxlong = 60
_SHORT.maxother = 120


def shown(value: object) -> str:
    """The value as `repr` writes it, with long parts left out. A large value takes no longer than a small one."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python refuses to write a number of more than some thousand digits
        return f"a number of about {value.bit_length() * 3 // 10} digits" if isinstance(value, int) else "…"
