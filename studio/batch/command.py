"""`lora-studio batch`: flags in, a folder of pictures and its manifest out."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import RequestError, SetupError
from pipelines.home import Home
from studio.batch.manifest import Outcome
from studio.batch.plan import TEMPLATE
from studio.batch.progress import metered, spell_pace
from studio.batch.run import Batch, Order
from studio.batch.schema import schema
from studio.drafts.plain import check_plain
from studio.rendering.opening import opening_of
from studio.terminal.interruption import noted
from studio.terminal.progress import Teller, duration

TEXTS = ("prompt", "negative_prompt", "name", "model")
"""Fields whose value is taken as it stands."""


def run(args: Namespace, home: Home, teller: Teller) -> int:
    """The exit code: 0 all done, 1 some failed, 130 interrupted. Raises StudioError for bad input (2)."""
    if args.schema:
        print(json.dumps(schema(), indent=2, ensure_ascii=False))
        return 0
    if args.jobs is None:
        raise RequestError("say which job file to render, as in lora-studio batch jobs.yaml --out pictures")
    if args.out is None and not args.check:
        raise RequestError("say where the pictures go, as in --out pictures")
    if args.engine == "local" and (args.address or args.workers):
        raise RequestError("--address and --workers are for --engine ray; give that too")
    if args.workers is not None and args.workers < 1:
        raise RequestError(f"--workers {args.workers} must be at least 1")
    order = Order(
        jobs=Path(args.jobs),
        out=Path(args.out or "."),
        opening=opening_of(args),
        overrides=dict(_override(text) for text in args.overrides),
        wildcards=None if args.wildcards is None else _folder(args.wildcards),
        template=args.name or TEMPLATE,
        retry_failed=args.retry_failed,
        force=args.force,
        engine=args.engine,
        address=args.address,
        workers=args.workers,
        check_only=args.check,
    )
    with Batch(order, home, teller.say) as batch:
        if args.check:
            teller.say(f"{len(batch.jobs)} pictures, no mistakes")
            return 0
        return render(batch, teller, as_json=args.json)


def render(
    batch: Batch,
    teller: Teller,
    *,
    as_json: bool,
    files: bool = True,
    tell: Callable[[Outcome], None] = lambda outcome: None,
) -> int:
    """Renders what is missing, telling of it; the exit code. files: print their names."""
    if batch.earlier:
        teller.say(f"{len(batch.earlier)} of {len(batch.jobs)} pictures are there already")
    failed = [outcome for outcome in batch.earlier if outcome.failed]
    with metered(teller, batch.pending) as meter, noted(at_once=True) as stopped:
        try:
            for outcome in batch.run():
                meter.count(outcome, batch.fill)
                if outcome.failed:
                    failed.append(outcome)
                tell(outcome)
                _print(outcome, as_json, files)
                if stopped:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            teller.error(f"interrupted; {meter.done} pictures are kept. The same command goes on from here")
            return 130
        seconds = meter.seconds
    done = meter.done - meter.failed
    if done:
        filled = (
            "" if batch.fill.busy is None else f", calls {batch.fill.busy:.0%} full while work was waiting"
        )
        pace = spell_pace(done / max(seconds, 1e-3))
        teller.say(f"{done} picture{'' if done == 1 else 's'} in {duration(seconds)}, {pace}{filled}")
        if batch.ray is not None:
            places = sorted(batch.ray.made.items())
            teller.say("made by " + ", ".join(f"{place}: {count}" for place, count in places))
    _name_failed(failed, batch.order.retry_failed, teller)
    return 1 if failed else 0


def _print(outcome: Outcome, as_json: bool, files: bool) -> None:
    if as_json:
        plain = {
            "index": outcome.job.index,
            "name": outcome.job.name,
            "key": outcome.job.key,
            "file": None if outcome.file is None else str(outcome.file),
            "error": outcome.error,
            "record": outcome.record,
        }
        print(json.dumps(plain, ensure_ascii=False), flush=True)
    elif files and outcome.file is not None:
        print(outcome.file, flush=True)


def _name_failed(failed: list[Outcome], retried: bool, teller: Teller) -> None:
    if not failed:
        return
    remedy = "" if retried else "; --retry-failed renders them again"
    teller.error(f"{len(failed)} of the jobs failed{remedy}")
    for outcome in sorted(failed, key=lambda outcome: outcome.job.index):
        teller.error(f"  {outcome.job.where} ({outcome.job.name}): {outcome.error}")


def _override(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not value.strip():
        raise RequestError(f"--set {text}: write FIELD=VALUE, as in --set steps=8")
    name = name.strip()
    if name in TEXTS:
        return name, value
    try:
        content = yaml.safe_load(value)
        check_plain(content, f"--set {name}", longest=len(value))
        return name, content
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(
            f"--set {text}: the value cannot be read; check its brackets and quotes"
        ) from error


def _folder(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_dir():
        raise SetupError(f"the wildcard folder {path} does not exist; check the path")
    return path
