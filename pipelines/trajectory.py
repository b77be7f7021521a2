"""One image in flight: its latents, its own scheduler, its own generator, and the step it has reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from composers.plan import Lane, Plan, Prompt
from pipelines.features import Features, Passes
from pipelines.inpainting import Blend, started
from pipelines.request import Request
from pipelines.schedulers import accepts_generator, set_steps, step_of_call
from pipelines.text.encoder import Embedding


@dataclass
class Trajectory:
    """One image between its start noise and its last step.

    plans, passes: for every step, its lanes and how they run. texts: prompt -> its embedding.
    sizes: SDXL's six size conditions in pixels (original, crop, target), () for other families.
    latents: [1, channels, h, w] float32 on the model's device.
    timesteps: of all UNet calls of the run, as the scheduler gives them; calls: how many of them are done.
    blend: what is kept of the initial image, where a mask says so.
    """

    request: Request
    plans: tuple[Plan, ...]
    passes: tuple[Passes, ...]
    texts: Mapping[Prompt, Embedding]
    sizes: tuple[int, ...]
    scheduler: Any
    generator: torch.Generator
    latents: Tensor
    timesteps: Tensor
    features: Features = field(default_factory=Features)
    calls: int = 0
    blend: Blend | None = None

    @property
    def done(self) -> bool:
        return self.calls >= len(self.timesteps)

    @property
    def step(self) -> int:
        """Index of the solver step that the next UNet call belongs to."""
        return step_of_call(self.scheduler, self.calls)

    @property
    def lanes(self) -> tuple[Lane, ...]:
        return self.plan.lanes

    @property
    def plan(self) -> Plan:
        return self.plans[self.step]

    @property
    def timestep(self) -> float:
        return float(self.timesteps[self.calls])

    def model_input(self) -> Tensor:
        """The latents scaled for the UNet at this timestep: [1, channels, h, w] float32."""
        scaled: Tensor = self.scheduler.scale_model_input(self.latents, self.timesteps[self.calls])
        return scaled

    def advance(self, prediction: Tensor) -> None:
        """Make one scheduler step with the folded prediction, [1, channels, h, w] float32.

        Features that no later step reads are dropped.
        """
        noise = {"generator": self.generator} if accepts_generator(self.scheduler) else {}
        timestep = self.timesteps[self.calls]
        self.latents = self.scheduler.step(prediction, timestep, self.latents, return_dict=False, **noise)[0]
        step = self.step
        self.calls += 1
        if self.blend is not None:
            coming = None if self.done else self.timesteps[self.calls : self.calls + 1]
            self.latents = self.blend.blended(self.latents, self.scheduler, coming)
        if self.done or self.step > step:
            self.features.keep_only(self.passes[step].kept)


def open_trajectory(
    request: Request,
    *,
    plans: tuple[Plan, ...],
    passes: tuple[Passes, ...],
    texts: Mapping[Prompt, Embedding],
    sizes: tuple[int, ...],
    scheduler: Any,
    shape: tuple[int, int, int],
    device: torch.device,
    features: Features,
    encoded: Callable[[torch.Generator], Tensor] | None = None,
    mask: Tensor | None = None,
) -> Trajectory:
    """The trajectory of a resolved request at its start: noise drawn, timesteps set.

    shape: [channels, h, w] of the latents. encoded: makes the initial image's latents [1, *shape] from the request's
    generator; None for a request without one. mask: [1, 1, h, w] float32 in 0 … 1, of the part of it that is drawn. The
    generator, on the CPU, draws in diffusers' order: the VAE's sample of the initial image, the start noise, then what
    each scheduler step takes; noise that the masked content starts from comes after the start noise.
    """
    assert request.seed is not None
    assert request.steps is not None
    generator = torch.Generator("cpu").manual_seed(request.seed)
    timesteps = set_steps(scheduler, request.steps, skip=request.steps - request.executed_steps)
    blend = None
    if encoded is None:
        noise = torch.randn((1, *shape), generator=generator)
        latents = noise * scheduler.init_noise_sigma
    else:
        image = encoded(generator).cpu()
        noise = torch.randn((1, *shape), generator=generator)
        if mask is not None:
            blend = started(Blend(mask, image, noise), request.mask_content, generator)
            image, blend = blend.original, blend.to(device)
        latents = scheduler.add_noise(image, noise, timesteps[:1])
    return Trajectory(
        request,
        plans,
        passes,
        texts,
        sizes,
        scheduler,
        generator,
        latents.to(device),
        timesteps,
        features,
        blend=blend,
    )
