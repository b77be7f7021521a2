"""Where stock diffusers and peft read a file right, we read the same."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from pipelines.adapters import LowRank, read_adapter, write_lora

TARGETS = r".*attn\d\.to_[qkv]|.*to_out\.0|.*proj_in|.*conv1|.*time_emb_proj"


def stock_deltas(unet) -> dict[str, torch.Tensor]:
    """dW of every layer as peft merges it."""
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight(module.active_adapters[0]).detach()
        for name, module in unet.named_modules()
        if isinstance(module, LoraLayer)
    }


def assert_same(adapter, deltas):
    assert set(adapter.layers) == {f"unet.{name}" for name in deltas}
    for name, delta in deltas.items():
        torch.testing.assert_close(adapter.delta(f"unet.{name}"), delta, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("rslora", [False, True], ids=["LoRA", "rsLoRA"])
def test_a_folder_saved_by_peft(family, rslora, request, tmp_path):
    model = request.getfixturevalue(family)
    config = LoraConfig(
        r=2, lora_alpha=3, target_modules=TARGETS, init_lora_weights=False, use_rslora=rslora,
        rank_pattern={"to_k": 4, r"attn1\.to_q": 1}, alpha_pattern={"attn2.to_v": 8, r"^down_blocks\.1.*to_q": 5},
    )  # fmt: skip
    trained = get_peft_model(copy.deepcopy(model.unet), config)
    trained.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path, model.layers, "fox")
    assert_same(adapter, stock_deltas(trained))
    assert len({factors.scale for factors in adapter.layers.values()}) > 3


def load_into_stock(model, path):
    """The file through diffusers' own loader."""
    config = copy.copy(model.unet.config)
    loaded = StableDiffusionXLPipeline.lora_state_dict(
        str(path), unet_config=config, return_lora_metadata=True
    )
    tensors, alphas, metadata = loaded
    unet = copy.deepcopy(model.unet)
    unet.load_lora_adapter(tensors, prefix="unet", network_alphas=alphas, metadata=metadata)
    return stock_deltas(unet)


def test_a_kohya_file_with_one_alpha(sdxl, trainer, save):
    modules = {m: s for m, s in sdxl.modules("unet").items() if re.search(r"attentions.*(to_|ff|proj)", m)}
    tensors = {}
    for module, shape in modules.items():
        factors = trainer.layer(shape, rank=4)
        stem = f"lora_unet_{module.replace('.', '_')}"
        tensors |= {f"{stem}.lora_up.weight": factors.up, f"{stem}.lora_down.weight": factors.down}
        tensors[f"{stem}.alpha"] = torch.tensor(3.0)
    path = save(tensors)
    assert_same(read_adapter(path, sdxl.layers, "fox"), load_into_stock(sdxl, path))


def test_stock_diffusers_reads_what_we_write(sdxl, trainer, tmp_path):
    layers = {}
    for module, shape in sdxl.modules("unet").items():
        factors = trainer.layer(shape)
        layers[f"unet.{module}"] = LowRank(factors.down, factors.up, factors.alpha / factors.down.shape[0])
    write_lora(tmp_path / "fox.safetensors", layers, naming="peft")
    adapter = read_adapter(tmp_path / "fox.safetensors", sdxl.layers, "fox")
    assert_same(adapter, load_into_stock(sdxl, tmp_path / "fox.safetensors"))
