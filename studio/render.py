"""`lora-studio render`: flags in, pictures out, all of them in shared UNet calls.

Everything that can be wrong is found before the model is loaded, or at the latest before the first step.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from composers import Composer
from pipelines import Request, StudioError, StudioPipeline
from pipelines.adapters import LoadReport
from pipelines.errors import AdapterFileError, RequestError
from pipelines.home import Home
from pipelines.text.tags import take_tags
from studio.drafts.draft import Draft, picture_mark, placed, read_init_image
from studio.drafts.flags import ask, first_example, is_repeat, remembered_model
from studio.drafts.shelf import Shelf
from studio.pictures.comparison import Comparison, compare
from studio.pictures.files import Sheet, plan_files
from studio.pictures.metadata import Remembered, Setup, read_picture
from studio.rendering.acceleration import proposals
from studio.rendering.once import Drive, Job, Outcome, Saving
from studio.rendering.opening import Opening, is_slow, model_name, open_pipeline, opening_of, pick_device
from studio.terminal.progress import Teller


def run(args: Namespace, home: Home, teller: Teller) -> int:
    """The exit code: 0 all done, 1 some failed, 130 interrupted. Raises StudioError for bad input (2)."""
    remembered = _remembered(args, teller)
    opening = _opening(args, remembered, home, teller)
    name = model_name(opening, home)
    entry = home.find_model(name)
    drafts = ask(args, remembered, lambda: first_example(name, entry))
    _check_init_image(remembered, drafts, teller)
    known = remembered.known if remembered else None
    shelf = Shelf(home, entry.name if entry else None, known=known, say=teller.say)
    requests = requests_of(drafts, shelf)
    _say_if_methods_are_idle(requests, teller)
    sheets = [_sheet(request, entry.name if entry else name) for request in requests]
    files = plan_files(args.out, home.outputs / date.today().isoformat(), sheets, force=args.force)
    with teller.waiting(f"loading {name} …"):
        pipe = open_pipeline(opening, home, teller.say)
    for report in shelf.load(pipe):
        teller.say(f"LoRA {_applied(report)}")
    _propose(pipe, requests, teller)
    _check_model(remembered, pipe, teller)
    jobs = [
        Job(request, draft.where, file) for request, draft, file in zip(requests, drafts, files, strict=True)
    ]
    saving = Saving(shelf.files, Setup(opening.vae, opening.low_memory), args.force, args.preview)
    on_file = (lambda file: None) if args.json else (lambda file: print(file, flush=True))
    repeat = remembered if remembered and is_repeat(args) else None
    with _threads_of(repeat):
        outcome = Drive(pipe, jobs, saving, teller=teller, on_file=on_file).run(slow=is_slow(pipe))
    compared = _compared(args, repeat, outcome)
    if compared is not None:
        teller.say(str(compared))
    if args.json:
        print(json.dumps(_results(jobs, outcome, compared), indent=2, ensure_ascii=False))
    return outcome.code


# -- before ----------------------------------------------------------------------------------------------


def _remembered(args: Namespace, teller: Teller) -> Remembered | None:
    if args.picture is None:
        return None
    if args.requests is not None:
        raise RequestError("give either --from or --requests")
    remembered = read_picture(Path(args.picture).expanduser())
    for note in remembered.notes:
        teller.say(f"{args.picture}: {note}")
    return remembered


def _opening(args: Namespace, remembered: Remembered | None, home: Home, teller: Teller) -> Opening:
    """How to open the model: the flags, then what the picture says."""
    opening = opening_of(args)
    if remembered is None:
        return opening
    if opening.source is None and remembered.model:
        opening = replace(opening, source=remembered_model(remembered, home, teller.say))
    if opening.vae is None and not args.model:
        opening = replace(opening, vae=remembered.setup.vae)
    dtype = remembered.record.get("dtype")
    if opening.dtype is None and isinstance(dtype, str) and _same_kind_of_device(remembered, opening, home):
        opening = replace(opening, dtype=dtype)
    return replace(opening, low_memory=opening.low_memory or remembered.setup.low_memory)


def _same_kind_of_device(remembered: Remembered, opening: Opening, home: Home) -> bool:
    was_cpu = str(remembered.record.get("device", "")).startswith("cpu")
    return was_cpu == (pick_device(opening.device or home.settings.device or "auto").type == "cpu")


def _check_init_image(remembered: Remembered | None, drafts: Sequence[Draft], teller: Teller) -> None:
    if remembered is None or remembered.init_image is None:
        return
    image = drafts[0].init_image
    if image is None:
        raise RequestError(
            "this picture was made from another one, which is not stored in it; give that with --init-image"
        )
    mark = remembered.init_image.get("sha256")
    if mark and picture_mark(read_init_image(image))["sha256"] != mark:
        teller.say(f"{image} is not the initial image that this picture was made from, so it will differ")


def requests_of(drafts: Sequence[Draft], shelf: Shelf) -> list[Request]:
    """All requests, or an error that names every adapter that cannot be found."""
    missing: dict[str, None] = {}
    for draft in drafts:
        for error in shelf.missing(draft.wanted, draft.values.get("prompt")):
            missing[str(placed(error, draft.where))] = None
    if missing:
        raise AdapterFileError("\n".join(missing))
    return [draft.build(shelf.use, shelf.read_tags) for draft in drafts]


def _say_if_methods_are_idle(requests: Sequence[Request], teller: Teller) -> None:
    methods: set[Composer] = {request.composer for request in requests}
    if len(methods) > 1 and not any(request.uses or take_tags(request.prompt)[1] for request in requests):
        teller.say("no LoRAs in the mix, so all methods give the same picture; add some with --lora")


def _sheet(request: Request, model: str) -> Sheet:
    assert request.seed is not None
    return Sheet(request.seed, take_tags(request.prompt)[0], request.composer.name, model)


def _propose(pipe: StudioPipeline, requests: Sequence[Request], teller: Teller) -> None:
    """Says which settings an adapter made for few steps wants."""
    loaded = {name: pipe.model.adapter(name).metadata for name in pipe.adapters}
    with suppress(StudioError):  # a request that cannot be rendered is refused when it is submitted
        for line in proposals(loaded, [request.resolved(pipe.model.facts) for request in requests]):
            teller.say(line)


def _applied(report: LoadReport) -> str:
    """ "fox changes unet 96/210, text_encoder 18/18 layers"."""
    layers = ", ".join(f"{part} {report.applied[part]}/{total}" for part, total in report.total.items())
    notes = "".join(f"\n  {note}" for note in report.notes)
    return f"{report.name} changes {layers} layers{notes}"


def _check_model(remembered: Remembered | None, pipe: StudioPipeline, teller: Teller) -> None:
    if remembered is None or not remembered.ours:
        return
    here = pipe.model.checkpoint
    if here.hash != remembered.model_hash:
        teller.say(
            f"{here.label} has other weights (hash {here.hash}) than the model this picture was made with "
            f"({remembered.model}, hash {remembered.model_hash}), so the picture will differ"
        )


@contextmanager
def _threads_of(remembered: Remembered | None) -> Iterator[None]:
    """As many threads as the picture was made with, since sums depend on how they are divided."""
    threads = remembered.record.get("threads") if remembered else None
    before = torch.get_num_threads()
    if not isinstance(threads, int) or not 1 <= threads <= 1024 or threads == before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# -- after -----------------------------------------------------------------------------------------------


def _compared(args: Namespace, repeat: Remembered | None, outcome: Outcome) -> Comparison | None:
    """The picture that was rendered again against the one it came from, where that is one of ours."""
    picture = outcome.finished.get(0)
    if repeat is None or not repeat.ours or picture is None:
        return None
    return compare(Path(args.picture).expanduser(), repeat.record, picture.image, picture.record)


def _results(jobs: Sequence[Job], outcome: Outcome, compared: Comparison | None) -> list[dict[str, Any]]:
    """What --json prints, in the order of the jobs."""
    results: list[dict[str, Any]] = []
    for place, _ in enumerate(jobs):
        if (picture := outcome.finished.get(place)) is not None:
            results.append({"file": str(picture.file), "error": None, **picture.record.to_dict()})
        else:
            results.append({"file": None, "error": outcome.failed.get(place, "interrupted")})
    if compared is not None:
        results[0]["compared"] = {"largest": compared.largest, "mean": compared.mean}
    return results
