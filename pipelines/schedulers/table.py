"""The samplers: each solver with its diffusers class, its settings, its names in other programs, and its spacings.

A solver is offered with a spacing only where the class then takes the noise levels that other programs take. So Karras
and Exponential go over the model's whole range in the DPM, UniPC and DEIS classes, but over the range of the spaced
timesteps in the others; Exponential is left out there. "trailing" is what others call SGM Uniform and Simple: its
timesteps differ from theirs by less than 1.5 of 1000.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

KARRAS, EXPONENTIAL, TRAILING = "Karras", "Exponential", "trailing"
SIGMAS = {KARRAS: "karras", EXPONENTIAL: "exponential"}
"""Spacing -> the kind in diffusers' `use_…_sigmas`."""


@dataclass(frozen=True)
class Sampler:
    """One row of the table: a name, its diffusers class, and the settings that the name stands for.

    aliases: other names for the same, among them those of other programs. solver, spacing: what the name consists of;
    spacing "" is the model's own. adds_noise: whether its steps add fresh noise.
    """

    name: str
    scheduler_class: str
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    aliases: tuple[str, ...] = ()
    solver: str = ""
    spacing: str = ""
    adds_noise: bool = False


@dataclass(frozen=True)
class Solver:
    """A solver, and the rows that it stands for: one for each spacing. own_names: aliases of a row, by its spacing.
    adds_noise: as in its rows. without_noise: the solver that takes the same steps and adds none, "" where none is
    offered."""

    name: str
    scheduler_class: str
    settings: Mapping[str, Any]
    spacings: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    own_names: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    adds_noise: bool = False
    without_noise: str = ""

    def rows(self) -> tuple[Sampler, ...]:
        """The plain row first."""
        return tuple(self._row(spacing) for spacing in ("", *self.spacings))

    def _row(self, spacing: str) -> Sampler:
        settings = dict(self.settings)
        if set(self.spacings) & SIGMAS.keys():  # none is inherited from the model's own scheduler
            kinds = ("karras", "exponential", "beta")
            settings |= {f"use_{kind}_sigmas": kind == SIGMAS.get(spacing) for kind in kinds}
        if spacing == TRAILING:
            settings["timestep_spacing"] = "trailing"
        name = f"{self.name} {spacing}" if spacing else self.name
        aliases = self.own_names.get(spacing, ()) if spacing else self.aliases
        return Sampler(
            name, self.scheduler_class, settings, aliases, self.name, spacing, adds_noise=self.adds_noise
        )


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
_SDE_HEUN = _SDE | {"solver_type": "heun"}
_SDE3 = _SDE | {"solver_order": 3}
_EULER: dict[str, Any] = {"final_sigmas_type": "zero"}
_SINGLE = {key: value for key, value in _DPM.items() if key != "use_lu_lambdas"}
_UNIPC: dict[str, Any] = {"solver_type": "bh2", "solver_order": 2, "final_sigmas_type": "zero"}
_DEIS: dict[str, Any] = {"algorithm_type": "deis", "solver_type": "logrho"}
_NO_CLIP: dict[str, Any] = {"clip_sample": False}
_MULTISTEP = "DPMSolverMultistepScheduler"
_ALL = (KARRAS, EXPONENTIAL, TRAILING)
_SGM = "Euler SGM Uniform", "sgm_uniform"

SOLVERS: tuple[Solver, ...] = (
    Solver(
        "Euler",
        "EulerDiscreteScheduler",
        _EULER,
        (KARRAS, TRAILING),
        ("k_euler",),
        {KARRAS: ("euler_k", "k_euler_ka"), TRAILING: _SGM},
    ),
    Solver(
        "Euler a",
        "EulerAncestralDiscreteScheduler",
        {},
        (TRAILING,),
        ("Euler ancestral", "EulerA", "EulerAncestral", "k_euler_a", "k_euler_ancestral"),
        {TRAILING: ("Euler a SGM Uniform",)},
        adds_noise=True,
        without_noise="Euler",
    ),
    Solver("DDIM", "DDIMScheduler", _NO_CLIP, (TRAILING,), (), {TRAILING: ("DDIM SGM Uniform",)}),
    Solver("DDPM", "DDPMScheduler", _NO_CLIP | {"variance_type": "fixed_small"}, adds_noise=True),
    Solver(
        "DPM++ 2M",
        _MULTISTEP,
        _DPM,
        _ALL,
        ("k_dpmpp_2m", "dpmpp_2m", "k_dpmpp_2", "dpmsolver++", "DPM Solver++"),
        {KARRAS: ("k_dpmpp_2m_ka", "dpmpp_2m_k"), TRAILING: ("DPM++ 2M SGM Uniform",)},
    ),
    Solver(
        "DPM++ 2M SDE",
        _MULTISTEP,
        _SDE,
        _ALL,
        ("dpmpp_2m_sde", "k_dpmpp_2m_sde", "dpmpp_2m_sde_gpu"),
        {KARRAS: ("k_dpmpp_2m_sde_ka", "dpmpp_2m_sde_k"), EXPONENTIAL: ("k_dpmpp_2m_sde_exp",)},
        adds_noise=True,
        without_noise="DPM++ 2M",
    ),
    Solver(
        "DPM++ 2M SDE Heun",
        _MULTISTEP,
        _SDE_HEUN,
        (EXPONENTIAL, TRAILING),
        ("k_dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu"),
        {EXPONENTIAL: ("k_dpmpp_2m_sde_heun_exp",)},
        adds_noise=True,
    ),
    Solver(
        "DPM++ 3M SDE",
        _MULTISTEP,
        _SDE3,
        _ALL,
        ("dpmpp_3m_sde", "k_dpmpp_3m_sde", "dpmpp_3m_sde_gpu"),
        {KARRAS: ("k_dpmpp_3m_sde_ka",), EXPONENTIAL: ("k_dpmpp_3m_sde_exp",)},
        adds_noise=True,
    ),
    Solver(
        "DPM++ 2S",
        "DPMSolverSinglestepScheduler",
        _SINGLE,
        (KARRAS, EXPONENTIAL),
        ("dpmpp_2s", "DPM++ single-step"),
        {KARRAS: ("dpmpp_2s_k",)},
    ),
    Solver(
        "DPM2",
        "KDPM2DiscreteScheduler",
        {},
        (KARRAS,),
        ("KDPM2", "kdpm_2", "k_dpm_2", "dpm_2"),
        {KARRAS: ("kdpm_2_k", "k_dpm_2_ka")},
    ),
    Solver(
        "DPM2 a",
        "KDPM2AncestralDiscreteScheduler",
        {},
        (KARRAS,),
        (
            "KDPM2 a",
            "kdpm_2_a",
            "k_dpm_2_a",
            "k_dpm_2_ancestral",
            "dpm_2_ancestral",
            "DPM2 ancestral",
            "KDPM2 ancestral",
        ),
        {KARRAS: ("kdpm_2_a_k", "k_dpm_2_a_ka")},
        adds_noise=True,
        without_noise="DPM2",
    ),
    Solver(
        "Heun",
        "HeunDiscreteScheduler",
        _NO_CLIP,
        (KARRAS, TRAILING),
        ("k_heun",),
        {KARRAS: ("heun_k",), TRAILING: ("Heun SGM Uniform",)},
    ),
    Solver(
        "UniPC",
        "UniPCMultistepScheduler",
        _UNIPC,
        _ALL,
        ("uni_pc", "uni_pc_bh2", "unipc_bh2"),
        {KARRAS: ("unipc_k",), TRAILING: ("UniPC SGM Uniform",)},
    ),
    Solver("DEIS", "DEISMultistepScheduler", _DEIS, _ALL, (), {KARRAS: ("deis_k",)}),
    Solver("PNDM", "PNDMScheduler", {"skip_prk_steps": True}, (), ("PLMS",)),
    Solver("LCM", "LCMScheduler", _NO_CLIP, adds_noise=True),
    Solver("TCD", "TCDScheduler", _NO_CLIP, adds_noise=True),
)
SAMPLERS: tuple[Sampler, ...] = tuple(row for solver in SOLVERS for row in solver.rows())


def scheduler_names() -> tuple[str, ...]:
    """All names of the table, in the order in which fronts show them. Aliases and "model" are not among them."""
    return tuple(sampler.name for sampler in SAMPLERS)
