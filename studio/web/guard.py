"""The guard in front of every request: the right host, no foreign page behind it, a login where one is needed.

Gradio's `auth` covers the routes of its pages. Everything else that this server answers (A1111's calls, MCP, and
whatever is added) is refused here without a login, unless it is one of the few files that the login page is made of.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studio.web.users import basic_login

LOOPBACK = ("localhost", "127.0.0.1", "::1")
LOGIN = "studio.login"
"""Where in a request's scope the name stands by which somebody is logged in (None: nobody needs to be)."""

OF_THE_LOGIN_PAGE = (
    "/login", "/assets/", "/static/", "/svelte/", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json",
    "/pwa_icon", "/custom_component/", "/gradio_api/custom_component/", "/gradio_api/theme.css",
    "/gradio_api/login_check", "/gradio_api/app_id", "/gradio_api/user", "/gradio_api/token",
    "/gradio_api/startup-events",
)  # fmt: skip
"""What a browser may have before anybody has logged in: no user's data is behind it."""


@dataclass(frozen=True)
class Rules:
    """hosts: names by which the server may be called, in lower case; None is any (which needs users).

    users: name -> password; {} lets everybody in. largest: bytes of a body.
    cookie_login: the name that a request's cookies are logged in by on gradio's login page.
    may_see: whether somebody, by that name, may have a file that gradio would serve.
    """

    hosts: frozenset[str] | None
    users: Mapping[str, str] = field(repr=False)
    largest: int
    cookie_login: Callable[[Mapping[str, str]], str | None]
    may_see: Callable[[Path, str], bool]


@dataclass(frozen=True)
class _Refused(Exception):
    status: int
    why: str


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            self._check_host(headers)
            self._check_origin(headers)
            self._check_body(scope, headers)
            scope[LOGIN] = self._login(scope, headers)
            self._check_file(scope)
        except _Refused as refused:
            await _answer(scope, send, refused)
            return
        await self._app(scope, _limited(receive, self._rules.largest), send)

    def _check_host(self, headers: Headers) -> None:
        """A page of another site can point its own name at this computer (DNS rebinding); the name gives it away."""
        host = _host(headers.get("host", ""))
        if self._rules.hosts is not None and host not in self._rules.hosts:
            raise _Refused(
                421,
                f"this studio is not called {host!r}; open it as {' or '.join(sorted(self._rules.hosts))}, or start "
                "it with --listen and --auth",
            )

    def _check_origin(self, headers: Headers) -> None:
        """A page of another site must not act for whoever has this one open."""
        origin = headers.get("origin")
        if origin is not None and _netloc(origin) != headers.get("host", "").lower():
            raise _Refused(403, f"requests from pages of {origin} are not answered")

    def _check_body(self, scope: Scope, headers: Headers) -> None:
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._rules.largest:
            raise _Refused(
                413,
                f"the request is larger than the {self._rules.largest / 2**20:.0f} MB allowed (--max-upload)",
            )
        if scope.get("method") in ("POST", "PUT", "PATCH") and scope["path"].startswith("/sdapi/"):
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json" and int(length):
                raise _Refused(415, f"the content type must be application/json, not {kind or 'nothing'}")

    def _login(self, scope: Scope, headers: Headers) -> str | None:
        if not self._rules.users:
            return None
        name = self._rules.cookie_login(_cookies(headers))
        name = name or basic_login(self._rules.users, headers.get("authorization"))
        path = scope["path"]
        if name is None and path != "/" and not any(_is_under(path, part) for part in OF_THE_LOGIN_PAGE):
            raise _Refused(401, "log in first: on the page, or with HTTP Basic authentication")
        return name

    def _check_file(self, scope: Scope) -> None:
        """Gradio serves a folder to everybody who is logged in; one's pictures are one's own."""
        _, served, path = scope["path"].partition("/file=")
        login = scope[LOGIN]
        if served and login is not None and not self._rules.may_see(Path(path), login):
            raise _Refused(403, "this file is somebody else's")


def _is_under(path: str, part: str) -> bool:
    return (
        path.startswith(part)
        if part.endswith("/")
        else path.rstrip("/") == part or path.startswith(f"{part}/")
    )


def _host(text: str) -> str:
    """Without its port."""
    try:
        return (urlsplit(f"//{text}").hostname or "").lower()
    except ValueError:
        return ""


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _cookies(headers: Headers) -> dict[str, str]:
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(headers.get("cookie", "")).items()}
    except CookieError:
        return {}


def _limited(receive: Receive, largest: int) -> Receive:
    """Bodies without a stated length are cut off where they grow too large."""
    seen = 0

    async def next_message() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return message if seen <= largest else {"type": "http.disconnect"}

    return next_message


async def _answer(scope: Scope, send: Send, refused: _Refused) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": refused.why[:120]})
        return
    headers = [(b"content-type", b"application/json")]
    if refused.status == 401:
        headers.append((b"www-authenticate", b'Basic realm="LoRA Studio"'))
    body = json.dumps({"detail": refused.why, "error": refused.why}).encode()
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
