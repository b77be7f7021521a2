"""`lora-studio render`: flags in, pictures out, all of them in shared UNet calls.

Everything that can be wrong is found before the model is loaded, or at the latest before the first step.
"""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pipelines import Failed, Finished, Request, Session, Started, Stepped, StudioError, StudioPipeline
from pipelines.adapters import LoadReport
from pipelines.errors import AdapterFileError, RequestError
from pipelines.home import Home
from pipelines.tags import take_tags
from studio.again import Comparison, compare
from studio.asking import ask, first_example, is_repeat, remembered_model
from studio.metadata import Remembered, Setup, read_picture, save_picture
from studio.opening import Opening, is_slow, model_name, open_pipeline, pick_device
from studio.outputs import Sheet, plan_files, write_whole
from studio.progress import Teller
from studio.recipe import Draft, picture_mark, placed, read_init_image
from studio.shelf import Shelf

PREVIEWS = 4
"""How often a picture is shown while it is made, with --preview."""


@dataclass(frozen=True)
class Job:
    """One picture: what was asked for, where (for messages), and its file."""

    request: Request
    where: str
    file: Path


@dataclass
class Outcome:
    """What has come of the jobs so far, by their place."""

    finished: dict[int, tuple[Path, Finished]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    compared: Comparison | None = None
    interrupted: bool = False

    @property
    def code(self) -> int:
        return 130 if self.interrupted else 1 if self.failed else 0


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
    requests = _requests(drafts, shelf)
    sheets = [_sheet(request, entry.name if entry else name) for request in requests]
    files = plan_files(args.out, home.outputs / date.today().isoformat(), sheets, force=args.force)
    with teller.waiting(f"loading {name} …"):
        pipe = open_pipeline(opening, home, teller.say)
    for report in shelf.load(pipe):
        teller.say(f"LoRA {_applied(report)}")
    _check_model(remembered, pipe, teller)
    jobs = [
        Job(request, draft.where, file) for request, draft, file in zip(requests, drafts, files, strict=True)
    ]
    outcome = Outcome()
    with _threads_of(remembered if is_repeat(args) else None):
        _drive(jobs, pipe, shelf, args, Setup(opening.vae, opening.low_memory), teller, outcome)
    if remembered and remembered.ours and is_repeat(args) and 0 in outcome.finished:
        event = outcome.finished[0][1]
        assert isinstance(event.image, Image.Image)
        outcome.compared = compare(Path(args.picture), remembered.record, event.image, event.record)
        teller.say(str(outcome.compared))
    if args.json:
        print(json.dumps(_results(jobs, outcome), indent=2, ensure_ascii=False))
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
    opening = Opening(args.model, args.device, args.dtype, args.vae, args.lowvram, args.row_limit)
    if remembered is None:
        return opening
    if opening.source is None and remembered.model:
        opening = replace(opening, source=remembered_model(remembered, home, teller.say))
    if opening.vae is None and not args.model:
        opening = replace(opening, vae=remembered.setup.vae)
    if opening.dtype is None and _same_kind_of_device(remembered, opening, home):
        opening = replace(opening, dtype=remembered.record["dtype"])
    return replace(opening, low_memory=opening.low_memory or remembered.setup.low_memory)


def _same_kind_of_device(remembered: Remembered, opening: Opening, home: Home) -> bool:
    if "dtype" not in remembered.record:
        return False
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


def _requests(drafts: Sequence[Draft], shelf: Shelf) -> list[Request]:
    """All requests, or an error that names every adapter that cannot be found."""
    missing: dict[str, None] = {}
    for draft in drafts:
        for error in shelf.missing(draft.wanted, draft.values.get("prompt")):
            missing[str(placed(error, draft.where))] = None
    if missing:
        raise AdapterFileError("\n".join(missing))
    return [draft.build(shelf.use, shelf.read_tags) for draft in drafts]


def _sheet(request: Request, model: str) -> Sheet:
    assert request.seed is not None
    return Sheet(request.seed, take_tags(request.prompt)[0], request.composer.name, model)


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


# -- the run ---------------------------------------------------------------------------------------------


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


def _drive(
    jobs: Sequence[Job],
    pipe: StudioPipeline,
    shelf: Shelf,
    args: Namespace,
    setup: Setup,
    teller: Teller,
    outcome: Outcome,
) -> None:
    """Submit all, save each picture as it comes; an interruption keeps those that are there."""
    session = Session(pipe.model)
    places: dict[int, int] = {}
    steps = 0
    for place, job in enumerate(jobs):
        try:
            resolved = job.request.resolved(pipe.model.facts)
            places[session.submit(resolved)] = place
        except StudioError as error:
            raise placed(error, job.where) from error
        steps += resolved.executed_steps
    began = time.monotonic()
    resolved_by_place: dict[int, Request] = {}
    previews: set[Path] = set()
    try:
        with teller.counting(steps, len(jobs), slow=is_slow(pipe)) as counter:
            while not session.idle:
                events = session.step()
                counter.steps(sum(isinstance(event, Stepped) for event in events))
                for event in events:
                    place = places[event.id]
                    if isinstance(event, Started):
                        resolved_by_place[place] = event.request
                    elif isinstance(event, Stepped) and args.preview and event.step < event.count:
                        _preview(event, jobs[place].file, previews)
                    elif isinstance(event, Finished):
                        request = resolved_by_place[place]
                        _save(place, jobs[place], event, request, shelf.files, setup, args, outcome, teller)
                    elif isinstance(event, Failed):
                        outcome.failed[place] = str(placed(event.error, jobs[place].where))
                        teller.error(outcome.failed[place])
    except KeyboardInterrupt:
        outcome.interrupted = True
    finally:
        for file in previews:
            file.unlink(missing_ok=True)
    _sum_up(jobs, outcome, time.monotonic() - began, teller)


def _preview(event: Stepped, file: Path, previews: set[Path]) -> None:
    if event.step % max(event.count // PREVIEWS, 1):
        return
    preview = file.with_name(f"{file.stem}.preview.png")
    image = event.preview()
    write_whole(preview, lambda path: image.save(path, format="PNG"), force=True)
    previews.add(preview)


def _save(
    place: int,
    job: Job,
    event: Finished,
    request: Request,
    adapters: Mapping[str, Path],
    setup: Setup,
    args: Namespace,
    outcome: Outcome,
    teller: Teller,
) -> None:
    assert isinstance(event.image, Image.Image)
    try:
        file = save_picture(
            event.image,
            job.file,
            request=request,
            record=event.record,
            adapters=adapters,
            setup=setup,
            force=args.force,
        )
    except StudioError as error:
        outcome.failed[place] = str(placed(error, job.where))
        teller.error(outcome.failed[place])
        return
    outcome.finished[place] = (file, event)
    if not args.json:
        print(file, flush=True)


def _sum_up(jobs: Sequence[Job], outcome: Outcome, seconds: float, teller: Teller) -> None:
    done = [event.record for _, event in outcome.finished.values()]
    count = f"{len(done)} picture{'' if len(done) == 1 else 's'}"
    if outcome.interrupted:
        teller.error(f"interrupted; {count} of {len(jobs)} finished and kept")
    elif done:
        seeds = sorted({record.seed for record in done})
        spelled = ", ".join(map(str, seeds)) if len(seeds) <= 4 else f"{seeds[0]} … {seeds[-1]}"
        calls = max(record.unet_calls for record in done)
        teller.say(
            f"{count} in {seconds:.1f} s, {calls} UNet calls, seed{'s' if len(seeds) > 1 else ''} {spelled}"
        )
        for note in dict.fromkeys(note for record in done for note in record.notes):
            teller.say(note)


def _results(jobs: Sequence[Job], outcome: Outcome) -> list[dict[str, Any]]:
    """What --json prints, in the order of the jobs."""
    results: list[dict[str, Any]] = []
    for place, _ in enumerate(jobs):
        if place in outcome.finished:
            file, event = outcome.finished[place]
            results.append({"file": str(file), "error": None, **event.record.to_dict()})
        else:
            results.append({"file": None, "error": outcome.failed.get(place, "interrupted")})
    if outcome.compared is not None and results:
        results[0]["compared"] = {"largest": outcome.compared.largest, "mean": outcome.compared.mean}
    return results
