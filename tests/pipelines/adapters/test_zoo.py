"""Every adapter type, written by LyCORIS and PEFT from random numbers, does what these packages' own forward does.

LyCORIS' `get_diff_weight` is no reference: it applies alpha / rank twice for LoHa and LoKr, which its forward does not.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from pipelines.adapters import Adapter, ModelLayers, model_layers, read_adapter
from pipelines.adapters.terms import shift_of
from pipelines.families.family import SDXL

from .conftest import SDXL_UNET, text_config

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lycoris.modules as lycoris
    from lycoris.wrapper import network_module_dict as LYCORIS_TYPES


BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
RESNET = "down_blocks.2.resnets.0"
TEXT = "encoder.layers.1"
LINEAR = (f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_k", f"{BLOCK}.ff.net.2")
POINTWISE = (f"{RESNET}.conv_shortcut",)
KERNELS = (f"{RESNET}.conv1", f"{RESNET}.conv2")
NORMS = (f"{BLOCK}.norm1", f"{RESNET}.norm1")
ENCODER = (f"{TEXT}.self_attn.q_proj", f"{TEXT}.mlp.fc1")
CLOSE = 1e-5
"""Most difference of a layer's output from the package's, as a part of its norm, in fp32."""


@dataclass(frozen=True)
class Base:
    """A small model: its modules, and the layers as the reader sees them."""

    unet: nn.Module
    text: nn.Module
    layers: ModelLayers

    def module(self, layer: str) -> nn.Module:
        component, _, name = layer.partition(".")
        return (self.unet if component == "unet" else self.text).get_submodule(name)


@pytest.fixture(scope="module")
def base() -> Base:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**SDXL_UNET).requires_grad_(False).eval()
        text = CLIPTextModel(text_config(16)).requires_grad_(False).eval()
        for module in (*unet.modules(), *text.modules()):
            if isinstance(module, nn.LayerNorm | nn.GroupNorm):  # no norm of a real model is all ones
                module.weight.normal_(1, 0.3)
                module.bias.normal_(0, 0.3)
    return Base(unet, text, model_layers(SDXL, "small-sdxl", {"unet": unet, "text_encoder": text}))


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(1)
        warnings.simplefilter("ignore")  # what the packages warn of is their own matter
        yield


def inputs(module: nn.Module) -> Tensor:
    if isinstance(module, nn.Conv2d):
        return torch.randn(2, module.in_channels, 6, 5)
    if isinstance(module, nn.GroupNorm):
        return torch.randn(2, module.num_channels, 6, 5)
    width = module.in_features if isinstance(module, nn.Linear) else module.normalized_shape[0]
    return torch.randn(2, 7, width)


def assert_same(adapter: Adapter, layer: str, module: nn.Module, theirs: Callable[[Tensor], Tensor]) -> None:
    """The base weight and what was read do what the package's own layer does, which is not what the base does."""
    factors, x = adapter.layers[layer], inputs(module)
    changed = {"weight": module.weight + factors.change(module.weight)}
    shift = shift_of(factors)
    if shift is not None:
        changed["bias"] = module.bias + shift
    with torch.no_grad():
        wanted, plain = theirs(x), module(x)
        got = torch.func.functional_call(module, changed, (x,))
    assert (wanted - plain).norm() > 0.01 * plain.norm(), f"{layer}: the package changes nothing"
    assert (got - wanted).norm() <= CLOSE * wanted.norm(), layer


def scattered(module: nn.Module, spread: float = 0.3) -> None:
    """Random numbers added to every parameter of an adapter."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * spread)


# LyCORIS ------------------------------------------------------------------------------------------------

WEIGHTS = tuple(f"unet.{name}" for name in (*LINEAR, *POINTWISE, *KERNELS)) + tuple(
    f"text_encoder.{name}" for name in ENCODER
)
SQUARE = tuple(name for name in WEIGHTS if not name.endswith("conv_in"))


@dataclass(frozen=True)
class Written:
    """What LyCORIS is asked for. algo: its name of the type. options: of the module."""

    algo: str
    options: Mapping[str, object]
    alpha: float = 3.0
    dim: int = 4
    tucker: bool = False
    layers: tuple[str, ...] = WEIGHTS


def written(
    algo: str, *, alpha: float = 3.0, dim: int = 4, tucker: bool = False, **options: object
) -> Written:
    return Written(algo, options, alpha, dim, tucker)


LYCORIS: Mapping[str, Written] = {
    "LoCon": written("locon"),
    "LoCon, Tucker": written("locon", tucker=True),
    "LoHa": written("loha"),
    "LoHa, Tucker": written("loha", tucker=True),
    "LoHa, scalar": written("loha", use_scalar=True),
    "LoKr": written("lokr", factor=2, dim=1),
    "LoKr, both factored": written("lokr", factor=4, dim=1, decompose_both=True),
    "LoKr, Tucker": written("lokr", factor=2, dim=1, tucker=True),
    "LoKr, whole": written("lokr", dim=10_000, full_matrix=True),
    "GLoRA": written("glora"),
    "(IA)³ of the outputs": written("ia3", train_on_input=False),
    "(IA)³ of the inputs": written("ia3", train_on_input=True),
    "full": written("full"),
    "OFT": written("diag-oft", dim=4, alpha=0, constraint=0),
    "OFT, rescaled": written("diag-oft", dim=4, alpha=0, constraint=0, rescaled=True),
    "OFT, bounded": written("diag-oft", dim=4, alpha=0, constraint=0.01),
    "BOFT": written("boft", dim=4, alpha=0, constraint=0),
    "BOFT, rescaled": written("boft", dim=4, alpha=0, constraint=0, rescaled=True),
    "DoRA of the outputs": written("locon", weight_decompose=True, wd_on_out=True),
    "DoRA of the inputs": written("locon", weight_decompose=True, wd_on_out=False),
    "DoRA on LoHa": written("loha", alpha=4.0, weight_decompose=True, wd_on_out=True),
    "DoRA on LoKr": written("lokr", dim=1, alpha=1.0, factor=2, weight_decompose=True, wd_on_out=True),
}


def kohya(layer: str) -> str:
    component, _, name = layer.partition(".")
    return f"{'lora_unet' if component == 'unet' else 'lora_te1'}_{name.replace('.', '_')}"


def by_lycoris(base: Base, kind: Written) -> tuple[dict[str, Tensor], dict[str, nn.Module]]:
    """(the tensors of a file, layer -> a copy of the layer that LyCORIS has changed)."""
    tensors, changed = {}, {}
    for layer in kind.layers:
        module = copy.deepcopy(base.module(layer))
        adapter = LYCORIS_TYPES[kind.algo](
            kohya(layer), module, 1.0, kind.dim, kind.alpha, 0, 0, 0, kind.tucker, **kind.options
        ).eval()
        scattered(adapter)
        holder = nn.Module()
        holder.add_module(kohya(layer), adapter)
        tensors |= {key: value.clone().contiguous() for key, value in holder.state_dict().items()}
        adapter.apply_to()
        changed[layer] = module
    return tensors, changed


def assert_accounted(adapter: Adapter, tensors: Mapping[str, Tensor], layers: tuple[str, ...]) -> None:
    """Every key was applied, and to every layer."""
    assert set(adapter.layers) == set(layers)
    assert not any("left out" in note or "ignored" in note for note in adapter.report.notes)
    assert not adapter.bundled
    assert tensors


@pytest.mark.parametrize("name", LYCORIS)
def test_lycoris(name, base, save):
    kind = LYCORIS[name]
    tensors, changed = by_lycoris(base, kind)
    adapter = read_adapter(save(tensors), base.layers, "fox")
    assert_accounted(adapter, tensors, kind.layers)
    for layer in kind.layers:
        assert_same(adapter, layer, base.module(layer), changed[layer])


def test_lycoris_norms(base, save):
    layers = (*(f"unet.{name}" for name in NORMS), f"text_encoder.{TEXT}.layer_norm1")
    tensors, changed = {}, {}
    for layer in layers:
        module = copy.deepcopy(base.module(layer))
        adapter = lycoris.NormModule(kohya(layer), module, 1.0).eval()
        scattered(adapter)
        tensors |= {f"{kohya(layer)}.{part}": value.clone() for part, value in adapter.state_dict().items()}
        adapter.apply_to()
        changed[layer] = module
    adapter = read_adapter(save(tensors), base.layers, "fox")
    assert_accounted(adapter, tensors, layers)
    for layer in layers:
        assert_same(adapter, layer, base.module(layer), changed[layer])


# PEFT ---------------------------------------------------------------------------------------------------

ALL = (*LINEAR, *POINTWISE, *KERNELS)
FLAT = (*LINEAR, *POINTWISE)
PEFT: Mapping[str, tuple[Callable[..., peft.PeftConfig], Mapping[str, object], tuple[str, ...]]] = {
    "LoRA": (peft.LoraConfig, {"r": 3, "lora_alpha": 5}, ALL),
    "rsLoRA": (peft.LoraConfig, {"r": 3, "lora_alpha": 5, "use_rslora": True}, ALL),
    "LoRA with patterns": (
        peft.LoraConfig,
        {"r": 3, "lora_alpha": 5, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"attn2.to_k": 7}},
        ALL,
    ),
    "LoRA with a bias": (peft.LoraConfig, {"r": 3, "lora_alpha": 5, "lora_bias": True}, (LINEAR[2], *KERNELS)),
    "DoRA": (peft.LoraConfig, {"r": 3, "lora_alpha": 5, "use_dora": True}, ALL),
    "LoHa": (peft.LoHaConfig, {"r": 3, "alpha": 5}, ALL),
    "LoHa, effective": (peft.LoHaConfig, {"r": 3, "alpha": 5, "use_effective_conv2d": True}, KERNELS),
    "LoKr": (peft.LoKrConfig, {"r": 1, "alpha": 5, "decompose_factor": 2}, ALL),
    "LoKr, both": (peft.LoKrConfig, {"r": 1, "alpha": 5, "decompose_both": True}, ALL),
    "LoKr, whole": (peft.LoKrConfig, {"r": 20, "alpha": 5}, ALL),
    "LoKr, effective": (
        peft.LoKrConfig,
        {"r": 1, "alpha": 5, "decompose_factor": 2, "use_effective_conv2d": True},
        KERNELS,
    ),
    "(IA)³": (peft.IA3Config, {"feedforward_modules": [LINEAR[2], KERNELS[1]]}, ALL),
    "OFT, a series": (peft.OFTConfig, {"oft_block_size": 4, "r": 0, "use_cayley_neumann": True}, FLAT),
    "OFT, a series of 3": (
        peft.OFTConfig,
        {"oft_block_size": 4, "r": 0, "use_cayley_neumann": True, "num_cayley_neumann_terms": 3},
        FLAT,
    ),
    "OFT, exact": (peft.OFTConfig, {"oft_block_size": 4, "r": 0, "use_cayley_neumann": False}, FLAT),
    "OFT, shared": (
        peft.OFTConfig,
        {"oft_block_size": 4, "r": 0, "use_cayley_neumann": False, "block_share": True},
        FLAT,
    ),
    "OFT, bounded": (
        peft.OFTConfig,
        {"oft_block_size": 4, "r": 0, "use_cayley_neumann": True, "coft": True, "eps": 0.3},
        FLAT,
    ),
    "BOFT": (peft.BOFTConfig, {"boft_block_size": 4}, ALL),
    "AdaLoRA": (peft.AdaLoraConfig, {"init_r": 4, "target_r": 2, "lora_alpha": 5, "total_step": 10}, LINEAR),
    "HiRA": (peft.HiraConfig, {"r": 2}, ALL),
    "MiSS": (peft.MissConfig, {"r": 3}, LINEAR),
    "MiSS, mini": (peft.MissConfig, {"r": 2, "init_weights": "mini", "mini_r": 4}, LINEAR),
    "MiSS, bat": (peft.MissConfig, {"r": 4, "init_weights": "bat"}, LINEAR),
    "VeRA": (peft.VeraConfig, {"r": 4, "d_initial": 1.0}, LINEAR),
    "HRA": (peft.HRAConfig, {"r": 3}, ALL),
    "HRA, orthogonal": (peft.HRAConfig, {"r": 3, "apply_GS": True}, ALL),
    "LN tuning": (peft.LNTuningConfig, {}, NORMS),
    "DeLoRA": (peft.DeloraConfig, {"r": 2, "delora_lambda": 9}, LINEAR),
    "C3A": (peft.C3AConfig, {"block_size": 4}, LINEAR),
    "FourierFT": (peft.FourierFTConfig, {"n_frequency": 30, "random_loc_seed": 7, "scaling": 90.0}, LINEAR),
    "SHiRA": (peft.ShiraConfig, {"r": 2}, LINEAR),
    "RoAd 1": (peft.RoadConfig, {"variant": "road_1", "group_size": 4}, LINEAR),
    "RoAd 2": (peft.RoadConfig, {"variant": "road_2", "group_size": 4}, LINEAR),
    "RoAd 4": (peft.RoadConfig, {"variant": "road_4", "group_size": 8}, LINEAR),
    "VB-LoRA": (peft.VBLoRAConfig, {"r": 2, "num_vectors": 6, "vector_length": 4, "topk": 2}, LINEAR),
    "VB-LoRA, the chosen": (
        peft.VBLoRAConfig,
        {"r": 2, "num_vectors": 6, "vector_length": 4, "topk": 2, "save_only_topk_weights": True},
        LINEAR,
    ),
    "GLoRA": (peft.GloraConfig, {"r": 2}, LINEAR),
    "GLoRA of vectors": (peft.GloraConfig, {"r": 2, "config_A_B": "vector", "config_C": "vector"}, LINEAR),
    "GLoRA of numbers": (peft.GloraConfig, {"r": 2, "config_A_B": "constant", "config_D_E": "constant"}, LINEAR),
}  # fmt: skip


def by_peft(model: nn.Module, name: str, layers: tuple[str, ...]) -> nn.Module:
    make, options, _ = PEFT[name]
    config = make(target_modules=list(layers), **options)
    wrapped = peft.get_peft_model(copy.deepcopy(model), config).eval()
    scattered(wrapped)
    return wrapped


@pytest.mark.parametrize("name", PEFT)
def test_peft(name, base, tmp_path):
    layers = PEFT[name][2]
    wrapped = by_peft(base.unet, name, layers)
    wrapped.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path, base.layers, "fox")
    assert set(adapter.layers) == {f"unet.{layer}" for layer in layers}
    assert not any("left out" in note or "ignored" in note for note in adapter.report.notes)
    for layer in layers:
        theirs = wrapped.base_model.model.get_submodule(layer)
        assert_same(adapter, f"unet.{layer}", base.module(f"unet.{layer}"), theirs)
