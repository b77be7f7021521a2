"""`lora-studio split`: cuts a LoRA into its content and its style."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from studio.commands import flags
from studio.commands.flags import Command
from studio.terminal.exits import OK

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines.adapters import ModelLayers
    from pipelines.adapters.writing import Naming
    from pipelines.blora.layouts import BlockMap
    from pipelines.blora.splitting import Split as Found
    from pipelines.home import Home
    from studio.terminal.progress import Teller


@dataclass(frozen=True)
class SplitValues:
    """What to split. file: a LoRA by path or name. outs: "content", "style" -> the file to write. model: the one that
    the LoRA is for."""

    file: str
    outs: Mapping[str, Path]
    model: str | None
    naming: Naming
    force: bool = False


def add(command: ArgumentParser) -> None:
    command.add_argument("file", metavar="FILE", help="a LoRA: path or name, any naming scheme")
    command.add_argument("--content", metavar="OUT", help="write the content part here (.safetensors)")
    command.add_argument("--style", metavar="OUT", help="write the style part here (.safetensors)")
    command.add_argument(
        "--model", "-m", metavar="M", help="the model it is for (default: SDXL as published)"
    )
    flags.naming_flag(command)
    command.add_argument("--force", action="store_true", help="overwrite files")
    flags.quiet_flag(command, "no remarks, errors only")


def read(args: Namespace) -> SplitValues:
    """The command's values. Raises RequestError where nothing is to be written."""
    from pipelines.errors import RequestError

    named = {"content": flags.path(args.content), "style": flags.path(args.style)}
    outs = {part: out for part, out in named.items() if out is not None}
    if not outs:
        raise RequestError("say where to write: --content OUT, --style OUT, or both")
    return SplitValues(args.file, outs, args.model, args.naming, args.force)


def run(values: SplitValues, home: Home, teller: Teller) -> int:
    """Writes the parts; prints the files' names to stdout. Raises StudioError for bad input."""
    entry = home.find_lora(values.file, values.model)
    found = _split(values, entry.path, entry.model, home)
    if found.warning:
        teller.say(f"warning: {found.warning}")
    for part, out in values.outs.items():
        teller.say(f"{part}: {len(found.parts[part])} layers")
        print(out)
    return OK


def _split(values: SplitValues, file: Path, made_for: str | None, home: Home) -> Found:
    """The parts, for the model that is named, or that the file is made for, or else the first whose layers it fits."""
    from pipelines.blora.layouts import model_outline
    from pipelines.blora.splitting import split_file
    from pipelines.errors import AdapterMismatchError

    def split(layers: ModelLayers, blocks: BlockMap) -> Found:
        return split_file(file, values.outs, layers, blocks, naming=values.naming, force=values.force)

    source = values.model or made_for
    if source is not None:
        return split(*model_outline(source, home))
    first: AdapterMismatchError | None = None
    for layers, blocks in _candidates(home):
        try:
            return split(layers, blocks)
        except AdapterMismatchError as error:
            first = first or error
    raise AdapterMismatchError(f"{first} (--model names the model it is for)")


def _candidates(home: Home) -> list[tuple[ModelLayers, BlockMap]]:
    """Layers and block map of SDXL as published, then of the built-in models that have a block map."""
    from pipelines import assets
    from pipelines.blora.layouts import model_outline, published_layers

    shipped = (model_outline(model.name, home) for model in assets.embedded_models())
    return [published_layers(), *((layers, blocks) for layers, blocks in shipped if blocks)]


COMMANDS = (
    Command(
        "split",
        place=120,
        help="cut a LoRA into its content and its style",
        description="Write a LoRA's content blocks and style blocks as files of their own (B-LoRA).",
        abbreviations=True,
        add=add,
        read=read,
        run=run,
    ),
)
