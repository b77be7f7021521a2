"""The same LoRA in the spelling of each writer draws the same picture, latent by latent, as in kohya's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines import Request, StudioPipeline
from pipelines.families.unet_names import sgm_names

from .test_naming_schemes import in_file, open_clip

Learned = Mapping[tuple[str, str], tuple[Tensor, Tensor]]
"""(component, module) -> (up, down)."""

ALPHA = 1.0


@pytest.fixture(scope="module")
def pipe(sdxl_folder: Path) -> StudioPipeline:
    return StudioPipeline.from_pretrained(sdxl_folder)


@pytest.fixture(scope="module")
def learned(pipe: StudioPipeline) -> Learned:
    """Strong factors for the attention of the UNet and all of the text encoders. Of one attention of a text encoder,
    query, key and value have one `down`, so that they can be written joined."""
    draw = torch.Generator().manual_seed(0)
    found, downs = {}, {}
    for component, targets in pipe.model.layers.components.items():
        for module, target in targets.items():
            if target.is_conv or (component == "unet" and "attn" not in module) or "projection" in module:
                continue
            out_width, in_width = target.shape
            shared = (component, re.sub(r"\.[qkv]_proj$", "", module))
            down = downs.setdefault(shared, torch.randn(2, in_width, generator=draw) * in_width**-0.5)
            found[component, module] = (torch.randn(out_width, 2, generator=draw) * 0.3, down)
    return found


def written(
    learned: Learned, path: Path, name: Callable[[str, str], str], up: str, down: str, alpha: str
) -> Path:
    tensors = {}
    for (component, module), (one, other) in learned.items():
        stem = name(component, module)
        tensors |= {stem + up: one.clone(), stem + down: other.clone()}
        tensors |= {stem + alpha: torch.tensor(ALPHA)} if alpha else {}
    save_file(tensors, path, {"lora_alpha": str(ALPHA), "r": "2"} if not alpha else None)
    return path


@pytest.fixture(scope="module")
def drawn(pipe: StudioPipeline) -> Callable[[Path | None], Tensor]:
    def draw(path: Path | None) -> Tensor:
        uses = {}
        if path is not None:
            pipe.load_lora_weights(path, "fox")
            uses = {"fox": 1.0}
        request = Request("a fox in snow", seed=1, steps=2, width=64, height=64, adapters=uses)
        [latents] = pipe([request], output_type="latent").images
        pipe.unload_lora_weights()
        return latents

    return draw


@pytest.fixture(scope="module")
def kohya(pipe, learned, drawn, tmp_path_factory) -> Tensor:
    """Latents with kohya's file, which test_against_stock compares with diffusers."""
    path = written(learned, tmp_path_factory.mktemp("kohya") / "fox.safetensors", flat, *KOHYA)
    assert (drawn(path) - drawn(None)).abs().max() > 0.1
    return drawn(path)


KOHYA = (".lora_up.weight", ".lora_down.weight", ".alpha")
PEFT = (".lora_B.weight", ".lora_A.weight", "")
NUMBER = {"text_encoder": 0, "text_encoder_2": 1}


def flat(component: str, module: str) -> str:
    if component == "unet":
        return f"lora_unet_{module}".replace(".", "_")
    return f"lora_te{NUMBER[component] + 1}_{in_file(module)}".replace(".", "_")


def dotted(component: str, module: str) -> str:
    return f"{component}.{module if component == 'unet' else in_file(module)}"


def one_trainer(component: str, module: str) -> str:
    return (
        f"lora_unet.{module}" if component == "unet" else f"lora_te{NUMBER[component] + 1}.{in_file(module)}"
    )


def one_trainer_short(component: str, module: str) -> str:
    return f"unet.{module}" if component == "unet" else f"clip_{'lg'[NUMBER[component]]}.{in_file(module)}"


def comfy(sgm: Mapping[str, str], component: str, module: str) -> str:
    if component == "unet":
        return f"diffusion_model.{sgm[module]}"
    return f"text_encoders.clip_{'lg'[NUMBER[component]]}.transformer.{in_file(module)}"


def original(sgm: Mapping[str, str], component: str, module: str) -> str:
    if component == "unet":
        return f"model.diffusion_model.{sgm[module]}"
    if component == "text_encoder":
        return f"conditioner.embedders.0.transformer.{in_file(module)}"
    return f"conditioner.embedders.1.model.{open_clip(module)}"


def peft(component: str, module: str) -> str:
    return f"base_model.model.{dotted(component, module)}"


@pytest.mark.parametrize(
    ("name", "ends"),
    [(dotted, PEFT), (peft, PEFT), (one_trainer, KOHYA), (one_trainer_short, KOHYA), (comfy, KOHYA), (comfy, PEFT),
     (original, KOHYA)],
    ids=lambda value: value[0] if isinstance(value, tuple) else value.__name__,
)  # fmt: skip
def test_each_spelling_draws_kohyas_picture(name, ends, pipe, learned, drawn, kohya, tmp_path):
    if name in (comfy, original):
        sgm = sgm_names(pipe.model.layers.components["unet"])
        path = written(learned, tmp_path / "fox.safetensors", lambda c, m: name(sgm, c, m), *ends)
    else:
        path = written(learned, tmp_path / "fox.safetensors", name, *ends)
    assert torch.equal(drawn(path), kohya)


def test_open_clips_joined_rows_draw_kohyas_picture(pipe, learned, drawn, kohya, tmp_path):
    joined = {}
    for (component, module), (up, down) in learned.items():
        if component != "text_encoder_2" or not re.search(r"\.[qkv]_proj$", module):
            joined[flat(component, module)] = (up, down)
        elif module.endswith("q_proj"):
            ups = [learned[component, f"{module[:-6]}{one}_proj"][0] for one in "qkv"]
            stem = open_clip(module).replace("q_proj", "in_proj").replace(".", "_")
            joined[f"lora_te2_{stem}"] = (torch.cat(ups), down)
    tensors = {}
    for stem, (up, down) in joined.items():
        tensors |= {f"{stem}.lora_up.weight": up.clone(), f"{stem}.lora_down.weight": down.clone()}
        tensors[f"{stem}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, tmp_path / "fox.safetensors")
    assert torch.equal(drawn(tmp_path / "fox.safetensors"), kohya)


def test_a_handful_of_foreign_keys_leave_the_picture_as_it_is(pipe, learned, drawn, kohya, tmp_path):
    path = written(learned, tmp_path / "fox.safetensors", flat, *KOHYA)
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    foreign = {f"{stem}.lora_up.weight": torch.ones(8, 2), f"{stem}.lora_down.weight": torch.ones(2, 8)}
    save_file(load_file(path) | foreign | {"loss": torch.tensor(0.1)}, path)
    assert torch.equal(drawn(path), kohya)
