"""Which LoRA file a name means, however people, tools and systems write it."""

from __future__ import annotations

import json
import os
import struct
import unicodedata
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines import assets
from pipelines.errors import AdapterFileError
from pipelines.home import Home
from pipelines.home.lookup import note_on
from pipelines.home.names import Entry

from ..folders import in_time

NFC, NFD = unicodedata.normalize("NFC", "café ñandú"), unicodedata.normalize("NFD", "café ñandú")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(assets, "root", lambda: tmp_path / "nothing")
    (tmp_path / "home" / "loras").mkdir(parents=True)
    return Home.resolve(tmp_path / "home")


def lora(home: Home, name: str, content: float = 1.0, **metadata: str) -> Path:
    path = home.path / "loras" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"lora_unet_conv_in.alpha": torch.tensor(content)}, path, metadata or None)
    return path


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (f"{NFD}.safetensors", NFC),
        (f"{NFC}.safetensors", NFD),
        (f"{NFD}.safetensors", NFC.upper()),
        ("Fox.SAFETENSORS", "fox"),
        ("Fox.Safetensors", "FOX.safetensors"),
        ("fox.safetensors", "fox.SafeTensors"),
        ("fox.safetensors", " fox "),
        ("fox .safetensors", "fox"),
        ("fox.safetensors", "fox .safetensors"),
        ("sub/fox.safetensors", "sub/fox"),
        ("sub/fox.safetensors", "sub\\fox"),
        ("sub/fox.safetensors", "SUB\\Fox.safetensors"),
        ("a/b/fox.safetensors", "loras/a/b/fox"),
        (f"{NFD}/fox.safetensors", f"{NFC}/fox"),
        ("straße.safetensors", "STRASSE"),
        ("v1.5.safetensors", "v1.5"),
        ("fox.safetensors.safetensors", "fox.safetensors"),
    ],
)
def test_a_name_means_its_file_however_it_is_written(home: Home, file: str, said: str) -> None:
    path = lora(home, file)
    lora(home, "other.safetensors", 2)
    assert home.find_lora(said, paths=False).path == path
    assert len(home.loras()) == 2


def test_where_the_folders_are_cannot_be_guessed_by_name(home: Home) -> None:
    path = lora(home, "animals/fox.safetensors", 1)
    saved = lora(home, "cat/pytorch_lora_weights.safetensors", 2)
    above = f"{home.path.name}/loras"
    for name, file in (("loras/animals/fox", path), ("loras\\cat", saved), ("fox", path)):
        assert home.find_lora(name, paths=False).path == file
    for name in (f"{above}/animals/fox", f"{above}/cat", str(path.with_suffix("")), str(path)):
        with pytest.raises(AdapterFileError, match=r"unknown LoRA|does not exist"):
            home.find_lora(name, paths=False)
        assert home.find_lora(name).path in (path, saved)


def test_a_listed_name_is_found_however_long_it_must_be(home: Home, tmp_path: Path) -> None:
    for number, folder in enumerate(("a", "b")):
        (tmp_path / folder / "lora").mkdir(parents=True)
        (tmp_path / folder / "lora" / "fox2.safetensors").write_bytes(bytes([number]))
    home = Home.resolve(home.path, lora_dirs=[tmp_path / "a" / "lora", tmp_path / "b" / "lora"])
    for folder in "ab":
        found = home.find_lora(f"{folder}/lora/fox2", paths=False)
        assert found.path == tmp_path / folder / "lora" / "fox2.safetensors"


def test_what_is_written_exactly_so_wins_over_what_is_alike(home: Home) -> None:
    composed, apart = lora(home, f"{NFC}.safetensors"), lora(home, f"{NFD}.safetensors", 2)
    assert home.find_lora(NFC).path == composed
    assert home.find_lora(NFD).path == apart
    names = [entry.name for entry in home.loras()]
    assert len(set(names)) == 2
    assert {home.find_lora(name).path for name in names} == {composed, apart}


# Copies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "twins", [("fox", "old/fox"), ("Fox", "fOx"), ("a/fox", "b/c/Fox"), (f"a/{NFC}", f"b/{NFD}")]
)
def test_identical_copies_are_one_file_and_told(home: Home, twins: tuple[str, str]) -> None:
    one, other = (lora(home, f"{name}.safetensors") for name in twins)
    found = home.find_lora(twins[1].rpartition("/")[2].swapcase(), paths=False)
    assert found.path in (one, other)
    assert all(f"{file.parent.name}/{file.name}" in found.note for file in (one, other))
    assert str(home.path) not in found.note  # it stands in records, which others may see
    assert note_on(found.path) == found.note


def test_a_copy_of_a_built_in_file_is_that_file_and_told(home: Home) -> None:
    own, built_in = lora(home, "a/fox.safetensors"), lora(home, "b/fox.safetensors")
    entries = [Entry("a/fox", own), Entry("b/fox", built_in, "tiny", embedded=True)]
    assert "identical copy" in home.find_lora("fox", paths=False, entries=entries).note


def test_three_of_which_one_differs_are_ambiguous_with_their_places(home: Home) -> None:
    places = [
        lora(home, f"{folder}/fox.safetensors", content) for folder, content in (("a", 1), ("b", 1), ("c", 2))
    ]
    with pytest.raises(
        AdapterFileError, match="'fox' is ambiguous; write one of 'a/fox', 'b/fox', 'c/fox'"
    ) as caught:
        home.find_lora("fox")
    assert all(str(place) in str(caught.value) for place in places)


def test_twins_by_case_that_differ_are_ambiguous_and_each_can_be_named(home: Home) -> None:
    lora(home, "Fox.safetensors", 1), lora(home, "foX.safetensors", 2)
    with pytest.raises(AdapterFileError, match="ambiguous"):
        home.find_lora("FOX")
    assert home.find_lora("foX").path.name == "foX.safetensors"


def test_empty_files_are_no_copies_of_one_another(home: Home) -> None:
    for folder in "ab":
        (home.path / "loras" / folder).mkdir()
        (home.path / "loras" / folder / "fox.safetensors").touch()
    with pytest.raises(AdapterFileError, match="ambiguous"):
        home.find_lora("fox")


# Names that files give themselves -----------------------------------------------------------------------------


def test_a_files_own_name_is_an_alias_and_told(home: Home) -> None:
    path = lora(home, "civitai_1234.safetensors", ss_output_name="Nilo Fox")
    lora(home, "other.safetensors", ss_output_name="Hat")
    found = home.find_lora("nilo fox", paths=False)
    assert found.path == path
    assert "ss_output_name" in found.note
    assert home.find_lora("civitai_1234").note == ""


def test_a_files_name_comes_before_what_another_calls_itself(home: Home) -> None:
    lora(home, "a.safetensors", ss_output_name="fox")
    path = lora(home, "fox.safetensors", 2)
    assert home.find_lora("fox").path == path


def test_an_alias_of_two_files_is_ambiguous_unless_they_are_copies(home: Home) -> None:
    lora(home, "a.safetensors", 1, ss_output_name="fox"), lora(home, "b.safetensors", 1, ss_output_name="fox")
    assert "identical copy" in home.find_lora("fox").note
    lora(home, "c.safetensors", 2, ss_output_name="fox")
    with pytest.raises(AdapterFileError, match="ambiguous"):
        home.find_lora("fox")


@pytest.mark.parametrize(
    "header",
    [
        b'{"ss_output_name": "' + b"x" * 5000 + b'"}', b'{"ss_output_name": ' + b'"\\' * 5000, b"{" * 9000, b"",
        b'{"a": "\\"ss_output_name\\": \\"fox\\""}', b'{"ss_output_name": "\\ud83d"}', b'{"ss_output_name": 7}',
    ],
)  # fmt: skip
def test_headers_that_make_no_sense_give_no_alias(home: Home, header: bytes) -> None:
    for length in (len(header), 2**40):
        (home.path / "loras" / "odd.safetensors").write_bytes(struct.pack("<Q", length) + header)
        with pytest.raises(AdapterFileError, match="unknown LoRA 'fox'"):
            in_time(lambda: home.find_lora("fox"))


# Folders that diffusers and PEFT write --------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["pytorch_lora_weights.safetensors", "adapter_model.safetensors"])
def test_a_folder_of_one_adapter_is_the_adapter_of_its_name(home: Home, file: str) -> None:
    path = lora(home, f"nilo fox/{file}")
    (path.parent / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    lora(home, f"hats/hat/{file}", 2)
    assert [entry.name for entry in home.loras()] == ["hat", "nilo fox"]
    for said in (
        "nilo fox",
        "NILO FOX",
        f"nilo fox/{file}",
        "nilo fox/" + file.partition(".")[0],
        path,
        path.parent,
    ):
        assert home.find_lora(said).path == path
    assert home.find_lora("hats/hat", paths=False).name == "hat"
    assert home.find_lora(path.parent).name == "nilo fox"


def test_such_a_file_in_no_folder_of_its_own_keeps_its_name(home: Home) -> None:
    lora(home, "pytorch_lora_weights.safetensors")
    assert [entry.name for entry in home.loras()] == ["pytorch_lora_weights"]


def test_the_old_names_of_such_files_are_found_as_before(home: Home) -> None:
    one, other = (
        lora(home, "a/pytorch_lora_weights.safetensors"),
        lora(home, "b/pytorch_lora_weights.safetensors", 2),
    )
    assert home.find_lora("a/pytorch_lora_weights").path == one
    assert home.find_lora("b/pytorch_lora_weights").path == other
    with pytest.raises(AdapterFileError, match="ambiguous; write one of 'a', 'b'"):
        home.find_lora("pytorch_lora_weights")


# What is left out -----------------------------------------------------------------------------------------------


def test_a_link_that_leads_outside_is_told_with_the_folder_to_add(home: Home, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.safetensors").touch()
    (home.path / "loras" / "fox.safetensors").symlink_to(outside / "secret.safetensors")
    (home.path / "loras" / "more").symlink_to(outside)
    (home.path / "loras" / "fox.png").symlink_to(outside / "fox.png")
    for said in ("fox", "FOX.safetensors", "more/secret", "more"):
        with pytest.raises(
            AdapterFileError,
            match=rf"a link of that name leads outside the folders, to .*; add that folder \({outside}\)",
        ):
            home.find_lora(said, paths=False)
    assert [one.path.name for one in home.look_for_loras()[1]] == ["fox.safetensors", "more"]
    added = Home.resolve(home.path, lora_dirs=[outside])
    assert added.look_for_loras()[1] == ()
    assert {entry.name for entry in added.loras()} == {"fox", "secret"}


def test_links_to_nowhere_and_names_that_are_no_utf8_are_told(home: Home) -> None:
    (home.path / "loras" / "gone.safetensors").symlink_to(home.path / "loras" / "nowhere.safetensors")
    (home.path / "loras" / "notes").symlink_to(home.path / "nothing here")
    (home.path / "loras" / os.fsdecode(b"caf\xe9.safetensors")).touch()
    left = {one.name: one.why for one in home.look_for_loras()[1]}
    assert "leads nowhere" in left["gone"]
    assert "no UTF-8" in left["caf?"]
    for said in ("gone", "caf?"):
        with pytest.raises(AdapterFileError, match=r"nowhere|no UTF-8"):
            home.find_lora(said, paths=False)
    json.dumps([(one.name, one.why) for one in home.look_for_loras()[1]]).encode()


def test_no_more_is_told_than_a_bound_allows(home: Home) -> None:
    for number in range(1_100):
        (home.path / "loras" / f"{number}.safetensors").symlink_to("/dev/null")
    assert len(in_time(home.look_for_loras)[1]) == 1_000


@pytest.mark.parametrize(
    ("inside", "says"),
    [
        ("lora.safetensors", "it holds 'lora.safetensors'"),
        ("pytorch_lora_weights.bin", "it holds 'pytorch_lora_weights.bin'"),
        ("notes.txt", "it holds no weights"),
    ],
)
def test_a_folder_that_is_no_adapter_says_what_it_holds(
    home: Home, tmp_path: Path, inside: str, says: str
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / inside).write_bytes(b"x")
    with pytest.raises(AdapterFileError, match=says):
        home.find_lora(folder)


def test_listed_names_hold_no_folders_above_the_listed_ones_and_find_their_file(home: Home) -> None:
    files = [
        lora(home, name, number)
        for number, name in enumerate(
            (
                "Twin.safetensors",
                "twin.safetensors",
                "both.safetensors",
                "both/pytorch_lora_weights.safetensors",
                "a/Case.safetensors",
                "b/case.safetensors",
                "c/case.safetensors",
            )
        )
    ]
    entries = home.loras()
    assert sorted(entry.name for entry in entries) == [
        "Twin", "a/Case", "b/case", "both", "both/pytorch_lora_weights", "c/case", "twin"]  # fmt: skip
    assert {home.find_lora(entry.name, paths=False).path for entry in entries} == set(files)
    with pytest.raises(AdapterFileError, match=r"'TWIN' is ambiguous; write one of 'Twin', 'twin'"):
        home.find_lora("TWIN")


def test_a_models_folder_and_a_file_of_its_name_are_told_apart(home: Home) -> None:
    models = home.path / "models"
    for name in ("dream", "a/dream"):
        (models / name).mkdir(parents=True)
        (models / name / "model_index.json").write_text("{}")
        save_file({"x": torch.zeros(1)}, models / f"{name}.safetensors")
    names = {entry.name: entry.path for entry in home.models()}
    assert names["a/dream"] == models / "a/dream"
    assert names["a/dream.safetensors"] == models / "a/dream.safetensors"
    assert len(names) == 4
    assert not any(str(home.path.parent.name) in name for name in names)
    for name, path in names.items():
        found = home.find_model(name, paths=False)
        assert found is not None
        assert found.path == path


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("old.pt", "a pickle"),
        ("old.CKPT", "a pickle"),
        ("sub/old.gguf", "a GGUF"),
        ("old.sft", "rename it to"),
    ],
)
def test_a_name_that_only_a_file_has_which_is_not_opened_is_told(home: Home, file: str, told: str) -> None:
    (home.path / "loras" / file).parent.mkdir(exist_ok=True)
    (home.path / "loras" / file).write_bytes(b"x")
    for said in ("old", "OLD", Path(file).name, f"any/{Path(file).name}"):
        with pytest.raises(AdapterFileError, match=rf"^LoRA '.*': {Path(file).name} is .*{told}"):
            home.find_lora(said, paths=False)
    lora(home, "old.safetensors")
    assert home.find_lora("old").path.name == "old.safetensors"
