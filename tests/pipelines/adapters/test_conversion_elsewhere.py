"""What is converted for diffusers and PEFT, their own loaders read, and draw as we do."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection

from pipelines.adapters import ModelLayers, model_layers, read_adapter
from pipelines.adapters.conversion import convert
from pipelines.families.family import SDXL

from ..lanes import relative
from .conftest import text_config
from .conversions import assert_alike, converted, drawn, merged, read_all, saved
from .test_zoo import CLOSE, LYCORIS, Base, base, by_lycoris, inputs, seeded

__all__ = ["base", "saved", "seeded"]  # fixtures


@pytest.fixture(scope="module")
def second() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return CLIPTextModelWithProjection(text_config(24)).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def both(base: Base, second: nn.Module) -> ModelLayers:
    """The layers of a model with two text encoders."""
    parts = {"unet": base.unet, "text_encoder": base.text, "text_encoder_2": second}
    return model_layers(SDXL, "small-sdxl", parts)


SECOND = (
    "text_model.encoder.layers.1.self_attn.v_proj",
    "text_model.encoder.layers.0.mlp.fc2",
    "text_projection",
)


def in_second(second: nn.Module) -> dict[str, Tensor]:
    tensors = {}
    for name in SECOND:
        stem = f"lora_te2_{name.replace('.', '_')}"
        out, width = second.get_submodule(name).weight.shape
        tensors |= {
            f"{stem}.lora_up.weight": torch.randn(out, 3),
            f"{stem}.lora_down.weight": torch.randn(3, width),
        }
        tensors[f"{stem}.alpha"] = torch.tensor(2.0)
    return tensors


def stock(base: Base, second: nn.Module | None) -> Any:
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    parts: dict[str, Any] = {
        "vae": vae, "text_encoder": copy.deepcopy(base.text), "tokenizer": None, "unet": copy.deepcopy(base.unet),
        "scheduler": DDIMScheduler(),
    }  # fmt: skip
    if second is None:
        return StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    return StableDiffusionXLPipeline(**parts, text_encoder_2=copy.deepcopy(second), tokenizer_2=None)


def latents(unet: Any) -> Tensor:
    torch.manual_seed(5)
    extra = {"text_embeds": torch.randn(1, 20), "time_ids": torch.rand(1, 6)}
    added = {"added_cond_kwargs": extra} if unet.config.addition_embed_type else {}
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 7, unet.config.cross_attention_dim)
    for step in (900, 500, 100):
        x = x - 0.3 * unet(x, step, encoder_hidden_states=text, **added).sample
    return x


def embedded(text: Any) -> Tensor:
    seen = text(torch.arange(2, 9)[None])
    return torch.cat(
        [seen.last_hidden_state.flatten(), getattr(seen, "text_embeds", torch.zeros(0)).flatten()]
    )


@pytest.mark.parametrize(("name", "how"), [
    *((name, {}) for name in ("LoCon", "LoCon, Tucker", "LoHa", "LoKr", "GLoRA", "OFT", "(IA)³ of the inputs")),
    ("DoRA of the outputs", {"keep": True}),
])  # fmt: skip
@torch.no_grad()
def test_diffusers_draws_the_same(name, how, base, both, second, tmp_path):
    path, out = tmp_path / "original.safetensors", tmp_path / "converted.safetensors"
    tensors, _ = by_lycoris(base, LYCORIS[name], spread=0.1)
    safetensors.torch.save_file(tensors | ({} if how else in_second(second)), path)
    convert(path, out, both, "diffusers", **how)
    ours = read_adapter(out, both, "fox")
    pipe = stock(base, second)
    pipe.load_lora_weights(out)
    for component, run, model in (
        ("unet", latents, base.unet),
        ("text_encoder", embedded, base.text),
        ("text_encoder_2", embedded, second),
    ):
        wanted = run(merged(model, component, ours))
        assert relative(run(getattr(pipe, component)), wanted) < 3e-4
        if not (how and component == "text_encoder_2"):
            assert relative(run(model), wanted) > 1e-3


@torch.no_grad()
def test_diffusers_applies_biases(base, both, second, saved, tmp_path):
    path = saved("peft LoRA with a bias")
    convert(path, tmp_path / "converted.safetensors", both, "diffusers")
    pipe = stock(base, second)
    pipe.load_lora_weights(tmp_path / "converted.safetensors")
    wanted = latents(merged(base.unet, "unet", read_adapter(path, base.layers, "fox")))
    assert relative(latents(pipe.unet), wanted) < 3e-4


@torch.no_grad()
def test_diffusers_draws_the_same_with_sd1(sd1, tmp_path, trainer, save):
    unet = copy.deepcopy(sd1.unet).eval()
    tensors = {}
    for module, shape in sd1.modules("unet").items():
        factors = trainer.layer(shape, rank=2)
        stem = f"lora_unet_{module.replace('.', '_')}"
        tensors |= {
            f"{stem}.lora_up.weight": factors.up * 0.1,
            f"{stem}.lora_down.weight": factors.down * 0.1,
        }
        tensors[f"{stem}.alpha"] = torch.tensor(factors.alpha)
    path = save(tensors)
    convert(path, tmp_path / "out.safetensors", sd1.layers, "diffusers")
    pipe = stock(Base(unet, nn.Module(), sd1.layers), None)
    pipe.load_lora_weights(tmp_path / "out.safetensors")
    wanted = latents(merged(unet, "unet", read_adapter(path, sd1.layers, "fox")))
    assert relative(latents(pipe.unet), wanted) < 3e-4
    assert relative(latents(unet), wanted) > 1e-3


@pytest.mark.parametrize(("name", "how"), [
    *((name, {}) for name in ("LoCon", "LoHa", "GLoRA", "OFT", "peft LoRA with a bias", "peft VeRA", "peft (IA)³")),
    *((name, {"keep": True}) for name in ("LoHa", "LoHa, Tucker", "LoKr", "LoKr, Tucker", "LoKr, whole",
                                          "DoRA of the outputs")),
])  # fmt: skip
@torch.no_grad()
def test_peft_draws_the_same(name, how, base, saved):
    path = saved(name)
    done, out = converted(path, base, "peft", **how)
    ours = read_all(done, base)
    parts = {"unet": base.unet, "text_encoder": base.text}
    for component, model in parts.items():
        names = [one for one in ours.layers if one.startswith(f"{component}.")]
        if not names:
            continue
        folder = out / component if (out / component).is_dir() else out
        theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
        for layer in names:
            module = base.module(layer)
            x = inputs(module)
            wanted = drawn(module, ours.layers[layer], x)
            got = theirs.base_model.model.get_submodule(layer.partition(".")[2])(x)
            assert (got - wanted).norm() <= CLOSE * wanted.norm(), layer


def test_peft_takes_the_tensors_of_a_single_file(base, saved, tmp_path):
    path = saved("peft HRA")
    out = tmp_path / "single.safetensors"
    done = convert(path, out, base.layers, "peft")
    assert done.files == (out,)
    folder = convert(path, tmp_path / "folder", base.layers, "peft").files[0].parent
    model = peft.get_peft_model(copy.deepcopy(base.unet), peft.LoraConfig.from_pretrained(folder))
    loaded = peft.set_peft_model_state_dict(model, load_file(out))
    assert not loaded.unexpected_keys
    assert_alike(read_adapter(path, base.layers, "fox"), read_adapter(out, base.layers, "fox"), base)
