"""`lora-studio plan`: how the engine would compute a mix on this device, and what the other ways would cost."""

from __future__ import annotations

import dataclasses
from argparse import ArgumentParser, Namespace
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from studio.commands import flags
from studio.commands.flags import Command
from studio.terminal.exits import OK

if TYPE_CHECKING:
    from pipelines.engine.planner import CallPlan, Rates
    from pipelines.home import Home
    from studio.drafts.flags import Asked
    from studio.rendering.opening import Opening
    from studio.terminal.progress import Teller


@dataclass(frozen=True)
class PlanValues:
    """The pictures whose UNet calls are planned, and the model that would draw them."""

    asked: Asked
    opening: Opening
    as_json: bool = False


def add(command: ArgumentParser) -> None:
    """The flags of `render`, without those of its output."""
    flags.picture_flags(command)
    flags.source_flags(command)
    flags.machine_flags(command)
    command.add_argument("--json", action="store_true", help="print JSON")


def read(args: Namespace) -> PlanValues:
    """Raises RequestError."""
    asked = dataclasses.replace(flags.read_asked(args), requests=flags.path(args.requests))
    return PlanValues(asked, flags.read_opening(args), args.json)


def run(values: PlanValues, home: Home, teller: Teller) -> int:
    """Prints the plan; the exit code is 0. Raises StudioError."""
    import json

    from studio.drafts.draft import Draft
    from studio.drafts.flags import drafts_of, first_example
    from studio.drafts.shelf import Shelf, requests_of
    from studio.rendering.opening import model_name, open_pipeline

    name = model_name(values.opening, home)
    entry = home.find_model(name)
    drafts = drafts_of(values.asked, Draft(), lambda: first_example(name, entry))
    shelf = Shelf(home, entry.name if entry else None)
    requests = requests_of(drafts, shelf)
    with teller.waiting(f"loading {name} …"):
        pipe = open_pipeline(values.opening, home, teller.say)
        shelf.load(pipe)
    rates = pipe.calibrate()
    plans = pipe.plan(requests)
    if values.as_json:
        print(json.dumps({"rates": asdict(rates), "calls": [asdict(plan) for plan in plans]}, indent=2))
        return OK
    print(spell_rates(rates))
    for plan in plans:
        print(spell(plan))
    return OK


def spell_rates(rates: Rates) -> str:
    return (
        f"this device: {rates.gemm / 1e12:.3g} TFLOP/s in large products, {rates.low_rank / 1e12:.3g} in narrow ones, "
        f"{rates.bandwidth / 1e9:.3g} GB/s copied, {rates.launch * 1e6:.3g} µs a kernel"
    )


def spell(plan: CallPlan) -> str:
    """A table: what each form adds to a step, what it costs once for each mix, and its memory."""
    lines = [
        f"{plan.width} x {plan.height}: {plan.pictures} pictures, {plan.rows} rows a step, "
        f"mixes that stay for {plan.steady} steps",
    ]
    if plan.note:
        lines.append(f"  {plan.note}")
    if not plan.kinds:
        return "\n".join(lines if plan.note else [*lines, "  no adapter changes the UNet"])
    lines.append(f"  {'layers':18}{'form':14}{'rank':>6}{'ms a step':>11}{'ms a mix':>10}{'MiB':>9}")
    for kind in plan.kinds:
        for estimate in kind.estimates:
            rank = {"pool": str(kind.ranks.pool), "lane-packed": str(kind.ranks.lane)}.get(estimate.form, "")
            chosen = "  <- chosen" if estimate.form == kind.chosen else ""
            lines.append(
                f"  {f'{kind.layers} {kind.ranks.kind}':18}{estimate.form:14}{rank:>6}{1000 * estimate.step:11.3f}"
                f"{1000 * estimate.once:10.2f}{estimate.bytes / 2**20:9.1f}{chosen}"
            )
    return "\n".join(lines)


COMMANDS = (
    Command(
        "plan",
        place=20,
        help="say how the engine would run a mix on this device",
        description="Show what each way to compute the adapters would add to a step, and which one is taken.",
        add=add,
        read=read,
        run=run,
    ),
)
