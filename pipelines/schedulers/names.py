"""What samplers are called: by A1111 and Forge, ComfyUI, InvokeAI, SwarmUI, Fooocus, SD.Next, Draw Things and by us.

Most programs give a solver and a spacing of noise levels, apart or in one name: "DPM++ 2M" and "Karras",
`dpmpp_2m_sde_gpu` and `karras`, `dpmpp_2m_k`, "DPM++ 2M SDE Karras". All of them are read here, and nowhere else. What
is known but not offered is refused with the nearest name that is.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from types import MappingProxyType

from composers.shown import shown
from pipelines.errors import RequestError
from pipelines.schedulers.table import (
    EXPONENTIAL,
    KARRAS,
    SAMPLERS,
    SOLVERS,
    TRAILING,
    Sampler,
    scheduler_names,
)

MODEL_OWN = "model"
"""The name of the scheduler that came with the model, as it is."""
LONGEST = 200
"""Most characters of a name that is looked up."""

_OWN = "", "automatic", "default", "normal", "uniform", "discrete", "ddim uniform", "ddim", "native", "none"
_UNSAID = "", "default", "undefined"
"""What stands for a solver that is not named."""
_SPACINGS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(_OWN, ""),
        **dict.fromkeys(("karras", "k", "ka"), KARRAS),
        **dict.fromkeys(("exponential", "exp"), EXPONENTIAL),
        **dict.fromkeys(("trailing", "sgm uniform", "sgmuniform", "simple"), TRAILING),
    }
)
"""A spacing's words -> ours. "" is the model's own."""

AUTOMATIC: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("DPM++ 2M", "DPM2", "DPM2 a"), KARRAS),
        **dict.fromkeys(("DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 3M SDE"), EXPONENTIAL),
    }
)
"""What A1111 from 1.9 on, and Forge, take for the spacing "Automatic", where that is not the solver's plain one."""

_SCIPY = "its spacing needs the package scipy"
_NONE = "diffusers has no such spacing"
_OTHER_SPACINGS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(("beta", "beta57"), (_SCIPY, TRAILING)),
        **dict.fromkeys(
            ("ays", "ays sd1", "ays sdxl", "ays svd", "ays 11", "ays 30", "ays 32", "align your steps",
             "alignyoursteps", "align your steps gits", "align your steps 11", "align your steps 32", "gits",
             "kl optimal", "kloptimal", "karras exponential", "karras dynamic", "laplace", "edm playground v2.5"),
            (_NONE, KARRAS),
        ),
        **dict.fromkeys(("polyexponential", "cosine exponential blend", "phi"), (_NONE, EXPONENTIAL)),
        **dict.fromkeys(
            ("linear quadratic", "turbo", "lcm", "tcd", "cosine", "smoothstep", "bong tangent", "custom", "ltxv",
             "flux2"),
            (_NONE, TRAILING),
        ),
    }
)  # fmt: skip
"""A spacing that is not offered -> why, and the nearest."""

_NO_CLASS = "diffusers has no such solver"
_DIFFERENT = "diffusers' solver of this name takes other steps"
NOT_OFFERED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(
            ("lms", "lmsd", "lmsdiscrete", "lmsdiscretescheduler"), ("it needs the package scipy", "DPM++ 2M")
        ),
        **dict.fromkeys(
            ("dpm++ sde", "dpm sde", "dpmsolversde", "dpmsolversdescheduler"),
            ("it needs the package torchsde", "DPM++ 2M SDE"),
        ),
        **dict.fromkeys(
            ("dpm++ 2s a", "dpm++ 2s ancestral", "dpm++ 2 a"),
            ("diffusers has no ancestral form of it", "DPM2 a"),
        ),
        **dict.fromkeys(("dpm fast",), (_NO_CLASS, "UniPC")),
        **dict.fromkeys(("dpm adaptive", "dpm ad"), (_NO_CLASS, "DPM++ 2M Karras")),
        **dict.fromkeys(
            ("restart", "heunpp2", "heun++", "heun++ 2", "exp heun 2 x0", "res 2s", "res 3s"),
            (_NO_CLASS, "Heun"),
        ),
        **dict.fromkeys(
            ("res multistep", "res 2m", "res 3m", "dpm++ 2m v2", "dpm++ 2mv2", "dpm++ 2m alt", "dc solver"),
            (_NO_CLASS, "DPM++ 2M"),
        ),
        **dict.fromkeys(
            ("res multistep ancestral", "res multistep a", "euler a substep"), (_NO_CLASS, "Euler a")
        ),
        **dict.fromkeys(
            ("er sde", "seeds 2", "exp heun 2 x0 sde", "dpm++ sde substep"), (_NO_CLASS, "DPM++ 2M SDE")
        ),
        **dict.fromkeys(("seeds 3",), (_NO_CLASS, "DPM++ 3M SDE")),
        **dict.fromkeys(
            ("sa solver", "sa solver pece", "sasolver", "sasolverscheduler"), (_DIFFERENT, "DPM++ 2M SDE")
        ),
        **dict.fromkeys(("ipndm", "ipndm v", "ipndmscheduler"), (_DIFFERENT, "PNDM")),
        **dict.fromkeys(("gradient estimation", "euler dy", "euler smea dy"), (_NO_CLASS, "Euler")),
        **dict.fromkeys(("kohaku lonyu yog",), (_NO_CLASS, "Euler a")),
        **dict.fromkeys(
            ("dpmsolver", "dpm solver", "dpm solver stability"), ("only DPM-Solver++ is offered", "DPM++ 2M")
        ),
        **dict.fromkeys(("karrasdpm",), ("say which solver", "DPM++ 2M Karras")),
        **dict.fromkeys(
            ("flowmatcheulerdiscrete", "flowmatcheulerdiscretescheduler"), ("it is for flow models", "Euler")
        ),
        **dict.fromkeys(
            ("edmeuler", "edmeulerscheduler", "edmdpmsolvermultistep", "edmdpmsolvermultistepscheduler"),
            ("it is for EDM models", "DPM++ 2M Karras"),
        ),
        **dict.fromkeys(
            ("dpm++ 2m sde heun karras", "dpm++ 2m sde heun ka"),
            ("with these levels it is too coarse for models of zero terminal SNR", "DPM++ 2M SDE Karras"),
        ),
        **dict.fromkeys(("dpm++ 3m",), ("only its SDE form is offered", "DPM++ 3M SDE")),
    }
)
"""A solver that is not offered -> why, and the nearest name."""
_OWN_STEPS = "LCM", "TCD"
"""Solvers that take every spacing that starts at the full noise from their own training."""


@dataclass(frozen=True)
class _Refusal:
    """Why a name is not offered, and the nearest that is."""

    reason: str
    nearest: Sampler


def canonical(name: str) -> str:
    """The table's spelling of a name or an alias; "model", the model's own scheduler, stays as it is.

    Case, spaces, hyphens and underscores make no difference. Raises RequestError for a name that is not offered, with
    the reason and the nearest that is, and for an unknown one, with near matches.
    """
    found = _found(_key(name)) if len(name) <= LONGEST else None
    if isinstance(found, _Refusal):
        raise RequestError(
            f"scheduler {shown(name)} is not offered: {found.reason}; {found.nearest.name} is the nearest"
        )
    if found is None:
        raise RequestError(
            f"unknown scheduler {shown(name)}: {_hint(name)}One of: {', '.join(scheduler_names())}"
        )
    return found if isinstance(found, str) else found.name


def named(solver: str, spacing: str = "") -> str:
    """The table's name for a solver and a spacing that another program gives apart, in its words.

    Where the table has none, both as they were written, as one name: `canonical` then tells why. So nothing is raised.
    A spacing that stands for the solver's own is left out there.
    spacing: "" for none; where the solver's name holds it already, it is said once.
    """
    solver, spacing = solver.strip(), spacing.strip()
    if is_class(spacing):  # SD.Next's second name of the same solver
        solver = spacing if solver.lower() in _UNSAID else solver
        spacing = ""
    told = (_key(solver)[:LONGEST], _key(spacing)[:LONGEST])
    both = solver if not told[1] or f" {told[0]}".endswith(f" {told[1]}") else f"{solver} {spacing}"
    try:
        return canonical(both)
    except RequestError:
        return solver if solver and _SPACINGS.get(told[1]) == "" else both


def is_class(name: str) -> bool:
    """Whether it is the name of a scheduler's class of diffusers, as "EulerDiscreteScheduler"."""
    return re.fullmatch(r"\w{1,100}Scheduler", name.strip()) is not None


def nearest(name: str) -> str | None:
    """The nearest name that is offered, for one that is known and not offered; else None."""
    found = _found(_key(name)) if len(name) <= LONGEST else None
    return found.nearest.name if isinstance(found, _Refusal) else None


def adds_noise(name: str) -> bool:
    """Whether the steps of a name's sampler add fresh noise; False for the model's own. Raises RequestError as
    `canonical` does."""
    return canonical(name) != MODEL_OWN and row_of(name).adds_noise


def without_noise(name: str) -> str | None:
    """The name of the sampler that takes the same steps and adds no noise: what others get with `eta` 0. None where
    none is offered. Raises RequestError as `canonical` does."""
    row = row_of(name)
    if not row.adds_noise:
        return row.name
    plain = next(solver.without_noise for solver in SOLVERS if solver.name == row.solver)
    spaced = _by_name().get(f"{plain} {row.spacing}".strip()) if plain else None
    return None if spaced is None else spaced.name


def row_of(name: str) -> Sampler:
    """The row of a name or an alias. Raises RequestError as `canonical` does."""
    return _by_name()[canonical(name)]


@lru_cache(maxsize=1024)
def _found(key: str) -> Sampler | _Refusal | str | None:
    """What a name means: a row, "model", why it is not offered, or None where it is unknown."""
    if key in (MODEL_OWN, "default"):  # SD.Next's name of it
        return MODEL_OWN
    if key in _by_key():
        return _by_key()[key]
    if key in NOT_OFFERED:
        reason, nearest = NOT_OFFERED[key]
        return _Refusal(reason, _by_name()[nearest])
    if key.startswith("k ") or key.endswith(" gpu"):
        return _found(key.removeprefix("k ").removesuffix(" gpu"))
    if "/" in key:  # a group of solvers stands before the name: exponential/res_2s
        return _found(key.rpartition("/")[2].strip())
    if "cfg++" in key.split():
        base = _found(" ".join(word for word in key.split() if word != "cfg++"))
        nearest_row = base.nearest if isinstance(base, _Refusal) else base
        return (
            _Refusal("CFG++ changes the guidance, not only the steps", nearest_row)
            if isinstance(nearest_row, Sampler)
            else None
        )
    for words in _endings():
        if key.endswith(f" {words}"):
            base = _found(key[: -len(words) - 1])
            found = _with_spacing(base, words)
            if found is not None:
                return found
    if "/" in key:  # RES4LYF writes a family of solvers before it
        return _found(key.rpartition("/")[2])
    before, _, last = key.rpartition(" ")
    base = _found(before) if before else None
    near = base.nearest if isinstance(base, _Refusal) else base
    return _Refusal(f"{shown(last)} in it is unknown", near) if isinstance(near, Sampler) else None


def _with_spacing(base: Sampler | _Refusal | str | None, words: str) -> Sampler | _Refusal | str | None:
    """What a solver means with a spacing's words after it; None where it is unknown, or has another spacing already."""
    if base is None or isinstance(base, str):
        return base if _SPACINGS.get(words) == "" else None
    if words in _OTHER_SPACINGS:
        reason, nearest = _OTHER_SPACINGS[words]
        row = base.nearest if isinstance(base, _Refusal) else base
        return _Refusal(base.reason if isinstance(base, _Refusal) else reason, _spaced(row, nearest) or row)
    spacing = _SPACINGS[words]
    if words == "automatic" and isinstance(base, Sampler) and not base.spacing:
        return _spaced(base, AUTOMATIC.get(base.solver, "")) or base
    if isinstance(base, _Refusal):
        return _Refusal(base.reason, _spaced(base.nearest, spacing) or base.nearest)
    if spacing in ("", base.spacing):
        return base
    if base.spacing:
        return None
    if found := _spaced(base, spacing):
        return found
    if spacing == TRAILING and base.solver in _OWN_STEPS:
        return base
    nearest_row = _spaced(base, KARRAS) if spacing == EXPONENTIAL else None
    return _Refusal(f"diffusers' {base.solver} has no such spacing", nearest_row or base)


def _spaced(row: Sampler, spacing: str) -> Sampler | None:
    """The row of the same solver with a spacing; None where there is none."""
    return _by_name().get(f"{row.solver} {spacing}".strip())


def _hint(name: str) -> str:
    table = _by_key()
    near = [
        table[match].name for match in difflib.get_close_matches(_key(name)[:100], table, n=3, cutoff=0.5)
    ]
    return f"did you mean {' or '.join(dict.fromkeys(near))}? " if near else ""


def _key(name: str) -> str:
    """A name as the table is searched by it: in lower case, with single spaces for hyphens and underscores, and "++"
    for ComfyUI's "pp"."""
    plain = (
        name.lower().replace("_", " ").replace("-", " ").replace("dpmpp", "dpm++").replace("cfg pp", "cfg++")
    )
    return " ".join(re.sub(r"(?<=dpm\+\+)(?=\w)", " ", plain).split())


@cache
def _by_key() -> Mapping[str, Sampler]:
    own = {_key(name): row for row in SAMPLERS for name in (row.name, *row.aliases)}
    classes = {_key(row.scheduler_class): row for row in reversed(SAMPLERS) if not row.spacing}
    short = {name.removesuffix("scheduler"): row for name, row in classes.items()}
    without_k = {name.removeprefix("k "): row for name, row in own.items()}
    return MappingProxyType(classes | short | without_k | own)


@cache
def _by_name() -> Mapping[str, Sampler]:
    return MappingProxyType({row.name: row for row in SAMPLERS})


@cache
def _endings() -> tuple[str, ...]:
    """The words of all spacings, the longest first: so "ddim uniform" is not read as "uniform"."""
    return tuple(sorted(filter(None, (*_SPACINGS, *_OTHER_SPACINGS)), key=len, reverse=True))
