"""Frequency profiles: rings that hold at every size, a measurement that sees the adapter, a cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from composers import CMLoRA, Use
from pipelines import Request, StudioError, StudioPipeline
from pipelines.home import Home
from pipelines.spectrum import (
    RINGS,
    STEPS,
    Profile,
    cached,
    high_frequency,
    measure,
    plot,
    radial_amplitude,
    remember,
)


def waves(height: int, width: int, down: float, across: float) -> Tensor:
    """[1, 4, h, w]: one plane wave in all channels, frequencies in cycles per cell."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    return torch.cos(2 * math.pi * (down * rows + across * columns)).expand(1, 4, height, width)


def released_metric(latents: Tensor) -> float:
    """The released code's: bins of whole radii in the shifted spectrum, over the largest, the mean of [80:]."""
    amplitude = torch.fft.fftshift(torch.fft.fft2(latents.mean(dim=1)[0])).abs()
    height, width = amplitude.shape
    rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    radius = torch.hypot(rows[:, None].float(), columns[None, :].float()).long().flatten()
    means = torch.bincount(radius, amplitude.flatten()) / torch.bincount(radius)
    return float((means / means.max())[80:].mean())


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 96), (16, 32), (9, 7), (4, 4)])
def test_the_high_rings_exist_at_every_size(height: int, width: int) -> None:
    noise = torch.randn(3, 4, height, width)
    assert high_frequency(noise).isfinite().all()
    assert high_frequency(noise).min() > 0


def test_the_released_metric_does_not_exist_at_512_pixels() -> None:
    assert math.isnan(released_metric(torch.randn(1, 4, 64, 64)))
    assert math.isfinite(released_metric(torch.randn(1, 4, 128, 96)))
    assert math.isfinite(released_metric(torch.randn(1, 4, 128, 128)))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 64)])
def test_a_wave_stands_in_the_ring_of_its_frequency(height: int, width: int) -> None:
    for fraction in (0.25, 0.5, 0.75):
        frequency = 0.5 * fraction  # on both axes: `fraction` of the corner's radius
        rings = radial_amplitude(waves(height, width, frequency, frequency))[0]
        assert abs(int(rings.nan_to_num().argmax()) - fraction * RINGS) <= 1
    low, high = waves(64, 64, 0.0625, 0.0625), waves(64, 64, 0.46875, 0.46875)
    assert high_frequency(high) > 100 * high_frequency(low)


@pytest.fixture
def pipe(sdxl_folder: Path, make_lora: Callable[..., Path], tmp_path: Path) -> StudioPipeline:
    pipe = StudioPipeline.from_pretrained(sdxl_folder, home=Home(tmp_path / "home"))
    pipe.load_lora_weights(make_lora(sdxl_folder, "a", seed=1, rank=4), adapter_name="a")
    return pipe


def test_a_profile_sees_what_the_adapter_changes(pipe: StudioPipeline) -> None:
    profile = measure(pipe.model, "a", seeds=(1, 2))
    assert len(profile.change) == len(profile.energy) == len(profile.base_energy) == STEPS
    assert profile.adapter == pipe.adapters["a"].sha256
    assert profile.base == pipe.model.checkpoint.hash
    assert min(profile.energy) > 0
    assert profile.early > 1e-3
    assert profile == measure(pipe.model, "a", seeds=(1, 2)), "equal latents, equal profiles"
    other = measure(pipe.model, "a", prompts=["a cat", "a dog"], seeds=(1,))
    assert other.energy != profile.energy


def test_a_profile_is_measured_once_and_cmlora_goes_by_it(
    pipe: StudioPipeline, make_lora: Callable[..., Path], sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cached(pipe.home, pipe.model, "a") is None
    assert not pipe.home.path.exists(), "asking writes nothing"
    profile = pipe.profile("a")
    assert pipe.model.profiled == {"a": profile.band}
    monkeypatch.setattr("pipelines.pipeline.measure", lambda *_: pytest.fail("measured twice"))
    assert pipe.profile("a") == profile

    low = replace(
        profile, change=tuple(0.1 for _ in profile.change), prompt_change=tuple(0.2 for _ in profile.change)
    )
    assert low.band == "low"
    remember(pipe.home, pipe.model, low)
    pipe.unload_lora_weights()
    assert pipe.model.profiled == {}
    pipe.load_lora_weights(make_lora(sdxl_folder, "a", seed=1, rank=4), adapter_name="a")
    request = Request("a fox", adapters=[Use("a")], composer=CMLoRA())
    assert request.resolved(pipe.model.facts).uses[0].band == "low"
    with pytest.raises(StudioError, match="loaded are a"):
        pipe.profile("b")


def test_an_unreadable_profile_is_measured_anew(pipe: StudioPipeline) -> None:
    profile = Profile(pipe.adapters["a"].sha256, pipe.model.checkpoint.hash, (1.0,), (1.0,), (0.1,), (0.1,))
    for content in ("", "{", "[]", '{"adapter": "x"}', '{"unknown": 1}'):
        remember(pipe.home, pipe.model, profile)
        assert cached(pipe.home, pipe.model, "a") == profile
        [file] = pipe.home.cache.rglob("*.json")
        file.write_text(content)
        assert cached(pipe.home, pipe.model, "a") is None


def test_a_plot_is_drawn_without_touching_global_state(tmp_path: Path) -> None:
    change = tuple(0.01 * index for index in range(12))
    flat = tuple(0.2 for _ in range(12))
    profiles = {
        "fox": Profile("", "", change, change, flat, change),
        "beach": Profile("", "", *[change] * 3, flat),
    }
    file = tmp_path / "profile.png"
    plot(profiles, file)
    with Image.open(file) as image:
        assert image.size[0] > 400
        darkest, lightest = image.convert("L").getextrema()
        assert darkest < 60 < 240 < lightest
    plot({}, tmp_path / "empty.png")
