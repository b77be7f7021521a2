"""What lies in a folder of models under a model's name, or inside one, and is no file, or makes no sense."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.checkpoints import load_checkpoint
from pipelines.checkpoints.components import read_json
from pipelines.checkpoints.folders import folder_family
from pipelines.checkpoints.single_file import FIRST_CONV, examine
from pipelines.checkpoints.weights import read_weights_header
from pipelines.errors import ModelError, SetupError
from pipelines.families.family import SD1
from pipelines.home import answers

from ..folders import ODD, dead, in_time
from .headers import published, write_header

Make = Callable[[Path], None]


@pytest.mark.parametrize("make", ODD[:4])
@pytest.mark.parametrize(
    "part",
    [
        *("model_index.json", "studio.json", "unet/config.json", "vae/diffusion_pytorch_model.safetensors"),
        *("tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json", "unet/anything"),
    ],
)
def test_a_models_part_that_is_no_file_is_refused(
    tmp_path: Path, sdxl_folder: Path, make: Make, part: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sdxl_folder, folder)
    (folder / part).unlink(missing_ok=True)
    make(folder / part)
    with pytest.raises(ModelError, match=f"{Path(part).name}"):
        in_time(lambda: load_checkpoint(folder))


@pytest.mark.parametrize("make", ODD)
def test_a_single_file_and_a_vae_that_are_no_files_are_refused(
    tmp_path: Path, sdxl_folder: Path, make: Make
) -> None:
    file = tmp_path / "odd.safetensors"
    make(file)
    for use in (
        examine,
        read_weights_header,
        load_checkpoint,
        lambda file: load_checkpoint(sdxl_folder, vae=file),
    ):
        with pytest.raises(ModelError, match="odd"):
            in_time(lambda use=use: use(file))
    make(tmp_path / "config.json")
    with pytest.raises(ModelError):
        in_time(lambda: load_checkpoint(sdxl_folder, vae=tmp_path))


def write(path: Path, header: object) -> Path:
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    return path


def entry(**changed: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [1, 4], "data_offsets": [0, 8], **changed}


@pytest.mark.parametrize(
    "header",
    [
        "[]",
        "7",
        "{" * 100_000,
        '{"a":' * 100_000,
        {"a": 7},
        {"a": entry(shape=["x"])},
        {"a": entry(shape=[10**400])},
        {"a": entry(shape=[-4, 4])},
        {"a": entry(shape=7)},
        {"a": entry(data_offsets=[])},
        {"a": entry(data_offsets=[0, "8"])},
        {"a": entry(data_offsets=[0, 10**400])},
        {FIRST_CONV: entry(shape=[1])},
        {FIRST_CONV: entry(), "__metadata__": [7]},
    ],
    ids=range(14),
)
def test_headers_that_make_no_sense_end_in_no_other_error(tmp_path: Path, header: object) -> None:
    path = write(tmp_path / "odd.safetensors", header)
    with pytest.raises(ModelError, match=r"odd\.safetensors"):
        in_time(lambda: examine(path))


@pytest.mark.parametrize("metadata", [None, 7, [7], {"a": 7}, {"modelspec.prediction_type": []}])
def test_metadata_that_make_no_sense_count_as_none(tmp_path: Path, metadata: object) -> None:
    file = write_header(tmp_path / "odd.safetensors", published(SD1), metadata=metadata)
    assert examine(file).prediction_type == "epsilon"


@pytest.mark.parametrize("note", ["[" * 10_000, "model: {params: 7}", "7", "#" * 2**19, "\0"])
def test_a_note_beside_a_checkpoint_that_makes_no_sense_is_named(tmp_path: Path, note: str) -> None:
    path = write_header(tmp_path / "odd.safetensors", published(SD1))
    assert examine(path).prediction_type == "epsilon"
    path.with_suffix(".yaml").write_text(note)
    with pytest.raises(ModelError, match=r"odd\.yaml cannot be read"):
        in_time(lambda: examine(path))
    path.with_suffix(".yaml").unlink()
    os.mkfifo(path.with_suffix(".yaml"))
    with pytest.raises(ModelError, match=r"odd\.yaml cannot be read .*pipe"):
        in_time(lambda: examine(path))


@pytest.mark.parametrize("text", ["[]", "[" * 100_000, "9" * 5000, "\0", " " * (17 * 2**20)], ids=range(5))
def test_configurations_that_make_no_sense_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        in_time(lambda: read_json(tmp_path / "config.json"))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("unet", "layers_per_block", 10**9),
        ("unet", "transformer_layers_per_block", [1, [10**400]]),
        ("text_encoder", "num_hidden_layers", 1e999),
        ("vae", "layers_per_block", 65),
    ],
)
def test_layers_without_end_are_not_built(
    sdxl_folder: Path, tmp_path: Path, part: str, key: str, value: object
) -> None:
    folder = Path(shutil.copytree(sdxl_folder, tmp_path / "odd"))
    file = folder / part / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(ModelError, match=f"the {key} of its {part} is .*, more than 64"):
        in_time(lambda: load_checkpoint(folder))


@pytest.mark.parametrize("value", [7, "x", {}, [], [[], []], [None], None])
@pytest.mark.parametrize("key", ["unet", "vae", "text_encoder", "text_encoder_2", "tokenizer"])
def test_an_index_that_makes_no_sense_is_refused(sdxl_folder: Path, key: str, value: object) -> None:
    index = {**read_json(sdxl_folder / "model_index.json"), key: value}
    if key == "unet" and isinstance(value, list) and value == []:
        index.pop("unet")
    with pytest.raises(ModelError):
        folder_family(sdxl_folder, index)


def test_a_model_that_does_not_answer_is_told_in_time(
    tmp_path: Path, sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "PATIENCE", 0.4)
    shutil.copytree(sdxl_folder, tmp_path / "model")
    with dead(tmp_path / "model"), pytest.raises(SetupError, match="does not answer"):
        in_time(lambda: load_checkpoint(tmp_path / "model"), 5)
    in_time(lambda: [time.sleep(0.01) for _ in iter(lambda: bool(answers.silent()), False)])
