"""What CMLoRA's caching saves, counted on real calls of the engine's own passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from torch.utils.flop_counter import FlopCounterMode

from composers import CMLoRA, Composite
from pipelines import Request, StudioPipeline
from studio.bench.cmlora import CACHING, broken_gates, choose, count_flops, pair_flops, passes, table

counted = cache(pair_flops)
"""A full-size UNet takes seconds to count."""


@pytest.mark.parametrize(
    ("config", "cells", "cut", "share"),
    [("sd1", 64, "published", 0.380), ("sdxl", 64, "deep", 0.277)],
)
def test_the_work_of_a_shallow_pass_at_full_size(config: str, cells: int, cut: str, share: float) -> None:
    full, shallow = counted(config, cells, cut)
    assert shallow / full == pytest.approx(share, abs=2e-3)


def test_the_gates_hold_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    families = (("sd1", 64, "published"), ("sdxl", 128, "deep"))
    monkeypatch.setattr("studio.bench.cmlora.FAMILIES", families)
    monkeypatch.setattr("studio.bench.cmlora.pair_flops", counted)
    rows = count_flops()
    assert len(rows) == 2 * 2 * 4 * len(CACHING)
    assert broken_gates(rows) == []
    dear = [row | {"of Composite": 0.9} for row in rows]
    assert len(broken_gates(dear)) == 4
    assert "dominant_every_step" in table(rows)


def test_real_pictures_cost_what_their_passes_say(sdxl_folder: Path, make_lora: Callable[..., Path]) -> None:
    pipe = StudioPipeline.from_pretrained(sdxl_folder)
    for seed, name in enumerate("abcde"):
        pipe.load_lora_weights(make_lora(sdxl_folder, name, seed=seed), adapter_name=name)
    base = Request("a fox", adapters=dict.fromkeys("abcde", 1.0), seed=1, steps=4, scheduler="Euler")

    def flops(request: Request) -> tuple[int, int, int]:
        with FlopCounterMode(display=False) as counter:
            [record] = pipe(request, output_type="latent").records
        return counter.get_total_flops(), record.unet_rows // 2, record.shallow_rows // 2

    composite, full, _ = flops(replace(base, composer=Composite()))
    assert full == passes(Composite(), 5, 4).full == 20
    found = {}
    for refresh in ("dominant_only", "all"):
        composer = CMLoRA(refresh=refresh)
        found[refresh], full, shallow = flops(replace(base, composer=composer))
        counted = passes(composer, 5, 4)
        assert (full, shallow) == (counted.full, counted.shallow)
    assert found["dominant_only"] < found["all"] < composite


def test_the_rule_of_the_default() -> None:
    modes = dict(zip(CACHING, (0.3, 0.25, 0.15, 0.07), strict=True))
    assert choose(modes, 0.14) == "all"
    assert choose(modes, 0.20) == "every_step_in_turn"
    assert choose(modes, 0.50) == "dominant_only"
    assert choose(modes, 0.01) == "all"
