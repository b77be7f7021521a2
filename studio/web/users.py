"""Who may log in: names and passwords, from flags, a file, or the environment."""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipelines.errors import SetupError

ENVIRONMENT = "LORA_STUDIO_AUTH"


def read_users(flags: Iterable[str], file: str | None) -> dict[str, str]:
    """Name -> password: of `--auth NAME:PASSWORD`, of a file with one a line, of LORA_STUDIO_AUTH (by commas).

    All three are added up; {} means that nobody needs to log in. Raises SetupError.
    """
    users: dict[str, str] = {}
    for text in flags:
        users |= _user(text, "--auth")
    if file is not None:
        try:
            lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SetupError(f"--auth-file {file} cannot be read ({error}); check the path") from error
        for number, line in enumerate(lines, 1):
            if line.strip() and not line.startswith("#"):
                users |= _user(line.strip(), f"{file}, line {number}")
    for text in filter(None, os.environ.get(ENVIRONMENT, "").split(",")):
        users |= _user(text.strip(), ENVIRONMENT)
    return users


def _user(text: str, where: str) -> dict[str, str]:
    """The password itself is never shown."""
    name, colon, password = text.partition(":")
    if not colon or not name.strip() or not password:
        raise SetupError(f"{where}: write a name and a password with a colon between them, as in ann:secret")
    return {name.strip(): password}


def knows(users: Mapping[str, str], name: str, password: str) -> bool:
    """Whether that is one of them; takes as long for unknown names as for wrong passwords."""
    expected = users.get(name)
    same = secrets.compare_digest((expected or secrets.token_hex(16)).encode(), password.encode())
    return same and expected is not None


def basic_login(users: Mapping[str, str], header: str | None) -> str | None:
    """The name in an `Authorization: Basic …` header with the right password, else None."""
    scheme, _, encoded = (header or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, _, password = base64.b64decode(encoded, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return name if knows(users, name, password) else None
