"""Adapters made for few steps: told by their names and metadata, proposed only where their settings are not taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from composers.plan import Use
from pipelines import Request
from pipelines.adapters import AdapterMetadata
from pipelines.schedulers import canonical
from studio.rendering.acceleration import HASHES, kind_of, proposals


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


@pytest.mark.parametrize(
    ("name", "family", "scheduler", "steps", "guidances"),
    [
        ("Hyper-SDXL-8steps-CFG-lora", "Hyper", "Euler trailing", (8, 8), (5, 8)),
        ("Hyper-SD15-12steps-CFG-lora", "Hyper", "Euler trailing", (12, 12), (5, 8)),
        ("Hyper-SDXL-4steps-lora", "Hyper", "Euler trailing", (4, 4), (0, 1.5)),
        ("Hyper-SDXL-1step-lora", "Hyper", "TCD", (1, 8), (0, 1.5)),
        ("HyperSDXL8StepsLoRA", "Hyper", "Euler trailing", (8, 8), (0, 1.5)),
        ("hyper-sd", "Hyper", "Euler trailing", (4, 8), (0, 1.5)),
        ("sdxl_lightning_2step_lora", "Lightning", "Euler trailing", (2, 2), (0, 1.5)),
        ("SDXL-Lightning", "Lightning", "Euler trailing", (4, 8), (0, 1.5)),
        ("SDXLLightning4StepLora", "Lightning", "Euler trailing", (4, 4), (0, 1.5)),
        ("folder/sdxl_lightning_8step_lora.safetensors", "Lightning", "Euler trailing", (8, 8), (0, 1.5)),
        ("dmd2_sdxl_4step_lora_fp16", "DMD2", "LCM", (4, 4), (0, 1.5)),
        ("dmd-lora-sdxl", "DMD2", "LCM", (4, 4), (0, 1.5)),
        ("Illustrious_Lightning_8step", "Lightning", "Euler trailing", (8, 8), (0, 1.5)),
        ("TCD-SDXL-LoRA", "TCD", "TCD", (4, 8), (0, 1.5)),
        ("pcm_sdxl_smallcfg_2step_converted", "PCM", "DDIM trailing", (2, 2), (0, 1.5)),
        ("pcm_sd15_normalcfg_16step_converted", "PCM", "DDIM trailing", (16, 16), (4, 8)),
        ("pcm_sdxl_lcmlike_lora_converted", "PCM", "LCM", (4, 4), (0, 1.5)),
        ("sdxl_turbo_lora_v1", "Turbo", "Euler a trailing", (1, 4), (0, 1.5)),
        ("SDXL_turbo_lora_v1", "Turbo", "Euler a trailing", (1, 4), (0, 1.5)),
        ("sdxl_flash_lora", "SDXL-Flash", "DPM++ 2S", (6, 9), (2.5, 3.5)),
        ("flash-sdxl", "Flash Diffusion", "LCM", (4, 4), (0, 1.5)),
        ("lcm-lora-sdv1-5", "LCM", "LCM", (4, 8), (0, 1.5)),
        ("LCM_LoRA_Weights_SD15", "LCM", "LCM", (4, 8), (0, 1.5)),
        ("sdxl_lcm_6steps", "LCM", "LCM", (6, 6), (0, 1.5)),
        ("lightning_lora_2s", "Lightning", "Euler trailing", (2, 2), (0, 1.5)),
        ("SDXL-Lightning-LoRA-4S", "Lightning", "Euler trailing", (4, 4), (0, 1.5)),
        ("Lightning8", "Lightning", "Euler trailing", (8, 8), (0, 1.5)),
        ("hypersdxl8", "Hyper", "Euler trailing", (8, 8), (0, 1.5)),
        ("Hyper-SD15", "Hyper", "Euler trailing", (4, 8), (0, 1.5)),
        ("sdxl_lightning_4step_lora (copy)", "Lightning", "Euler trailing", (4, 4), (0, 1.5)),
    ],
)
def test_what_a_name_says_of_its_settings(
    name: str, family: str, scheduler: str, steps: tuple[int, int], guidances: tuple[float, float]
) -> None:
    kind = kind_of(name, AdapterMetadata())
    assert kind is not None
    assert (kind.name, kind.scheduler, kind.steps, kind.guidances) == (family, scheduler, steps, guidances)
    assert canonical(kind.scheduler) == kind.scheduler
    assert all(canonical(other) == other for other in kind.others)


@pytest.mark.parametrize(
    "name",
    ["lightning_bolt_magic_v2", "sdxl_lightning_effect", "lightning", "fox_lightning_8000steps", "hyper_realism_sdxl",
     "hyperdetail_8steps", "hyper_sdxl_style", "turbo_car_xl", "turbo", "flash_photography_v3", "sdxl_flash_photo",
     "tcdragon", "pcm_girl", "dmd_style", "dmd_sdxl_girl",
     "illustrious_lightning_style", "calcmix", "lcmania", "step4", "add-detail-xl", "", "4step",
     "thunder-lightning", "my_turbolora", "dmdmax", "sdxl-lightning-style-8steps", "Hyper-SDXL-ink-style-8steps",
     "sdxl_turbo_car_4steps", "flash_sdxl_photography_4steps", "lightning8_bolts_xl", "hyper_sdxl_hyperrealism",
     "turbo8"],
)  # fmt: skip
def test_words_inside_other_names_say_nothing(name: str) -> None:
    assert kind_of(name, AdapterMetadata()) is None
    assert kind_of("fox", AdapterMetadata(tags=(name,), title=name)) is None


def test_the_model_that_an_adapter_is_made_for_says_nothing() -> None:
    """A character that was trained on SDXL Lightning is no accelerator."""
    for base in ("SDXL Lightning", "SDXL Hyper", "SD 1.5 LCM", "SDXL Turbo"):
        assert kind_of("fox", AdapterMetadata(base_model=base, tags=("lightning", "turbo", "lcm"))) is None


def test_a_renamed_file_is_known_by_its_hash() -> None:
    assert all(len(digest) == 64 and kind_of(name, AdapterMetadata()) for digest, name in HASHES.items())
    for digest, name in HASHES.items():
        expected = kind_of(name, AdapterMetadata())
        assert kind_of("pytorch_lora_weights", AdapterMetadata(), digest.upper()) == expected
        assert kind_of("my_fox", AdapterMetadata(hashes={"SHA256": digest})) == expected


def test_numbers_of_steps_and_guidance_are_honoured() -> None:
    name = "Hyper-SDXL-8steps-CFG-lora"
    loaded = {name: AdapterMetadata()}

    def asked(steps: int, guidance: float, scheduler: str = "Euler trailing") -> list[str]:
        use = Use(name, pinned=True)
        one = Request("a", adapters=(use,), steps=steps, guidance_scale=guidance, scheduler=scheduler)
        return proposals(loaded, [one])

    assert asked(8, 6.0) == asked(8, 5.0, "DDIM trailing") == asked(12, 8.0) == []
    [line] = asked(8, 1.0)
    assert '--scheduler "Euler trailing" --steps 8 --guidance 5 (8 steps, guidance 5 to 8)' in line
    assert asked(4, 6.0)
    assert asked(25, 6.0)
    assert asked(8, 6.0, "Euler")
    unified = {"Hyper-SDXL-1step-lora": AdapterMetadata()}
    [line] = proposals(
        unified, [Request("a", adapters={"Hyper-SDXL-1step-lora": 1.0}, steps=30, guidance_scale=7.0)]
    )
    assert '--scheduler "TCD" --steps 1 --guidance 1 (1 to 8 steps)' in line


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
