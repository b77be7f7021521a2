"""`lora-studio split`: one LoRA in, its content and its style out."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from pipelines import assets
from pipelines.adapters import ModelLayers
from pipelines.blora.layouts import BlockMap, model_outline, published_layers
from pipelines.blora.splitting import Split, split_file
from pipelines.errors import AdapterMismatchError, RequestError
from pipelines.home import Home
from studio.terminal.progress import Teller


def run(args: Namespace, home: Home, teller: Teller) -> int:
    """The files' names on stdout. Raises StudioError for bad input."""
    outs = {
        part: Path(text).expanduser()
        for part, text in (("content", args.content), ("style", args.style))
        if text is not None
    }
    if not outs:
        raise RequestError("say where to write: --content OUT, --style OUT, or both")
    entry = home.find_lora(args.file, args.model)
    found = _split(args, entry.path, entry.model, outs, home)
    if found.warning:
        teller.say(f"warning: {found.warning}")
    for part, out in outs.items():
        teller.say(f"{part}: {len(found.parts[part])} layers")
        print(out)
    return 0


def _split(args: Namespace, file: Path, made_for: str | None, outs: dict[str, Path], home: Home) -> Split:
    """For the model that is named, that the file is made for, or the first whose layers it fits."""
    source = args.model or made_for
    if source is not None:
        layers, blocks = model_outline(source, home)
        return split_file(file, outs, layers, blocks, naming=args.naming, force=args.force)
    first: AdapterMismatchError | None = None
    for layers, blocks in _candidates(home):
        try:
            return split_file(file, outs, layers, blocks, naming=args.naming, force=args.force)
        except AdapterMismatchError as error:
            first = first or error
    raise AdapterMismatchError(f"{first} (--model names the model it is for)")


def _candidates(home: Home) -> list[tuple[ModelLayers, BlockMap]]:
    """SDXL as published, then the models that ship and have a block map."""
    shipped = (model_outline(model.name, home) for model in assets.embedded_models())
    return [published_layers(), *((layers, blocks) for layers, blocks in shipped if blocks)]
