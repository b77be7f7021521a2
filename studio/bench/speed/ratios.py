"""What must hold on every machine: ratios to the rivals on the built-in model, checked in CI."""

from __future__ import annotations

from studio.bench.speed import report
from studio.bench.speed.bed import Bed, Machine
from studio.bench.speed.run import Bench, Budget, Measured
from studio.bench.speed.ways import SpeedWay
from studio.bench.speed.workload import Workload
from studio.terminal.progress import Teller

MODEL = "tiny-sdxl"
WORK = Workload(cells=8, images=8, members=3, rank=4, pool=5)
"""64 x 64 pixels; overlapping mixes of 3 of 5 adapters."""
STUDIO = SpeedWay("studio", "eager", "auto")
LEAST = {
    SpeedWay("peft set_adapters", "eager"): 3.0,
    SpeedWay("fused", "eager"): 2.0,
    SpeedWay("base", "eager"): 1 / 1.35,
}
"""Way -> the smallest allowed ratio of its time to the studio's."""
MOST_DIFFERENCE = 1e-5
"""Largest allowed relative difference from weights merged for each picture, in float32."""
TRIES = 3


def run(machine: Machine, budget: Budget, repeats: int, teller: Teller) -> int:
    """Measures until the ratios hold, three times at most. Exit code: 1 if they do not hold."""
    bench = Bench(Bed(MODEL, machine.unet(MODEL), WORK.layers, WORK.rank), budget, teller.say)
    for _ in range(TRIES):
        measured = bench.measure(WORK, [STUDIO, *LEAST], repeats)
        print(report.table(measured))
        broken = broken_ratios(measured)
        if not broken:
            return 0
    for ratio in broken:
        teller.error(ratio)
    return 1


def broken_ratios(measured: Measured) -> list[str]:
    """The ratios that do not hold, in words."""
    timings = {outcome.way: outcome.timing for outcome in measured.outcomes}
    studio = timings[STUDIO]
    assert studio is not None
    broken = []
    for way, least in LEAST.items():
        rival = timings[way]
        assert rival is not None
        ratio = rival.median / studio.median
        if ratio < least:
            broken.append(
                f"{way.label}: {ratio:.2f} times the studio's time, which must be {least:.2f} or more"
            )
    difference = next(outcome.difference for outcome in measured.outcomes if outcome.way == STUDIO)
    if measured.dtype == "float32" and not (difference is not None and difference < MOST_DIFFERENCE):
        broken.append(f"difference to merged weights {difference}, which must be below {MOST_DIFFERENCE:g}")
    return broken
