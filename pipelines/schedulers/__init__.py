"""Schedulers by the names that people know, made from the model's own scheduler.

A name stands for a diffusers class and for the settings that make it what the name says. Everything else (betas,
prediction type, timestep spacing, zero terminal SNR) comes from the model's own scheduler. The table holds only what
runs without further packages. What needs torchsde or scipy is not offered, and the message says so.
"""

from pipelines.schedulers.making import (
    Scheduler,
    accepts_generator,
    calls_per_step,
    make_scheduler,
    name_of,
    set_steps,
    step_of_call,
)
from pipelines.schedulers.names import (
    MODEL_OWN,
    adds_noise,
    canonical,
    is_class,
    named,
    nearest,
    without_noise,
)
from pipelines.schedulers.table import SAMPLERS, Sampler, scheduler_names

__all__ = [
    "MODEL_OWN",
    "SAMPLERS",
    "Sampler",
    "Scheduler",
    "accepts_generator",
    "adds_noise",
    "calls_per_step",
    "canonical",
    "is_class",
    "make_scheduler",
    "name_of",
    "named",
    "nearest",
    "scheduler_names",
    "set_steps",
    "step_of_call",
    "without_noise",
]
