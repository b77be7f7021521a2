"""The command line: flags are read here, and nothing is imported that they do not need.

    lora-studio render --prompt "a fox in a red hat" --lora fox=0.8

It holds no rules of its own: it fills Requests and shows the StudioError. Results go to stdout, all else to
stderr. Exit codes: 0 all done, 1 some failed, 2 bad input or set-up, 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import textwrap
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import NoReturn

from composers import Knob, StudioError, methods
from studio import batch_commands, bench_commands, blora_commands, quality_commands, web_commands

ATTENTION = ("auto", "cudnn", "flash", "efficient", "math")
QUIET_ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait by spinning cost tenfold on cores that others use too
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""No library that we use reports to anybody, or tells users what only its programmers can act on."""

TRY = """Three commands to try:

  lora-studio render                 draws the built-in model's first example
  lora-studio loras                  lists the LoRAs you can mix, with their words
  lora-studio render --prompt "a nilo fox wearing a kimono" --lora nilo-fox --lora kimono \\
      --composer merge --composer switch --composer composite
                                     mixes two of them by three methods, in one pass

lora-studio --help shows all commands, lora-studio render --help all flags."""

OK, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET_ENVIRONMENT.items()})
    args = parser().parse_args(argv)
    if args.command is None:
        print(TRY)
        return OK
    try:
        return _run(args)
    except StudioError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _run(args: Namespace) -> int:
    """Imports what the command needs, and runs it."""
    from pipelines.home import Home
    from studio.terminal.progress import Teller

    teller = Teller(quiet=getattr(args, "quiet", False))
    home = Home.resolve(args.home, model_dirs=args.model_dir, lora_dirs=args.lora_dir)
    if args.command == "render":
        from studio import render

        return render.run(args, home, teller)
    if args.command == "plan":
        from studio import plan_command

        return plan_command.run(args, home, teller)
    if args.command == "doctor":
        from studio import doctor

        return doctor.run(home)
    if args.command in blora_commands.COMMANDS:
        return blora_commands.run(args, home, teller)
    if args.command in web_commands.COMMANDS:
        return web_commands.run(args, home, teller)
    if args.command in batch_commands.COMMANDS:
        return batch_commands.run(args, home, teller)
    if args.command in bench_commands.COMMANDS:
        return bench_commands.run(args, home, teller)
    if args.command in quality_commands.COMMANDS:
        return quality_commands.run(args, home, teller)
    from studio import listing

    match args.command:
        case "inspect":
            return listing.inspect(args.files, home, teller, as_json=args.json)
        case "models":
            return listing.models(home, as_json=args.json)
        case "loras":
            return listing.loras(home, args.model, as_json=args.json)
        case _:
            return listing.import_paths(args.path, home)


class _Parser(ArgumentParser):
    """argparse's, without the page of usage before every message."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"error: {message} ({self.prog} --help lists all there is)\n")


def parser() -> ArgumentParser:
    """All commands and flags."""
    top = _Parser(
        prog="lora-studio",
        allow_abbrev=False,
        description="A composition studio for image-model LoRAs: many mixes, one pass.",
        epilog="Exit codes: 0 all done, 1 some failed, 2 bad input or set-up, 130 interrupted.",
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    folders = _folder_flags()

    render = commands.add_parser(
        "render",
        allow_abbrev=False,
        parents=[folders],
        help="draw pictures",
        description="Draw pictures. Several prompts, methods and seeds share one pass.",
        epilog=_methods_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _picture_flags(render)
    _adapter_flags(render)
    _source_flags(render)
    _machine_flags(render)
    _output_flags(render)

    plan = commands.add_parser(
        "plan",
        allow_abbrev=False,
        parents=[folders],
        help="say how the engine would run a mix on this device",
        description="What each form of the adapters' products would add to a step, and which one is taken.",
    )
    _render_like_flags(plan)
    _source_flags(plan)
    _machine_flags(plan)
    plan.add_argument("--json", action="store_true", help="print JSON")

    batch_commands.add(commands, folders, _machine_flags, _render_like_flags)
    web_commands.add(commands, folders, _machine_flags)
    inspect = commands.add_parser("inspect", parents=[folders], help="say what LoRA files, or pictures, are")
    inspect.add_argument("files", nargs="+", metavar="FILE", help="a LoRA (path or name) or a picture")
    models = commands.add_parser("models", parents=[folders], help="list the models")
    loras = commands.add_parser("loras", parents=[folders], help="list the LoRAs")
    loras.add_argument("--model", metavar="M", help="only those that this model may take")
    for listing in (inspect, models, loras):
        listing.add_argument("--json", action="store_true", help="print JSON")
    commands.add_parser(
        "doctor", parents=[folders], help="check device, versions, folders; draw a test picture"
    )
    paths = commands.add_parser(
        "import-paths", parents=[folders], help="use the folders of ComfyUI, Forge, A1111 or Fooocus too"
    )
    paths.add_argument("path", metavar="PATH", help="an extra_model_paths.yaml, or the program's folder")
    blora_commands.add(commands, folders)
    bench_commands.add(commands, folders, _machine_flags)
    quality_commands.add(commands, folders, _machine_flags)
    return top


def _methods_help() -> str:
    """The methods with their settings, as their classes describe them."""
    lines = ["methods, and their settings with the defaults:"]
    for name, kind in methods().items():
        lines += textwrap.wrap(
            f"{name:<10} {kind.summary}", 100, initial_indent="  ", subsequent_indent=" " * 13
        )
        for setting in dataclasses.fields(kind):
            knob: Knob | None = setting.metadata.get("knob")
            if knob is not None:
                choices = f" One of: {', '.join(knob.choices)}." if knob.choices else ""
                text = f"{setting.name}={setting.default}  {knob.help}{choices}"
                lines += textwrap.wrap(text, 100, initial_indent=" " * 13, subsequent_indent=" " * 15)
    lines += [
        "",
        'LoRAs can stand in the prompt too: "a fox <lora:fox:0.8>", with blocks, moments and te= as in A1111.',
    ]
    return "\n".join(lines)


class _Version(argparse.Action):
    """Prints the version; it is looked up only then."""

    def __call__(self, parser: ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("lora-studio")
        except PackageNotFoundError:
            number = "(not installed)"
        print(f"lora-studio {number}")
        parser.exit(OK)


def _folder_flags() -> _Parser:
    flags = _Parser(add_help=False)
    group = flags.add_argument_group("folders")
    group.add_argument("--home", metavar="DIR", help="your folder for models, LoRAs and pictures")
    group.add_argument(
        "--model-dir", metavar="DIR", action="append", default=[], help="look for models here too"
    )
    group.add_argument(
        "--lora-dir", metavar="DIR", action="append", default=[], help="look for LoRAs here too"
    )
    return flags


def _picture_flags(command: ArgumentParser) -> None:
    group = command.add_argument_group("the picture (what is not said comes from the model)")
    group.add_argument(
        "--prompt", "-p", action="append", metavar="TEXT", help="what to draw; several draw several"
    )
    group.add_argument("--negative", "--negative-prompt", metavar="TEXT", help="what to keep out")
    group.add_argument("--seed", type=int, metavar="N", help="drawn at random otherwise")
    group.add_argument(
        "-n", "--count", type=_count, default=1, metavar="N", help="pictures per prompt, seeds rising"
    )
    group.add_argument("--steps", type=int, metavar="N")
    group.add_argument("--guidance", "--cfg-scale", type=float, metavar="X", help="1 or less means none")
    group.add_argument("--guidance-rescale", type=float, metavar="X", help="0 … 1")
    group.add_argument(
        "--scheduler", "--sampler", metavar="NAME", help="as in A1111: Euler, DPM++ 2M Karras, …"
    )
    group.add_argument("--size", type=_size, metavar="WxH", help="pixels, as in 1024x768")
    group.add_argument("--width", type=int, metavar="W")
    group.add_argument("--height", type=int, metavar="H")
    group.add_argument("--clip-skip", type=int, metavar="N", help="text-encoder layers to skip")
    group.add_argument("--reuse", type=int, metavar="N", help="deep features are remade every N-th step only")
    group.add_argument("--cut", metavar="CUT", help="where the reused features end: deep or published")
    group.add_argument("--init-image", metavar="FILE", help="start from this picture")
    group.add_argument("--strength", type=float, metavar="X", help="how far from it: 0 … 1 (default 0.8)")


def _render_like_flags(command: ArgumentParser) -> None:
    """What a picture is: as `render` takes it."""
    _picture_flags(command)
    _adapter_flags(command)


def _adapter_flags(command: ArgumentParser) -> None:
    group = command.add_argument_group("the mix")
    group.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="NAME[=W[:TE]]",
        help="a LoRA by name or path, its strength, another in the text encoder; may be repeated",
    )
    group.add_argument(
        "--pin",
        action="append",
        default=[],
        metavar="NAME[=W[:TE]]",
        help="a LoRA that acts in every pass and is no member of the mix: LCM, Lightning, Hyper",
    )
    group.add_argument(
        "--composer",
        action="append",
        metavar="METHOD",
        help="how the LoRAs are combined, as in switch:interval=3 (see below); several draw each",
    )
    group.add_argument(
        "--text-mode",
        metavar="MODE",
        help="which LoRAs the text encoder sees: merged (all), first, or per_adapter",
    )


def _source_flags(command: ArgumentParser) -> None:
    group = command.add_argument_group("many at once, or again (other flags override)")
    group.add_argument(
        "--requests", metavar="FILE", help='a JSON list, as in [{"prompt": "a fox", "seed": 7}]'
    )
    group.add_argument(
        "--from",
        dest="picture",
        metavar="PICTURE",
        help="render a picture again from what it says about itself",
    )


def _machine_flags(command: ArgumentParser) -> None:
    group = command.add_argument_group("model and device")
    group.add_argument("--model", "-m", metavar="M", help="name, folder, .safetensors file or hub id")
    group.add_argument("--vae", metavar="VAE", help="another VAE: name, file or folder")
    group.add_argument("--device", metavar="D", help="auto, cpu, cuda, cuda:1, mps")
    group.add_argument("--dtype", metavar="T", help="float32, float16, bfloat16")
    group.add_argument("--lowvram", action="store_true", help="parts visit the device only while they work")
    group.add_argument("--row-limit", type=_count, metavar="N", help="UNet rows a call may hold")
    group.add_argument(
        "--lora-ram", type=_gigabytes, metavar="GIB", help="memory for LoRAs (default: a quarter)"
    )
    group.add_argument(
        "--lora-vram", type=_gigabytes, metavar="GIB", help="of the device's (default: a quarter)"
    )
    group.add_argument("--no-graphs", action="store_true", help="do not record CUDA graphs")
    group.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile: some tens of seconds for each size, then faster",
    )
    group.add_argument(
        "--attention",
        choices=ATTENTION,
        default="auto",
        help="torch's attention kernel to take where it can run: auto (torch's choice), cudnn, flash, efficient, math",
    )
    group.add_argument(
        "--kernels",
        action="store_true",
        help="let the studio's own Triton kernels compete with torch's products: measured once for each size",
    )


def _output_flags(command: ArgumentParser) -> None:
    group = command.add_argument_group("output")
    group.add_argument(
        "--out",
        "-o",
        metavar="OUT",
        help="a .png file, a folder, or a template such as {index:05d}_{seed}.png (default: your outputs folder)",
    )
    group.add_argument("--force", action="store_true", help="overwrite files")
    group.add_argument(
        "--preview", action="store_true", help="show pictures in the making, as OUT.preview.png"
    )
    group.add_argument(
        "--json", action="store_true", help="print the records as JSON instead of the file names"
    )
    group.add_argument("--quiet", "-q", action="store_true", help="no progress, errors only")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number above 0")
    return int(text)


def _gigabytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of GiB, as in 2.5")
    return value


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} must be WxH in pixels, as in 512x768")
    return int(width), int(height)


if __name__ == "__main__":
    sys.exit(main())
