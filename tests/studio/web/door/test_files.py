"""Whose a file is, without a server: every folder of the home, and every spelling of a path."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

from pipelines.errors import RequestError
from pipelines.home import Home
from studio.jobs.owner import PROGRAMS, folder_of
from studio.web.door import files as module
from studio.web.door.files import (
    LIFETIME,
    LONGEST_PATH,
    LONGEST_TEXT,
    MOST_DEEP,
    SWEEP_EVERY,
    Files,
    harmless,
)

from .roads import FILE

ANNS, BOBS = folder_of("ann"), folder_of("bob")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.resolve(tmp_path / "home")


@pytest.fixture
def files(home: Home) -> Files:
    """Of a studio in which "ann" has the job "job1" and the outputs that are named after her."""
    worker = SimpleNamespace(
        home=home,
        owns=lambda id, owner: (id, owner) == ("job1", "ann"),
        is_of=lambda file, owner: file.parent == home.outputs and file.name.startswith(owner),
    )
    return Files(cast(Any, worker))


def put(home: Home, path: str) -> str:
    file = home.path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("x")
    return str(file)


@pytest.mark.parametrize(
    ("path", "owners"),
    [
        ("outputs/ann.png", {"ann"}),
        ("outputs/eve.png", set()),
        ("cache/previews/job1-3.webp", {"ann"}),
        ("cache/previews/job2-3.webp", set()),
        ("cache/live/job1-0.webp", {"ann"}),
        (f"cache/training/{ANNS}/lesson/1.png", {"ann"}),
        (f"cache/training/{BOBS}/1.png", {"bob"}),
        (f"uploads/{ANNS}/a/x.png", {"ann"}),
        (f"uploads/{BOBS}/a/x.png", {"bob"}),
        ("uploads/made/x.png", set()),
        ("uploads/x.png", set()),
        ("cache/web/library.webp", {"ann", "bob"}),
        ("cache/headers/x", set()),
        ("loras/ann.safetensors", set()),
        ("config.toml", set()),
        ("studio.sqlite", set()),
    ],
)
def test_every_file_of_the_home_has_its_owners(home: Home, files: Files, path: str, owners: set[str]) -> None:
    file = put(home, path)
    assert {owner for owner in ("ann", "bob") if files.may_see(file, owner)} == owners
    where_pages_show = any(Path(file).is_relative_to(folder) for folder in files.shown)
    assert files.may_see(file, None) == where_pages_show, (
        "where nobody logs in, all that is shown is everybody's"
    )
    assert where_pages_show or not owners


def test_a_path_leads_to_one_file_however_it_is_spelled(home: Home, files: Files, tmp_path: Path) -> None:
    anns, bobs = put(home, f"uploads/{ANNS}/a/x.png"), put(home, f"uploads/{BOBS}/x.png")
    secret = put(home, "studio.sqlite")
    (home.path / f"uploads/{BOBS}/theirs.png").symlink_to(anns)
    (home.path / f"uploads/{BOBS}/out.png").symlink_to(secret)
    (home.path / f"uploads/{BOBS}/own.png").symlink_to(bobs)
    (home.path / f"uploads/{BOBS}/round.png").symlink_to(home.path / f"uploads/{BOBS}/round.png")
    (tmp_path / "moved").symlink_to(home.path)
    uploads = str(home.path / "uploads")
    for path, seen in {
        f"{uploads}/{BOBS}/../{BOBS}/x.png": True,
        f"{uploads}//{BOBS}/./x.png": True,
        f"{uploads}/{BOBS}/own.png": True,
        f"{uploads}/{BOBS}/../{ANNS}/a/x.png": False,
        f"{uploads}/{BOBS}/../../studio.sqlite": False,
        f"{uploads}/{BOBS}/theirs.png": False,
        f"{uploads}/{BOBS}/out.png": False,
        f"{uploads}/{BOBS}/round.png": False,
        f"{uploads}/{BOBS}/gone.png": False,
        f"{uploads}/{BOBS}": False,
        uploads: False,
        str(tmp_path / "moved" / "uploads" / BOBS / "x.png"): False,
        f"{uploads}/{BOBS}/x.png\0.png": False,
        f"{uploads}/{'./' * LONGEST_PATH}{BOBS}/x.png": False,
        os.path.relpath(bobs): False,
        "": False,
        secret: False,
        "/etc/passwd": False,
    }.items():
        assert files.may_see(path, "bob") == seen, path


def test_a_home_behind_a_link_is_the_same_home(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    linked = Home.resolve(tmp_path / "home")
    files = Files(cast(Any, SimpleNamespace(home=linked)))
    file = put(linked, f"uploads/{ANNS}/x.png")
    for path in (file, os.path.realpath(file)):
        assert files.may_see(path, "ann")
        assert not files.may_see(path, "bob")


def test_what_a_client_sends_is_admitted_with_checked_files(home: Home, files: Files) -> None:
    own = put(home, f"uploads/{ANNS}/a/x.png")
    os.utime(own, (0, 0))
    sent = {
        "path": own,
        "url": "http://elsewhere",
        "size": 10**9,
        "orig_name": "../../a.png",
        "is_stream": True,
    }
    [[found], *others] = files.admitted(
        [({**sent, "meta": FILE},), 5, None, True, "a fox", {"a": [1.5]}], "ann"
    )
    assert found == {
        "path": own, "url": None, "size": 1, "orig_name": "a.png", "mime_type": None, "is_stream": False, "meta": FILE
    }  # fmt: skip
    assert others == [5, None, True, "a fox", {"a": [1.5]}]
    assert time.time() - os.stat(own).st_mtime < 3600, "it was used, so it is kept"
    assert files.admitted({"path": own}, "ann")["orig_name"] == "x.png"


@pytest.mark.parametrize(
    "sent",
    [
        {"path": "OTHER"},
        {"path": "OTHER", "meta": FILE},
        {"meta": FILE},
        {"meta": FILE, "url": "http://elsewhere/x.png"},
        {"url": "http://elsewhere/x.png"},
        {"path": None},
        {"path": ["OTHER"]},
    ],
    ids=str,
)
def test_a_file_that_is_not_the_clients_is_refused(home: Home, files: Files, sent: dict[str, Any]) -> None:
    other = put(home, f"uploads/{BOBS}/x.png")
    sent = {key: other if value == "OTHER" else value for key, value in sent.items()}
    with pytest.raises(RequestError, match="not yours"):
        files.admitted({"a": [sent]}, "ann")


def test_what_a_client_sends_is_bounded(home: Home, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    deep: Any = "x"
    for _ in range(MOST_DEEP):
        deep = [deep]
    assert files.admitted(deep, "ann") == deep
    with pytest.raises(RequestError, match="deeper than"):
        files.admitted([deep], "ann")
    assert len(files.admitted("x" * LONGEST_TEXT, "ann")) == LONGEST_TEXT
    for bad in ("x" * (LONGEST_TEXT + 1), {"x" * (LONGEST_PATH + 1): 1}, "\ud800", {"\ud800": 1}):
        with pytest.raises(RequestError):
            files.admitted(bad, "ann")
    picture = Path(put(home, f"uploads/{ANNS}/x.png"))
    Image.new("L", (20, 20)).save(picture)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(RequestError, match="too many pixels"):
        files.admitted({"path": str(picture)}, "ann")


def test_uploads_of_an_owner_have_a_folder_that_others_cannot_read(home: Home, files: Files) -> None:
    for owner, name in (("ann", ANNS), (None, folder_of(PROGRAMS))):
        folder = files.folder(owner)
        assert folder == home.path / "uploads" / name
        if os.name == "posix":
            assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700
    place = files.place("../a/x.png", "ann")
    assert (place.name, place.parent.parent) == ("x.png", files.folder("ann"))
    if os.name == "posix":
        assert place.parent.stat().st_mode & 0o777 == 0o700
    assert files.place("x.png", "ann") != files.place("x.png", "ann")
    lent = files.lent(Path(put(home, "outputs/eve.png")), "ann")
    assert lent.read_text() == "x"
    assert files.may_see(lent, "ann")
    assert not files.may_see(lent, "bob")
    with pytest.raises(RequestError, match="cannot be shown"):
        files.lent(home.path / "gone.png", "ann")


def test_an_owner_holds_so_many_uploads_and_so_many_bytes(
    home: Home, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_FILES", 3)
    monkeypatch.setattr(module, "MOST_HELD", 5)
    put(home, f"uploads/{ANNS}/a/x.png")
    put(home, f"uploads/{ANNS}/y.png")  # two files and a folder, of two bytes
    assert files.folder("ann").is_dir()
    (home.path / f"uploads/{ANNS}/y.png").write_text("12345")
    with pytest.raises(RequestError, match="allowed"):
        files.folder("ann")
    (home.path / f"uploads/{ANNS}/y.png").write_text("1234")
    assert files.folder("ann").is_dir()
    put(home, f"uploads/{ANNS}/z.png")
    with pytest.raises(RequestError, match="4 files"):
        files.folder("ann")
    assert files.folder("bob").is_dir(), "another one's uploads do not count"


def test_what_was_not_used_for_long_goes_with_its_folder(home: Home, files: Files) -> None:
    """Whoever asks for a folder, all owners' uploads are swept, once in a while."""
    old, new = Path(put(home, f"uploads/{ANNS}/a/x.png")), Path(put(home, f"uploads/{ANNS}/b/x.png"))
    now = time.time()

    def aged(seconds: float) -> None:
        for path in (old, old.parent):
            if path.exists():
                os.utime(path, (now - seconds, now - seconds))

    aged(LIFETIME - 600)
    files.folder("bob")
    assert old.exists()
    aged(LIFETIME + 600)
    files.folder("bob")
    assert old.exists(), "it was swept a moment ago"
    files._swept -= SWEEP_EVERY
    files.folder("bob")
    assert not old.exists()
    aged(LIFETIME + 600)
    files._swept -= SWEEP_EVERY
    files.folder("bob")
    assert not old.parent.exists()
    assert new.exists()
    assert (home.path / "uploads").is_dir()


def test_what_goes_out_is_the_same_but_for_what_looks_like_a_file() -> None:
    trap = {"path": "/etc/passwd", "meta": FILE, "size": 1}
    safe = {"path": "/etc/passwd", "size": 1}
    assert harmless((1, [trap], {"a": (trap,), "meta": trap})) == (1, [safe], {"a": (safe,), "meta": safe})
