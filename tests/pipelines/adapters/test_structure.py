"""What is known of one file is known of all of its make: the quick reading says exactly what the full one says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipelines import assets
from pipelines.adapters import container, structure
from pipelines.adapters.container import UnparsedHeader, open_header, read_header
from pipelines.adapters.structure import Structure, Structures, structure_of
from pipelines.errors import AdapterFileError

UNET = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


def announced(rank: int = 4, stem: str = UNET) -> dict[str, object]:
    down, up = 2 * rank * 2048, 2 * rank * 640
    return {
        f"{stem}.alpha": {"dtype": "F16", "shape": [], "data_offsets": [0, 2]},
        f"{stem}.lora_down.weight": {"dtype": "F16", "shape": [rank, 2048], "data_offsets": [2, 2 + down]},
        f"{stem}.lora_up.weight": {
            "dtype": "F16",
            "shape": [640, rank],
            "data_offsets": [2 + down, 2 + down + up],
        },
    }


def write(file: Path, header: str, *, data: int = 2 + 2 * 4 * 2688, padding: int = 0) -> Path:
    text = header.encode() + b" " * padding
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + data)
    return file


def full(file: Path) -> tuple[Structure, Mapping[str, str]] | str:
    """The slow and obvious reading."""
    try:
        header = read_header(file)
    except AdapterFileError as error:
        return str(error)
    return structure_of(header.tensors), header.metadata


def quick(file: Path, known: Structures) -> tuple[Structure, Mapping[str, str]] | str:
    try:
        return known.read(open_header(file))
    except AdapterFileError as error:
        return str(error)


PLAIN = json.dumps(announced())
REST = PLAIN[1:]
HEADERS = {
    "no metadata": PLAIN,
    "compact": json.dumps(announced(), separators=(",", ":")),
    "metadata first": '{"__metadata__":{"ss_output_name":"a"},' + REST,
    "other metadata": '{"__metadata__":{"ss_output_name":"b, \\"__metadata__\\": {}", "x": "{\\"y\\": 1}"},' + REST,
    "spaced": '{"__metadata__": { "modelspec.title" : "Ünï \\ud83d\\ude00" } , ' + REST,
    "space before the colon": '{"__metadata__" : {"a": "b"}, ' + REST,
    "values that are no texts": '{"__metadata__":{"a":1,"b":null,"c":[1]},' + REST,
    "metadata that is no object": '{"__metadata__":"x",' + REST,
    "metadata last": PLAIN[:-1] + ', "__metadata__": {"a": "b"}}',
    "metadata under an escaped name": PLAIN[:-1] + ', "\\u005f_metadata__": {"a": "b"}}',
    "metadata twice": '{"__metadata__":{"a":"b"},' + PLAIN[1:-1] + ',"__metadata__":{}}',
    "metadata twice, once escaped": '{"__metadata__":{"a":"b"},' + PLAIN[1:-1] + ',"\\u005f_metadata__":{}}',
    "a metadata key twice": '{"__metadata__":{"a":"b","a":"c"},' + REST,
    "metadata alone": '{"__metadata__":{"a":"b"}}',
    "a comma too many": '{"__metadata__":{"a":"b"},}',
    "a missing comma": '{"__metadata__":{"a":"b"}' + REST,
    "deep metadata": '{"__metadata__":{"a":' + "[" * 99_999 + "]" * 99_999 + "}," + REST,
    "not JSON": '{"__metadata__":{"a":"b"},' + REST[:-5],
    "text after the end": PLAIN + "x",
    "another rank": json.dumps({"__metadata__": {"a": "b"}, **announced(rank=2)}),
    "a gap": json.dumps({"__metadata__": {}, **{k: v for k, v in announced().items() if "down" not in k}}),
    "another model's": json.dumps(announced(stem="lora_unet_double_blocks_1_img_attn_proj")),
    "no adapter": json.dumps(announced(stem="encoder.layer.1")),
}  # fmt: skip


def test_every_file_reads_as_if_it_were_the_first_of_its_make(tmp_path: Path) -> None:
    """Each is read twice, so that all that follow meet what the others left; results are equal, not close."""
    files = [lora.path for lora in assets.embedded_loras()]
    for number, header in enumerate(HEADERS.values()):
        for padding in (0, 5):
            files.append(write(tmp_path / f"{number}-{padding}.safetensors", header, padding=padding))
        files.append(write(tmp_path / f"{number}-short.safetensors", header, data=100))
        files.append(write(tmp_path / f"{number}-long.safetensors", header, data=99_999))
    expected = [full(file) for file in files]
    known = Structures()
    for _ in range(2):
        assert [quick(file, known) for file in files] == expected
    said = {text for text in expected if isinstance(text, str)}
    assert len(said) > 20  # and those of damaged files are told as fully


def test_only_the_first_of_a_make_is_taken_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    really = UnparsedHeader.parse

    def counted(opened: UnparsedHeader) -> container.Header:
        parsed.append(opened.name)
        return really(opened)

    monkeypatch.setattr(UnparsedHeader, "parse", counted)
    known = Structures()
    for name in "abc":
        header = json.dumps({"__metadata__": {"ss_output_name": name}, **announced()})
        _, metadata = known.read(
            open_header(write(tmp_path / f"{name}.safetensors", header, padding=ord(name) % 8))
        )
        assert metadata["ss_output_name"] == name
    assert parsed == ["a.safetensors"]


def test_no_more_is_remembered_than_was_agreed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(
        structure, "structure_of", lambda tensors: made.append(len(tensors)) or structure_of(tensors)
    )
    known = Structures(most=2)
    files = [
        write(
            tmp_path / f"{rank}.safetensors", json.dumps(announced(rank)), data=2 + 2 * rank * 2688
        )
        for rank in (1, 2, 3)
    ]  # fmt: skip
    for file in (*files, files[2], files[1], files[0]):
        known.read(open_header(file))
    assert len(made) == 4  # the first of them was let go for the third
