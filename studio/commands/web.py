"""`lora-studio web`: the studio in the browser."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from studio.commands import flags
from studio.commands.flags import Command

if TYPE_CHECKING:
    from pipelines.home import Home
    from studio.rendering.opening import Opening
    from studio.terminal.progress import Teller

ANYWHERE = "0.0.0.0"
"""The address at which other computers can reach the server."""

HELP = """Everything stays on this computer: the studio can be reached only at 127.0.0.1, unless --listen is given.
Programs can use it too: its functions through gradio_client (see the API link on the page), /sdapi/v1 as A1111's
front ends expect it, and MCP with --mcp. Logins: one NAME:PASSWORD a line in --auth-file, or --auth NAME, which asks
for the password. --auth NAME:PASSWORD and LORA_STUDIO_AUTH (by commas) are for trying things out: other programs on
this computer can read them, so --listen refuses them."""


@dataclass(frozen=True)
class WebValues:
    """How to serve.

    model: the one that is chosen at first. opening: how to open any model. exact_port: fail if the port is taken, and
    do not try the next ones. logins: each NAME or NAME:PASSWORD. max_upload: MB.
    """

    opening: Opening
    model: str | None = None
    host: str = "127.0.0.1"
    port: int = 7860
    exact_port: bool = False
    logins: tuple[str, ...] = ()
    login_file: str | None = None
    mcp: bool = False
    open_browser: bool = False
    allow_downloads: bool = False
    max_upload: int = 256


def add(command: ArgumentParser) -> None:
    """How to serve, and how to open models."""
    group = command.add_argument_group("server")
    where = group.add_mutually_exclusive_group()
    where.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help="default: 127.0.0.1")
    where.add_argument("--listen", action="store_true", help="let other computers reach it (needs a login)")
    group.add_argument(
        "--port", type=int, metavar="N", default=7860, help="default: 7860, else the next free one"
    )
    group.add_argument("--exact-port", action="store_true", help="do not take the next free port")
    group.add_argument(
        "--auth", action="append", default=[], metavar="NAME", help="who may log in; asks for the password"
    )
    group.add_argument("--auth-file", metavar="FILE", help="logins, one NAME:PASSWORD a line")
    group.add_argument("--mcp", action="store_true", help="offer the functions to MCP clients too")
    group.add_argument("--open", action="store_true", help="open the page in the browser")
    group.add_argument(
        "--allow-downloads",
        action="store_true",
        help="with --listen or logins: users may name hub ids and paths of this computer",
    )
    group.add_argument("--max-upload", type=int, metavar="MB", default=256, help="default: 256")
    flags.quiet_flag(group, "print the address only")
    flags.machine_flags(command)


def read(args: Namespace) -> WebValues:
    """Raises SetupError."""
    from pipelines.errors import SetupError

    if not 0 <= args.port < 2**16 or args.max_upload < 1:
        raise SetupError("--port must lie in 0 … 65535, and --max-upload must be at least 1")
    return WebValues(
        opening=replace(flags.read_opening(args), source=None),
        model=args.model,
        host=ANYWHERE if args.listen else args.host,
        port=args.port,
        exact_port=args.exact_port,
        logins=tuple(args.auth),
        login_file=args.auth_file,
        mcp=args.mcp,
        open_browser=args.open,
        allow_downloads=args.allow_downloads,
        max_upload=args.max_upload,
    )


def run(values: WebValues, home: Home, teller: Teller) -> int:
    """Serves until it is stopped; the exit code. Raises StudioError."""
    from studio.jobs.gate import Trust
    from studio.web.door.closing import end_hanging
    from studio.web.door.users import read_users
    from studio.web.server import Serving, serve

    listening = not Serving(host=values.host).loopback
    serving = Serving(
        host=values.host,
        port=values.port,
        exact=values.exact_port,
        users=read_users(values.logins, values.login_file, listening=listening, warn=teller.warn),
        mcp=values.mcp,
        open_browser=values.open_browser,
        largest=values.max_upload * 2**20,
    )
    # Users who must log in may sit at other computers, even at a loopback address: a proxy or a tunnel may lead there.
    trusted = (serving.loopback and not serving.users) or values.allow_downloads
    settings = replace(home.settings, model=values.model) if values.model else home.settings
    code = serve(
        serving, replace(home, settings=settings), values.opening, Trust(trusted, trusted), teller.say
    )
    end_hanging(code)
    return code


COMMANDS = (
    Command(
        "web",
        place=50,
        help="open the studio in the browser",
        description="Serve the web studio.",
        epilog=HELP,
        add=add,
        read=read,
        run=run,
    ),
)
