"""Adapters made for few steps: told by their names and metadata, proposed only where their settings are not taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from composers.plan import Use
from pipelines import Request
from pipelines.adapters import AdapterMetadata
from studio.rendering.acceleration import kind_of, proposals


@pytest.mark.parametrize(
    ("name", "metadata", "expected"),
    [
        ("lcm-lora-sdxl", AdapterMetadata(), "LCM"),
        ("pytorch_lora_weights", AdapterMetadata(title="LCM LoRA SDv1-5"), "LCM"),
        ("sdxl_lightning_8step_lora", AdapterMetadata(), "Lightning"),
        ("fast", AdapterMetadata(raw={"ss_output_name": "Hyper-SDXL-8steps-lora"}), "Hyper"),
        ("fox", AdapterMetadata(title="A fox, hyperreal", description="works with LCM"), None),
        ("calcmix", AdapterMetadata(), None),
    ],
)
def test_what_a_file_says(name: str, metadata: AdapterMetadata, expected: str | None) -> None:
    kind = kind_of(name, metadata)
    assert (kind.name if kind else None) == expected


def request(pinned: bool = True, **settings: Any) -> Request:
    fields = {"scheduler": "LCM", "steps": 6, "guidance_scale": 1.0} | settings
    return Request("a", adapters=(Use("fast-lcm", pinned=pinned), Use("fox")), **fields)


def test_settings_are_proposed_where_they_are_not_taken() -> None:
    loaded = {"fast-lcm": AdapterMetadata(), "fox": AdapterMetadata()}
    assert proposals(loaded, [request()]) == []
    assert proposals(loaded, [Request("a", adapters={"fox": 1.0})]) == []
    for other in (
        request(pinned=False),
        request(scheduler="Euler"),
        request(steps=25),
        request(guidance_scale=7.0),
    ):
        [line] = proposals(loaded, [request(), other])
        assert "--pin fast-lcm" in line
        assert '--scheduler "LCM" --steps 8 --guidance 1' in line


def test_the_command_proposes_them(
    render: Callable[..., Any], loras: Path, sdxl_folder: Path, make_lora: Callable[..., Path]
) -> None:
    (loras / "lcm-fast.safetensors").write_bytes(make_lora(sdxl_folder, "l", seed=3).read_bytes())
    assert "--pin lcm-fast" in render("--prompt", "a", "--lora", "lcm-fast").err
    assert "few steps" not in render("--prompt", "a", "--lora", "fox").err
