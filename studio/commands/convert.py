"""`lora-studio convert`: writes a LoRA as another program has it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from typing import TYPE_CHECKING

from studio.commands import flags
from studio.commands.flags import Command
from studio.terminal.exits import OK

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipelines.adapters import ModelLayers
    from pipelines.adapters.conversion import Conversion
    from pipelines.adapters.kinds.kind import Format
    from pipelines.home import Entry, Home
    from studio.terminal.progress import Teller


@dataclass(frozen=True)
class ConvertValues:
    """What to convert. file: a LoRA by path or name. model: the one that it is for. rank: the highest, None to choose.
    keep: its own types, instead of plain LoRA. output: None for a name beside the original."""

    file: str
    to: Format
    model: str | None = None
    rank: int | None = None
    keep: bool = False
    output: Path | None = None
    force: bool = False


EPILOG = """
kohya      one file, for web UIs and ComfyUI: alphas, biases and norms beside the layers
diffusers  one file, for diffusers' load_lora_weights
peft       a folder, for PEFT; one in it for each part of the model, where the LoRA changes several

What is low rank by nature (LoRA, LoCon, LoHa, factored LoKr, VeRA, HRA, …) is written exactly. The rest is approximated
by SVD: by the lowest rank whose error is at most 1 % of a layer's change, 256 at most, or by --rank. The error is told.
"""


def add(command: ArgumentParser) -> None:
    command.add_argument("file", metavar="FILE", help="a LoRA: path or name, of any type")
    command.add_argument("--to", required=True, choices=("kohya", "peft", "diffusers"), help="whose format")
    command.add_argument(
        "--model", "-m", metavar="M", help="the model it is for; needed by types that depend on its weights"
    )
    command.add_argument("--rank", type=flags.whole_number, metavar="R", help="the highest rank of a layer")
    command.add_argument(
        "--keep", action="store_true", help="keep the type, such as LoHa or DoRA, where the format has it"
    )
    command.add_argument(
        "--output", "--out", metavar="OUT", help="the file, or PEFT's folder (default: beside the original)"
    )
    command.add_argument(
        "--overwrite", "--force", action="store_true", help="overwrite files; the original never"
    )
    flags.quiet_flag(command, "no remarks, errors only")


def read(args: Namespace) -> ConvertValues:
    """The command's values. Raises RequestError for flags that exclude one another."""
    from pipelines.errors import RequestError

    if args.keep and args.rank is not None:
        raise RequestError("--keep keeps the ranks as they are; leave out --rank, or --keep")
    return ConvertValues(
        args.file, args.to, args.model, args.rank, args.keep, flags.path(args.output), args.overwrite
    )


def run(values: ConvertValues, home: Home, teller: Teller) -> int:
    """Writes the LoRA; prints the files' names to stdout. Raises StudioError for bad input."""
    entry = home.find_lora(values.file, values.model)
    if entry.note:
        teller.say(entry.note)
    done = _converted(values, entry, home, teller)
    for line in done.lines:
        teller.say(line)
    for file in done.files:
        print(file)
    return OK


def _converted(values: ConvertValues, entry: Entry, home: Home, teller: Teller) -> Conversion:
    """The conversion, for the model that is named, or that the file is made for, or else the first that it fits."""
    from pipelines.adapters.conversion import convert
    from pipelines.blora.layouts import model_outline
    from pipelines.errors import AdapterMismatchError, BaseNeeded

    out = values.output or _beside(entry, values.to)

    def write(layers: ModelLayers) -> Conversion:
        return convert(
            entry.path, out, layers, values.to, rank=values.rank, keep=values.keep, force=values.force
        )

    source = values.model or entry.model
    if source is not None:
        try:
            return write(model_outline(source, home)[0])
        except BaseNeeded:
            with teller.waiting(f"loading {source} …"):
                layers = _loaded(source, home)
            return write(layers)
    first: AdapterMismatchError | None = None
    for layers in _candidates(entry, home):
        try:
            return write(layers)
        except AdapterMismatchError as error:
            first = first or error
    raise AdapterMismatchError(f"{first} (--model names the model it is for)")


def _beside(entry: Entry, to: Format) -> Path:
    """A name beside the original, or in the working folder for a LoRA that is built in."""
    from pathlib import Path

    original = entry.path.parent if entry.foldered else entry.path
    folder = Path() if entry.embedded else original.parent
    name = f"{original.name if entry.foldered else original.stem}-{to}"
    return folder / (name if to == "peft" else f"{name}.safetensors")


def _loaded(source: str, home: Home) -> ModelLayers:
    """The layers of a model with their weights."""
    from pipelines.adapters import model_layers
    from pipelines.checkpoints import load_checkpoint

    found = load_checkpoint(source, home=home, allow_downloads=False)
    return model_layers(found.family, found.label, {"unet": found.unet, **found.text_encoders})


def _candidates(entry: Entry, home: Home) -> Iterator[ModelLayers]:
    """The layers of the family that the file tells, or of all families, as published; then of the built-in models."""
    from pipelines import assets
    from pipelines.adapters import inspect_file
    from pipelines.blora.layouts import model_outline, published_layers
    from pipelines.families.family import FAMILIES

    known = FAMILIES.get(inspect_file(entry.path).family)
    for family in FAMILIES.values() if known is None else (known,):
        yield published_layers(family)[0]
    for model in assets.embedded_models():
        yield model_outline(model.name, home)[0]


COMMANDS = (
    Command(
        "convert",
        place=115,
        help="write a LoRA of any type for kohya, PEFT or diffusers",
        description="Write a LoRA as another program has it, as plain LoRA or, with --keep, as what it is.",
        epilog=EPILOG,
        add=add,
        read=read,
        run=run,
    ),
)
