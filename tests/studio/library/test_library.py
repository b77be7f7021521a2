"""The library: found, read by headers, remembered, searched, matched, and added to."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipelines.adapters import container, sha256
from pipelines.errors import AdapterError, RequestError
from pipelines.home import Home
from pipelines.home.headers import LONGEST_HEADER
from studio.library import scan
from studio.library.card import Card
from studio.library.fit import fit_of
from studio.library.hashes import short_hash
from studio.library.scan import Library


def real_lora(file: Path, width: int = 2048, **metadata: str) -> Path:
    """A file of a real base's names and width; two layers only."""
    key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {
        f"{key}.lora_down.weight": torch.zeros(4, width),
        f"{key}.lora_up.weight": torch.zeros(640, 4),
        f"{key}.alpha": torch.tensor(4.0),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata=metadata)
    return file


@pytest.fixture
def own(home: Path) -> Home:
    real_lora(
        home / "loras" / "hero.safetensors", **{"modelspec.title": "The Hero", "modelspec.tags": "character"}
    )
    real_lora(home / "loras" / "old" / "ink.safetensors", 768, ss_tag_frequency='{"a": {"ink wash": 9}}')
    return Home.resolve(home)


@pytest.fixture
def library(own: Home) -> Library:
    return Library(lambda: own)


def names(cards: list[scan.Card]) -> list[str]:
    return [card.name for card in cards if not card.embedded]


def test_cards_tell_what_headers_and_notes_say(library: Library, own: Home) -> None:
    (own.path / "loras" / "hero.json").write_text(
        json.dumps({"activation text": "h3ro", "preferred weight": 0.7})
    )
    Image.new("RGB", (8, 8)).save(own.path / "loras" / "hero.preview.png")
    card = library.card("HERO")
    assert (card.title, card.category, card.family_label) == ("The Hero", "character", "Stable Diffusion XL")
    assert (card.triggers, card.preferred_weight, card.kinds) == (("h3ro",), 0.7, ("LoRA",))
    assert card.preview == own.path / "loras" / "hero.preview.png"
    assert card.ranks == (4, 4)


def test_files_are_read_once_until_they_or_their_notes_change(
    library: Library, own: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    really = scan.read_card_and_metadata

    def counted(entry: scan.Entry) -> tuple[scan.Card, Mapping[str, str]]:
        read.append(entry.name)
        return really(entry)

    monkeypatch.setattr(scan, "read_card_and_metadata", counted)
    library.cards()
    assert {"hero", "ink"} <= set(read)
    read.clear()
    library.cards()
    Library(lambda: own).cards()  # another run, from the cache
    assert read == []
    (own.path / "loras" / "hero.json").write_text(json.dumps({"activation text": "h3ro"}))
    library.cards()
    assert read == ["hero"]
    read.clear()
    os.utime(own.path / "loras" / "old" / "ink.safetensors", (1, 1))
    (own.path / "loras" / "hero.safetensors").unlink()
    assert names(library.cards()) == ["ink"]
    assert read == ["ink"]


def test_a_glance_does_not_wait_for_thousands_of_files(
    library: Library, own: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, seen = threading.Event(), []
    really = scan.read_card_and_metadata

    def slow(entry: scan.Entry) -> tuple[scan.Card, Mapping[str, str]]:
        if not entry.embedded and seen:
            assert go_on.wait(60)
        seen.append(entry.name)
        return really(entry)

    monkeypatch.setattr(scan, "read_card_and_metadata", slow)
    first = library.glance(wait=0)
    assert not first.whole
    while not (first := library.glance(wait=0.05)).of or first.read < first.of - 2:
        assert not first.whole
    assert first.cards
    assert "ink" not in names(first.cards)
    go_on.set()
    while not (last := library.glance(again=False)).whole:
        pass
    assert last.cards == library.cards()
    assert names(library.named(["INK", "nobody"])) == ["ink"]
    assert names(last.cards) == ["hero", "ink"]
    (own.path / "loras" / "hero.safetensors").unlink()
    assert library.glance(again=False) == last  # nobody asked to look again
    assert names(library.glance(wait=60).cards) == ["ink"]


def test_a_glance_tells_what_went_wrong(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(home: Home) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(scan, "_read_cache", fails)
    with pytest.raises(OSError, match="the disk is gone"):
        library.glance(wait=60)


def test_metadata_come_from_the_cache_and_no_file_is_opened_again(
    library: Library, own: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = {card.name: metadata for card, metadata in library.with_metadata()}
    assert stated["hero"] == {"modelspec.title": "The Hero", "modelspec.tags": "character"}
    real_lora(own.path / "loras" / "new.safetensors", ss_output_name="new")
    opened: list[str] = []
    really = container._text

    def counted(name: str, size: int, file: BinaryIO) -> bytes:
        opened.append(name)
        return really(name, size, file)

    monkeypatch.setattr(container, "_text", counted)
    again = {card.name: metadata for card, metadata in library.with_metadata()}
    assert opened == ["new.safetensors"]
    assert again == {**stated, "new": {"ss_output_name": "new"}}
    assert {card.name: metadata for card, metadata in Library(lambda: own).with_metadata()} == again
    assert opened == ["new.safetensors"]  # nor by another run
    with closing(sqlite3.connect(own.cache / "library.sqlite")) as database, database:
        # as another run with other folders does
        database.execute("DELETE FROM cards WHERE path LIKE '%hero%'")
    assert {card.name: metadata for card, metadata in library.with_metadata()} == again
    assert opened == ["new.safetensors", "hero.safetensors"]


def test_a_link_to_nowhere_is_a_card_that_says_so(library: Library, own: Home) -> None:
    library.cards()
    entry = scan.Entry("ghost", own.path / "loras" / "ghost.safetensors")
    assert "ghost.safetensors: cannot be read" in scan.read_card(entry).error


def test_a_cache_that_cannot_be_read_is_begun_anew(own: Home) -> None:
    own.made(own.cache)
    (own.cache / "library.sqlite").write_text("nothing like it" * 100)
    assert names(Library(lambda: own).cards()) == ["hero", "ink"]


def test_a_cache_of_another_format_is_forgotten(own: Home) -> None:
    Library(lambda: own).cards()
    with closing(sqlite3.connect(own.cache / "library.sqlite")) as database, database:
        database.execute("UPDATE cards SET card = replace(card, 'The Hero', 'of old')")
    assert "of old" in {card.title for card in Library(lambda: own).cards()}
    with closing(sqlite3.connect(own.cache / "library.sqlite")) as database, database:
        database.execute("PRAGMA user_version = 1")
    assert "The Hero" in {card.title for card in Library(lambda: own).cards()}


def test_search_and_filters(library: Library) -> None:
    assert names(library.search("hero the")) == ["hero"]
    assert names(library.search("ink wash")) == ["ink"]
    assert names(library.search(family="sd1")) == ["ink"]
    assert names(library.search(category="character")) == ["hero"]
    assert names(library.search(kind="LoHa")) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [("a " * 21, "the search has 21 words, more than 20"), ("a" * 501, "the search has 501 char")],
)
def test_a_search_is_bounded(library: Library, words: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        library.search(words)
    with pytest.raises(RequestError, match=said):
        scan.Choice(words)


def test_what_does_not_fit_the_model_says_so(library: Library, own: Home) -> None:
    fit = fit_of("tiny-sdxl", own)
    cards = {card.name: card.misfit(fit) for card in library.cards()}
    assert cards["kimono"] == ""
    assert cards["hero"] == (
        "made for Stable Diffusion XL; this is tiny-sdxl, the small built-in model. "
        "Load a checkpoint of Stable Diffusion XL"
    )
    fitting = library.search(fit=fit, fitting_only=True)
    assert names(fitting) == []
    assert "kimono" in [card.name for card in fitting]
    assert library.search(fit=fit)[-1].misfit(fit)


def test_a_broken_file_is_a_card_that_says_why(library: Library, own: Home) -> None:
    (own.path / "loras" / "broken.safetensors").write_bytes(b"<html>login first</html>")
    [card] = [card for card in library.cards() if card.name == "broken"]
    assert not card.readable
    assert "a web page, not a LoRA" in card.misfit(None)


def test_a_file_is_known_by_its_hash_whatever_it_is_called(library: Library, own: Home) -> None:
    file = own.path / "loras" / "hero.safetensors"
    digest, short, size = sha256(file), short_hash(file), file.stat().st_size
    stated = real_lora(own.path / "loras" / "said.safetensors", 1024, sshs_model_hash="ab" * 32)
    file.rename(file.with_name("renamed.safetensors"))
    for hashed in (digest, digest[:10], short):
        found = library.with_hash(hashed, size)
        assert found is not None
        assert found.name == "renamed"
    assert library.with_hash(digest) is None  # nothing says which files to read
    found = library.with_hash("ab" * 6)
    assert found is not None
    assert found.path == stated
    assert names(library.search("AB" * 5)) == ["said"]
    assert library.with_hash("0" * 64, size) is None


def test_a_dropped_file_is_added_once_and_under_a_free_name(
    library: Library, own: Home, tmp_path: Path
) -> None:
    dropped = real_lora(tmp_path / "upload" / "x.safetensors", 2048, other="yes")
    card = library.add(dropped, "../My Hero!.safetensors")
    assert card.path == own.path / "loras" / "My-Hero.safetensors"
    assert library.add(dropped, "again.safetensors") == card
    other = real_lora(tmp_path / "upload" / "y.safetensors", 2048, other="no")
    assert library.add(other, "My Hero!.safetensors").path.name == "My-Hero~2.safetensors"
    assert names(library.cards()) == ["hero", "ink", "My-Hero", "My-Hero~2"]


@pytest.mark.parametrize("content", [b"PK\x03\x04 a pickle", b"", b"\xff" * 7 + b"\x7f{"])
def test_what_is_no_lora_is_not_added(library: Library, own: Home, tmp_path: Path, content: bytes) -> None:
    dropped = tmp_path / "x.safetensors"
    dropped.write_bytes(content.ljust(64, b"\0") if content else content)
    before = sorted((own.path / "loras").rglob("*"))
    with pytest.raises(AdapterError):
        library.add(dropped)
    assert sorted((own.path / "loras").rglob("*")) == before
    assert LONGEST_HEADER < 2**40


def test_of_hundreds_of_files_only_the_makes_are_taken_apart_and_only_once(
    own: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes the figures in BENCHMARKS.md, counted instead of timed."""
    source = real_lora(own.path / "loras" / "shelf" / "file0.safetensors", 1024, unlike="any other")
    for number in range(1, 300):
        shutil.copy(source, source.with_name(f"file{number}.safetensors"))
    parsed: list[str] = []
    really = container.UnparsedHeader.parse

    def counted(opened: container.UnparsedHeader) -> container.Header:
        parsed.append(opened.name)
        return really(opened)

    monkeypatch.setattr(container.UnparsedHeader, "parse", counted)
    assert len(Library(lambda: own).cards()) > 300
    assert len([name for name in parsed if name.startswith("file")]) <= 1
    parsed.clear()
    assert len(Library(lambda: own).cards()) > 300
    assert parsed == []


def test_a_scan_that_fails_after_everybody_looked_is_told_to_whoever_looks_next(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(lambda: Home.resolve(home))
    go = threading.Event()

    def fail() -> list[Card]:
        go.wait(30)
        raise PermissionError("the folder is closed")

    with monkeypatch.context() as patch:
        patch.setattr(library, "_look", fail)
        assert not library.glance(0.01).whole
        go.set()
        with pytest.raises(PermissionError, match="the folder is closed"):
            library.glance(30)
    assert library.glance(30).whole
