"""Who may log in: names and passwords from a file or a prompt, or, to try things out, from flags and the
environment."""

from __future__ import annotations

import base64
import binascii
import getpass
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterable, Mapping

from pipelines.errors import SetupError
from pipelines.home.paths import expanded

ENVIRONMENT = "LORA_STUDIO_AUTH"
IN_A_FILE = "write logins into a file for --auth-file, one NAME:PASSWORD a line"
RIGHT_WAY = f"{IN_A_FILE}, or give --auth NAME and type the password"
LARGEST_FILE = 2**20
"""Most bytes of a file with logins."""


def read_users(
    flags: Iterable[str],
    file: str | None,
    *,
    listening: bool = False,
    warn: Callable[[str], None] = lambda text: None,
) -> dict[str, str]:
    """Name -> password, from `--auth NAME`, which asks for the password, from a file with one NAME:PASSWORD per line,
    from `--auth NAME:PASSWORD` and from LORA_STUDIO_AUTH (separated by commas).

    All logins are collected; {} means that nobody needs to log in. Other programs on this computer can read passwords
    in arguments and in the environment. listening: whether other computers can reach the studio; if so, such passwords
    are refused, otherwise `warn` is called. Raises SetupError.
    """
    users: dict[str, str] = {}
    open_to_all: list[str] = []
    for text in flags:
        if ":" in text:
            open_to_all.append("--auth NAME:PASSWORD")
            users |= _user(text, "--auth")
        else:
            users |= _typed(text)
    if file is not None:
        for number, line in enumerate(_lines(file, warn), 1):
            if line.strip() and not line.startswith("#"):
                users |= _user(line.strip(), f"{file}, line {number}")
    for text in filter(None, os.environ.get(ENVIRONMENT, "").split(",")):
        open_to_all.append(ENVIRONMENT)
        users |= _user(text.strip(), ENVIRONMENT)
    for where in dict.fromkeys(open_to_all):
        said = f"{where}: programs on this computer can read the password"
        if listening:
            raise SetupError(f"{said}, so it is not taken where others can reach the studio; {RIGHT_WAY}")
        warn(f"{said}; {RIGHT_WAY}")
    return users


def _lines(file: str, warn: Callable[[str], None]) -> list[str]:
    path = expanded(file)
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST_FILE:
            raise SetupError(f"--auth-file {file} is no plain file of lines; check the path")
        if os.name == "posix" and found.st_mode & 0o077:
            warn(f"--auth-file {file}: other users of this computer can read it; chmod 600 {file}")
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"--auth-file {file} cannot be read ({error}); check the path") from error


def _typed(name: str) -> dict[str, str]:
    """The login of a name whose password is typed, unseen. Raises SetupError."""
    if not name.strip():
        raise SetupError(f"--auth names nobody; {RIGHT_WAY}")
    if not sys.stdin.isatty():
        raise SetupError(f"--auth NAME: there is no terminal to type the password into; {IN_A_FILE}")
    password = getpass.getpass(f"password for {name.strip()}: ")
    return _user(f"{name}:{password}", "--auth")


def _user(text: str, where: str) -> dict[str, str]:
    """The login of a text NAME:PASSWORD. Raises SetupError, whose message never contains the password."""
    name, colon, password = text.partition(":")
    if not colon or not name.strip() or not password:
        raise SetupError(f"{where}: write a name and a password with a colon between them, as in ann:secret")
    return {name.strip(): password}


def knows(users: Mapping[str, str], name: str, password: str) -> bool:
    """Whether name and password are those of a user. An unknown name takes as long as a wrong password."""
    expected = users.get(name)
    same = secrets.compare_digest((expected or secrets.token_hex(16)).encode(), password.encode())
    return same and expected is not None


def basic_pair(header: str | None) -> tuple[str, str] | None:
    """Name and password in an `Authorization: Basic …` header (RFC 7617); None for any other header."""
    scheme, _, encoded = (header or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, _, password = base64.b64decode(encoded, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return name, password
