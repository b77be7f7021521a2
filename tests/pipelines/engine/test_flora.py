"""FLoRA's lanes beside LoRA's and plain ones in one call, against merged weights and against each alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from composers import Composite, Use
from pipelines import Request, StudioPipeline
from pipelines.adapters import Hadamard
from pipelines.checkpoints import load_checkpoint
from pipelines.engine import flora
from pipelines.engine.bank import FormChoice
from pipelines.engine.reference import merged
from pipelines.model import Model

from ..lanes import assert_within_own_noise, relative, row_of, unet_inputs

ROWS = [
    (Use("multiplied"),),
    (),
    (Use("added", 0.8),),
    (Use("multiplied", 0.6), Use("added", -0.5)),
    (Use("multiplied", 0.3), Use("wide", 0.7)),
    (Use("wide", -0.4, blocks=(("up_blocks.1", 1.0), ("up_blocks.1.resnets", 0.5))), Use("added")),
]


@pytest.fixture(scope="session")
def floras(
    tmp_path_factory: pytest.TempPathFactory, make_flora: Callable[..., Path]
) -> Callable[[Path], dict[str, Path]]:
    """Per model folder: "multiplied" on attention, rank 1, and "wide" on every layer and the text, rank 3."""
    made: dict[Path, dict[str, Path]] = {}

    def of(folder: Path) -> dict[str, Path]:
        if folder not in made:
            home = tmp_path_factory.mktemp("floras")
            made[folder] = {
                "multiplied": make_flora(
                    folder, home / "multiplied.safetensors", rank=1, where="attn", text=False
                ),
                "wide": make_flora(folder, home / "wide.safetensors", rank=3, where="", text=True),
            }
        return made[folder]

    return of


@pytest.fixture
def model(
    model_folder: Path, make_lora: Callable[..., Path], floras: Callable[..., dict[str, Path]]
) -> Model:
    model = Model(load_checkpoint(model_folder))
    for name, file in floras(model_folder).items():
        model.load_adapter(file, name)
    model.load_adapter(make_lora(model_folder, "added", seed=2, rank=2, where=""), "added")
    return model


@pytest.mark.parametrize(
    ("form", "lora"), [(None, "auto"), ("products", "pool"), ("weights", "lane-packed"), (None, "dense")]
)
@torch.inference_mode()
def test_every_lane_equals_its_merged_weights_and_itself_alone(
    model: Model, form: flora.FloraForm | None, lora: FormChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.bank.form = lora
    if form is not None:
        monkeypatch.setattr(flora.Multiplied, "form", lambda self, tokens: form)
    inputs = unet_inputs(model, len(ROWS))
    with model.bank.active("unet", ROWS):
        together = model.unet(**inputs).sample
    assert "multiplied" in model.bank.forms("unet")
    plain = model.unet(**row_of(inputs, 0)).sample
    assert relative(together[0], plain[0]) > 1e-2
    for row, uses in enumerate(ROWS):
        own = row_of(inputs, row)
        reference = merged(model.unet, "unet", model.bank.adapters, uses)(**own).sample
        assert relative(together[row], reference[0]) < 1e-5, uses
        with model.bank.active("unet", [uses]):
            assert relative(together[row], model.unet(**own).sample[0]) < 1e-5, uses


@torch.inference_mode()
def test_text_encoders_take_it_too(model: Model) -> None:
    for component, encoder in model.checkpoint.text_encoders.items():
        ids = torch.randint(0, 1000, (3, 77), generator=torch.Generator().manual_seed(1))
        rows = [(Use("wide", 0.7),), (), (Use("wide", 0.4), Use("added", -0.3))]
        with model.bank.active(component, rows):
            together = encoder(ids)[0]
        for row, uses in enumerate(rows):
            reference = merged(encoder, component, model.bank.adapters, uses)
            assert relative(together[row], reference(ids[row : row + 1])[0][0]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_half_precision_stays_within_its_own_noise(model: Model, dtype: torch.dtype) -> None:
    assert_within_own_noise(model, ROWS, dtype)


@torch.inference_mode()
def test_loading_and_unloading_leave_no_trace(
    model: Model, model_folder: Path, floras: Callable[..., dict[str, Path]]
) -> None:
    inputs = row_of(unet_inputs(model, 1), 0)
    size, before = model.bank.bytes, model.unet(**inputs).sample
    with model.bank.active("unet", [(Use("wide"),)]):
        mixed = model.unet(**inputs).sample
    adapter = model.bank.adapters["wide"]
    for _ in range(5):
        model.bank.unload("wide")
        assert model.bank.bytes < size
        model.bank.load(adapter)
        assert model.bank.bytes == size
    assert torch.equal(model.unet(**inputs).sample, before)
    with model.bank.active("unet", [(Use("wide"),)]):
        assert torch.equal(model.unet(**inputs).sample, mixed)


@torch.inference_mode()
def test_both_forms_are_the_papers_equations_at_every_geometry() -> None:
    """Linear with and without tokens and bias; 1x1, 3x3 and strided convolutions; lanes of different rank."""
    torch.manual_seed(0)
    layers: list[tuple[nn.Linear | nn.Conv2d, Tensor]] = [
        (nn.Linear(6, 10), torch.randn(4, 7, 6)),
        (nn.Linear(6, 10, bias=False), torch.randn(4, 7, 6)),
        (nn.Linear(6, 10), torch.randn(4, 6)),
        (nn.Linear(6, 10, bias=False), torch.randn(4, 2, 3, 6)),
        (nn.Conv2d(6, 10, 1), torch.randn(4, 6, 5, 4)),
        (nn.Conv2d(6, 10, 3, 2, 1, bias=False), torch.randn(4, 6, 8, 8)),
        (nn.Conv2d(6, 10, 3, 1, 1), torch.randn(4, 6, 8, 8)),
    ]
    factors = {
        "one": Hadamard(torch.randn(1, 6), torch.randn(10, 1)),
        "three": Hadamard(torch.randn(3, 6), torch.randn(10, 3), 1 / 3),
    }
    rows = {name: flora.Rows.of(factor, torch.zeros(0)) for name, factor in factors.items()}
    lanes = [[("three", 1.0)], [], [("one", 1.0)], [("one", 0.5), ("three", -0.25)]]
    for some in (lanes, [lanes[0], lanes[2], lanes[3], lanes[0]]):
        gathered = flora.gather(rows, some)
        assert gathered is not None
        for layer, x in layers:
            for form in ("products", "weights"):
                call = flora.linear if isinstance(layer, nn.Linear) else flora.conv2d
                found = call(layer, x, gathered, form)  # type: ignore[arg-type]
                for place, lane in enumerate(some):
                    twin = copy.deepcopy(layer)
                    for name, weight in lane:
                        twin.weight += weight * factors[name].change(layer.weight)
                    assert relative(found[place], twin(x[place : place + 1])[0]) < 1e-5, (layer, form)


def test_the_cheaper_form_is_taken() -> None:
    """Measured on one CPU thread: products for few tokens, weights for many or for higher ranks."""

    def form(inputs: int, outputs: int, rank: int, tokens: int) -> flora.FloraForm:
        factors = (torch.zeros(1, rank, inputs), torch.zeros(1, rank, outputs))
        return flora.Multiplied(1, None, None, *factors).form(tokens)

    assert [form(256, 256, rank, 1) for rank in (1, 4, 32)] == ["products"] * 3
    assert [form(96, 96, rank, 256) for rank in (1, 2, 16)] == ["weights"] * 3
    assert [form(256, 128, rank, 77) for rank in (2, 16)] == ["weights"] * 2


def test_pictures_with_flora_lora_and_neither_share_their_calls(
    model_folder: Path, make_lora: Callable[..., Path], floras: Callable[..., dict[str, Path]]
) -> None:
    pipe = StudioPipeline.from_pretrained(model_folder)
    for name, file in floras(model_folder).items():
        assert pipe.load_lora_weights(file, name).kind == "FLoRA"
    pipe.load_lora_weights(make_lora(model_folder, "added", seed=2, rank=2, where=""), "added")
    mixes = [{"multiplied": 1.0}, {}, {"added": 0.7}, {"wide": 0.8, "added": 0.4}]
    requests = [Request("a fox", adapters=mix, seed=3, steps=3, width=32, height=32) for mix in mixes]
    requests.append(
        Request(
            "a fox",
            adapters={"wide": 1.0, "added": 1.0},
            composer=Composite(),
            seed=3,
            steps=3,
            width=32,
            height=32,
        )
    )
    together = pipe(requests, output_type="latent")
    assert all(record.shared for record in together.records)
    for request, image in zip(requests, together.images, strict=True):
        alone = pipe(request, output_type="latent").images[0]
        assert relative(image, alone) < 1e-4
    assert relative(together.images[0], together.images[1]) > 1e-2
