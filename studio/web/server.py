"""The server: Gradio's pages and our own routes in one FastAPI application, behind the guard, on one port."""

from __future__ import annotations

import errno
import gc
import secrets
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import fastapi
import gradio as gr
import httpx
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from pipelines.errors import SetupError
from pipelines.home import Home
from studio.jobs import HomeLock, Trainings, Worker
from studio.jobs.discretion import without_places
from studio.jobs.gate import Trust
from studio.rendering.opening import Opening
from studio.web import sdapi
from studio.web.app import build
from studio.web.door import routes, uploads
from studio.web.door.claims import Claims
from studio.web.door.closing import ClosingServer
from studio.web.door.events import confine, keep_made_files_at_home
from studio.web.door.files import Files
from studio.web.door.guard import LOOPBACK, Guard, Rules
from studio.web.door.theme import Look, look

PORTS_TRIED = 100
QUEUE_REST = 0.02
"""Seconds between two looks into Gradio's queue of calls. Gradio's own 0.001 would take a tenth of a slow core."""
MCP_REMEDY = "install it with pip install 'lora-studio[mcp]', or leave --mcp out"


@dataclass(frozen=True)
class Serving:
    """How to serve.

    host: the address to listen at. port: the first port to try; with `exact`, the only one.
    users: name -> password; {} lets everybody in. largest: most bytes of an upload.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    exact: bool = False
    users: Mapping[str, str] = field(default_factory=dict, repr=False)
    mcp: bool = False
    open_browser: bool = False
    largest: int = 256 * 2**20

    @property
    def loopback(self) -> bool:
        return self.host in LOOPBACK

    @property
    def hosts(self) -> frozenset[str] | None:
        """The host names by which the server may be called; None, which is any, where other computers can reach it."""
        return frozenset(LOOPBACK) if self.loopback else None


def serve(serving: Serving, home: Home, opening: Opening, trust: Trust, say: Callable[[str], None]) -> int:
    """Serves until interrupted. The address goes to stdout. Raises SetupError."""
    if not serving.loopback and not serving.users:
        raise SetupError(
            f"others could reach the studio at {serving.host}: give those who may a login, with --auth-file FILE (one "
            "NAME:PASSWORD a line) or --auth NAME (which asks for the password)"
        )
    if serving.mcp:
        _require_mcp()
    with HomeLock(home) as lock, _bound(serving) as listening:
        address = _address(serving, listening)
        lock.tell(address)
        worker = Worker(home, opening=opening, trust=trust)
        keep_made_files_at_home(Files(worker))
        trainings = Trainings(home, opening=opening, trust=trust)
        worker.start()
        try:
            return _run(make_app(worker, trainings, serving), serving, listening, address, say)
        finally:
            gc.freeze()  # the process ends, and a last garbage collection would take seconds
            trainings.close()
            worker.close()


def make_app(worker: Worker, trainings: Trainings, serving: Serving) -> fastapi.FastAPI:
    """The whole application, with the studio's pages."""
    return mounted(build(worker, trainings), look(), worker, serving)


def mounted(pages: gr.Blocks, look: Look, worker: Worker, serving: Serving) -> fastapi.FastAPI:
    """Gradio's pages at /, our own routes before them, and the guard before everything."""
    files, claims = Files(worker), Claims()
    app = fastapi.FastAPI(title="LoRA Studio", docs_url=None, redoc_url=None, openapi_url=None)
    calls = sdapi.router(worker)
    app.include_router(calls)
    app.include_router(_health(worker))
    app.include_router(uploads.router(files, serving.largest))
    gr.mount_gradio_app(
        app,
        pages,
        path="/",
        server_name=serving.host,
        server_port=serving.port,
        auth=list(serving.users.items()) or None,
        allowed_paths=[str(folder) for folder in files.shown],
        show_error=worker.trust.paths,  # an unforeseen error may name files of this computer
        max_file_size=serving.largest,
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=serving.mcp,
        footer_links=["api"],
        theme=look.theme,
        css=look.css,
        js=look.js or None,
        head=look.head or None,
        favicon_path=look.favicon,
    )
    pages._queue.sleep_when_free = QUEUE_REST
    confine(pages, files, claims if serving.users else None)
    rules = Rules(
        hosts=serving.hosts,
        users=serving.users,
        largest=serving.largest,
        logins=_Logins(app),
        may_see=files.may_see,
        ways=(routes.HEALTH, *routes.GRADIO, *(routes.MCP if serving.mcp else ()), *_ways(calls)),
        claims=claims,
    )
    app.add_middleware(Guard, rules=rules)
    return app


def _ways(own: fastapi.APIRouter) -> list[routes.Way]:
    """The ways to our own routes, as the router has them."""
    found = [
        (route.path, tuple(sorted(route.methods or ()))) for route in own.routes if isinstance(route, Route)
    ]
    return [routes.Way(path, methods, body="json" if "POST" in methods else "") for path, methods in found]


def _health(worker: Worker) -> fastapi.APIRouter:
    """GET /health, for programs that watch over the studio: 200 while all is well, 503 while jobs wait for the end of a
    fault."""
    router = fastapi.APIRouter()

    @router.get(routes.HEALTH.path)
    async def health() -> JSONResponse:
        now, running = await run_in_threadpool(worker.health), worker.running
        well = running and not now.fault
        content = {
            "status": "ok" if well else "waiting" if running else "closed",
            "fault": without_places(now.fault, worker.home),
            "since": now.since or None,
            "restarts": now.restarts,
        }
        return JSONResponse(content, status_code=200 if well else 503)

    return router


class _Logins:
    """Knows who is logged in, by the cookies that Gradio's login page sets."""

    def __init__(self, app: fastapi.FastAPI) -> None:
        [self._pages] = [
            route.app
            for route in app.routes
            if isinstance(route, Mount) and isinstance(route.app, gr.routes.App)
        ]
        self._of_programs: dict[str, str] = {}

    def by_cookie(self, cookies: Mapping[str, str]) -> str | None:
        tokens = self._pages.tokens
        for name in (self._name, f"access-token-unsecure-{self._pages.cookie_id}"):
            if cookies.get(name) in tokens:
                return str(tokens[cookies[name]])
        return None

    def cookie_of(self, name: str) -> str:
        token = self._of_programs.setdefault(name, secrets.token_urlsafe(24))
        self._pages.tokens[token] = name  # logging out deletes all tokens of a name
        return f"{self._name}={token}"

    @property
    def _name(self) -> str:
        return f"access-token-{self._pages.cookie_id}"


# -- the port and the process ------------------------------------------------------------------------------


def _bound(serving: Serving) -> socket.socket:
    """A socket at the port, or at the next free one. Raises SetupError."""
    family = socket.AF_INET6 if ":" in serving.host else socket.AF_INET
    for port in range(serving.port, serving.port + (1 if serving.exact else PORTS_TRIED)):
        listening = socket.socket(family, socket.SOCK_STREAM)
        _own(listening)
        try:
            listening.bind((serving.host, port))
            listening.listen(128)  # this, not bind(), fails where another process listens at the port
        except OSError as error:
            listening.close()
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                continue
            raise SetupError(
                f"cannot listen at {serving.host} ({error.strerror}); choose another --host"
            ) from error
        except OverflowError:
            listening.close()
            break
        return listening
    raise SetupError(f"no free port from {serving.port} on at {serving.host}; choose another --port")


def _own(listening: socket.socket) -> None:
    """Lets the socket have a port that was in use a moment ago, but never one that another process listens at.

    On Windows, SO_REUSEADDR would let two processes listen at one port.
    """
    exclusive = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR if exclusive is None else exclusive, 1)


def _address(serving: Serving, listening: socket.socket) -> str:
    port = listening.getsockname()[1]
    host = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(serving.host, serving.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def _run(
    app: fastapi.FastAPI, serving: Serving, listening: socket.socket, address: str, say: Callable[[str], None]
) -> int:
    server = ClosingServer(app)
    problems: list[str] = []

    def started() -> None:
        while not server.started:
            if server.should_exit:
                return
            time.sleep(0.05)
        if serving.mcp and (problem := _mcp_problem(serving, listening)):
            problems.append(problem)
            server.should_exit = True
            return
        print(address, flush=True)
        say(f"the studio is open at {address}  (Ctrl+C closes it)")
        if serving.open_browser:
            webbrowser.open(address)

    threading.Thread(target=started, name="started", daemon=True).start()
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn closes first, then raises it again
        say("closed")
    if problems:
        raise SetupError(problems[0])
    if not server.started:
        print("error: the server did not start", file=sys.stderr)
        return 2
    return 0


def _require_mcp() -> None:
    try:
        import gradio.mcp  # noqa: F401
    except ImportError as error:
        raise SetupError(f"--mcp needs the package mcp ({error}); {MCP_REMEDY}") from error


def _mcp_problem(serving: Serving, listening: socket.socket) -> str:
    """Why MCP does not answer; "" where it does. Without MCP, Gradio itself would only print a line and serve on."""
    port = listening.getsockname()[1]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(serving.host, serving.host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/gradio_api/mcp/schema"
    login: Any = next(iter(serving.users.items()), None)
    try:
        answer = httpx.get(url, auth=login, timeout=30, trust_env=False)
        if answer.status_code == 200 and answer.json():
            return ""
        return f"--mcp: no tools are offered ({answer.status_code}); {MCP_REMEDY}"
    except (httpx.HTTPError, ValueError) as error:
        return f"--mcp: it does not answer ({error}); {MCP_REMEDY}"
