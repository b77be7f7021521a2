"""Checkpoints from folders and the hub: what loads is what stock diffusers loads; what cannot is refused by name."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import httpx
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from pipelines.checkpoints import hashes, load_checkpoint
from pipelines.checkpoints.card import CARD_FILE
from pipelines.checkpoints.folders import folder_files, folder_variant
from pipelines.checkpoints.hashes import short_hash
from pipelines.checkpoints.weights import MemoryNeed, memory_needed, refuse_if_too_large
from pipelines.errors import ModelError
from pipelines.families.family import SD1, SDXL
from pipelines.home import Home
from pipelines.schedulers import make_scheduler


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def asked(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "getaddrinfo", asked)
    monkeypatch.setenv("LORA_STUDIO_HOME", str(tmp_path / "home"))


def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy to change; its tokenizers know a handful of letters only, which load at once."""
    target = Path(shutil.copytree(folder, tmp_path / "copy"))
    for part in target.glob("tokenizer*"):
        letters = ["<|startoftext|>", "<|endoftext|>", "!", "a</w>"]
        CLIPTokenizer(vocab={letter: index for index, letter in enumerate(letters)}).save_pretrained(part)
    return target


def edit(file: Path, **changes: object) -> None:
    """Changes a JSON file's keys; None takes a key out."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def same(module: Any, other: Any) -> bool:
    a, b = module.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_folder_is_what_stock_diffusers_loads(model_folder: Path, stock: Callable[[Path], Any]) -> None:
    pipe = stock(model_folder)
    checkpoint = load_checkpoint(model_folder)
    assert checkpoint.family is (SDXL if hasattr(pipe, "text_encoder_2") else SD1)
    assert same(checkpoint.unet, pipe.unet)
    assert same(checkpoint.vae, pipe.vae)
    for name in checkpoint.family.text_encoders:
        assert same(checkpoint.text_encoders[name], getattr(pipe, name))
        stock_tokenizer = getattr(pipe, name.replace("text_encoder", "tokenizer"))
        assert checkpoint.tokenizers[name]("a fox!").input_ids == stock_tokenizer("a fox!").input_ids
    assert type(checkpoint.scheduler) is type(pipe.scheduler)
    assert dict(checkpoint.scheduler.config) == dict(pipe.scheduler.config)
    assert checkpoint.force_zeros_for_empty_prompt == (checkpoint.family is SDXL)
    assert not any(module.training for module in (checkpoint.unet, checkpoint.vae))
    assert not any(weight.requires_grad for weight in checkpoint.unet.parameters())
    assert checkpoint.label == model_folder.name
    assert checkpoint.source == str(model_folder)


def test_defaults_are_the_folders_own_else_the_cards(
    sdxl_folder: Path, sd_folder: Path, tmp_path: Path
) -> None:
    defaults = load_checkpoint(sdxl_folder).defaults
    assert (defaults.width, defaults.height, defaults.scheduler) == (32, 32, "Euler")
    assert load_checkpoint(sd_folder).defaults.scheduler == "PNDM"
    folder = copy(sdxl_folder, tmp_path)
    (folder / CARD_FILE).write_text('{"family": "sdxl", "width": 64, "steps": 4, "examples": ["a fox"]}')
    checkpoint = load_checkpoint(folder)
    assert checkpoint.card is not None
    assert checkpoint.card.examples == ("a fox",)
    assert (checkpoint.defaults.width, checkpoint.defaults.height, checkpoint.defaults.steps) == (64, 32, 4)
    (folder / CARD_FILE).write_text('{"family": "sd1"}')
    with pytest.raises(ModelError, match="its card says sd1, but it is Stable Diffusion XL"):
        load_checkpoint(folder)


def test_precision(sdxl_folder: Path, tmp_path: Path) -> None:
    folder = copy(sdxl_folder, tmp_path)
    for upcast, expected in ((None, torch.float32), (False, torch.float16)):
        edit(folder / "vae" / "config.json", force_upcast=upcast)
        checkpoint = load_checkpoint(folder, dtype=torch.float16)
        parts = (checkpoint.unet, *checkpoint.text_encoders.values())
        assert {part.dtype for part in parts} == {torch.float16}
        assert checkpoint.vae.dtype == expected
    assert load_checkpoint(folder, dtype=torch.bfloat16).vae.dtype == torch.bfloat16


def test_half_precision_files(sdxl_folder: Path, stock: Callable[[Path], Any], tmp_path: Path) -> None:
    sdxl_folder = copy(sdxl_folder, tmp_path)
    pipe = stock(sdxl_folder).to(dtype=torch.float16)
    pipe.save_pretrained(tmp_path / "both", variant="fp16")
    only = Path(shutil.copytree(tmp_path / "both", tmp_path / "only"))
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        for file in (sdxl_folder / part).glob("*.safetensors"):
            shutil.copy(file, tmp_path / "both" / part)
    assert folder_variant(only, torch.float32) == "fp16"
    assert folder_variant(tmp_path / "both", torch.float32) is None
    assert folder_variant(tmp_path / "both", torch.bfloat16) == "fp16"
    checkpoint = load_checkpoint(only)
    assert checkpoint.unet.dtype == torch.float32
    assert all("fp16" in file.name for file in checkpoint.files)
    assert len(checkpoint.files) == 4
    assert same(load_checkpoint(only, dtype=torch.float16).unet, pipe.unet)


def test_hash_follows_the_weights(sdxl_folder: Path, tmp_path: Path) -> None:
    folder = copy(sdxl_folder, tmp_path)
    before = load_checkpoint(folder).hash
    assert before == short_hash(folder_files(sdxl_folder, torch.float32))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert load_checkpoint(folder).hash != before
    assert short_hash([file]) == hashlib.sha256(content).hexdigest()[:10]


def test_a_large_files_hash_is_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def counted(file: Path, size: int, changed: int) -> str:
        read.append(file)
        return hashlib.sha256(file.read_bytes()).hexdigest()

    monkeypatch.setattr(hashes, "_sha256", counted)
    large, small, folder = tmp_path / "large", tmp_path / "small", tmp_path / "home" / "hashes"
    with large.open("wb") as stream:
        stream.truncate(hashes.REMEMBERED_BYTES)
    small.write_bytes(b"1")
    first = short_hash([large, small], folder)
    assert read == [large, small]
    assert short_hash([large, small], folder) == first
    assert read == [large, small, small]
    [note] = folder.iterdir()
    note.write_text("{")  # torn
    assert short_hash([large, small], folder) == first
    assert read[3:] == [large, small]
    with large.open("r+b") as stream:
        stream.write(b"x")
    assert short_hash([large], folder) == hashlib.sha256(large.read_bytes()).hexdigest()[:10]
    assert read[5:] == [large]
    folder.with_name("file").touch()
    assert short_hash([large], folder.with_name("file") / "no folder") == short_hash([large])


def test_prediction_type_and_zero_snr_are_the_schedulers(sdxl_folder: Path, tmp_path: Path) -> None:
    folder = copy(sdxl_folder, tmp_path)
    edit(
        folder / "scheduler" / "scheduler_config.json",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    checkpoint = load_checkpoint(folder)
    assert (checkpoint.prediction_type, checkpoint.zero_snr) == ("v_prediction", True)
    heun = make_scheduler("Heun", checkpoint.scheduler)
    assert heun.config.prediction_type == "v_prediction"


def test_old_scheduler_files_are_mended_as_diffusers_does(
    sd_folder: Path, tmp_path: Path, stock: Callable[[Path], Any]
) -> None:
    folder = copy(sd_folder, tmp_path)
    file = folder / "scheduler" / "scheduler_config.json"
    edit(file, _class_name="DDIMScheduler", steps_offset=0, clip_sample=True)
    with pytest.warns(FutureWarning):
        pipe = stock(folder)
    checkpoint = load_checkpoint(folder)
    for key in ("steps_offset", "clip_sample", "beta_end", "set_alpha_to_one"):
        assert checkpoint.scheduler.config[key] == pipe.scheduler.config[key]
    edit(file, _class_name="LMSDiscreteScheduler")
    expected = (
        diffusers.EulerDiscreteScheduler if "_backends" in vars(diffusers.LMSDiscreteScheduler) else None
    )
    assert type(load_checkpoint(folder).scheduler) is (expected or diffusers.LMSDiscreteScheduler)


def test_another_vae(sdxl_folder: Path, tmp_path: Path) -> None:
    sdxl_folder = copy(sdxl_folder, tmp_path)
    vae = diffusers.AutoencoderKL.from_pretrained(sdxl_folder / "vae")
    with torch.no_grad():
        vae.decoder.conv_in.bias += 1
    vae.save_pretrained(tmp_path / "home" / "vae" / "Bright")
    for source in ("bright", tmp_path / "home" / "vae" / "Bright"):
        checkpoint = load_checkpoint(sdxl_folder, vae=source)
        assert torch.equal(checkpoint.vae.decoder.conv_in.bias, vae.decoder.conv_in.bias)
    file = tmp_path / "home" / "vae" / "Bright" / "diffusion_pytorch_model.safetensors"
    assert same(load_checkpoint(sdxl_folder, vae=file).vae, vae)
    bigger = diffusers.AutoencoderKL(
        block_out_channels=(4,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
    )
    bigger.save_pretrained(tmp_path / "bigger")
    with pytest.raises(ModelError, match=r"the VAE bigger has 8 pixels per latent cell, the model's own 2"):
        load_checkpoint(sdxl_folder, vae=tmp_path / "bigger")
    (tmp_path / "fox.pt").touch()
    with pytest.raises(ModelError, match=r"the VAE fox\.pt is no \.safetensors file"):
        load_checkpoint(sdxl_folder, vae=tmp_path / "fox.pt")


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet/config.json", {"in_channels": 9}, "inpainting, refiner and depth models are not supported"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "for LCM: with an LCM-LoRA"),
        ("model_index.json", {"text_encoder": [None, None]}, "is an SDXL refiner"),
        (
            "model_index.json",
            {"_class_name": "FluxPipeline", "unet": None},
            "is a FluxPipeline, which has no UNet",
        ),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderTiny"]}, "it must be a AutoencoderKL"),
        ("model_index.json", {"vae": ["mine", "AutoencoderKL"]}, "foreign code is not run"),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "another kind of model",
        ),
        ("scheduler/scheduler_config.json", {"_class_name": "Mine"}, "scheduler 'Mine' is unknown"),
    ],
)
def test_foreign_folders_are_refused_by_name(
    sdxl_folder: Path, tmp_path: Path, file: str, changes: dict[str, object], message: str
) -> None:
    folder = copy(sdxl_folder, tmp_path)
    edit(folder / file, **changes)
    with pytest.raises(ModelError, match=message):
        load_checkpoint(folder)


def test_damaged_folders_are_refused(sdxl_folder: Path, tmp_path: Path) -> None:
    folder = copy(sdxl_folder, tmp_path)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(ModelError, match="it is cut short"):
        load_checkpoint(folder)
    weights.write_bytes(whole)
    tensors = load_file(weights)
    tensors.pop("mid_block.resnets.0.conv1.weight")
    save_file(tensors, weights)
    with pytest.raises(ModelError, match=r"the files in unet hold \d+ numbers where \d+ belong"):
        load_checkpoint(folder)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(
        ModelError, match=r"no .safetensors weights in its unet folder; .bin files are not read"
    ):
        load_checkpoint(folder)
    weights.write_bytes(whole)
    (folder / "text_encoder_2" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"copy cannot be loaded: .*model\.safetensors"):
        load_checkpoint(folder)
    (folder / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"scheduler_config\.json is not valid JSON"):
        load_checkpoint(folder)
    (folder / "model_index.json").unlink()
    with pytest.raises(ModelError, match=r"has no model_index\.json; a diffusers model folder holds"):
        load_checkpoint(folder)


def test_hub_ids(sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def download(name: str, **settings: Any) -> str:
        calls.append({"name": name, **settings})
        return str(sdxl_folder)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    checkpoint = load_checkpoint("someone/random-sdxl")
    assert (checkpoint.label, checkpoint.source) == ("someone/random-sdxl", "someone/random-sdxl")
    assert calls[0]["use_safetensors"]
    load_checkpoint("someone/random-sdxl", allow_downloads=False, dtype=torch.float16)
    assert [call["variant"] for call in calls] == [None, "fp16", None]
    assert calls[-1]["local_files_only"]


def test_hub_ids_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(error: Exception) -> None:
        def download(name: str, **settings: Any) -> str:
            raise error

        monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)

    response = httpx.Response(404, request=httpx.Request("GET", "https://hub.invalid"))
    failing(RepositoryNotFoundError("no", response=response))
    with pytest.raises(
        ModelError, match=r"the hub has no model 'some/one' \(or it is private\); check the spelling"
    ):
        load_checkpoint("some/one")
    hidden = OSError("Cannot load model some/one: the model is not fully cached locally")
    hidden.__cause__ = RepositoryNotFoundError("no", response=response)
    failing(hidden)
    with pytest.raises(ModelError, match="the hub has no model 'some/one'"):
        load_checkpoint("some/one")
    failing(GatedRepoError("no", response=response))
    with pytest.raises(ModelError, match="asks for its licence to be accepted"):
        load_checkpoint("some/one")
    failing(OSError("Cannot load model some/one\nmore"))
    with pytest.raises(
        ModelError, match=r"hub cannot be reached \(Cannot load model some/one\); check the network"
    ):
        load_checkpoint("some/one")
    with pytest.raises(ModelError, match="downloads are not allowed here; download it first"):
        load_checkpoint("some/one", allow_downloads=False)
    failing(httpx.ConnectError("refused"))
    with pytest.raises(ModelError, match="hub cannot be reached"):
        load_checkpoint("some/one", dtype=torch.float16)
    failing(ValueError("no pickles"))
    with pytest.raises(ModelError, match="some/one cannot be used: no pickles"):
        load_checkpoint("some/one", dtype=torch.float16)


def test_offline_hub_is_an_error_for_people(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Through diffusers itself, with the hub switched off as everywhere in these tests."""
    with pytest.raises(ModelError, match="not in the local cache"):
        load_checkpoint("nobody-at-all/no-such-model", home=Home.resolve(tmp_path))


def test_memory_is_reckoned_before_loading(sdxl_folder: Path) -> None:
    checkpoint = load_checkpoint(sdxl_folder)
    parts = (checkpoint.unet, checkpoint.vae, *checkpoint.text_encoders.values())
    need = memory_needed(checkpoint.files, torch.float16)
    assert need.parameters == sum(weight.numel() for part in parts for weight in part.parameters())
    assert need.weights == 2 * need.parameters
    assert need.free > 0
    assert need.fits
    said: list[str] = []
    refuse_if_too_large("small", need, said.append)
    assert not said
    refuse_if_too_large("big", MemoryNeed(2_600_000_000, 2**33, 2**34), said.append)
    assert said == ["big: 2.60 billion parameters need 8.0 GiB of memory; 16.0 GiB are free"]
    with pytest.raises(
        ModelError, match=r"big does not fit into this computer's memory: .* float16 or bfloat16"
    ):
        refuse_if_too_large("big", MemoryNeed(2_600_000_000, 2**34, 2**33), said.append)
