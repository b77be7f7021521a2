"""Schedulers by name: each solves a problem whose answer is known, and counts its UNet calls as it makes them."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.errors import RequestError
from pipelines.schedulers import (
    MODEL_OWN,
    SAMPLERS,
    accepts_generator,
    adds_noise,
    calls_per_step,
    canonical,
    make_scheduler,
    name_of,
    scheduler_names,
    set_steps,
    step_of_call,
    without_noise,
)

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
MEAN, STD = 0.8, 0.5


def sdxl_scheduler() -> Any:
    return diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="leading")


def sd1_scheduler() -> Any:
    return diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False)


def zero_snr_scheduler() -> Any:
    return diffusers.EulerDiscreteScheduler(
        **BETAS, timestep_spacing="trailing", rescale_betas_zero_snr=True, prediction_type="v_prediction"
    )


MODELS = {"sd1": sd1_scheduler, "sdxl": sdxl_scheduler, "zero-snr": zero_snr_scheduler}


def denoise(scheduler: Any, steps: int, samples: int = 6400, start: int = 0) -> tuple[Tensor, int]:
    """Runs a scheduler on pictures whose cells are all N(MEAN, STD²), for which the best prediction is exact.

    With x = a·x0 + b·noise, the expected noise given x is b·(x - a·MEAN) / (a²·STD² + b²).
    Returns the samples and the number of predictions.
    """
    generator = torch.Generator().manual_seed(0)
    timesteps = set_steps(scheduler, steps)[start:]
    cumulative = scheduler.alphas_cumprod.double().clamp(min=2**-24)
    log_sigmas = ((1 - cumulative) / cumulative).sqrt().log().numpy()
    noise = torch.randn((1, 4, 8, samples // 32), generator=generator)
    if start:
        scheduler.set_begin_index(start)
        x = scheduler.add_noise(
            MEAN + STD * torch.randn(noise.shape, generator=generator), noise, timesteps[:1]
        )
    else:
        x = noise * scheduler.init_noise_sigma
    for timestep in timesteps:
        given = scheduler.scale_model_input(x, timestep)
        sigma = math.exp(np.interp(float(timestep), np.arange(len(log_sigmas)), log_sigmas))
        a, b = 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)
        away = (given - a * MEAN) / (a**2 * STD**2 + b**2)
        predicted = b * away
        if scheduler.config.prediction_type == "v_prediction":
            predicted = a * predicted - b * (MEAN + a * STD**2 * away)
        extra = {"generator": generator} if accepts_generator(scheduler) else {}
        x = scheduler.step(predicted, timestep, x, return_dict=False, **extra)[0]
    return x, len(timesteps)


SPREAD = {"LCM": (0.25, 0.4), "TCD": (0.35, 0.5)}
"""Consistency samplers jump to the expected picture, so exact predictions come out too narrow."""


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", scheduler_names())
def test_solves_a_known_problem(name: str, model: str) -> None:
    own = MODELS[model]()
    scheduler = make_scheduler(name, own)
    assert scheduler.config.prediction_type == own.config.prediction_type
    x, calls = denoise(scheduler, 25)
    low, high = SPREAD.get(name, (0.38, 0.62))
    assert x.mean().item() == pytest.approx(MEAN, abs=0.06)
    assert low < x.std().item() < high
    assert [step_of_call(scheduler, call) for call in (0, calls - 1)] == [0, 24]


@pytest.mark.parametrize("name", [*scheduler_names(), MODEL_OWN])
def test_a_name_says_whether_its_steps_add_noise(name: str) -> None:
    def drawn(seed: int) -> Tensor:
        scheduler = make_scheduler(name, sdxl_scheduler())
        generator, x = torch.Generator().manual_seed(seed), torch.ones(1, 4, 8, 8)
        extra = {"generator": generator} if accepts_generator(scheduler) else {}
        for timestep in set_steps(scheduler, 4):
            x = scheduler.step(x, timestep, x, return_dict=False, **extra)[0]
        return x

    assert torch.equal(drawn(0), drawn(1)) is not adds_noise(name)


@pytest.mark.parametrize("name", scheduler_names())
def test_the_sampler_without_noise_adds_none_and_takes_the_same_steps(name: str) -> None:
    plain = without_noise(name)
    if plain is None:
        assert adds_noise(name)
        return
    assert not adds_noise(plain)
    assert (plain == name) is not adds_noise(name)
    begun = []
    for each in (name, plain):
        scheduler = make_scheduler(each, sdxl_scheduler())
        timesteps = set_steps(scheduler, 7).tolist()
        steps = [step_of_call(scheduler, call) for call in range(len(timesteps))]
        begun.append([timesteps[steps.index(step)] for step in range(7)])
    assert begun[0] == begun[1]


@pytest.mark.parametrize("name", scheduler_names())
@pytest.mark.parametrize("steps", [2, 5, 20])
def test_calls_belong_to_steps(name: str, steps: int) -> None:
    """Each step's calls follow one another; a new step begins where the schedule's timesteps say so."""
    scheduler = make_scheduler(name, sdxl_scheduler())
    timesteps = set_steps(scheduler, steps).tolist()
    counted = [step_of_call(scheduler, call) for call in range(len(timesteps))]
    assert sorted(set(counted)) == list(range(steps))
    assert counted == sorted(counted)
    per_step = [counted.count(step) for step in range(steps)]
    if calls_per_step(scheduler) == 2:
        assert per_step == [2] * (steps - 1) + [1]
        assert all(later < earlier + 1 for earlier, later in pairwise(timesteps))
    elif name == "PNDM":
        assert per_step == [2] + [1] * (steps - 1)
        assert (
            timesteps[1] == timesteps[2]
        )  # the second call corrects step 0, so both start at step 1's timestep
    else:
        assert per_step == [1] * steps


@pytest.mark.parametrize("name", ["Heun", "Heun Karras", "DPM2", "DPM2 a"])
def test_a_step_of_two_calls_begins_where_the_solver_says(name: str) -> None:
    scheduler = make_scheduler(name, sdxl_scheduler())
    x = torch.zeros((1, 4, 2, 2))
    for call, timestep in enumerate(set_steps(scheduler, 5)):
        begins = call == 0 or step_of_call(scheduler, call) != step_of_call(scheduler, call - 1)
        assert scheduler.state_in_first_order == begins
        x = scheduler.step(torch.zeros_like(x), timestep, x, return_dict=False)[0]


def test_the_second_call_of_a_step_redoes_the_first() -> None:
    """What a call's step means: its second call starts again from the latents that the step started from."""
    scheduler = make_scheduler("PNDM", sd1_scheduler())
    timesteps = set_steps(scheduler, 5)
    x = torch.randn((1, 4, 2, 2), generator=torch.Generator().manual_seed(0))
    first = scheduler.step(torch.ones_like(x), timesteps[0], x, return_dict=False)[0]
    again = scheduler.step(torch.ones_like(x), timesteps[1], first, return_dict=False)[0]
    assert torch.allclose(first, again, atol=1e-6)  # same prediction, same start, same step


def test_a_model_with_runge_kutta_start_counts_four_calls_a_step() -> None:
    scheduler = make_scheduler(None, diffusers.PNDMScheduler(**BETAS, skip_prk_steps=False))
    timesteps = set_steps(scheduler, 10)
    counted = [step_of_call(scheduler, call) for call in range(len(timesteps))]
    assert counted == [0] * 4 + [1] * 4 + [2] * 4 + list(range(3, 10))
    with pytest.raises(RequestError, match="takes 4 to 1000"):
        set_steps(scheduler, 3)


@pytest.mark.parametrize("name", ["Euler", "DPM++ 2M Karras", "Heun", "DDIM", "UniPC"])
def test_starting_late_ends_the_same(name: str) -> None:
    """As from an initial image: the run is cut at a step, and counts from there."""
    scheduler = make_scheduler(name, sdxl_scheduler())
    if not hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index = lambda index: None
    start = 8 * calls_per_step(scheduler)
    x, calls = denoise(scheduler, 20, start=start)
    assert step_of_call(scheduler, calls - 1) == 11
    assert x.mean().item() == pytest.approx(MEAN, abs=0.05)
    assert 0.4 < x.std().item() < 0.6


def test_names() -> None:
    assert canonical("dpm++ 2m karras") == "DPM++ 2M Karras"
    assert canonical("  EULER   a ") == canonical("euler_ancestral") == canonical("k_euler_a") == "Euler a"
    assert canonical("PLMS") == "PNDM"
    assert canonical("sgm-uniform") == "Euler trailing"
    assert len(set(scheduler_names())) == len(SAMPLERS)
    assert all(canonical(name) == name for name in scheduler_names())
    with pytest.raises(RequestError, match=r"unknown scheduler 'Eular': did you mean Euler"):
        canonical("Eular")
    with pytest.raises(RequestError, match=r"'LMS' is not offered: it needs the package scipy"):
        canonical("LMS")
    with pytest.raises(
        RequestError, match=r"needs the package torchsde; DPM\+\+ 2M SDE Karras is the nearest"
    ):
        make_scheduler("DPM++ SDE Karras", sdxl_scheduler())


@pytest.mark.parametrize("name", scheduler_names())
def test_what_the_model_says_survives_and_nothing_else_does(name: str) -> None:
    own = diffusers.DPMSolverMultistepScheduler(
        beta_start=0.001,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        algorithm_type="sde-dpmsolver++",
        solver_order=3,
        use_karras_sigmas=True,
        rescale_betas_zero_snr=True,
    )
    before = dict(own.config)
    scheduler = make_scheduler(name, own)
    assert dict(own.config) == before
    assert scheduler is not make_scheduler(name, own)
    config = scheduler.config
    assert config.prediction_type == "v_prediction"
    assert config.get("timestep_spacing", "trailing") == "trailing"
    assert scheduler.alphas_cumprod[-1] == pytest.approx(0, abs=1e-6)
    assert scheduler.alphas_cumprod[500].item() == pytest.approx(own.alphas_cumprod[500].item(), rel=1e-4)
    if "use_karras_sigmas" in scheduler._get_init_keys(type(scheduler)):
        assert config.use_karras_sigmas == name.endswith("Karras")
    if "DPM++ 2M" in name:
        assert config.solver_order == 2
        assert config.algorithm_type == ("sde-dpmsolver++" if "SDE" in name else "dpmsolver++")
    assert not config.get("clip_sample", False)


def test_the_models_own() -> None:
    own = sdxl_scheduler()
    for name in (None, "model", "Model"):
        scheduler = make_scheduler(name, own)
        assert type(scheduler) is type(own)
        assert scheduler is not own
        assert dict(scheduler.config) == dict(own.config)
    assert name_of(own) == "Euler"
    assert name_of(sd1_scheduler()) == "PNDM"
    assert (
        name_of(diffusers.DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True)) == "DPM++ 2M Karras"
    )
    assert name_of(diffusers.DPMSolverMultistepScheduler(**BETAS, solver_order=3)) == "model"
    for name in scheduler_names():
        scheduler = make_scheduler(name, own)
        again = make_scheduler(name_of(scheduler), scheduler)
        assert type(again) is type(scheduler)
        assert torch.equal(set_steps(again, 7), set_steps(scheduler, 7))


def test_named_equals_stock() -> None:
    """Nothing is changed beyond the name's own settings: timesteps and sigmas are those of diffusers' recipe."""
    own = sdxl_scheduler()
    stock = diffusers.DPMSolverMultistepScheduler.from_config(own.config, use_karras_sigmas=True)
    ours = make_scheduler("DPM++ 2M Karras", own)
    stock.set_timesteps(20)
    assert torch.equal(set_steps(ours, 20), stock.timesteps)
    assert torch.equal(ours.sigmas, stock.sigmas)


def train_sigmas() -> Tensor:
    """The noise levels of the training steps, [1000], as k-diffusion and ComfyUI have them."""
    cumulative = sdxl_scheduler().alphas_cumprod
    return ((1 - cumulative) / cumulative).sqrt()


@pytest.mark.parametrize("steps", [4, 7, 20, 33])
@pytest.mark.parametrize("name", [name for name in scheduler_names() if name.endswith("Exponential")])
def test_exponential_spacing_is_that_of_k_diffusion(name: str, steps: int) -> None:
    levels = train_sigmas()
    expected = torch.linspace(math.log(levels[-1]), math.log(levels[0]), steps).exp()
    scheduler = make_scheduler(name, sdxl_scheduler())
    set_steps(scheduler, steps)
    assert torch.allclose(scheduler.sigmas[:steps], expected, rtol=1e-4)


@pytest.mark.parametrize("steps", [4, 7, 20, 33])
@pytest.mark.parametrize(
    "name",
    [
        row.name
        for row in SAMPLERS
        if row.spacing == "Karras" and row.scheduler_class.startswith(("DPM", "UniPC", "DEIS"))
    ],
)
def test_karras_spacing_is_that_of_k_diffusion(name: str, steps: int) -> None:
    levels = train_sigmas() ** (1 / 7)
    expected = (levels[-1] + torch.linspace(0, 1, steps) * (levels[0] - levels[-1])) ** 7
    scheduler = make_scheduler(name, sdxl_scheduler())
    set_steps(scheduler, steps)
    assert torch.allclose(scheduler.sigmas[:steps], expected, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 4, 7, 20, 33, 61])
@pytest.mark.parametrize("name", [name for name in scheduler_names() if name.endswith("trailing")])
def test_trailing_spacing_is_sgm_uniform_and_simple_but_for_rounding(name: str, steps: int) -> None:
    timesteps = set_steps(make_scheduler(name, sdxl_scheduler()), steps)
    if name == "Heun trailing":
        timesteps = torch.cat([timesteps[:1], timesteps[1::2]])
    sgm_uniform = torch.linspace(999, 0, steps + 1)[:-1]
    simple = torch.tensor([999 - int(place * 1000 / steps) for place in range(steps)])
    assert (timesteps - sgm_uniform).abs().max() < 1.5
    assert (timesteps - simple).abs().max() < 1.5


@pytest.mark.parametrize("name", ["Euler", "Euler a", "DDIM", "DPM++ 2M", "DEIS", "UniPC", "Heun"])
def test_a_trailing_model_makes_as_many_steps_as_asked(name: str) -> None:
    """diffusers makes 62 of 61, the last at timestep -1."""
    scheduler = make_scheduler(name, zero_snr_scheduler())
    timesteps = set_steps(scheduler, 61)
    assert step_of_call(scheduler, len(timesteps) - 1) == 60
    assert timesteps[-1] >= 0
    x, _ = denoise(scheduler, 61, samples=1600)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.1)


def test_interleaved_levels_of_a_trailing_model_are_refused() -> None:
    with pytest.raises(RequestError, match="61 steps: DPM2 cannot space them; take one step more or less"):
        set_steps(
            make_scheduler("DPM2", diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing")), 61
        )


def test_noise_comes_from_the_generator() -> None:
    takes = {name for name in scheduler_names() if accepts_generator(make_scheduler(name, sdxl_scheduler()))}
    assert {"Euler a", "DPM++ 2M SDE", "DPM2 a", "LCM", "DDPM", "TCD"} <= takes
    assert not {"UniPC", "PNDM", "Heun", "DEIS"} & takes
    for name in ("Euler a", "DPM++ 2M SDE", "DPM2 a", "LCM"):
        torch.manual_seed(1)
        one, _ = denoise(make_scheduler(name, sdxl_scheduler()), 6, samples=64)
        torch.manual_seed(2)
        two, _ = denoise(make_scheduler(name, sdxl_scheduler()), 6, samples=64)
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("name", "steps"), [("LCM", 51), ("TCD", 51), ("Euler", 1001), ("Euler", 0), ("PNDM", 1)]
)
def test_impossible_steps_are_refused(name: str, steps: int) -> None:
    with pytest.raises(RequestError, match=rf"{steps} steps: {name} takes \d to \d+"):
        set_steps(make_scheduler(name, sdxl_scheduler()), steps)
