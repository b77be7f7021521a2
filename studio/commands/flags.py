"""What a command is; the flags that several commands share; and the readers that turn these flags into values."""

from __future__ import annotations

import argparse
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from composers.shown import shown
from studio.terminal.exits import BAD_INPUT

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines.home import Home
    from studio.drafts.fields import Field
    from studio.drafts.flags import Asked
    from studio.rendering.opening import Opening
    from studio.terminal.progress import Teller

V = TypeVar("V")
ATTENTION = ("auto", "cudnn", "flash", "efficient", "math")
"""The names of torch's attention kernels on the command line."""
LONGEST_ERROR = 800
"""Most characters of argparse's errors, which quote what was written."""


@dataclass(frozen=True)
class Command(Generic[V]):
    """A command of the program.

    name: two words for a command of a group, as in "bench speed". add: gives a parser its flags. read: turns the flags
    into the command's values; nothing else sees the flags. run: does the work; returns the exit code.
    place: the order in which --help lists commands. epilog: a text, or, where making it takes time, a function that is
    called when help is asked for. abbreviations: whether flags may be abbreviated.
    `read` and `run` raise StudioError for bad input.
    """

    name: str
    help: str
    add: Callable[[ArgumentParser], None]
    read: Callable[[Namespace], V]
    run: Callable[[V, Home, Teller], int]
    place: int = 1000
    description: str | None = None
    epilog: str | Callable[[], str] | None = None
    abbreviations: bool = False


@dataclass(frozen=True)
class CommandGroup:
    """A group of commands: those whose names begin with its name."""

    name: str
    help: str
    description: str
    place: int = 1000


class Parser(ArgumentParser):
    """argparse's parser, but it prints no usage before an error, and adds flags only when they are needed.

    late_flags: functions that add the flags. late_epilog: makes the text below them.
    """

    late_flags: tuple[Callable[[ArgumentParser], None], ...] = ()
    late_epilog: Callable[[], str] | None = None

    def complete(self) -> None:
        """Adds the flags that were not added yet."""
        late, self.late_flags = self.late_flags, ()
        for add in late:
            add(self)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.complete()
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        self.complete()
        if self.late_epilog is not None:
            self.epilog = self.late_epilog()
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        if len(message) > LONGEST_ERROR:
            message = f"{message[: LONGEST_ERROR // 2]} … {message[-LONGEST_ERROR // 2 :]}"
        self.exit(BAD_INPUT, f"error: {message} ({self.prog} --help lists all there is)\n")


# -- folders ---------------------------------------------------------------------------------------------


def folder_flags(command: ArgumentParser) -> None:
    """The flags of every command: which folders to use."""
    group = command.add_argument_group("folders")
    group.add_argument("--home", metavar="DIR", help="your folder for models, LoRAs and pictures")
    group.add_argument(
        "--model-dir", metavar="DIR", action="append", default=[], help="look for models here too"
    )
    group.add_argument(
        "--lora-dir", metavar="DIR", action="append", default=[], help="look for LoRAs here too"
    )


def path(text: str | None) -> Path | None:
    """The path that a flag names; None if the flag was not given."""
    from pipelines.home.paths import expanded

    return None if text is None else expanded(text)


# -- pictures --------------------------------------------------------------------------------------------


def picture_flags(command: ArgumentParser) -> None:
    """The flags of a picture and its mix. Each field of a request has one, made from the table of fields."""
    from studio.drafts.fields import FIELDS

    group = command.add_argument_group("the picture (the model decides what is not given)")
    group.add_argument(
        "--prompt",
        "-p",
        action="append",
        metavar="TEXT",
        help="what to draw; may be repeated, for several pictures",
    )
    group.add_argument(
        "-n", "--count", type=whole_number, default=1, metavar="N", help="pictures per prompt, seeds rising"
    )
    group.add_argument("--size", type=size, metavar="WxH", help="width and height, as in 1024x768")
    for field in FIELDS:
        if field.flags:
            _field_flag(group, field)
    _mix_flags(command)


def _field_flag(group: argparse._ArgumentGroup, field: Field) -> None:
    how: dict[str, Any] = {"dest": field.name, "help": _flag_help(field).replace("%", "%%")}
    if field.kind == "truth":
        how["action"] = argparse.BooleanOptionalAction
    else:
        how["metavar"] = "|".join(field.knob.choices) or _METAVARS.get(field.kind, "TEXT")
        how["type"] = {"whole": int, "real": float, "pair": _pair_reader(field)}.get(field.kind, str)
    group.add_argument(*field.flags, **how)


_METAVARS = {
    "whole": "N",
    "real": "X",
    "pair": "A,B",
    "choice": "ONE",
    "scheduler": "NAME",
    "picture": "FILE",
}


def _flag_help(field: Field) -> str:
    """A field's help, its range where that is short, and its default."""
    low, high = field.knob.low, field.knob.high
    short = low is not None and high is not None and high - low <= 1000 and field.kind != "pair"
    said = [f"{low:g} … {high:g}"] if short else []
    said += [f"default {field.write(field.default)}"] if field.default not in (None, "", ()) else []
    text = field.knob.help.rstrip(".")
    if text[1:2].islower() or text[1:2] == " ":  # no name such as SDXL
        text = text[0].lower() + text[1:]
    return text + (f" ({'; '.join(said)})" if said else "")


def _pair_reader(field: Field) -> Callable[[str], Any]:
    from pipelines.errors import RequestError

    def read(text: str) -> Any:
        try:
            return field.read(text)
        except RequestError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def _mix_flags(command: ArgumentParser) -> None:
    group = command.add_argument_group("the mix")
    group.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="NAME[=W[:TE]]",
        help="a LoRA by name or path, its strength, and its strength in the text encoder; may be repeated",
    )
    group.add_argument(
        "--pin",
        action="append",
        default=[],
        metavar="NAME[=W[:TE]]",
        help="a LoRA that acts in every pass, whatever the method does with the mix: LCM, Lightning, Hyper",
    )
    group.add_argument(
        "--composer",
        action="append",
        metavar="METHOD",
        help="how the LoRAs are combined, as in switch:interval=3 (see below); may be repeated, for a picture by each",
    )


def read_asked(args: Namespace) -> Asked:
    """What the flags ask for. Raises RequestError."""
    from pipelines.errors import RequestError
    from studio.drafts.draft import Draft
    from studio.drafts.entries import PICTURES
    from studio.drafts.fields import FIELDS
    from studio.drafts.flags import Asked, wanted_of
    from studio.drafts.input_images import input_image

    if args.size and (args.width, args.height) != (None, None):
        raise RequestError("give either --size or --width and --height")
    said = {field.name: getattr(args, field.name) for field in FIELDS if field.flags}
    if args.size:
        said["width"], said["height"] = args.size
    given = {name: value for name, value in said.items() if value is not None}
    images = {name: input_image(name, given.pop(name)) for name in PICTURES if name in given}
    return Asked(
        draft=Draft(given, wanted_of(args.lora, args.pin), images),
        prompts=tuple(args.prompt or ()),
        composers=tuple(args.composer or ()),
        count=args.count,
    )


def source_flags(command: ArgumentParser) -> None:
    group = command.add_argument_group("many at once, or one again (other flags win over what these say)")
    group.add_argument(
        "--requests", metavar="FILE", help='a JSON list, as in [{"prompt": "a fox", "seed": 7}]'
    )
    group.add_argument(
        "--from",
        dest="picture",
        metavar="PICTURE",
        help="render a picture again from what it says about itself",
    )


# -- model and device -------------------------------------------------------------------------------------


def machine_flags(command: ArgumentParser) -> None:
    group = command.add_argument_group("model and device")
    group.add_argument("--model", "-m", metavar="M", help="name, folder, .safetensors file or hub id")
    group.add_argument("--vae", metavar="VAE", help="another VAE: name, file or folder")
    group.add_argument("--device", metavar="D", help="auto, cpu, cuda, cuda:1, mps")
    group.add_argument("--dtype", metavar="T", help="float32, float16, bfloat16")
    group.add_argument("--lowvram", action="store_true", help="keep parts on the device only while they work")
    group.add_argument("--row-limit", type=whole_number, metavar="N", help="most rows of one UNet call")
    group.add_argument(
        "--lora-ram", type=gigabytes, metavar="GIB", help="memory for LoRAs (default: a quarter)"
    )
    group.add_argument(
        "--lora-vram", type=gigabytes, metavar="GIB", help="device memory for LoRAs (default: a quarter)"
    )
    group.add_argument("--no-graphs", action="store_true", help="do not record CUDA graphs")
    group.add_argument(
        "--compile",
        action="store_true",
        help="use torch.compile: each size first takes some tens of seconds, then runs faster",
    )
    group.add_argument(
        "--attention",
        choices=ATTENTION,
        default="auto",
        help="torch's attention kernel, used where it can run: auto (torch's choice), cudnn, flash, efficient, math",
    )
    group.add_argument(
        "--kernels",
        action="store_true",
        help="use the studio's own Triton kernels where they are faster than torch, as measured once for each size",
    )


def read_opening(args: Namespace) -> Opening:
    """How to open models, as the flags say."""
    from studio.rendering.opening import Opening

    return Opening(
        source=args.model,
        device=args.device,
        dtype=args.dtype,
        vae=args.vae,
        low_memory=args.lowvram,
        row_limit=args.row_limit,
        lora_ram=args.lora_ram,
        lora_vram=args.lora_vram,
        graphs=not args.no_graphs,
        compile=args.compile,
        attention=args.attention,
        kernels=args.kernels,
    )


def device_flags(command: ArgumentParser) -> None:
    """--device and --dtype, for commands that need no other flags of a model's set-up."""
    command.add_argument("--device", metavar="D", help="auto, cpu, cuda, cuda:1, mps")
    command.add_argument("--dtype", metavar="T", help="float32, float16, bfloat16")


# -- reports ---------------------------------------------------------------------------------------------


def quiet_flag(command: argparse._ActionsContainer, help: str = "no progress, errors only") -> None:
    command.add_argument("--quiet", "-q", action="store_true", help=help)


def telling_flags(command: ArgumentParser) -> None:
    """How a batch reports its pictures."""
    command.add_argument("--json", action="store_true", help="print each outcome as a line of JSON")
    quiet_flag(command)


def naming_flag(command: ArgumentParser) -> None:
    command.add_argument(
        "--naming",
        choices=("peft", "kohya"),
        default="peft",
        help="key names: peft (diffusers, the default) or kohya (web UIs)",
    )


# -- kinds of values -------------------------------------------------------------------------------------


def whole_number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{shown(text)} must be a whole number above 0")
    return int(text)


def gigabytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{shown(text)} must be a number of GiB, as in 2.5")
    return value


def size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (re.fullmatch("[0-9]{1,9}", width) and re.fullmatch("[0-9]{1,9}", height)):
        raise argparse.ArgumentTypeError(f"{shown(text)} must be WxH in pixels, as in 512x768")
    return int(width), int(height)
