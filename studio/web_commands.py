"""`web` and `gc`: their flags, and which module runs them. Nothing heavy is imported."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from pipelines.home import Home
    from studio.terminal.progress import Teller

COMMANDS = ("web", "gc")

WEB_HELP = """Everything stays on this computer: the studio is reached at 127.0.0.1 alone, unless --listen is given.
Programs can use it too: its functions through gradio_client (see the API link on the page), /sdapi/v1 as A1111's
front ends expect it, and MCP with --mcp. Logins: one NAME:PASSWORD a line in --auth-file, or --auth NAME, which asks
for the password. --auth NAME:PASSWORD and LORA_STUDIO_AUTH (by commas) are for trying things out: other programs on
this computer can read them, so --listen refuses them."""


def add(
    commands: _SubParsersAction[Any],
    folders: ArgumentParser,
    machine: Callable[[ArgumentParser], None],
) -> None:
    """The two subcommands. machine: adds the flags that `web` shares with `render`."""
    web = commands.add_parser(
        "web",
        allow_abbrev=False,
        parents=[folders],
        help="open the studio in the browser",
        description="Serve the web studio.",
        epilog=WEB_HELP,
        formatter_class=RawDescriptionHelpFormatter,
    )
    group = web.add_argument_group("server")
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
    group.add_argument("--quiet", "-q", action="store_true", help="print the address only")
    machine(web)

    gc = commands.add_parser(
        "gc",
        allow_abbrev=False,
        parents=[folders],
        help="delete what no job needs any more",
        description="Delete cached files that nothing needs, and old jobs where asked. Pictures are kept.",
    )
    gc.add_argument("--older-than", type=int, metavar="DAYS", help="forget jobs that ended so many days ago")
    gc.add_argument("--pictures", action="store_true", help="with --older-than: delete their pictures too")
    gc.add_argument("--dry-run", action="store_true", help="say what would go, delete nothing")
    gc.add_argument("--quiet", "-q", action="store_true", help="errors only")


def run(args: Namespace, home: Home, teller: Teller) -> int:
    """Runs one of them; returns its exit code. Raises StudioError."""
    if args.command == "gc":
        from studio.jobs.gc import run as collect

        return collect(args, home, teller)
    from dataclasses import replace

    from pipelines.errors import SetupError
    from studio.jobs.gate import Trust
    from studio.rendering.opening import opening_of
    from studio.web.door.closing import end_hanging
    from studio.web.door.server import Serving, serve
    from studio.web.door.users import read_users

    if not 0 <= args.port < 2**16 or args.max_upload < 1:
        raise SetupError("--port must lie in 0 … 65535, and --max-upload must be at least 1")
    host = "0.0.0.0" if args.listen else args.host
    serving = Serving(
        host=host,
        port=args.port,
        exact=args.exact_port,
        users=read_users(
            args.auth, args.auth_file, listening=not Serving(host=host).loopback, warn=teller.warn
        ),
        mcp=args.mcp,
        open_browser=args.open,
        largest=args.max_upload * 2**20,
    )
    # Whoever has to log in is not this computer's owner: the address may stand behind a proxy or a tunnel.
    trusted = (serving.loopback and not serving.users) or args.allow_downloads
    opening = replace(opening_of(args), source=None)
    settings = replace(home.settings, model=args.model) if args.model else home.settings
    code = serve(serving, replace(home, settings=settings), opening, Trust(trusted, trusted), teller.say)
    end_hanging(code)
    return code
