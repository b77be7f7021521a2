"""`lora-studio render`: draws the pictures that flags ask for, all in shared UNet calls.

Bad input is found before the model is loaded, or at the latest before the first step.
"""

from __future__ import annotations

import dataclasses
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studio.commands import flags
from studio.commands.flags import Command

if TYPE_CHECKING:
    from pathlib import Path

    from composers import Composer, Knob
    from pipelines import Request
    from pipelines.adapters import LoadReport
    from pipelines.home import Home
    from studio.drafts.flags import Asked
    from studio.pictures.comparison import Comparison
    from studio.pictures.files import Sheet
    from studio.pictures.restore import Restored
    from studio.rendering.once import Outcome, Picture
    from studio.rendering.opening import Opening
    from studio.terminal.progress import Teller


@dataclass(frozen=True)
class RenderValues:
    """What `render` is to do.

    picture: one to render again. out: a file, a folder or a template; None is the day's folder. previews: write
    previews of pictures in the making.
    """

    asked: Asked
    opening: Opening
    picture: Path | None = None
    out: str | None = None
    force: bool = False
    previews: bool = False
    as_json: bool = False

    @property
    def repeats(self) -> bool:
        """Whether a picture is rendered again unchanged, so that the two can be compared."""
        other_model = self.opening.source or self.opening.vae
        return self.picture is not None and self.asked.changes_nothing and not other_model


# -- flags -----------------------------------------------------------------------------------------------


def add(command: ArgumentParser) -> None:
    """The flags of pictures, of the model, and of the output."""
    flags.picture_flags(command)
    flags.source_flags(command)
    flags.machine_flags(command)
    group = command.add_argument_group("output")
    group.add_argument(
        "--out",
        "-o",
        metavar="OUT",
        help="a .png file, a folder, or a template such as {index:05d}_{seed}.png (default: your outputs folder)",
    )
    group.add_argument("--force", action="store_true", help="overwrite files")
    group.add_argument(
        "--preview", action="store_true", help="write previews of pictures in the making, as OUT.preview.png"
    )
    group.add_argument(
        "--json", action="store_true", help="print the records as JSON instead of the file names"
    )
    flags.quiet_flag(group)


def read(args: Namespace) -> RenderValues:
    """Raises RequestError."""
    from pipelines.errors import RequestError

    if args.picture is not None and args.requests is not None:
        raise RequestError("give either --from or --requests")
    return RenderValues(
        asked=dataclasses.replace(flags.read_asked(args), requests=flags.path(args.requests)),
        opening=flags.read_opening(args),
        picture=flags.path(args.picture),
        out=args.out,
        force=args.force,
        previews=args.preview,
        as_json=args.json,
    )


def _forms_and_methods() -> str:
    from pipelines.text.forms import forms_help

    return f"{forms_help()}\n\n{_methods_help()}"


def _methods_help() -> str:
    """The methods and their settings, as their classes describe them."""
    import textwrap

    from composers import methods

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
        'The prompt can name LoRAs too: "a fox <lora:fox:0.8>", with blocks, times and te= as in A1111.',
    ]
    return "\n".join(lines)


# -- run -------------------------------------------------------------------------------------------------


def run(values: RenderValues, home: Home, teller: Teller) -> int:
    """Draws the pictures. Exit code: 0 all done, 1 some failed, 130 interrupted. Raises StudioError for bad input
    (2)."""
    import json
    from datetime import date

    from studio.drafts.draft import Draft
    from studio.drafts.flags import drafts_of, first_example
    from studio.drafts.shelf import Shelf, requests_of
    from studio.pictures.files import plan_files
    from studio.pictures.metadata import Setup
    from studio.rendering import repetition
    from studio.rendering.once import Drive, Picture, Saving
    from studio.rendering.opening import is_slow, model_name, open_pipeline

    restored = None if values.picture is None else _restored(values.picture, home, teller)
    opening = values.opening
    if restored is not None:
        opening = repetition.opening_again(opening, restored, home, teller.say)
    name = model_name(opening, home)
    entry = home.find_model(name)
    base = restored.draft if restored else Draft()
    drafts = drafts_of(values.asked, base, lambda: first_example(name, entry))
    if restored is not None:
        repetition.check_init_image(restored, drafts[0], teller.say)
    shelf = Shelf(home, entry.name if entry else None)
    requests = requests_of(drafts, shelf)
    _say_if_methods_are_idle(requests, teller)
    sheets = [_sheet(request, entry.name if entry else name) for request in requests]
    files = plan_files(values.out, home.outputs / date.today().isoformat(), sheets, force=values.force)
    with teller.waiting(f"loading {name} …"):
        pipe = open_pipeline(opening, home, teller.say)
    for report in shelf.load(pipe):
        teller.say(f"LoRA {_applied(report)}")
    if restored is not None:
        repetition.check_model(restored, pipe, teller.say)
    jobs = [
        Picture(request, draft.where, file)
        for request, draft, file in zip(requests, drafts, files, strict=True)
    ]
    saving = Saving(shelf.files, Setup(opening.vae, opening.low_memory), values.force, values.previews)
    on_file = (lambda file: None) if values.as_json else (lambda file: print(file, flush=True))
    repeat = restored if values.repeats else None
    with nullcontext() if repeat is None else repetition.threads_of(repeat):
        outcome = Drive(pipe, jobs, saving, teller=teller, on_file=on_file).run(slow=is_slow(pipe))
    compared = None
    if repeat is not None and values.picture is not None:
        compared = repetition.compared(values.picture, repeat, outcome)
    if compared is not None:
        teller.say(str(compared))
    if values.as_json:
        print(json.dumps(_results(jobs, outcome, compared), indent=2, ensure_ascii=False))
    return outcome.code


def _restored(picture: Path, home: Home, teller: Teller) -> Restored:
    from studio.pictures.restore import FROM_ANOTHER, restore

    restored = restore(picture, home)
    for note in restored.notes:
        if note != FROM_ANOTHER:  # where the initial image is not given, it is asked for later
            teller.say(f"{picture}: {note}")
    return restored


def _say_if_methods_are_idle(requests: Sequence[Request], teller: Teller) -> None:
    different: set[Composer] = {request.composer for request in requests}
    if len(different) > 1 and not any(request.uses for request in requests):
        teller.say("no LoRAs in the mix, so all methods give the same picture; add some with --lora")


def _sheet(request: Request, model: str) -> Sheet:
    from studio.pictures.files import Sheet

    assert request.seed is not None
    return Sheet(request.seed, request.prompt, request.composer.name, model)


def _applied(report: LoadReport) -> str:
    """ "fox changes unet 96/210, text_encoder 18/18 layers"."""
    layers = ", ".join(f"{part} {report.applied[part]}/{total}" for part, total in report.total.items())
    own = (note for note in report.notes if note not in report.doubts)  # the record tells those
    notes = "".join(f"\n  {note}" for note in own)
    return f"{report.name} changes {layers} layers{notes}"


def _results(jobs: Sequence[Picture], outcome: Outcome, compared: Comparison | None) -> list[dict[str, Any]]:
    """What --json prints, in the order of the pictures."""
    results: list[dict[str, Any]] = []
    for place, _ in enumerate(jobs):
        if (picture := outcome.finished.get(place)) is not None:
            results.append({"file": str(picture.file), "error": None, **picture.record.to_dict()})
        else:
            results.append({"file": None, "error": outcome.failed.get(place, "interrupted")})
    if compared is not None:
        results[0]["compared"] = {"largest": compared.largest, "mean": compared.mean}
    return results


COMMANDS = (
    Command(
        "render",
        place=10,
        help="draw pictures",
        description="Draw pictures. Several prompts, methods and seeds share one pass.",
        epilog=_forms_and_methods,
        add=add,
        read=read,
        run=run,
    ),
)
