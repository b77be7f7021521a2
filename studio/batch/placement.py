"""How many workers run on a Ray cluster, and what each of them gets. Pure, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.errors import SetupError

CPUS_A_WORKER = 4
"""CPU cores for each worker where there is no GPU and the number of workers is not given."""


@dataclass(frozen=True)
class Node:
    """One computer of the cluster: its free CPUs and GPUs."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class Share:
    """So many workers, each with so many GPUs and CPUs. threads: of torch in each worker; None leaves torch's
    default."""

    workers: int
    gpus: int
    cpus: int
    threads: int | None


def share_of(nodes: Sequence[Node], *, wanted: int | None, jobs: int, device: str | None) -> Share:
    """One worker for each GPU of the cluster, or, without GPUs, equal shares of the CPUs; never more workers than jobs.

    wanted: so many workers instead. device: "cpu…" ignores the GPUs, "cuda…" requires one. The computers have room for
    all workers at once, so that Ray can place them. Raises SetupError where the cluster has no GPU or CPU to work on.
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
