"""Every adapter type, written by LyCORIS and PEFT from random numbers, does what these packages' own forward does.

LyCORIS' `get_diff_weight` is no reference: it applies alpha / rank twice for LoHa and LoKr, which its forward does not.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from composers import Use
from pipelines.adapters import Adapter, ModelLayers, model_layers, read_adapter
from pipelines.checkpoints import load_checkpoint
from pipelines.engine.reference import merged
from pipelines.errors import StudioError
from pipelines.families.family import SDXL
from pipelines.model import Model

from ..lanes import relative, row_of, unet_inputs
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
NORMS = (f"{BLOCK}.norm1", f"{RESNET}.norm1", "conv_norm_out")
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
    shift = factors.shift
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


POINTS = tuple(layer for layer in WEIGHTS if not layer.endswith(KERNELS))


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
    algo: str,
    *,
    alpha: float = 3.0,
    dim: int = 4,
    tucker: bool = False,
    layers: tuple[str, ...] = WEIGHTS,
    **options: object,
) -> Written:
    return Written(algo, options, alpha, dim, tucker, layers)


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
    "T-LoRA": written("tlora", layers=POINTS),
    "T-LoRA of the last parts": written("tlora", layers=POINTS, sig_type="last"),
    "T-LoRA of the middle parts": written("tlora", layers=POINTS, sig_type="middle"),
    "DoRA of the outputs": written("locon", weight_decompose=True, wd_on_out=True),
    "DoRA of the inputs": written("locon", weight_decompose=True, wd_on_out=False),
    "DoRA on LoHa": written("loha", alpha=4.0, weight_decompose=True, wd_on_out=True),
    "DoRA on LoKr": written("lokr", dim=1, alpha=1.0, factor=2, weight_decompose=True, wd_on_out=True),
}


def kohya(layer: str) -> str:
    component, _, name = layer.partition(".")
    return f"{'lora_unet' if component == 'unet' else 'lora_te1'}_{name.replace('.', '_')}"


def by_lycoris(
    base: Base, kind: Written, spread: float = 0.3
) -> tuple[dict[str, Tensor], dict[str, nn.Module]]:
    """(the tensors of a file, layer -> a copy of the layer that LyCORIS has changed)."""
    tensors, changed = {}, {}
    for layer in kind.layers:
        module = copy.deepcopy(base.module(layer))
        adapter = LYCORIS_TYPES[kind.algo](
            kohya(layer), module, 1.0, kind.dim, kind.alpha, 0, 0, 0, kind.tucker, **kind.options
        ).eval()
        scattered(adapter, spread)
        adapter.apply_to()  # before its tensors are taken: a whole difference is told from the weight that it took over
        holder = nn.Module()
        holder.add_module(kohya(layer), adapter)
        tensors |= {key: value.clone().contiguous() for key, value in holder.state_dict().items()}
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
    "PiSSA": (peft.LoraConfig, {"r": 3, "lora_alpha": 5, "init_lora_weights": "pissa"}, LINEAR),
    "PiSSA, the whole rank": (peft.LoraConfig, {"r": 8, "lora_alpha": 5, "init_lora_weights": "pissa"}, LINEAR),
    "PiSSA under DoRA": (
        peft.LoraConfig,
        {"r": 3, "lora_alpha": 5, "init_lora_weights": "pissa", "use_dora": True},
        LINEAR,
    ),
    "OLoRA": (
        peft.LoraConfig,
        {"r": 3, "lora_alpha": 5, "init_lora_weights": "olora", "use_rslora": True, "alpha_pattern": {"to_q": 7}},
        LINEAR,
    ),
    "LoRA from orthogonal halves": (
        peft.LoraConfig,
        {"r": 4, "lora_alpha": 5, "init_lora_weights": "orthogonal"},
        LINEAR,
    ),
    "LoRA from minor parts": (peft.LoraConfig, {"r": 3, "lora_alpha": 5, "init_lora_weights": "mica"}, LINEAR),
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
    "RandLoRA": (peft.RandLoraConfig, {"r": 3, "randlora_alpha": 6}, LINEAR),
    "RandLoRA, sparse": (peft.RandLoraConfig, {"r": 4, "randlora_alpha": 6, "sparse": True}, LINEAR),
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
    assert "alpha none" not in str(adapter.report)  # what has no alpha says nothing of it
    for layer in layers:
        theirs = wrapped.base_model.model.get_submodule(layer)
        assert_same(adapter, f"unet.{layer}", base.module(f"unet.{layer}"), theirs)


@pytest.mark.parametrize(
    "name", ["LoRA", "DoRA", "LoHa", "LoKr", "OFT, exact", "BOFT", "HiRA", "HRA", "VeRA", "RoAd 1"]
)
def test_peft_on_a_text_encoder(name, base, tmp_path):
    wrapped = by_peft(base.text, name, ENCODER)
    wrapped.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path, base.layers, "fox")
    assert set(adapter.layers) == {f"text_encoder.{layer}" for layer in ENCODER}
    for layer in ENCODER:
        theirs = wrapped.base_model.model.get_submodule(layer)
        assert_same(adapter, f"text_encoder.{layer}", base.module(f"text_encoder.{layer}"), theirs)


def test_peft_boft_of_several_stages(base, tmp_path, monkeypatch):
    """PEFT has more than one stage only beside its own CUDA code; its place is taken by what that computes."""

    class BlockDiagonal:
        @staticmethod
        def apply(blocks: Tensor) -> Tensor:
            return torch.stack([torch.block_diag(*stage) for stage in blocks])

    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", lambda: True)
    monkeypatch.setattr("peft.tuners.boft.layer.FastBlockDiag", BlockDiagonal)
    config = peft.BOFTConfig(
        boft_block_size=4, boft_n_butterfly_factor=2, target_modules=[LINEAR[1], LINEAR[2]]
    )
    wrapped = peft.get_peft_model(copy.deepcopy(base.unet), config).eval()
    scattered(wrapped)
    wrapped.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path, base.layers, "fox")
    for layer in (LINEAR[1], LINEAR[2]):
        theirs = wrapped.base_model.model.get_submodule(layer)
        assert theirs.boft_R["default"].shape[0] == 2
        assert_same(adapter, f"unet.{layer}", base.module(f"unet.{layer}"), theirs)


def test_peft_with_all_biases(base, tmp_path):
    """`bias="all"` trains every bias of the model, those of norms and of layers without factors too."""
    config = peft.LoraConfig(r=3, lora_alpha=5, bias="all", target_modules=list(KERNELS))
    wrapped = peft.get_peft_model(copy.deepcopy(base.unet), config).eval()
    scattered(wrapped)
    wrapped.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path, base.layers, "fox")
    biased = {
        f"unet.{name}"
        for name, module in base.unet.named_modules()
        if getattr(module, "bias", None) is not None
    }
    assert set(adapter.layers) == biased
    for layer in (*KERNELS, *POINTWISE, *NORMS, LINEAR[2]):
        theirs = wrapped.base_model.model.get_submodule(layer)
        assert_same(adapter, f"unet.{layer}", base.module(f"unet.{layer}"), theirs)


# Wrong readers are caught -------------------------------------------------------------------------------

KINDS = "pipelines.adapters.kinds"


def instead(path: str, wrong: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """Puts a wrong rule in place of one. wrong: gets the right one, then its arguments."""

    def place(patch: pytest.MonkeyPatch) -> None:
        owner, _, name = path.rpartition(".")
        module, _, inside = owner.partition(":")
        holder = importlib.import_module(module)
        holder = getattr(holder, inside) if inside else holder
        right = getattr(holder, name)
        patch.setattr(holder, name, lambda *args, **options: wrong(right, *args, **options))

    return place


def one_tap(weight: Tensor) -> Tensor:
    return weight.flatten(2)[..., 0] if weight.ndim > 2 else weight


WRONG: Mapping[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "alpha / rank is applied twice": (
        "LoHa",
        instead(f"{KINDS}.loha.scale_of", lambda right, *args: right(*args) ** 2),
    ),
    "the scale is left out": ("LoCon", instead(f"{KINDS}.lora.scale_of", lambda right, *args: 1.0)),
    "the scale is left out of a Kronecker product": (
        "LoKr",
        instead(f"{KINDS}.lokr.scale_of", lambda right, *args: 1.0),
    ),
    "the Kronecker product is the other way round": (
        "LoKr, whole",
        instead(f"{KINDS}.lokr:torch.kron", lambda right, a, b: right(one_tap(b), one_tap(a))),
    ),
    "the Tucker core is transposed": (
        "LoCon, Tucker",
        instead(f"{KINDS}.lora._folded", lambda right, a, b, mid, down: right(a, b, mid.transpose(0, 1), down)),
    ),
    "the axis of DoRA is the other one": (
        "DoRA of the outputs",
        instead(f"{KINDS}.dora:Dora._is_of_outputs", lambda right, *args: not right(*args)),
    ),
    "the norm of DoRA leaves out the taps": (
        "DoRA of the inputs",
        instead(f"{KINDS}.dora._norms", lambda right, weight, outputs: right(one_tap(weight), outputs)),
    ),
    "the norm of DoRA is the base weight's": (
        "DoRA of the outputs",
        instead(f"{KINDS}.lora:LowRank.change", lambda right, self, weight: 0 * right(self, weight)),
    ),
    "the factors of (IA)³ lack the 1": (
        "(IA)³ of the outputs",
        instead(f"{KINDS}.ia3.whole", lambda right, *args: (right(*args)[0] - 1,)),
    ),
    "(IA)³ is always of the outputs": (
        "(IA)³ of the inputs",
        instead(f"{KINDS}.ia3.number", lambda right, *args: 0.0),
    ),
    "OFT is transposed": (
        "OFT",
        instead(f"{KINDS}.oft._turned", lambda right, turns, rows: right(turns.mT, rows)),
    ),
    "the bound of OFT is left out": (
        "OFT, bounded",
        instead(f"{KINDS}.oft.cayley", lambda right, blocks, bound: right(blocks, 0.0)),
    ),
    "the stages of BOFT are in the other order": (
        "BOFT",
        instead(f"{KINDS}.oft._butterfly", lambda right, stages, rows: right(stages.flip(0), rows)),
    ),
    "T-LoRA has no start": (
        "T-LoRA",
        instead(f"{KINDS}.tlora._starts", lambda right, *args: [(p, 0 * s, q) for p, s, q in right(*args)]),
    ),
    "a and b of GLoRA are exchanged": (
        "GLoRA",
        instead(f"{KINDS}.glora.whole", lambda right, *args: tuple(right(*args)[i] for i in (1, 0, 2, 3))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_reader_of_lycoris_is_caught(mistake, base, save, monkeypatch):
    name, place = WRONG[mistake]
    kind = LYCORIS[name]
    tensors, changed = by_lycoris(base, kind)
    path = save(tensors)
    with monkeypatch.context() as patch:
        place(patch)
        assert_caught(path, base, {layer: changed[layer] for layer in kind.layers})


WRONG_PEFT: Mapping[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "the series is turned round": (
        "OFT, a series",
        instead(f"{KINDS}.peft_oft.series", lambda right, skew, terms: right(-skew, terms)),
    ),
    "the series is taken for the exact turn": (
        "OFT, exact",
        instead(f"{KINDS}.peft_oft.setting", lambda right, layer, name: True),
    ),
    "the bias is not multiplied": (
        "(IA)³",
        instead("pipelines.adapters.terms:Target.shift", lambda right, self: 0 * right(self)),
    ),
    "a whole LoKr has no scale": (
        "LoKr, whole",
        instead("pipelines.adapters.peft_settings:PeftSettings.own_scale_of", lambda right, *args: None),
    ),
    "rsLoRA is plain": (
        "rsLoRA",
        instead(
            "pipelines.adapters.peft_settings:PeftSettings.scale_of",
            lambda right, self, module, rank: right(replace(self, rslora=False), module, rank),
        ),
    ),
    "PiSSA is taken for plain LoRA": (
        "PiSSA",
        instead(f"{KINDS}.lora._from_start", lambda right, layer, target, change: change),
    ),
    "the start of OLoRA has no scale": (
        "OLoRA",
        instead(f"{KINDS}.lora.computed", lambda right, *args: right(*args[:3], 1.0, args[4])),
    ),
    "the bases of RandLoRA are in one order": (
        "RandLoRA",
        instead(
            f"{KINDS}.randlora.whole",
            lambda right, layer, *parts: tuple(
                value.flip(0) if part == "randlora_lambda" else value
                for part, value in zip(parts, right(layer, *parts), strict=True)
            ),
        ),
    ),
    "the reflections are in the other order": (
        "HRA",
        instead(f"{KINDS}.hra.whole", lambda right, *args: (right(*args)[0].flip(1),)),
    ),
    "the scale follows the rank that is left": (
        "AdaLoRA",
        instead(f"{KINDS}.adalora.numeric", lambda right, layer, name: 2.0 if name == "init_r" else right(layer, name)),
    ),
    "the bias is not scaled": (
        "LoRA with a bias",
        instead(f"{KINDS}.lora.Shift", lambda right, bias: right(bias * 2)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG_PEFT)
def test_a_wrong_reader_of_peft_is_caught(mistake, base, tmp_path, monkeypatch):
    name, place = WRONG_PEFT[mistake]
    layers = PEFT[name][2]
    wrapped = by_peft(base.unet, name, layers)
    wrapped.save_pretrained(tmp_path)
    with monkeypatch.context() as patch:
        place(patch)
        assert_caught(
            tmp_path,
            base,
            {f"unet.{layer}": wrapped.base_model.model.get_submodule(layer) for layer in layers},
        )


def assert_caught(path: Path, base: Base, changed: Mapping[str, nn.Module]) -> None:
    """The file is refused, or a layer of it is not what the package makes of it."""
    try:
        adapter = read_adapter(path, base.layers, "fox")
    except (StudioError, RuntimeError):
        return
    with pytest.raises(AssertionError):
        assert_all_same(adapter, base, changed)


def assert_all_same(adapter: Adapter, base: Base, changed: Mapping[str, nn.Module]) -> None:
    for layer, module in changed.items():
        assert_same(adapter, layer, base.module(layer), module)


# In one batch -------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_pictures_of_many_kinds_share_a_batch(model_folder, save):
    """One picture of each type, one with six types, and one plain: each is what it is alone."""
    model, fresh = Model(load_checkpoint(model_folder)), load_checkpoint(model_folder).unet
    layers = chosen(fresh)
    small = Base(fresh, nn.Module(), model.layers)
    for name, kind in LYCORIS.items():
        own = tuple(
            one
            for one in layers
            if kind.layers is WEIGHTS or small.layers.target(*one.split(".", 1)).kernel == 1
        )
        tensors, _ = by_lycoris(small, replace(kind, layers=own), spread=0.1)
        model.bank.load(read_adapter(save(tensors, name=f"{len(name)}.safetensors"), model.layers, name))
    names = list(LYCORIS)
    mixes = [(Use(name, 0.6),) for name in names] + [tuple(Use(name, 0.2) for name in names[::4]), ()]
    for start in range(0, len(mixes), 8):
        rows = mixes[start : start + 8]
        inputs = unet_inputs(model, len(rows))
        with model.bank.active("unet", rows):
            together = model.unet(**inputs).sample
        for row, uses in enumerate(rows):
            alone = merged(model.unet, "unet", model.bank.adapters, uses)(**row_of(inputs, row)).sample
            assert relative(together[row], alone[0]) < 5e-5, uses
    inputs = unet_inputs(model, 8)
    with model.bank.active("unet", [(Use(name, 0.0),) for name in names[-8:]]):
        assert torch.equal(model.unet(**inputs).sample, fresh(**inputs).sample)


def is_point(base: Base, layer: str) -> bool:
    return base.module(layer).weight[0, 0].numel() == 1


def chosen(unet: nn.Module) -> tuple[str, ...]:
    """Some layers of each sort."""
    found: dict[object, str] = {}
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not any(n % 16 for n in module.weight.shape[:2]):
            found.setdefault((type(module), module.weight.shape[2:], "attn" in name), f"unet.{name}")
    return tuple(found.values())
