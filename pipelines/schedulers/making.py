"""Makes schedulers, prepares their steps and counts their UNet calls."""

from __future__ import annotations

import copy
import inspect
import pickle
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pipelines.errors import RequestError
from pipelines.schedulers.names import MODEL_OWN, canonical, row_of
from pipelines.schedulers.table import SAMPLERS

if TYPE_CHECKING:
    import torch

Scheduler = Any  # diffusers' scheduler classes share no typed base


def make_scheduler(name: str | None, model_scheduler: Scheduler) -> Scheduler:
    """A fresh scheduler for one trajectory. The model's own is never changed.

    name: as in `scheduler_names()`, or an alias; None or "model" gives a copy of the model's own. Raises RequestError
    as `canonical` does.
    """
    import diffusers

    if name is None or canonical(name) == MODEL_OWN:
        return _fresh(type(model_scheduler), dict(model_scheduler.config), {})
    sampler = row_of(name)
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
    _drop_step_too_many(scheduler, steps)
    if hasattr(scheduler, "set_begin_index"):  # else a first timestep that occurs twice starts at the second
        scheduler.set_begin_index(skip * scheduler.order)
    return scheduler.timesteps[skip * scheduler.order :]  # type: ignore[no-any-return]


def _drop_step_too_many(scheduler: Scheduler, steps: int) -> None:
    """Takes the last step away where diffusers' trailing spacing makes one more than asked, at timestep -1: with 61
    steps, for example, its numbers run over by rounding. Raises RequestError for DPM2, whose levels are interleaved."""
    if scheduler.config.get("timestep_spacing") != "trailing" or scheduler.timesteps[-1] >= 0:
        return
    if type(scheduler).__name__.startswith("KDPM2"):
        raise RequestError(
            f"{steps} steps: {_label(scheduler)} cannot space them; take one step more or less"
        )
    import torch

    calls = calls_per_step(scheduler)
    scheduler.timesteps = scheduler.timesteps[:-calls]
    scheduler.num_inference_steps = steps
    levels = getattr(scheduler, "sigmas", None)
    if levels is not None and len(levels) > len(scheduler.timesteps) + 1:  # DDIM has no levels of one run
        scheduler.sigmas = torch.cat([levels[: -1 - calls], levels[-1:]])


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
