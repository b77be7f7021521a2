"""One table of samplers' names for all programs: what each name means here, and the nearest where it means nothing."""

from __future__ import annotations

import pytest

from pipelines.errors import RequestError
from pipelines.schedulers import SAMPLERS, canonical, named, scheduler_names

APART = {  # solver, spacing -> our name
    # A1111, Forge
    ("DPM++ 2M", "Karras"): "DPM++ 2M Karras",
    ("DPM++ 2M", "Automatic"): "DPM++ 2M Karras",
    ("DPM++ 3M SDE", "automatic"): "DPM++ 3M SDE Exponential",
    ("DPM++ 2M", ""): "DPM++ 2M",
    ("DPM++ 2M", "SGM Uniform"): "DPM++ 2M trailing",
    ("DPM++ 2M", "SGMUniform"): "DPM++ 2M trailing",
    ("DPM++ 2M SDE", "Exponential"): "DPM++ 2M SDE Exponential",
    ("DPM++ 2M SDE Heun", "Exponential"): "DPM++ 2M SDE Heun Exponential",
    ("DPM++ 2M Karras", "Karras"): "DPM++ 2M Karras",
    ("DPM++ 2M Karras", "Automatic"): "DPM++ 2M Karras",
    ("Euler a", "Uniform"): "Euler a",
    ("Euler a", "SGM Uniform"): "Euler a trailing",
    ("Euler", "Simple"): "Euler trailing",
    ("Euler", "Normal"): "Euler",
    ("DDIM", "DDIM"): "DDIM",
    ("k_dpmpp_2m_ka", "karras"): "DPM++ 2M Karras",
    # ComfyUI, SwarmUI, Fooocus
    ("euler", "normal"): "Euler",
    ("euler", "sgm_uniform"): "Euler trailing",
    ("euler", "ddim_uniform"): "Euler",
    ("euler_ancestral", "sgm_uniform"): "Euler a trailing",
    ("dpmpp_2m_sde_gpu", "karras"): "DPM++ 2M SDE Karras",
    ("dpmpp_2m_sde_gpu", ""): "DPM++ 2M SDE",
    ("dpmpp_2m_sde_heun_gpu", "exponential"): "DPM++ 2M SDE Heun Exponential",
    ("dpmpp_3m_sde_gpu", "exponential"): "DPM++ 3M SDE Exponential",
    ("dpm_2", "karras"): "DPM2 Karras",
    ("dpm_2_ancestral", "normal"): "DPM2 a",
    ("uni_pc_bh2", "simple"): "UniPC trailing",
    ("lcm", "sgm_uniform"): "LCM",
    ("ddim", "ddim_uniform"): "DDIM",
    ("heun", "karras"): "Heun Karras",
}
ALONE = {
    # InvokeAI
    "euler_k": "Euler Karras", "euler_a": "Euler a", "heun_k": "Heun Karras", "dpmpp_2m_k": "DPM++ 2M Karras",
    "dpmpp_2m_sde_k": "DPM++ 2M SDE Karras", "dpmpp_2s": "DPM++ 2S", "dpmpp_2s_k": "DPM++ 2S Karras",
    "kdpm_2": "DPM2", "kdpm_2_k": "DPM2 Karras", "kdpm_2_a": "DPM2 a", "kdpm_2_a_k": "DPM2 a Karras",
    "deis_k": "DEIS Karras", "unipc": "UniPC", "unipc_k": "UniPC Karras", "ddim": "DDIM", "ddpm": "DDPM",
    "pndm": "PNDM", "lcm": "LCM", "tcd": "TCD", "k_euler_a": "Euler a", "plms": "PNDM", "k_dpmpp_2": "DPM++ 2M",
    # Draw Things, stable-diffusion.cpp, A1111's old aliases, diffusers' own
    "EulerAncestral": "Euler a", "Euler Ancestral": "Euler a",
    "Euler A Trailing": "Euler a trailing", "DDIM Trailing": "DDIM trailing",
    "UniPC Trailing": "UniPC trailing", "TCD Trailing": "TCD", "DPM++ 2M Trailing": "DPM++ 2M trailing",
    "dpm++2m": "DPM++ 2M", "ddim_trailing": "DDIM trailing", "k_dpmpp_2m_sde_exp": "DPM++ 2M SDE Exponential",
    "k_dpm_2_a_ka": "DPM2 a Karras", "DPM++ 2M SDE GPU Karras": "DPM++ 2M SDE Karras",
    "dpmpp_2m_sde_gpu_karras": "DPM++ 2M SDE Karras", "sgm_uniform": "Euler trailing",
    "Default": "model", "EulerDiscreteScheduler": "Euler", "DPMSolverMultistepScheduler": "DPM++ 2M",
    "DPM++ 2M SDE Exponential": "DPM++ 2M SDE Exponential", "model": "model", "Model": "model",
    # Replicate, groups of ComfyUI's RES4LYF, names with blanks
    "DPMSolverMultistep": "DPM++ 2M", "HeunDiscrete": "Heun", "K_EULER_ANCESTRAL": "Euler a",
    "linear/euler": "Euler", "DPM 2 a": "DPM2 a", "dpm_2_a_ka": "DPM2 a Karras",
}  # fmt: skip
NEAREST = {  # what is not offered -> a part of the reason, the nearest
    "Restart": ("no such solver", "Heun"),
    "exponential/res_2s": ("no such solver", "Heun"),
    "multistep/res_2m": ("no such solver", r"DPM\+\+ 2M"),
    "Kohaku_LoNyu_Yog": ("no such solver", "Euler a"),
    "dpmsolver": (r"only DPM-Solver\+\+", r"DPM\+\+ 2M"),
    "LMSDiscreteScheduler": ("package scipy", r"DPM\+\+ 2M"),
    "DPMSolverSDEScheduler": ("package torchsde", r"DPM\+\+ 2M SDE"),
    "SASolver": ("takes other steps", r"DPM\+\+ 2M SDE"),
    "FlowMatchEulerDiscreteScheduler": ("flow models", "Euler"),
    "EDMDPMSolverMultistepScheduler": ("EDM models", r"DPM\+\+ 2M Karras"),
    "Restart Karras": ("no such solver", "Heun Karras"),
    "res_multistep": ("no such solver", r"DPM\+\+ 2M"),
    "res_multistep_ancestral": ("no such solver", "Euler a"),
    "res_multistep_cfg_pp": ("CFG", r"DPM\+\+ 2M"),
    "er_sde": ("no such solver", r"DPM\+\+ 2M SDE"),
    "er_sde karras": ("no such solver", r"DPM\+\+ 2M SDE Karras"),
    "Euler a CFG++": (r"CFG\+\+ changes the guidance", "Euler a"),
    "euler_cfg_pp": (r"CFG\+\+ changes the guidance", "Euler"),
    "euler_ancestral_cfg_pp karras": (r"CFG\+\+", "Euler a"),
    "DDIM CFG++": (r"CFG\+\+", "DDIM"),
    "Euler a Karras": ("no such spacing", "Euler a"),
    "euler exponential": ("no such spacing", "Euler Karras"),
    "euler beta": ("needs the package scipy", "Euler trailing"),
    "DPM++ 2M Beta": ("needs the package scipy", r"DPM\+\+ 2M trailing"),
    "dpmpp_2m kl_optimal": ("no such spacing", r"DPM\+\+ 2M Karras"),
    "dpmpp_2m ays": ("no such spacing", r"DPM\+\+ 2M Karras"),
    "DPM++ 2M AYS": ("no such spacing", r"DPM\+\+ 2M Karras"),
    "Euler Align Your Steps": ("no such spacing", "Euler Karras"),
    "euler linear_quadratic": ("no such spacing", "Euler trailing"),
    "DPM++ 2M Polyexponential": ("no such spacing", r"DPM\+\+ 2M Exponential"),
    "PLMS Karras": ("no such spacing", "PNDM"),
    "lcm karras": ("no such spacing", "LCM"),
    "k_lms": ("package scipy", r"DPM\+\+ 2M"),
    "lms_k": ("package scipy", r"DPM\+\+ 2M Karras"),
    "dpmpp_sde_gpu": ("package torchsde", r"DPM\+\+ 2M SDE"),
    "dpmpp_sde_k": ("package torchsde", r"DPM\+\+ 2M SDE Karras"),
    "DPM++ 2S a Karras": ("no ancestral form", "DPM2 a Karras"),
    "dpmpp_3m_k": ("only its SDE form", r"DPM\+\+ 3M SDE Karras"),
    "Euler A Substep": ("no such solver", "Euler a"),
    "DPM adaptive": ("no such solver", r"DPM\+\+ 2M Karras"),
    "DPM++ 2M SDE Heun Karras": ("zero terminal SNR", r"DPM\+\+ 2M SDE Karras"),
    "DPM++ 2M Karras v2": ("'v2' in it is unknown", r"DPM\+\+ 2M Karras"),
    "euler ays_30": ("no such spacing|'30' in it is unknown", "Euler Karras|Euler"),
    "heunpp2": ("no such solver", "Heun"),
    "exponential/res_2s bong_tangent": ("no such solver", "Heun trailing"),
    "ipndm_v": ("takes other steps", "PNDM"),
}


@pytest.mark.parametrize(("apart", "name"), APART.items(), ids=str)
def test_solver_and_spacing_apart(apart: tuple[str, str], name: str) -> None:
    assert named(*apart) == name
    assert canonical(" ".join(apart).strip()) in (name, canonical(name))


@pytest.mark.parametrize(("said", "name"), ALONE.items())
def test_one_name(said: str, name: str) -> None:
    assert canonical(said) == named(said) == canonical(said.upper()) == name


@pytest.mark.parametrize(("said", "told"), NEAREST.items(), ids=str)
def test_what_is_not_offered_is_refused_with_the_nearest(said: str, told: tuple[str, str]) -> None:
    reason, nearest = told
    with pytest.raises(
        RequestError, match=rf"^scheduler '.*' is not offered: .*{reason}.*; {nearest} is the nearest$"
    ):
        canonical(said)
    assert named(said) == said


@pytest.mark.parametrize("row", SAMPLERS, ids=lambda row: row.name)
def test_every_alias_means_its_row(row: object) -> None:
    assert all(canonical(alias) == row.name for alias in (row.name, *row.aliases))  # type: ignore[attr-defined]
    assert named(row.solver, row.spacing) == row.name  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("solver", "spacing"),
    [("DPM++ 2M Karras", "Exponential"), ("no_such", "karras"), ("Euler", "no_such"), ("karras", ""),
     ("", "x" * 10_000), ("k_" * 5_000, "k " * 5_000), ("euler" + " exp" * 45, "karras")],
)  # fmt: skip
def test_what_is_unknown_stays_as_written_and_is_refused(solver: str, spacing: str) -> None:
    said = named(solver, spacing)
    assert said not in scheduler_names()
    with pytest.raises(RequestError, match=r"^(unknown scheduler|scheduler .* is not offered)"):
        canonical(said)


@pytest.mark.parametrize(
    ("solver", "spacing", "name"),
    [
        ("Euler a", "EulerAncestralDiscreteScheduler", "Euler a"),
        ("DPM++ 2M Karras", "DPMSolverMultistepScheduler", "DPM++ 2M Karras"),
        ("", "UniPCMultistepScheduler", "UniPC"),
        ("Default", "HeunDiscreteScheduler", "Heun"),
    ],
)
def test_the_class_that_sdnext_gives_beside_a_sampler_is_no_spacing(
    solver: str, spacing: str, name: str
) -> None:
    assert named(solver, spacing) == name
