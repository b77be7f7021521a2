"""Nobody's submission waits for another's files, and what they share stays whole."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.errors import AdapterFileError, ModelError, RequestError, SetupError
from pipelines.home import Home, answers
from pipelines.home import home as home_module
from studio.drafts import picture_file
from studio.drafts.draft import Draft, Wanted, counted
from studio.drafts.shelf import LoadedNames
from studio.jobs import gate, shelves
from studio.jobs.gate import MOST_MISSING, MOST_WORDS, Trust, distinct, model_key
from studio.jobs.inputs import with_kept_input
from studio.jobs.shelves import Shelves
from studio.library.models import list_models

from ...pipelines.folders import ODD, dead, in_time
from .conftest import draft

Make = Callable[[Path], None]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(answers, "PATIENCE", 0.5)
    yield
    in_time(lambda: [time.sleep(0.01) for _ in iter(lambda: bool(answers.silent()), False)])


@pytest.fixture
def share(tmp_path: Path, loras: Path, sdxl_folder: Path) -> Path:
    """A folder that holds a LoRA, a model and a VAE."""
    folder = tmp_path / "share"
    folder.mkdir()
    shutil.copy(loras / "fox.safetensors", folder / "far.safetensors")
    shutil.copytree(sdxl_folder, folder / "away")
    return folder


@pytest.fixture
def shared_home(home: Path, loras: Path, sdxl_folder: Path, share: Path) -> Home:
    return Home.resolve(home, model_dirs=[sdxl_folder.parent, share], lora_dirs=[share], vae_dirs=[share])


def submit(home: Home, model: str, *loras: str, vae: str | None = None, trust: Trust | None = None) -> Any:
    """What a submission does before anything is queued."""
    trust = trust or Trust()
    key = model_key(model, vae, home, trust)
    return Shelves(lambda: home, trust).checked([draft("a fox", *loras)], key, None)


@pytest.mark.parametrize("make", ODD)
def test_an_odd_thing_in_a_folder_stops_no_submission(
    shared_home: Home, sdxl_folder: Path, make: Make
) -> None:
    for kind in ("loras", "models", "vae"):
        (shared_home.path / kind).mkdir(exist_ok=True)
        make(shared_home.path / kind / "odd.safetensors")
    for note in (".json", ".txt", ".png", ".civitai.info"):
        make(shared_home.path / "loras" / f"fox{note}")
    name = sdxl_folder.name
    shelf = in_time(lambda: submit(shared_home, name, "fox"))
    assert list(shelf.files) == ["fox"]
    with pytest.raises(AdapterFileError):
        in_time(lambda: submit(shared_home, name, "odd"))
    with pytest.raises(AdapterFileError):
        in_time(lambda: submit(shared_home, name, str(shared_home.path / "loras" / "odd.safetensors")))
    with pytest.raises(ModelError):
        in_time(lambda: submit(shared_home, "odd", "fox"))
    with pytest.raises(ModelError):
        in_time(lambda: submit(shared_home, name, "fox", vae="odd"))
    assert name in [model.name for model in in_time(lambda: list_models(shared_home))]


def test_a_folder_that_does_not_answer_stops_only_who_names_what_lies_in_it(
    shared_home: Home, sdxl_folder: Path, share: Path
) -> None:
    name = sdxl_folder.name
    with dead(share) as held:
        assert list(in_time(lambda: submit(shared_home, name, "fox")).files) == ["fox"]
        began = time.monotonic()
        for _ in range(10):
            submit(shared_home, name, "fox", "hat")
        assert time.monotonic() - began < 5
        for ask, error in (
            (lambda: submit(shared_home, name, "far"), AdapterFileError),
            (lambda: submit(shared_home, "away", "fox"), ModelError),
            (lambda: submit(shared_home, name, "fox", vae="far"), ModelError),
            (lambda: submit(shared_home, name, str(share / "far.safetensors")), SetupError),
            (lambda: submit(shared_home, str(share / "away"), "fox"), SetupError),
        ):
            with pytest.raises(error, match=f"{share}.* does not answer"):
                in_time(ask)
        assert held.calls <= answers.MOST
        listed = [model.name for model in in_time(lambda: list_models(shared_home))]
        assert name in listed
        assert "away" not in listed
    in_time(lambda: [time.sleep(0.01) for _ in iter(lambda: bool(shared_home.silent), False)])
    assert list(submit(shared_home, "away", "far").files) == ["far"]


def test_a_file_that_does_not_answer_stops_only_who_names_it(
    shared_home: Home, sdxl_folder: Path, share: Path
) -> None:
    """As where the listing is remembered by the system. Forty ask for it at once, and few threads hang."""
    name = sdxl_folder.name
    told: list[str] = []

    def ask() -> None:
        try:
            submit(shared_home, name, "far")
        except SetupError as error:
            told.append(str(error))

    with dead(share / "far.safetensors") as held:
        askers = [threading.Thread(target=ask, daemon=True) for _ in range(40)]
        for thread in askers:
            thread.start()
        assert list(in_time(lambda: submit(shared_home, name, "fox")).files) == ["fox"]
        for thread in askers:
            thread.join(30)
            assert not thread.is_alive()
        assert held.calls <= answers.MOST
    assert len(told) == 40
    assert all("does not answer" in text for text in told)


def test_a_large_job_holds_up_nobody_while_it_is_checked(
    shared_home: Home, sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, checking, really = threading.Event(), threading.Event(), gate.check
    all_shelves = Shelves(lambda: shared_home, Trust())
    key = model_key(sdxl_folder.name, None, shared_home, Trust())

    def slow(drafts: Any, *rest: Any) -> None:
        if len(drafts) > 1:
            checking.set()
            assert go.wait(30)
        really(drafts, *rest)

    monkeypatch.setattr(shelves, "check", slow)
    large = threading.Thread(target=all_shelves.checked, args=([draft()] * 100, key, None), daemon=True)
    large.start()
    assert checking.wait(30)
    assert list(in_time(lambda: all_shelves.checked([draft("a fox", "fox")], key, None)).files) == ["fox"]
    go.set()
    large.join(30)
    assert not large.is_alive()


def test_a_submission_looks_through_the_folders_once(
    shared_home: Home, sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    for name in ("models", "loras", "vaes"):
        really = getattr(home_module.Home, name)

        def counted(home: Home, name: str = name, really: Callable[[Home], Any] = really) -> Any:
            looked.append(name)
            return really(home)

        monkeypatch.setattr(home_module.Home, name, counted)
    key = model_key(sdxl_folder.name, "far", shared_home, Trust())
    drafts = [draft(f"a fox <lora:hat:0.{number % 9 + 1}>", "fox") for number in range(50)]
    Shelves(lambda: shared_home, Trust()).checked(drafts, key, None)
    assert sorted(looked) == ["loras", "models", "vaes"]


def test_of_many_names_that_are_not_here_some_are_told(shared_home: Home, sdxl_folder: Path) -> None:
    key = model_key(sdxl_folder.name, None, shared_home, Trust())
    drafts = [draft("a fox", f"nobody {number}") for number in range(2000)]
    with pytest.raises(AdapterFileError, match="'nobody 0'") as raised:
        in_time(lambda: Shelves(lambda: shared_home, Trust()).checked(drafts, key, None))
    assert len(str(raised.value).splitlines()) == MOST_MISSING + 1
    assert str(raised.value).endswith("and perhaps more")


def test_names_stay_one_to_a_file_whoever_claims_them(tmp_path: Path) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        names = LoadedNames()
        paths = [
            tmp_path / str(folder) / f"{stem}.safetensors" for folder in range(20) for stem in ("a", "A", "b")
        ]

        def claim(paths: list[Path]) -> None:
            for path in paths:
                wishes = ("/".join([*path.parts[-1 - up : -1], path.stem]) for up in range(len(path.parts)))
                names.claim(path, wishes)
                dict(names)

        threads = [threading.Thread(target=claim, args=(paths[::step],)) for step in (1, -1, 2, -3) * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    finally:
        sys.setswitchinterval(before)
    assert names.keys() == set(paths)
    assert len({name.casefold() for name in names.values()}) == len(paths)


def test_jobs_of_others_are_rendered_while_a_folder_does_not_answer(
    studio: Any, loras: Path, tmp_path: Path
) -> None:
    share = tmp_path / "late"
    share.mkdir()
    shutil.copy(loras / "fox.safetensors", share / "late.safetensors")
    studio.worker.home = Home.resolve(
        studio.home.path, model_dirs=studio.home.roots.models, lora_dirs=[share]
    )
    os.mkfifo(loras / "odd.safetensors")
    with dead(share):
        id = in_time(lambda: studio.ask("ann", draft("a fox", "fox")))
        with pytest.raises(AdapterFileError, match="late does not answer"):
            in_time(lambda: studio.ask("bob", draft("a fox", "late")))
        view = in_time(lambda: studio.over(id, "ann"), 60)
        assert view.message == "1 of 1 picture done"


# -- large jobs --------------------------------------------------------------------------------------------


def accept(home: Home, model: str, drafts: list[Draft]) -> None:
    key = model_key(model, None, home, Trust())
    Shelves(lambda: home, Trust()).checked(drafts, key, None)


def test_an_initial_image_is_decoded_once_for_a_whole_job(
    studio_home: Home, sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "start.png"
    Image.new("RGB", (64, 48)).save(file)
    decoded: list[str] = []
    upright = picture_file.upright

    def counting(source: Path, name: str, *bounds: int) -> Image.Image:
        decoded.append(name)
        return upright(source, name, *bounds)

    monkeypatch.setattr(picture_file, "upright", counting)
    drafts = [Draft({"prompt": f"fox {n}", "seed": n}, images={"init_image": file}) for n in range(50)]
    accept(studio_home, sdxl_folder.name, drafts)
    kept = {with_kept_input(draft, studio_home).images["init_image"] for draft in drafts}
    assert decoded == ["init image start.png"]
    [copy] = kept
    assert copy is not None
    assert copy.read_bytes() == file.read_bytes()


def test_pictures_that_differ_in_their_seeds_alone_are_judged_once(
    studio_home: Home, sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[Draft] = []
    build = Draft.build

    def counting(self: Draft, *how: Any) -> Any:
        judged.append(self)
        return build(self, *how)

    monkeypatch.setattr(Draft, "build", counting)
    many = counted(Draft({"prompt": "a panda"}, (Wanted("fox", 0.5),)), 10_000, 7)
    began = time.monotonic()
    accept(studio_home, sdxl_folder.name, many)
    assert time.monotonic() - began < 1
    assert len(judged) == 1


def test_whatever_else_differs_is_judged() -> None:
    one = draft("a fox", "fox", seed=1)
    others = [
        draft("a fox", "fox", seed=1, steps=True),
        draft("a fox", "fox", seed=1, steps=1),
        draft("a fox", "fox", seed=1, steps=1.0),
        draft("a fox", "hat", seed=1),
        draft("a hat", "fox", seed=1),
        draft("a fox", "fox", seed=-1),
        draft("a fox", "fox", seed=2**64),
        draft("a fox", "fox", seed=True),
        Draft(one.values, one.wanted, {"init_image": Path("start.png")}),
        draft("a fox", "fox", crop=(1, 2)),
        draft("a fox", "fox", crop=(True, 2)),
    ]
    alike = [draft("a fox", "fox", seed=2), draft("a fox", "fox"), draft("a fox", "fox", seed=None)]
    assert distinct([one, *alike, *others, *alike]) == [one, *others]


def test_a_seed_that_no_picture_can_have_is_found_among_thousands(
    studio_home: Home, sdxl_folder: Path
) -> None:
    many = counted(Draft({"prompt": "a panda"}), 1000, 7)
    many[777] = Draft({"prompt": "a panda", "seed": 2**64}, where="entry 778")
    with pytest.raises(RequestError, match=r"^entry 778: seed="):
        accept(studio_home, sdxl_folder.name, many)


def test_the_prompts_of_one_job_are_bounded_before_any_is_read(studio_home: Home, sdxl_folder: Path) -> None:
    words = ("panda " * 4000)[:19_900]
    began = time.monotonic()
    with pytest.raises(
        RequestError, match=f"10000 pictures have 199000000 characters.*{MOST_WORDS}: ask for fewer"
    ):
        accept(studio_home, sdxl_folder.name, counted(Draft({"prompt": words}), 10_000, 7))
    accept(studio_home, sdxl_folder.name, counted(Draft({"prompt": words}), 1000, 7))
    assert time.monotonic() - began < 2
