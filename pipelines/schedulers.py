"""Schedulers by the names that people know, made from the model's own scheduler.

A name stands for a diffusers class and for the settings that make it what the name says. Everything else (betas,
prediction type, timestep spacing, zero terminal SNR) comes from the model's own scheduler. The table holds only what
runs without further packages. What needs torchsde or scipy is not offered, and the message says so.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pipelines.errors import RequestError

if TYPE_CHECKING:
    import torch

Scheduler = Any  # diffusers' scheduler classes share no typed base

MODEL_OWN = "model"
"""The name of the scheduler that came with the model, as it is."""


@dataclass(frozen=True)
class Sampler:
    """One row of the table: a name, its diffusers class, and the settings that the name stands for.

    aliases: other names for the same, among them those of other programs.
    """

    name: str
    scheduler_class: str
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    aliases: tuple[str, ...] = ()


def _sigmas(spacing: str = "") -> dict[str, bool]:
    """All sigma spacings off but `spacing`. So none is inherited from the model's own scheduler."""
    return {f"use_{kind}_sigmas": kind == spacing for kind in ("karras", "exponential", "beta")}


_DPM: dict[str, Any] = {
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "solver_order": 2,
    "lower_order_final": True,
    "final_sigmas_type": "zero",
    "use_lu_lambdas": False,
    "use_flow_sigmas": False,
}
_SDE = _DPM | {"algorithm_type": "sde-dpmsolver++"}
_SDE3 = _SDE | {"solver_order": 3}
_EULER: dict[str, Any] = {"final_sigmas_type": "zero"}
_SINGLE = {key: value for key, value in _DPM.items() if key != "use_lu_lambdas"}
_UNIPC: dict[str, Any] = {"solver_type": "bh2", "solver_order": 2, "final_sigmas_type": "zero"}
_DEIS: dict[str, Any] = {"algorithm_type": "deis", "solver_type": "logrho"}
_PNDM = {"skip_prk_steps": True}
_NO_CLIP = {"clip_sample": False}

SAMPLERS: tuple[Sampler, ...] = (
    Sampler("Euler", "EulerDiscreteScheduler", _EULER | _sigmas(), ("k_euler",)),
    Sampler("Euler Karras", "EulerDiscreteScheduler", _EULER | _sigmas("karras")),
    Sampler(
        "Euler trailing",
        "EulerDiscreteScheduler",
        _EULER | _sigmas() | {"timestep_spacing": "trailing"},
        ("Euler SGM Uniform", "sgm_uniform"),
    ),
    Sampler("Euler a", "EulerAncestralDiscreteScheduler", {}, ("Euler ancestral", "k_euler_a")),
    Sampler("DDIM", "DDIMScheduler", _NO_CLIP),
    Sampler("DDPM", "DDPMScheduler", _NO_CLIP | {"variance_type": "fixed_small"}),
    Sampler(
        "DPM++ 2M", "DPMSolverMultistepScheduler", _DPM | _sigmas(), ("k_dpmpp_2m", "dpmpp_2m", "dpmsolver++")
    ),
    Sampler("DPM++ 2M Karras", "DPMSolverMultistepScheduler", _DPM | _sigmas("karras"), ("k_dpmpp_2m_ka",)),
    Sampler("DPM++ 2M SDE", "DPMSolverMultistepScheduler", _SDE | _sigmas(), ("dpmpp_2m_sde",)),
    Sampler("DPM++ 2M SDE Karras", "DPMSolverMultistepScheduler", _SDE | _sigmas("karras")),
    Sampler("DPM++ 3M SDE", "DPMSolverMultistepScheduler", _SDE3 | _sigmas()),
    Sampler("DPM++ 3M SDE Karras", "DPMSolverMultistepScheduler", _SDE3 | _sigmas("karras")),
    Sampler(
        "DPM++ 2S", "DPMSolverSinglestepScheduler", _SINGLE | _sigmas(), ("dpmpp_2s", "DPM++ single-step")
    ),
    Sampler("DPM++ 2S Karras", "DPMSolverSinglestepScheduler", _SINGLE | _sigmas("karras")),
    Sampler("DPM2", "KDPM2DiscreteScheduler", _sigmas(), ("KDPM2", "k_dpm_2", "dpm_2")),
    Sampler("DPM2 Karras", "KDPM2DiscreteScheduler", _sigmas("karras")),
    Sampler(
        "DPM2 a", "KDPM2AncestralDiscreteScheduler", _sigmas(), ("KDPM2 a", "k_dpm_2_a", "dpm_2_ancestral")
    ),
    Sampler("DPM2 a Karras", "KDPM2AncestralDiscreteScheduler", _sigmas("karras")),
    Sampler("Heun", "HeunDiscreteScheduler", _sigmas() | {"clip_sample": False}, ("k_heun",)),
    Sampler("Heun Karras", "HeunDiscreteScheduler", _sigmas("karras") | {"clip_sample": False}),
    Sampler("UniPC", "UniPCMultistepScheduler", _UNIPC | _sigmas(), ("uni_pc",)),
    Sampler("UniPC Karras", "UniPCMultistepScheduler", _UNIPC | _sigmas("karras")),
    Sampler("DEIS", "DEISMultistepScheduler", _DEIS | _sigmas()),
    Sampler("PNDM", "PNDMScheduler", _PNDM, ("PLMS",)),
    Sampler("LCM", "LCMScheduler", _NO_CLIP),
    Sampler("TCD", "TCDScheduler", _NO_CLIP),
)

NOT_OFFERED: Mapping[str, str] = MappingProxyType(
    {
        "lms": "it needs the package scipy; DPM++ 2M is a multistep method of the same cost",
        "lms karras": "it needs the package scipy; DPM++ 2M Karras is a multistep method of the same cost",
        "dpm++ sde": "it needs the package torchsde; DPM++ 2M SDE is the nearest",
        "dpm++ sde karras": "it needs the package torchsde; DPM++ 2M SDE Karras is the nearest",
        "dpm++ 2s a": "diffusers has no ancestral form of it; Euler a or DPM2 a are the nearest",
        "dpm++ 2s a karras": "diffusers has no ancestral form of it; DPM2 a Karras is the nearest",
        "dpm fast": "diffusers has no such solver; UniPC is made for few steps",
        "dpm adaptive": "diffusers has no such solver; DPM++ 2M Karras is the usual choice",
    }
)


def scheduler_names() -> tuple[str, ...]:
    """All names of the table, in the order in which fronts show them. Aliases and "model" are not among them."""
    return tuple(sampler.name for sampler in SAMPLERS)


def canonical(name: str) -> str:
    """The table's spelling of a name or an alias; "model", the model's own scheduler, stays as it is.

    Case, spaces, hyphens and underscores make no difference. Raises RequestError for a name that is not offered, with
    the reason, and for an unknown one, with near matches.
    """
    return MODEL_OWN if name.strip().lower() == MODEL_OWN else _sampler(name).name


def make_scheduler(name: str | None, model_scheduler: Scheduler) -> Scheduler:
    """A fresh scheduler for one trajectory. The model's own is never changed.

    name: as in `scheduler_names()`, or an alias; None or "model" gives a copy of the model's own. Raises RequestError
    as `canonical` does.
    """
    import diffusers

    if name is None or canonical(name) == MODEL_OWN:
        return _fresh(type(model_scheduler), dict(model_scheduler.config), {})
    sampler = _sampler(name)
    scheduler_class = getattr(diffusers, sampler.scheduler_class)
    accepted = inspect.signature(scheduler_class.__init__).parameters
    settings = {key: value for key, value in sampler.settings.items() if key in accepted}
    config = dict(model_scheduler.config)
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in accepted:
        settings["trained_betas"] = _zero_snr_betas(model_scheduler)
    return _fresh(scheduler_class, config, settings)


def _fresh(scheduler_class: Any, config: dict[str, Any], settings: dict[str, Any]) -> Scheduler:
    """A copy of a scheduler that is made once and kept, since diffusers' DPM2 takes half a second to make."""
    return copy.deepcopy(_made(pickle.dumps((scheduler_class, config, settings))))


@lru_cache(maxsize=32)
def _made(recipe: bytes) -> Scheduler:
    scheduler_class, config, settings = pickle.loads(recipe)
    return scheduler_class.from_config(config, **settings)


def name_of(scheduler: Scheduler) -> str:
    """The table's name for a scheduler; "model" where no name gives one with exactly the same settings."""
    for sampler in SAMPLERS:
        if sampler.scheduler_class == type(scheduler).__name__:
            twin = make_scheduler(sampler.name, scheduler)
            keys = inspect.signature(type(scheduler).__init__).parameters.keys() & scheduler.config.keys()
            if all(twin.config[key] == scheduler.config[key] for key in keys):
                return sampler.name
    return MODEL_OWN


def set_steps(
    scheduler: Scheduler, steps: int, device: str | torch.device = "cpu", *, skip: int = 0
) -> torch.Tensor:
    """Prepare a run of `steps` solver steps. Returns the timesteps of its UNet calls, [calls].

    skip: how many leading solver steps are left out (image-to-image). Raises RequestError where the scheduler cannot
    take that many steps, or so few.
    """
    most = int(scheduler.config.num_train_timesteps)
    if type(scheduler).__name__ in ("LCMScheduler", "TCDScheduler"):
        most = int(scheduler.config.original_inference_steps)
    fewest = (
        4 if _has_runge_kutta_start(scheduler) else 2 if type(scheduler).__name__ == "PNDMScheduler" else 1
    )
    if not fewest <= steps <= most:
        raise RequestError(
            f"{steps} steps: {_label(scheduler)} takes {fewest} to {most}; change the steps or the scheduler"
        )
    scheduler.set_timesteps(steps, device=device)
    if hasattr(scheduler, "set_begin_index"):  # else a first timestep that occurs twice starts at the second
        scheduler.set_begin_index(skip * scheduler.order)
    return scheduler.timesteps[skip * scheduler.order :]  # type: ignore[no-any-return]


def accepts_generator(scheduler: Scheduler) -> bool:
    """Whether the scheduler's `step` takes a generator, so that the trajectory's own can draw its noise."""
    return "generator" in inspect.signature(type(scheduler).step).parameters


def calls_per_step(scheduler: Scheduler) -> int:
    """UNet calls in one full solver step: 2 for Heun and DPM2, whose last step is one call; 1 for all others.

    PNDM makes more calls than it has steps; `step_of_call` says where.
    """
    return int(getattr(scheduler, "order", 1))


def step_of_call(scheduler: Scheduler, call: int) -> int:
    """The solver step that a UNet call of the run belongs to; 0 is the noisiest.

    Calls and steps count from 0, from the first that is really made. So with an initial image, the steps left out do
    not count. PNDM's second call evaluates the first step again. Where a model's own PNDM has a Runge-Kutta start, its
    first three steps make four calls each.
    """
    if type(scheduler).__name__ == "PNDMScheduler":
        if _has_runge_kutta_start(scheduler):
            return call // 4 if call < 12 else call - 9
        return max(call - 1, 0)
    return call // calls_per_step(scheduler)


def _has_runge_kutta_start(scheduler: Scheduler) -> bool:
    return type(scheduler).__name__ == "PNDMScheduler" and not scheduler.config.skip_prk_steps


def _label(scheduler: Scheduler) -> str:
    name = name_of(scheduler)
    return f"the model's own scheduler ({type(scheduler).__name__})" if name == MODEL_OWN else name


def _zero_snr_betas(model_scheduler: Scheduler) -> list[float]:
    """The model's betas rescaled to zero terminal SNR (Lin et al. 2023, arXiv 2305.08891), one for each train step.

    For classes that cannot rescale them. As in the classes that can, the last cumulative alpha is 2^-24 and not 0, so
    that no sigma is infinite.
    """
    import torch
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    plain = {"rescale_betas_zero_snr": False}
    betas = type(model_scheduler).from_config(model_scheduler.config, **plain).betas  # [train steps]
    cumulative = torch.cumprod(1 - rescale_zero_terminal_snr(betas).double(), dim=0)  # [train steps]
    cumulative[-1] = 2**-24
    before = torch.cat([cumulative.new_ones(1), cumulative[:-1]])  # [train steps]
    return [float(beta) for beta in 1 - cumulative / before]


def _key(name: str) -> str:
    """A name as the table is searched by it: in lower case, with single spaces for hyphens and underscores."""
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


@cache
def _by_key() -> Mapping[str, Sampler]:
    return MappingProxyType({_key(name): row for row in SAMPLERS for name in (row.name, *row.aliases)})


def _sampler(name: str) -> Sampler:
    table = _by_key()
    key = _key(name)
    if key in table:
        return table[key]
    if key in NOT_OFFERED:
        raise RequestError(f"scheduler {name!r} is not offered: {NOT_OFFERED[key]}")
    near = [table[match].name for match in difflib.get_close_matches(key, table, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(dict.fromkeys(near))}? " if near else ""
    raise RequestError(f"unknown scheduler {name!r}: {hint}One of: {', '.join(scheduler_names())}")
