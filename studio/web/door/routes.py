"""The ways in: every path that is answered is listed here. All other paths are 404, whatever Gradio could answer.

`{name}` stands for one part of a path, `{name:path}` for all the rest. A slash at the end makes no difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Body = Literal["", "event", "json", "login", "upload"]
"""What a body may be: nothing, an event for Gradio or MCP, JSON for one of our routes, the login form, or files."""


@dataclass(frozen=True)
class Way:
    """One way in. open: whether it is answered without a login. body: what may be sent."""

    path: str
    methods: tuple[str, ...] = ("GET", "HEAD")
    open: bool = False
    body: Body = ""

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        def part(match: re.Match[str]) -> str:
            return f"(?P<{match[1]}>{'.+' if match[2] else '[^/]+'})"

        escaped = re.sub(r"[.+*?^$()|\[\]\\]", r"\\\g<0>", self.path.rstrip("/"))
        return re.compile(re.sub(r"\{(\w+)(:path)?\}", part, escaped) + "/?")


HEALTH = Way("/health", ("GET",))
"""Whether the studio is well. Where logins are asked for, it asks for one too."""

_POST = ("POST",)
GRADIO: tuple[Way, ...] = (
    Way("/", open=True),
    Way("/login", _POST, open=True, body="login"),
    Way("/logout"),
    Way("/assets/{part:path}", open=True),
    Way("/static/{part:path}", open=True),
    Way("/svelte/{part:path}", open=True),
    Way("/theme.css", open=True),
    Way("/favicon.ico", open=True),
    Way("/robots.txt", open=True),
    Way("/manifest.json", open=True),
    Way("/pwa_icon", open=True),
    Way("/pwa_icon/{size}", open=True),
    Way("/config"),
    Way("/gradio_api/theme.css", open=True),
    Way("/gradio_api/login_check", open=True),
    Way("/gradio_api/app_id", open=True),
    Way("/gradio_api/user", open=True),
    Way("/gradio_api/startup-events", open=True),
    Way("/gradio_api/info"),
    Way("/gradio_api/openapi.json"),
    Way("/gradio_api/file={owned:path}"),
    Way("/gradio_api/upload", _POST, body="upload"),
    Way("/gradio_api/upload_progress"),
    Way("/gradio_api/heartbeat/{session}"),
    Way("/gradio_api/queue/status"),
    Way("/gradio_api/queue/data"),
    Way("/gradio_api/queue/join", _POST, body="event"),
    Way("/gradio_api/run/{name}", _POST, body="event"),
    Way("/gradio_api/api/{name}", _POST, body="event"),
    Way("/gradio_api/call/{name}", _POST, body="event"),
    Way("/gradio_api/call/v2/{name}", _POST, body="event"),
    Way("/gradio_api/call/{name}/{event}"),
    Way("/gradio_api/call/v2/{name}/{event}"),
    Way("/gradio_api/cancel", _POST, body="event"),
    Way("/gradio_api/reset", _POST, body="event"),
)
"""The routes of Gradio that the pages and `gradio_client` need. Those that are open give no user's data."""

MCP: tuple[Way, ...] = (
    Way("/gradio_api/mcp", ("GET", "POST", "DELETE"), body="event"),
    Way("/gradio_api/mcp/http", ("GET", "POST", "DELETE"), body="event"),
    Way("/gradio_api/mcp/schema"),
    Way("/gradio_api/mcp/sse"),
    Way("/gradio_api/mcp/messages", _POST, body="event"),
)
"""Gradio's MCP server, for --mcp."""


LONGEST_PART = 255
"""Bytes of a part of a path. File systems take no longer names; some of Gradio's ways would end in their error."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def way_to(path: str, method: str, ways: Iterable[Way]) -> tuple[Way, dict[str, str]] | None:
    """The way that a request takes, with the values of the named parts of its path; None where there is no way.

    No way has control characters, or a part that is longer than any file's name.
    """
    if _CONTROL.search(path) or max(map(len, path.encode("utf-8", "replace").split(b"/"))) > LONGEST_PART:
        return None
    for way in ways:
        match = way.pattern.fullmatch(path) if method in way.methods else None
        if match is not None:
            return way, match.groupdict()
    return None
