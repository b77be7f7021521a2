"""A library with things in it that are no files, that make no sense, or that do not answer: the rest stands."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.errors import AdapterError, AdapterFileError, ModelError, SetupError
from pipelines.home import Home, answers
from studio.commands import doctor
from studio.library import scan
from studio.library.fit import fit_of
from studio.library.hashes import is_adapter, short_hash
from studio.library.models import list_models
from studio.library.scan import Library
from studio.terminal.progress import Teller

from ...pipelines.folders import ODD, dead, in_time, link_to_device, link_to_itself, link_to_nowhere
from ..conftest import Run

Make = Callable[[Path], None]
LINKS = (link_to_device, link_to_itself, link_to_nowhere)
"""Those of `ODD` that are no file because of where they lead; they are told."""
KEY = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


def lora(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {f"{KEY}.lora_down.weight": torch.zeros(2, 2048), f"{KEY}.lora_up.weight": torch.zeros(8, 2)}, file
    )
    return file


def names(library: Library) -> list[str]:
    return [card.name for card in in_time(library.cards) if not card.embedded]


@pytest.fixture
def share(tmp_path: Path) -> Path:
    return lora(tmp_path / "share" / "far.safetensors").parent


@pytest.fixture
def own(home: Path, share: Path) -> Home:
    lora(home / "loras" / "near.safetensors")
    return Home.resolve(home, lora_dirs=[share])


@pytest.fixture
def library(own: Home) -> Library:
    return Library(lambda: own)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(answers, "PATIENCE", 0.4)
    yield
    in_time(lambda: [time.sleep(0.01) for _ in iter(lambda: bool(answers.silent()), False)])


@pytest.mark.parametrize("make", ODD)
def test_what_is_no_file_is_no_card_and_no_note(library: Library, own: Home, make: Make) -> None:
    make(own.path / "loras" / "odd.safetensors")
    for ending in scan.NOTES:
        make(own.path / "loras" / f"near{ending}")
    told = [card for card in in_time(library.cards) if "link that leads" in card.error]
    assert {card.name for card in told} == ({"odd"} if make in LINKS else set())
    assert [name for name in names(library) if name != "odd"] == ["far", "near"]
    assert in_time(lambda: library.card("near")).preview is None
    assert in_time(lambda: library.glance(60)).whole
    with pytest.raises(AdapterFileError):
        in_time(lambda: library.card("odd"))
    card = in_time(lambda: scan.read_card(scan.Entry("odd", own.path / "loras" / "odd.safetensors")))
    assert "odd.safetensors: cannot be read" in card.error
    assert not in_time(lambda: is_adapter(card.path, "0" * 64))
    assert not in_time(lambda: is_adapter(card.path, "0" * 12))


def test_a_pipe_is_not_added(library: Library, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(AdapterError, match="it is a pipe"):
        in_time(lambda: library.add(tmp_path / "x.safetensors"))
    with pytest.raises(AdapterError, match="it is a pipe"):
        in_time(lambda: short_hash(tmp_path / "x.safetensors"))


def test_files_that_make_no_sense_are_cards_that_say_so(library: Library, own: Home) -> None:
    odd = own.path / "loras" / "odd.safetensors"
    odd.write_bytes((5000).to_bytes(8, "little") + b'{"a":' * 1000)
    (own.path / "loras" / "near.json").write_text(
        '{"preferred weight": ' + "9" * 400 + ', "notes": "\\ud83d"}'
    )
    cards = {card.name: card for card in in_time(library.cards)}
    assert "odd.safetensors" in cards["odd"].error
    assert cards["near"].error == ""
    assert [card.name for card, _ in library.with_metadata() if not card.embedded] == ["far", "near"]
    json.dumps([card.searched for card in cards.values()], ensure_ascii=False).encode()


def raw(file: Path, header: object) -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))


ENTRY = {f"{KEY}.lora_down.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}}
UNREADABLE: dict[str, object] = {
    "nested": '{"a":' * 100_000,
    "huge-name": {"a" * 2_000_000: 1},
    "a-million": "{" + ",".join(f'"{n}":1' for n in range(1_000_000)) + "}",
    "numbers": '{"a": ' + "9" * 5000 + "}",
    "twice": '{"a": 1, "a": 1}',
    "list": [1],
}
STRANGE: dict[str, object] = {
    "list": [1], "text": "x", "number": 7, "null": None, "values": {"a": 1, "ss_tag_frequency": {"a": 1}},
    "inside": {"a": {"b": [1]}}, "half": {"modelspec.title": "\ud83d"}, "deep": {"ss_tag_frequency": "[" * 9999},
    "tags": {"ss_tag_frequency": '{"a": {"b": 1e999}}', "modelspec.tags": "," * 9999},
}  # fmt: skip
NOTE = {
    "digits": '{"preferred weight": ' + "9" * 400 + "}",
    "more-digits": "9" * 5000,
    "infinite": '{"preferred weight": 1e400}',
    "none": '{"preferred weight": NaN}',
    "deep": "[" * 100_000,
    "list": "[]",
    "half": '{"activation text": "\\ud83d"}',
}


def test_one_bad_neighbour_breaks_no_list(home: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hundred files, one of each bad kind among them."""
    monkeypatch.setattr(answers, "PATIENCE", 60.0)
    folder = home / "loras"
    sound = lora(folder / "sound.safetensors")
    for name in [
        *(f"sound{n}" for n in range(270)),
        *(f"note-{kind}" for kind in NOTE),
        "n" * 243,
        "[bold]x[y]",
    ]:
        shutil.copy(sound, folder / f"{name}.safetensors")
    for kind, note in NOTE.items():
        for ending in (".json", ".civitai.info", ".metadata.json", ".txt"):
            (folder / f"note-{kind}{ending}").write_text(note)
    for kind, header in UNREADABLE.items():
        raw(folder / f"bad-{kind}.safetensors", header)
    for kind, metadata in STRANGE.items():
        raw(folder / f"strange-{kind}.safetensors", {"__metadata__": metadata, **ENTRY})
    (folder / "bad-empty.safetensors").touch()
    (folder / "bad-bytes.safetensors").write_bytes(bytes(range(256)))
    for number, make in enumerate(ODD):
        make(folder / f"odd{number}.safetensors")
    (folder / "loop").symlink_to(folder)
    (folder / "self").symlink_to("self")
    lora(folder / "folder.safetensors" / "inner.safetensors")
    shutil.copy(sound, os.fsencode(folder) + b"/\xff.safetensors")

    library = Library(lambda: Home.resolve(home))
    began = time.process_time()
    cards = {card.name: card for card in in_time(library.cards, 120) if not card.embedded}
    assert time.process_time() - began < 2
    assert {name for name, card in cards.items() if card.error} == {
        *(f"bad-{kind}" for kind in (*UNREADABLE, "empty", "bytes")),
        *(f"odd{number}" for number, make in enumerate(ODD) if make in LINKS),
        "?",
    }
    assert all(f"{name}.safetensors: " in card.error for name, card in cards.items() if card.error)
    assert len(cards) == 271 + len(NOTE) + 3 + len(UNREADABLE) + 2 + len(STRANGE) + len(LINKS) + 1
    assert len(library.search("sound")) == 271
    assert library.with_hash("0" * 64, sound.stat().st_size) is None
    listed = json.loads(run("loras", "--json").out)
    assert {row["name"] for row in listed} >= set(cards)
    assert len([row for row in listed if row["type"].startswith("cannot be read: ")]) == len(UNREADABLE) + 2
    seen = run("inspect", *(str(card.path) for card in cards.values()), "~nosuch/x", "n" * 400, "odd0")
    assert (
        len([line for line in seen.err.splitlines() if line.startswith("error: ")])
        == len(UNREADABLE) + 2 + 3 + len(LINKS) + 1
    )
    assert "Traceback" not in seen.err


@pytest.mark.parametrize(
    ("index", "unet"),
    [
        ("[]", "{}"), ("{}", "[]"), ("[" * 9999, "{}"), ('{"unet": [' + "9" * 4000 + "]}", "{}"), ('{"unet": []}', "7"),
        ('{"unet": [], "_class_name": {"a": []}}', '{"cross_attention_dim": [[]], "in_channels": {"a": 1}}'),
        ('{"unet": [], "text_encoder": {}}', '{"addition_embed_type": "text_time", "cross_attention_dim": {}}'),
        ('{"unet": [1e999, NaN]}', '{"cross_attention_dim": 1e999}'),
    ],
    ids=range(8),
)  # fmt: skip
def test_a_model_that_makes_no_sense_is_one_row_of_the_list(own: Home, index: str, unet: str) -> None:
    folder = own.path / "models" / "odd"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text(index)
    (folder / "unet" / "config.json").write_text(unet)
    rows = {row.name: row for row in in_time(lambda: list_models(own))}
    assert not rows["odd"].usable
    assert "odd" in rows["odd"].base
    assert len(rows["odd"].base) < 600
    assert rows["tiny-sdxl"].usable
    with pytest.raises(ModelError):
        fit_of("odd", own)


def test_a_row_of_the_cache_that_makes_no_sense_costs_only_itself(own: Home) -> None:
    assert len(Library(lambda: own).cards()) > 2
    with closing(sqlite3.connect(own.cache / "library.sqlite")) as database, database:
        for text in ("[" * 9999, "{", "7", '{"name": 1}'):
            database.execute("UPDATE cards SET card = ?, metadata = ? WHERE path LIKE '%near%'", (text, text))
            database.commit()
            library = Library(lambda: own)
            assert names(library) == ["far", "near"]
            assert [card.name for card, _ in library.with_metadata() if not card.embedded] == ["far", "near"]


def test_a_cache_that_cannot_be_written_costs_only_time(own: Home) -> None:
    own.cache.touch()  # where its folder belongs
    library = Library(lambda: own)
    assert names(library) == ["far", "near"]
    assert len(library.with_metadata()) > 2


def test_a_folder_that_does_not_answer_is_left_out_and_nothing_of_it_is_forgotten(
    library: Library, own: Home, share: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert names(library) == ["far", "near"]
    with dead(share) as held:
        for _ in range(20):
            assert names(library) == ["near"]
        assert own.silent == (str(share),)
        assert held.calls == 1
        assert [card.name for card in library.named(["near", "far"])] == ["near"]
        assert not is_adapter(share / "far.safetensors", "0" * 64)
    in_time(lambda: [time.sleep(0.01) for _ in iter(lambda: bool(own.silent), False)])
    monkeypatch.setattr(
        scan, "read_card_and_metadata", lambda entry: pytest.fail(f"{entry.name} is read again")
    )
    assert names(library) == ["far", "near"]


def test_a_file_that_does_not_answer_is_left_out_alone(library: Library, own: Home, share: Path) -> None:
    """As where a listing is remembered by the system, and a file's content is not."""
    lora(share / "other.safetensors")
    with dead(share / "far.safetensors"):
        assert names(library) == ["near", "other"]
        assert "does not answer" in library.card("far").error
    in_time(lambda: [time.sleep(0.01) for _ in iter(lambda: bool(own.silent), False)])
    assert names(library) == ["far", "near", "other"]


def test_whoever_comes_during_a_look_shares_the_next_one(
    library: Library, own: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, go, really = [], threading.Event(), library._look

    def counted() -> list[scan.Card]:
        looks.append(threading.current_thread().name)
        found = really()
        assert go.wait(20)
        return found

    monkeypatch.setattr(library, "_look", counted)
    first = threading.Thread(target=library.cards, daemon=True)
    first.start()
    in_time(lambda: [time.sleep(0.01) for _ in iter(lambda: not looks, False)])
    lora(own.path / "loras" / "new.safetensors")  # the look under way may be past it
    found: list[list[str]] = []
    others = [threading.Thread(target=lambda: found.append(names(library)), daemon=True) for _ in range(12)]
    for thread in others:
        thread.start()
    in_time(lambda: [time.sleep(0.01) for _ in iter(lambda: library._after is None, False)])
    time.sleep(0.1)
    go.set()
    for thread in [first, *others]:
        thread.join(20)
        assert not thread.is_alive()
    assert found == [["far", "near", "new"]] * 12
    assert len(looks) <= 3


def test_the_model_of_a_fit_is_read_in_time(home: Path, own: Home, sdxl_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "odd"
    (folder / "unet").mkdir(parents=True)
    index = json.loads((sdxl_folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index))
    unet = json.loads((sdxl_folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**unet, "cross_attention_dim": [1, 2]}))
    own = Home.resolve(home, model_dirs=[tmp_path / "models"])
    with pytest.raises(SetupError, match="does not answer"), dead(folder / "unet"):
        in_time(lambda: fit_of("odd", own))
    in_time(lambda: [time.sleep(0.01) for _ in iter(lambda: bool(answers.silent()), False)])
    with pytest.raises(Exception, match="cross_attention_dim is"):
        fit_of("odd", own)


def test_lists_on_the_command_line_tell_what_does_not_answer(own: Home, share: Path, run: Run) -> None:
    make_pipe = own.path / "loras" / "odd.safetensors"
    os.mkfifo(make_pipe)
    with dead(share):
        for command, shown in (("loras", "near"), ("models", "tiny-sdxl")):
            where = {"loras": "--lora-dir", "models": "--model-dir"}[command]
            ran = in_time(lambda command=command, where=where: run(command, where, share))
            assert ran.code == 0
            assert shown in ran.out
            assert "far" not in ran.out
            assert f"the folder {share} does not answer; what lies in it is left out for now" in ran.err
    ran = in_time(lambda: run("inspect", make_pipe))
    assert ran.code == 2
    assert (
        "odd.safetensors: cannot be read (it is a pipe, not a file; take it away or give a file)" in ran.err
    )


def test_the_doctor_tells_what_does_not_answer(
    own: Home, share: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "_test_picture", lambda home, problems: None)
    with dead(share):
        assert in_time(lambda: doctor.run(None, own, Teller())) == 1
    assert f"the folder {share} does not answer; see to its drive or network" in capsys.readouterr().out
