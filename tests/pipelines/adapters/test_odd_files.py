"""What lies in a folder of adapters under an adapter's name, or beside one, and is no file or no note: it is said of
that one alone, and nobody waits."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.adapters import inspect_file, read_adapter, sha256
from pipelines.errors import AdapterError, AdapterFileError, AdapterFormatError, SetupError
from pipelines.home import answers

from ..folders import ODD, dead, in_time

Make = Callable[[Path], None]
KEY = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
TENSORS = {f"{KEY}.lora_down.weight": torch.zeros(2, 40), f"{KEY}.lora_up.weight": torch.zeros(8, 2)}
NOTES = (".json", ".civitai.info", ".metadata.json", ".txt", ".png", ".preview.png")


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "fox.safetensors")
    return tmp_path / "fox.safetensors"


@pytest.mark.parametrize("make", ODD)
def test_what_is_no_file_is_refused(tmp_path: Path, make: Make, sdxl) -> None:
    path = tmp_path / "odd.safetensors"
    make(path)
    for use in (inspect_file, sha256, lambda path: read_adapter(path, sdxl.layers, "odd")):
        with pytest.raises(AdapterFileError, match=r"odd\.safetensors"):
            in_time(lambda use=use: use(path))


def test_a_pipe_is_called_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "odd.safetensors")
    with pytest.raises(
        AdapterFileError, match=r"odd\.safetensors: cannot be read \(it is a pipe, not a file; take"
    ):
        in_time(lambda: inspect_file(tmp_path / "odd.safetensors"))


def test_a_pipe_that_comes_between_looking_and_loading_is_not_waited_for(
    lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.adapters.container import read_header, read_tensors

    header = read_header(lora)
    lora.unlink()
    os.mkfifo(lora)
    with pytest.raises(AdapterFileError, match="it is a pipe"):
        in_time(lambda: read_tensors(lora, header))


@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize("ending", NOTES)
def test_notes_that_are_no_files_count_as_absent(lora: Path, make: Make, ending: str) -> None:
    make(lora.with_name(f"fox{ending}"))
    seen = in_time(lambda: inspect_file(lora))
    assert seen.sidecars.files == ()
    assert seen.sidecars.preview is None


@pytest.mark.parametrize("make", ODD[:4])
def test_a_folders_parts_that_are_no_files(tmp_path: Path, make: Make) -> None:
    make(tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterFileError, match="this folder holds neither"):
        in_time(lambda: inspect_file(tmp_path))
    (tmp_path / "adapter_model.safetensors").unlink()
    save_file(TENSORS, tmp_path / "adapter_model.safetensors")
    make(tmp_path / "adapter_config.json")
    assert in_time(lambda: inspect_file(tmp_path)).refused == ""


HUGE = "9" * 400


@pytest.mark.parametrize(
    "note",
    [
        "[" * 100_000,
        '{"a": ' * 100_000,
        "9" * 5000,
        f'{{"preferred weight": {HUGE}, "usage_tips": {{"strength": {HUGE}}}}}',
        f'{{"preferred weight": "{HUGE}", "usage_tips": "{{\\"strength_min\\": {HUGE}, \\"strength_max\\": 1e999}}"}}',
        '{"preferred weight": NaN, "usage_tips": {"strength_min": -Infinity, "strength_max": Infinity}}',
        '{"activation text": 7, "description": [], "tags": {"a": 1}, "model": [], "files": {"a": []}, "civitai": 3}',
        '{"trainedWords": [[], {}, null, 7], "files": [null, {"hashes": []}, {"hashes": {"x": {}}}], "sha256": []}',
        "null",
        "[]",
        b"\xff\xfe{}",
        b"{}" + b" " * (5 * 2**20),
    ],
    ids=range(12),
)
def test_notes_that_make_no_sense_count_as_absent(lora: Path, note: str | bytes) -> None:
    for ending in NOTES[:4]:
        lora.with_name(f"fox{ending}").write_bytes(note if isinstance(note, bytes) else note.encode())
    seen = in_time(lambda: inspect_file(lora))
    assert seen.refused == ""
    assert seen.metadata.preferred_weight is None
    assert seen.metadata.strength_range is None
    json.dumps(seen.to_dict(), allow_nan=False, ensure_ascii=False).encode()


def test_texts_that_cannot_be_written_again_are_mended(lora: Path) -> None:
    lora.with_suffix(".json").write_text('{"activation text": "fox \\ud83d", "notes": "\\ude00"}')
    metadata = {"modelspec.title": "\ud83d", "\ud83d": "x", "ss_tag_frequency": '{"\\ud83d": {}}'}
    write(lora, {"__metadata__": metadata, f"{KEY}.lora_down.weight": entry()})
    seen = inspect_file(lora)
    assert (seen.metadata.title, seen.metadata.triggers) == ("?", ("fox ?",))
    json.dumps(seen.to_dict(), ensure_ascii=False).encode()


def write(path: Path, header: object) -> None:
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))


def entry(**changed: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8], **changed}


@pytest.mark.parametrize("metadata", [None, 7, "text", [1], [], True])
def test_metadata_that_are_no_object_count_as_none(tmp_path: Path, metadata: object) -> None:
    path = tmp_path / "fox.safetensors"
    write(path, {"__metadata__": metadata, f"{KEY}.lora_down.weight": entry()})
    assert inspect_file(path).stated == {}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(shape=[10**400])},
        {"a": entry(shape=[-1])},
        {"a": entry(shape="12")},
        {"a": entry(shape=[[1]])},
        {"a": entry(data_offsets=[-(10**4299), 10**4299])},
        {"a": entry(data_offsets=[0, 1e308])},
        {"a": entry(data_offsets=[0])},
        {"a": entry(dtype=[])},
        {"a": []},
        {"a": None},
        '{"a":' * 100_000,
        '{"a": ' + "9" * 5000 + "}",
        '{"__metadata__": {"a": ' + "[" * 5000 + "]" * 5000 + '}, "a": 1}',
    ],
    ids=range(13),
)
def test_headers_that_make_no_sense_are_refused(tmp_path: Path, header: object) -> None:
    path = tmp_path / "odd.safetensors"
    write(path, header)
    with pytest.raises(AdapterFileError, match=r"odd\.safetensors"):
        in_time(lambda: inspect_file(path))


def test_a_layer_of_a_number_without_end_is_one_of_no_known_depth(tmp_path: Path) -> None:
    path = tmp_path / "fox.safetensors"
    write(path, {f"unet.down_blocks.1.transformer_blocks.{'9' * 5000}.to_q.lora_A.weight": entry()})
    assert inspect_file(path).family == "unknown"


@pytest.mark.parametrize("alpha", [HUGE, "NaN", "1e999", '""', "[]", "true", '{"a": 1}'])
def test_alphas_that_are_no_numbers_are_refused(tmp_path: Path, alpha: str) -> None:
    save_file(TENSORS, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(f'{{"lora_alpha": {alpha}}}')
    assert "must be finite numbers" in inspect_file(tmp_path).refused
    (tmp_path / "adapter_config.json").write_text(f'{{"alpha_pattern": {{"x": {alpha}}}}}')
    assert "must be finite numbers" in inspect_file(tmp_path).refused


def test_settings_larger_than_any_are_refused(tmp_path: Path, sdxl) -> None:
    save_file(TENSORS, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes(b"{}" + b" " * (17 * 2**20))
    assert "larger than the 16,777,216 bytes" in inspect_file(tmp_path).refused
    with pytest.raises(AdapterFormatError, match="larger than the 16,777,216 bytes"):
        read_adapter(tmp_path, sdxl.layers, "fox")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(answers, "PATIENCE", 0.4)
    yield
    in_time(lambda: [time.sleep(0.01) for _ in iter(lambda: bool(answers.silent()), False)])


def test_a_folder_that_does_not_answer_is_told_in_time(lora: Path, sdxl, impatient: None) -> None:
    with dead(lora.parent):
        for use in (inspect_file, sha256, lambda path: read_adapter(path, sdxl.layers, "fox")):
            with pytest.raises(SetupError, match="does not answer"):
                in_time(lambda use=use: use(lora), 5)


def test_what_nobody_foresaw_is_said_of_the_file(lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(opened: object) -> None:
        raise OverflowError("far too large")

    monkeypatch.setattr("pipelines.adapters.inspection.read_structure", odd)
    with pytest.raises(AdapterError, match=r"fox\.safetensors: cannot be read: far too large; take it away"):
        inspect_file(lora)
