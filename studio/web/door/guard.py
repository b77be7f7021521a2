"""The guard in front of every request. It checks the host, that no other site's page is behind it, the login where one
is needed, the way in, the size of the body, and that session and file are the client's own.

Gradio's `auth` protects the routes of its pages. All else that this server answers (A1111's calls, MCP, and whatever is
added) needs a login here, except the few files that make up the login page.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from composers.shown import shown
from pipelines.errors import RequestError
from pipelines.home.plain import check_json_size, reading, short
from studio.jobs.owner import owner_of
from studio.web.door.attempts import Attempts
from studio.web.door.claims import Claims
from studio.web.door.routes import GRADIO, Way, way_to
from studio.web.door.users import basic_pair, knows

LOOPBACK = ("localhost", "127.0.0.1", "::1")
LOGIN = "studio.login"
"""The key in a request's scope under which the login's name stands; None is there where nobody logs in."""
OF_THE_LOGIN_PAGE = tuple(way.path.partition("{")[0] for way in GRADIO if way.open and way.path != "/")
"""What a browser may fetch before a login, besides the first page."""
LARGEST_EVENT = 4 * 2**20
"""Most bytes of an event's body; files are sent another way."""
LARGEST_JSON = 64 * 2**20
"""Most bytes of JSON for one of our routes; it may contain pictures as text."""
LARGEST_LOGIN = 64 * 2**10
LOGIN_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
MOST_VALUES = 5_000
"""Most values of one request, lists and objects included; texts may be long."""
MOST_FIELDS = 100
"""Most fields of a form, or of an address."""
MOST_QUERY = 16 * 2**10
"""Most bytes after the question mark of an address."""

WRONG_FORM = "the request has not the form that is asked for here; see /gradio_api/info"
_WRONG: Mapping[str, Collection[int]] = {
    **dict.fromkeys(("", "login", "upload"), (422,)),  # FastAPI would send all of a wrong body back
    "event": (422, 500),  # Gradio has no answer to a name, a number or an argument that it does not know
    "json": (),  # our own routes tell what is wrong
}
"""What a body may be -> the statuses that stand for a request of a wrong form. Of 500 only the bare one does: what a
function of ours raises comes as JSON."""

_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""A page may fetch nothing from other servers, whatever a note contains, and no other site may show it in a frame."""
_FILE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'none'"
"""A file may be looked at, but nothing in it may run."""


class Logins(Protocol):
    """Gradio's logins, which are known by cookies."""

    def by_cookie(self, cookies: Mapping[str, str]) -> str | None:
        """The name that these cookies are logged in by; None without a login."""
        ...

    def cookie_of(self, name: str) -> str:
        """A new cookie that logs a name in."""
        ...


@dataclass(frozen=True)
class Rules:
    """What the guard goes by.

    hosts: names by which the server may be called, in lower case; None is any, which needs users.
    users: name -> password; {} lets everybody in. largest: most bytes of a body.
    logins: who is logged in through Gradio's login page.
    may_see: (file, owner) -> whether that owner may have a file that Gradio would serve; owner None: nobody logs in.
    ways: all that is answered. claims: whose each session is.
    """

    hosts: frozenset[str] | None
    users: Mapping[str, str] = field(repr=False)
    largest: int
    logins: Logins
    may_see: Callable[[Path, str | None], bool]
    ways: Sequence[Way]
    claims: Claims
    attempts: Attempts = field(default_factory=Attempts)


_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
"""The texts in JSON; one that is never closed reaches to the end. Each byte is looked at once, whatever the body is."""


@dataclass(frozen=True)
class _Refused(Exception):
    status: int
    why: str
    wait: float = 0.0


def _too_large(largest: int, flag: str = "") -> _Refused:
    return _Refused(413, f"the request is larger than the {largest / 2**20:.2g} MB allowed{flag}")


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        send = _with_headers(send, _FILE_POLICY if "/file=" in scope["path"] else _PAGE_POLICY)
        try:
            if scope["type"] != "http":
                raise _Refused(404, "there is nothing here")
            headers = Headers(scope=scope)
            self._check_host(headers)
            self._check_origin(scope, headers)
            found = way_to(scope["path"], scope["method"], self._rules.ways)
            login = scope[LOGIN] = self._login(scope, headers, found is not None and found[0].open)
            if found is None:
                raise _Refused(404, "there is nothing here")
            way, named = found
            self._check_logout(way, headers)
            length = self._check_length(way, headers)
            self._check_type(way, headers, length)
            self._check_names(scope, named, headers, login)
            if "owned" in named:
                await run_in_threadpool(self._check_file, named["owned"], login)
            if way.body == "event":
                receive = await self._event(receive, login)
            elif way.body == "json":
                body = await _read(receive, min(LARGEST_JSON, self._rules.largest))
                await run_in_threadpool(_check_values, body)
                receive = _replayed(body, receive)
            elif way.body == "login":
                receive, send = await self._logging_in(scope, receive, send)
        except _Refused as refused:
            await _answer(scope, send, refused)
            return
        await _Answering(receive, send, self._largest(way), _WRONG[way.body]).run(self._app, scope)

    # -- from where --------------------------------------------------------------------------------------

    def _check_host(self, headers: Headers) -> None:
        """Raises _Refused for a wrong host name. Another site can point its name at this computer (DNS rebinding); the
        name gives it away."""
        host = _host(headers.get("host", ""))
        if self._rules.hosts is not None and host not in self._rules.hosts:
            raise _Refused(
                421,
                f"this studio is not called {shown(host)}; open it as {' or '.join(sorted(self._rules.hosts))}, or "
                "start it with --listen and --auth-file",
            )

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        """Raises _Refused for requests of other sites' pages. Such a page must not act for a user of this one; it may
        only link to the first page.

        `Sec-Fetch-Site` (https://www.w3.org/TR/fetch-metadata/) covers requests that carry no origin.
        """
        origin = headers.get("origin")
        if origin is not None and _netloc(origin) != headers.get("host", "").lower():
            raise _Refused(403, f"requests from pages of {short(origin)} are not answered")
        site = headers.get("sec-fetch-site")
        linked = headers.get("sec-fetch-mode") == "navigate" and scope["path"] == "/"
        if site in ("cross-site", "same-site") and not linked:
            raise _Refused(403, "requests from pages of other sites are not answered")

    def _check_logout(self, way: Way, headers: Headers) -> None:
        """Raises _Refused for a logout without this origin. Otherwise another page could log users out with the
        address of a picture, which browsers fetch without an origin."""
        stated = headers.get("origin") is not None or headers.get("sec-fetch-site") in ("same-origin", "none")
        if way.path == "/logout" and not stated:
            raise _Refused(403, "to log out, say from where: send this server's address as Origin")

    # -- who ---------------------------------------------------------------------------------------------

    def _login(self, scope: Scope, headers: Headers, is_open: bool) -> str | None:
        if not self._rules.users:
            return None
        name = self._rules.logins.by_cookie(_cookies(headers))
        if name is None:
            name = self._basic_login(scope, headers.get("authorization"))
            if name is not None:  # Gradio knows logins only by cookies
                others = [pair for pair in scope["headers"] if pair[0] != b"cookie"]
                scope["headers"] = [*others, (b"cookie", self._rules.logins.cookie_of(name).encode())]
        if name is None and not is_open:
            raise _Refused(401, "log in first: on the page, or with HTTP Basic authentication")
        return name

    def _basic_login(self, scope: Scope, header: str | None) -> str | None:
        """The name in a valid HTTP Basic header; None without one. After wrong passwords, the next attempt has to
        wait."""
        pair = basic_pair(header)
        if pair is None:
            return None
        name, password = pair
        self._begin_attempt(scope, name)
        if not knows(self._rules.users, name, password):
            return None
        self._rules.attempts.succeeded(_address(scope), name)
        return name

    def _begin_attempt(self, scope: Scope, name: str) -> None:
        wait = self._rules.attempts.begin(_address(scope), name)
        if wait:
            raise _Refused(429, f"too many wrong passwords; try again in {wait:.0f} s", max(wait, 1.0))

    async def _logging_in(self, scope: Scope, receive: Receive, send: Send) -> tuple[Receive, Send]:
        """Watches the login page's form: as with HTTP Basic, after failures the next attempt has to wait."""
        body = await _read(receive, LARGEST_LOGIN)
        try:  # with Gradio's own parser, so that both see the same name
            form = await Request(scope, _replayed(body, receive)).form(max_files=0, max_fields=MOST_FIELDS)
            [name] = [str(value).strip() for value in form.getlist("username")]
        except (HTTPException, MultiPartException, ValueError) as error:
            raise _Refused(400, "a login is a form with one username and one password") from error
        self._begin_attempt(scope, name)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                self._rules.attempts.succeeded(_address(scope), name)
            await send(message)

        return _replayed(body, receive), answer

    # -- what --------------------------------------------------------------------------------------------

    def _largest(self, way: Way) -> int:
        """The most bytes that a body may have there."""
        if way.body in ("", "login"):
            return LARGEST_LOGIN
        return min(self._rules.largest, {"event": LARGEST_EVENT, "json": LARGEST_JSON}.get(way.body, 2**62))

    def _check_length(self, way: Way, headers: Headers) -> int:
        largest = self._largest(way)
        length = headers.get("content-length", "0")
        if not re.fullmatch("[0-9]{1,20}", length) or int(length) > largest:
            raise _too_large(largest, " (--max-upload)" if largest == self._rules.largest else "")
        return int(length)

    def _check_type(self, way: Way, headers: Headers, length: int) -> None:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if way.body == "login" and kind not in LOGIN_FORMS:
            raise _Refused(415, f"a login is sent as {' or '.join(LOGIN_FORMS)}")
        if way.body in ("event", "json") and kind != "application/json" and (length or kind):
            raise _Refused(415, f"the content type must be application/json, not {short(kind) or 'nothing'}")

    def _check_names(
        self, scope: Scope, named: Mapping[str, str], headers: Headers, login: str | None
    ) -> None:
        """Raises _Refused where the address or MCP's header names somebody else's session or event."""
        query = scope.get("query_string", b"")
        if len(query) > MOST_QUERY:
            raise _Refused(414, "the address is too long")
        try:
            asked = parse_qs(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MOST_FIELDS)
        except ValueError as error:
            raise _Refused(400, f"the address asks for more than {MOST_FIELDS} things") from error
        if asked.get("deep_link"):
            raise _Refused(404, "this studio keeps no such links")
        mine = [*asked.get("session_hash", []), *asked.get("session_id", [])]
        mine += [named[part] for part in ("session", "event") if part in named]
        mine += headers.getlist("mcp-session-id")
        self._check_mine(mine, login)

    def _check_mine(self, names: Sequence[object], login: str | None) -> None:
        if login is not None and not all(self._rules.claims.belongs(name, login) for name in names):
            raise _Refused(403, "this session is somebody else's")

    def _check_file(self, file: str, login: str | None) -> None:
        """Raises _Refused for a file that is not the client's. Gradio itself would serve it to every login, and would
        even fetch web addresses."""
        owner = owner_of(login) if self._rules.users and login else None
        if not self._rules.may_see(Path(file), owner):
            raise _Refused(403, "this file is not yours, or not here any more")

    async def _event(self, receive: Receive, login: str | None) -> Receive:
        """Reads the whole body and checks it: it must be plain JSON, and its session the client's own."""
        body = await _read(receive, min(LARGEST_EVENT, self._rules.largest))
        await run_in_threadpool(_check_values, body)
        try:
            said = await run_in_threadpool(_plain_json, body)
        except RequestError as error:
            raise _Refused(400, short(error)) from error
        if isinstance(said, dict):
            names = [said[key] for key in ("session_hash", "event_id") if said.get(key) is not None]
            self._check_mine(names, login)
        return _replayed(body, receive)


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


def _host(text: str) -> str:
    """The host of an address, without its port."""
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


# -- bodies and headers ------------------------------------------------------------------------------------


async def _read(receive: Receive, largest: int) -> bytes:
    """The whole body. Raises _Refused for a body that is too large, or is broken off."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise _Refused(400, "the request was broken off")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > largest:
            raise _too_large(largest)
        if not message.get("more_body", False):
            return b"".join(parts)


def _check_values(body: bytes) -> None:
    """Raises _Refused for JSON with more values than any event has; many parts of the program look at each value."""
    plain = _STRINGS.sub(b"", body)
    count = plain.count(b",") + plain.count(b"[") + plain.count(b"{")
    if count > MOST_VALUES:
        raise _Refused(413, f"the request holds about {count} values, more than {MOST_VALUES}")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A channel that gives the body again, then whatever comes after it."""
    given = False

    async def next_message() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message


DEEPEST = 500
"""How deep a body may be nested before it is read at all. Gradio's own readers go to about 1,000."""


def _plain_json(body: bytes) -> Any:
    """The JSON of a body; an empty one is {}. Raises RequestError, also for what no JSON can be made of again: numbers
    that are not finite, and halves of characters."""
    with reading("the body", RequestError, "send plain JSON"):
        check_json_size(body, deepest=DEEPEST)
        said = json.loads(body, parse_float=_finite, parse_constant=_finite) if body else {}
        if b"\\ud" in body.lower():
            json.dumps(said, ensure_ascii=False).encode()
    return said


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{short(text)} is no finite number")
    return number


class _Answering:
    """One request on its way through the application.

    A body that grows too large, without a stated length, is cut off; whatever the route then answers or raises, the
    client gets 413. wrong: statuses in whose place 400 and one line are answered.
    """

    def __init__(self, receive: Receive, send: Send, largest: int, wrong: Collection[int]) -> None:
        self._receive, self._send, self._largest, self._wrong = receive, send, largest, wrong
        self._seen = 0
        self._begun = False
        self._refused: _Refused | None = None

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self._next, self._pass_on)
        except Exception:
            if self._refused is None:
                raise
        if self._refused is not None and not self._begun:
            await _answer(scope, self._send, self._refused)

    async def _next(self) -> Message:
        if self._seen <= self._largest:
            message = await self._receive()
            self._seen += len(message.get("body", b""))
            if self._seen <= self._largest:
                return message
            self._refused = _too_large(self._largest)
        return {"type": "http.disconnect"}

    async def _pass_on(self, message: Message) -> None:
        if (
            self._refused is None
            and message["type"] == "http.response.start"
            and message["status"] in self._wrong
            and (
                message["status"] != 500
                or Headers(raw=message["headers"])["content-type"] != "application/json"
            )
        ):
            self._refused = _Refused(400, WRONG_FORM)
        if self._refused is None or self._begun:
            self._begun = True
            await self._send(message)


def _with_headers(send: Send, policy: str) -> Send:
    """A channel that adds headers to every answer: they say what a browser may do with it."""
    added = [
        (b"content-security-policy", policy.encode()),
        (b"x-frame-options", b"DENY"),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"same-origin"),
        (b"cross-origin-resource-policy", b"same-origin"),
    ]

    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            names = {name for name, _ in added}
            kept = [pair for pair in message.get("headers", []) if pair[0].lower() not in names]
            message = {**message, "headers": [*kept, *added]}
        await send(message)

    return answer


async def _answer(scope: Scope, send: Send, refused: _Refused) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": refused.why[:120]})
        return
    headers = [(b"content-type", b"application/json")]
    if refused.status == 401:
        headers.append((b"www-authenticate", b'Basic realm="LoRA Studio"'))
    if refused.wait:
        headers.append((b"retry-after", str(int(refused.wait + 0.999)).encode()))
    body = json.dumps({"detail": refused.why, "error": refused.why}).encode()
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
