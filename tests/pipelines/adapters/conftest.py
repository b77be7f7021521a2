"""Small models of the real layouts, and LoRA files made for them from key -> shape tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from pipelines.adapters import Adapter, ModelLayers, model_layers, read_adapter
from pipelines.families.family import SD1, SD2, SDXL

SD1_UNET = {
    "block_out_channels": (8, 8, 16, 16),
    "cross_attention_dim": 24,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    "sample_size": 8,
}
SD2_UNET = {**SD1_UNET, "cross_attention_dim": 1024, "use_linear_projection": True}
SDXL_UNET = {
    "block_out_channels": (8, 8, 16),
    "cross_attention_dim": 40,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    "sample_size": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 3),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 44,
}


def text_config(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_attention_heads=2,
        num_hidden_layers=2,
        vocab_size=50,
        projection_dim=20,
        bos_token_id=0,
        eos_token_id=1,
    )


@dataclass(frozen=True)
class Model:
    """A small model, as modules and as the reader sees it."""

    unet: UNet2DConditionModel
    layers: ModelLayers

    def modules(self, component: str) -> Mapping[str, tuple[int, ...]]:
        return {name: target.shape for name, target in self.layers.components[component].items()}


@pytest.fixture(scope="session")
def sd1() -> Model:
    unet = UNet2DConditionModel(**SD1_UNET)
    parts = {"unet": unet, "text_encoder": CLIPTextModel(text_config(24))}
    return Model(unet, model_layers(SD1, "small-sd1", parts))


@pytest.fixture(scope="session")
def sd2() -> Model:
    unet = UNet2DConditionModel(**SD2_UNET)
    parts = {"unet": unet, "text_encoder": CLIPTextModel(text_config(24))}
    return Model(unet, model_layers(SD2, "small-sd2", parts))


@pytest.fixture(scope="session")
def sdxl() -> Model:
    unet = UNet2DConditionModel(**SDXL_UNET)
    encoders = {
        "text_encoder": CLIPTextModel(text_config(16)),
        "text_encoder_2": CLIPTextModelWithProjection(text_config(24)),
    }
    return Model(unet, model_layers(SDXL, "small-sdxl", {"unet": unet, **encoders}))


@dataclass(frozen=True)
class Factors:
    """What a trainer would have learned for one layer."""

    up: Tensor
    down: Tensor
    alpha: float | None

    def delta(self, shape: tuple[int, ...]) -> Tensor:
        """dW = alpha / rank * up . down, from the definition, in double precision."""
        rank = self.down.shape[0]
        scale = 1.0 if self.alpha is None else self.alpha / rank
        return (self.up.double().flatten(1) @ self.down.double().flatten(1) * scale).reshape(shape)


class Trainer:
    """Makes up factors: a random rank and alpha for every layer."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def number(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=self.generator))

    def tensor(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def layer(self, shape: tuple[int, ...], *, alpha: bool = True, rank: int | None = None) -> Factors:
        out_width, in_width, *kernel = shape
        rank = rank or self.number(1, 4)
        ones = [1] * len(kernel)
        return Factors(
            up=self.tensor(out_width, rank, *ones),
            down=self.tensor(rank, in_width, *kernel),
            alpha=self.number(1, 24) / 4 if alpha else None,
        )

    def layers(self, modules: Mapping[str, tuple[int, ...]], *, alpha: bool = True) -> dict[str, Factors]:
        return {module: self.layer(shape, alpha=alpha) for module, shape in modules.items()}


@pytest.fixture
def trainer() -> Trainer:
    return Trainer()


Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def save(
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, str] | None = None,
        name: str = "fox.safetensors",
    ) -> Path:
        path = tmp_path / name
        copies = {key: tensor.clone().contiguous() for key, tensor in tensors.items()}
        safetensors.torch.save_file(copies, path, metadata=dict(metadata) if metadata else None)
        return path

    return save


@pytest.fixture
def refused() -> Callable[..., str]:
    """Reading must fail with this error; gives the message, which always names the file."""

    def refused(error: type[Exception], path: Path, model: Model) -> str:
        with pytest.raises(error) as caught:
            read_adapter(path, model.layers, "fox")
        assert path.name in str(caught.value)
        return str(caught.value)

    return refused


@pytest.fixture
def assert_applied() -> Callable[..., None]:
    """Every layer's dW equals its definition, and no layer is missing or extra."""

    def check(adapter: Adapter, model: Model, component: str, learned: Mapping[str, Factors]) -> None:
        prefix = f"{component}."
        read = {name.removeprefix(prefix) for name in adapter.layers if name.startswith(prefix)}
        assert read == set(learned)
        for module, factors in learned.items():
            shape = model.modules(component)[module]
            torch.testing.assert_close(
                adapter.delta(prefix + module).double(),
                factors.delta(shape),
                rtol=1e-5,
                atol=1e-6,
                msg=module,
            )

    return check


def chosen(modules: Iterable[str], *endings: str) -> list[str]:
    return [module for module in modules if module.endswith(endings)]
