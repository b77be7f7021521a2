"""How many workers a Ray cluster gets, and what each one takes. Pure, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.errors import SetupError

CPUS_A_WORKER = 4
"""CPU cores of a worker where there is no GPU and nobody says how many workers to start."""


@dataclass(frozen=True)
class Node:
    """What one computer of the cluster offers."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class Share:
    """workers of so many GPUs and CPUs each; threads of torch (None leaves them alone)."""

    workers: int
    gpus: int
    cpus: int
    threads: int | None


def share_of(nodes: Sequence[Node], *, wanted: int | None, jobs: int, device: str | None) -> Share:
    """One worker for each GPU of the cluster, else equal shares of the CPUs; never more than there are jobs.

    wanted: so many instead. device: "cpu…" leaves the GPUs alone, "cuda…" insists on them. Every worker fits on some
    computer beside the others, so that Ray can place them all. Raises SetupError where there is nothing to place on.
    """
    gpus = sum(min(node.gpus, node.cpus) for node in nodes)
    cpus = sum(node.cpus for node in nodes)
    kind = (device or "auto").split(":")[0]
    if gpus and kind in ("auto", "cuda"):
        return Share(min(wanted or gpus, gpus, jobs), 1, 1, None)
    if kind == "cuda":
        raise SetupError("the Ray cluster has no GPU; leave --device out, or start its nodes with --num-gpus")
    if not cpus:
        raise SetupError("the Ray cluster has no CPUs to work on; start its nodes with --num-cpus")
    by_default = sum(max(node.cpus // CPUS_A_WORKER, 1) for node in nodes if node.cpus)
    workers = min(wanted or by_default, jobs, cpus)
    each = max(
        size for size in range(1, cpus // workers + 1) if sum(node.cpus // size for node in nodes) >= workers
    )
    return Share(workers, 0, each, each)
