"""What an adapter does to a picture's high frequencies, step by step, and the frequency band that follows from it.

CMLoRA (Zou et al. 2025, arXiv 2502.04923) lets adapters that change high frequencies early dominate early, and the
others late. Its released code has a table of categories instead of a measurement. Here an adapter is measured on its
own base model, in a few short runs from the same start noise with the adapter and without it. The rule that turns the
measurement into a band is ours, not the paper's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composers.plan import Band, Use
from pipelines.events import Failed, Stepped
from pipelines.home import Home
from pipelines.home.files import write_atomically
from pipelines.home.plain import read_kept
from pipelines.model import Model
from pipelines.request import Request
from pipelines.session import Session

RINGS = 20
"""Rings that the spectrum is divided into, equally wide from the centre to the corner."""
HIGH_FROM = 0.8
"""A frequency counts as high from this fraction of the largest radius on (the paper's H_0.2)."""
EARLY = 120 / 220
"""Fraction of the steps that count as early: CMLoRA's partition point."""
SEEDS = (11, 12, 13, 14)
STEPS = 12


# -- the measurement -------------------------------------------------------------------------------------


def radial_amplitude(latents: Tensor) -> Tensor:
    """Latents [n, channels, h, w] -> [n, RINGS]: mean amplitude, in each ring, of the channel mean's Fourier transform.

    Frequencies are in cycles per cell, and rings are fractions of the largest frequency, so that every size and shape
    gives the same rings. (The released code counts bins; at 64 x 64 its high rings do not exist.) Only very small
    latents have rings without any frequency; these are NaN.
    """
    mean = latents.float().mean(dim=1)  # [n, h, w]
    amplitude = torch.fft.fft2(mean).abs().flatten(1)  # [n, cells]
    height, width = mean.shape[-2:]
    down, across = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    radius = torch.hypot(down[:, None], across[None, :]).flatten()  # [cells]
    ring = (radius / radius.max() * RINGS).long().clamp(max=RINGS - 1).to(latents.device)
    sums: Tensor = amplitude.new_zeros((len(amplitude), RINGS)).index_add_(1, ring, amplitude)
    counts = torch.bincount(ring, minlength=RINGS)  # [RINGS]
    return sums / counts


def high_frequency(latents: Tensor) -> Tensor:
    """Latents [n, channels, h, w] -> [n]: the mean of the rings from `HIGH_FROM` of the largest radius on."""
    return radial_amplitude(latents)[:, round(HIGH_FROM * RINGS) :].nanmean(dim=1)


@dataclass(frozen=True)
class Profile:
    """The measurement of one adapter on one base model. Each tuple has one number for each step.

    adapter, base: the hashes of the adapter's file and of the base model.
    energy, base_energy: the high-frequency amplitude with the adapter and without it, the mean over the runs.
    change: |with - without| / without, the mean over high rings and runs.
    prompt_change: the change that the prompt makes: the same for the prompt against an empty one, without the adapter.
    """

    adapter: str
    base: str
    energy: tuple[float, ...]
    base_energy: tuple[float, ...]
    change: tuple[float, ...]
    prompt_change: tuple[float, ...]

    @property
    def early(self) -> float:
        """Mean change in the early steps."""
        return _mean(self.change[: self._partition])

    @property
    def early_prompt(self) -> float:
        """Mean change in the early steps that the prompt alone makes."""
        return _mean(self.prompt_change[: self._partition])

    @property
    def band(self) -> Band:
        """ "high" if the adapter changes the early high frequencies at least as much as the prompt does, else "low".

        The change by itself has no scale. It depends on base model, scheduler and steps, as the prompt's change does.
        """
        return "high" if self.early >= self.early_prompt else "low"

    @property
    def _partition(self) -> int:
        return max(1, math.floor(len(self.change) * EARLY))


def measure(model: Model, name: str, *, prompts: Sequence[str] = (), seeds: Sequence[int] = SEEDS) -> Profile:
    """Profile a loaded adapter at its preferred strength, else at 1.

    Renders every prompt and seed with the adapter and without it, and every seed with an empty prompt, in `STEPS`
    steps each. prompts: by default the adapter's triggers, else the first example of the model's card.
    Raises the StudioError that a run fails with.
    """
    metadata = model.adapter(name).metadata
    use = Use(name, metadata.preferred_weight or 1.0)
    texts = list(prompts) or [_prompt(model, name)]
    settings: dict[str, Any] = {"steps": STEPS, "scheduler": "Euler"}
    without = [Request(text, seed=seed, **settings) for text in texts for seed in seeds]
    with_it = [Request(text, seed=seed, adapters=(use,), **settings) for text in texts for seed in seeds]
    empty = [Request("", seed=seed, **settings) for seed in seeds]
    rings = _rings(model, [*with_it, *without, *empty])  # [runs, steps, RINGS]
    high = rings[:, :, round(HIGH_FROM * RINGS) :]
    own, base, wordless = high.tensor_split((len(with_it), len(with_it) + len(without)))
    return Profile(
        adapter=model.adapter(name).report.sha256,
        base=model.checkpoint.hash,
        energy=_tuple(own.nanmean(dim=2).mean(dim=0)),
        base_energy=_tuple(base.nanmean(dim=2).mean(dim=0)),
        change=_tuple(_change(own, base)),
        prompt_change=_tuple(_change(base, wordless.repeat(len(texts), 1, 1))),
    )


def _change(own: Tensor, base: Tensor) -> Tensor:
    """[runs, steps, rings] with and without -> [steps]: the relative change, the mean over rings and runs."""
    return ((own - base).abs() / base.clamp(min=1e-12)).nanmean(dim=2).mean(dim=0)


def _rings(model: Model, requests: Sequence[Request]) -> Tensor:
    """The rings of the latents after every step: [requests, steps, RINGS] on the CPU."""
    session = Session(model, output_type="latent")
    found: dict[int, list[Tensor]] = {session.submit(request).id: [] for request in requests}
    for event in session.drain():
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Stepped):
            found[event.id].append(radial_amplitude(event.latents)[0].cpu())
    return torch.stack([torch.stack(steps) for steps in found.values()])


def _prompt(model: Model, name: str) -> str:
    triggers = ", ".join(model.adapter(name).metadata.triggers)
    card = model.checkpoint.card
    return triggers or (card.examples[0] if card and card.examples else "a picture")


def _tuple(values: Tensor) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# -- the cache -------------------------------------------------------------------------------------------


def cached(home: Home, model: Model, name: str) -> Profile | None:
    """A loaded adapter's profile on this model, if it has been measured before."""
    sha256 = model.adapter(name).report.sha256
    folder = _folder(home, sha256)
    if not folder.is_dir():
        return None  # without asking for the model's hash, which reads its files
    profile = read_kept(_file(folder, model), _profile)
    return profile if profile is not None and profile.adapter == sha256 and profile.change else None


def remember(home: Home, model: Model, profile: Profile) -> None:
    """Keep a profile for `cached`. Raises SetupError where the folder cannot be made, and OSError."""
    file = _file(home.made(_folder(home, profile.adapter)), model)
    write_atomically(file, json.dumps(asdict(profile)))


def _folder(home: Home, sha256: str) -> Path:
    return home.cache / "spectrum" / sha256[:16]


def _file(folder: Path, model: Model) -> Path:
    return folder / f"{model.checkpoint.hash}.json"


def _profile(kept: Any) -> Profile:
    """Raises KeyError and TypeError for what `remember` does not write."""
    numbers = {
        name: tuple(map(float, kept[name])) for name in ("energy", "base_energy", "change", "prompt_change")
    }
    return Profile(adapter=str(kept["adapter"]), base=str(kept["base"]), **numbers)


# -- the plot --------------------------------------------------------------------------------------------


def plot(profiles: Mapping[str, Profile], file: Path) -> None:
    """Draw the change of the high frequencies over the run into `file` (PNG, or the format of its suffix).

    profiles: the adapter's name -> its profile. Low-band adapters are dashed. A vertical line ends the early steps.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, profile in profiles.items():
        count = len(profile.change)
        style = "-" if profile.band == "high" else "--"
        axes.plot(
            [(index + 1) / count for index in range(count)],
            [100 * change for change in profile.change],
            style,
            label=f"{name} ({profile.band})",
        )
    axes.axvline(EARLY, color="0.7", linewidth=1)
    axes.set_xlabel("fraction of the steps")
    axes.set_ylabel("change of high frequencies (%)")
    axes.spines[["top", "right"]].set_visible(False)
    if profiles:
        axes.legend(frameon=False, fontsize="small")
    figure.savefig(file)
