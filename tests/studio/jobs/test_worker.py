"""Jobs from the gate to the saved picture, in one process."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from composers import Composite
from pipelines import Request
from pipelines.checkpoints import loading
from pipelines.errors import AdapterError, ModelError, RequestError, SetupError
from pipelines.home import Home
from studio.jobs import LIVE, HomeLock, JobState, worker
from studio.jobs.gate import Trust
from studio.jobs.store import Store
from studio.pictures.metadata import read_picture

from .conftest import draft

Opened = Callable[..., Any]


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"), dtype=int)


def test_a_job_becomes_pictures_with_their_records(studio: Any) -> None:
    id = studio.ask("ann", draft("a fox", "fox", seed=7), draft("a hat <lora:hat:0.5>"), title="both")
    view = studio.over(id, "ann")
    assert (view.state, view.title, view.message) == (JobState.DONE, "both", "2 of 2 pictures done")
    first, second = view.pictures
    assert first.file is not None
    assert first.file.is_relative_to(studio.home.outputs)
    assert Image.open(first.file).size == (32, 32)
    assert read_picture(first.file).draft.values["seed"] == first.seed == 7
    assert second.record is not None
    assert second.record["seed"] == second.seed
    assert [use["name"] for use in second.record["adapters"]] == ["hat"]
    assert view.unet_rows == sum(picture.record["unet_rows"] for picture in view.pictures)


def test_a_normalised_mix_is_told_in_the_record_and_in_the_file(studio: Any) -> None:
    id = studio.ask("ann", draft("a fox", "fox"), settings={"before": {"fox": 1.6, "hat": 0.4}})
    [picture] = studio.over(id, "ann").pictures
    said = "the mix was normalised; before: fox 1.6, hat 0.4"
    assert said in picture.record["notes"]
    assert said in read_picture(picture.file).record["notes"]


def test_two_owners_with_different_mixes_share_batches_and_see_only_their_own(studio: Any) -> None:
    paused = studio.pause()
    anns = studio.ask("ann", *(draft("a fox", "fox", seed=seed) for seed in range(3)))
    bobs = studio.ask("bob", draft("a hat", "fox", "hat", seed=9, composer=Composite()))
    paused.set()
    ann, bob = studio.over(anns, "ann"), studio.over(bobs, "bob")
    records = [picture.record for view in (ann, bob) for picture in view.pictures]
    assert all(record["shared"] for record in records)
    assert {record["largest_call"] for record in records} == {3 * 2 + 4}
    assert [len(record["adapters"]) for record in records] == [1, 1, 1, 2]
    assert studio.worker.view(anns, "bob") is None
    assert not studio.worker.cancel(anns, "bob")
    assert not studio.worker.delete(anns, "bob")
    assert [view.id for view in studio.worker.heads("bob")] == [bobs]
    assert [picture.job for picture in studio.worker.pictures("bob")] == [bobs]
    assert not studio.worker.is_of(ann.pictures[0].file, "bob")
    assert studio.worker.is_of(ann.pictures[0].file, "ann")


def test_a_download_is_told_in_per_cent_and_does_not_hold_up_the_end(
    studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = threading.Event()

    def fetch(
        hub_id: str, dtype: object, allow_downloads: bool, progress: Callable[[int, int], None]
    ) -> Path:
        while True:  # it never ends by itself
            progress(2_500_000_000, 10_000_000_000)
            fetched.wait(0.01)

    monkeypatch.setattr(loading, "fetch", fetch)
    id = studio.ask("ann", draft("a fox"), model="someone/large")
    view = studio.until(id, "ann", lambda view: "%" in view.message)
    assert view.message == "downloading someone/large: 25% of 10.0 GB"
    assert studio.worker.model_state().share == 0.25
    studio.worker.close()
    assert not studio.worker.running
    store = Store(studio.home.database)
    assert [job.id for job in store.unfinished()] == [id]  # and is taken up at the next start
    store.close()


def test_cancel_acts_before_the_next_unet_call_and_keeps_what_is_done(studio: Any) -> None:
    id = studio.ask("ann", draft(steps=2, seed=1), draft(steps=400, seed=2), draft(steps=400, seed=3))
    studio.until(id, "ann", lambda view: len(view.finished) == 1)
    calls = studio.count_calls()
    assert studio.worker.cancel(id, "ann")
    at_most = calls.count + 1  # the call that was being made
    view = studio.over(id, "ann")
    assert view.state is JobState.CANCELLED
    assert calls.count <= at_most
    assert [picture.state for picture in view.pictures] == [JobState.DONE, *[JobState.CANCELLED] * 2]
    assert view.pictures[0].file.is_file()
    assert view.message == "stopped; 1 of 3 pictures finished and kept"
    assert not studio.worker.cancel(id, "ann")


def test_a_job_that_waits_is_cancelled_at_once(studio: Any) -> None:
    paused = studio.pause()
    id = studio.ask("ann", draft())
    assert studio.worker.view(id, "ann").position == 1
    studio.worker.cancel(id, "ann")
    assert studio.worker.view(id, "ann").state is JobState.CANCELLED
    paused.set()


@pytest.mark.parametrize(
    ("prompt", "names", "values", "error", "said"),
    [
        ("a fox", ("foxx",), {}, AdapterError, "did you mean 'fox'"),
        ("a <lora:hatt:1>", (), {}, AdapterError, "did you mean 'hat'"),
        ("a fox", (), {"steps": 0}, RequestError, "steps=0"),
        ("a fox", ("kimono",), {}, AdapterError, "made for tiny-sdxl; this is random-sdxl"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_queued(
    studio: Any, prompt: str, names: tuple[str, ...], values: Any, error: Any, said: str
) -> None:
    with pytest.raises(error, match=said):
        studio.ask("ann", draft(prompt, *names, **values))
    assert studio.worker.heads("ann") == []


def test_more_pictures_than_one_owner_may_have_waiting_are_refused_before_any_work(
    studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "MOST_WAITING", 3)
    paused = studio.pause()
    first = studio.ask("ann", draft(), draft())
    monkeypatch.setattr(worker, "model_key", None)  # nothing is looked up for what is refused
    with pytest.raises(
        RequestError, match="2 of your pictures are not done yet, and 2 more would be more than 3"
    ):
        studio.ask("ann", draft(), draft())
    monkeypatch.undo()
    monkeypatch.setattr(worker, "MOST_WAITING", 3)
    paused.set()
    studio.over(first, "ann")
    studio.over(studio.ask("ann", draft(), draft(), draft()), "ann")


def test_others_may_ask_while_one_owner_has_as_many_waiting_as_may(
    studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "MOST_WAITING", 1)
    paused = studio.pause()
    anns = studio.ask("ann", draft())
    bobs = studio.ask("bob", draft())
    assert studio.worker.cancel(anns, "ann")
    again = studio.ask("ann", draft())
    paused.set()
    assert studio.over(bobs, "bob").state is JobState.DONE
    assert studio.over(again, "ann").state is JobState.DONE


def test_jobs_are_listed_and_waited_for_without_a_look_at_their_pictures(
    studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused = studio.pause()
    first, second = studio.ask("ann", draft(), draft(), title="fox"), studio.ask("ann", draft(), kind="sdapi")
    for read in ("slice_of", "pictures_of"):
        monkeypatch.setattr(Store, read, None)
    heads = studio.worker.heads("ann")
    assert [(head.id, head.tally.total, head.position) for head in heads] == [(second, 1, 2), (first, 2, 1)]
    assert studio.worker.unfinished("ann") == [first, second]
    assert studio.worker.unfinished("ann", "sdapi") == [second]
    assert studio.worker.unfinished("bob") == []
    assert studio.worker.at_work(first, "ann") is None
    paused.set()
    version = -1
    while not (head := studio.worker.head(first, "ann")).state.over:
        version = studio.worker.wait(version, 60)
    assert (head.message, head.tally.done, head.tally.step) == ("2 of 2 pictures done", 2, 6)
    assert studio.worker.head(first, "bob") is None


def test_of_a_large_job_a_slice_is_looked_at(studio: Any) -> None:
    paused = studio.pause()
    id = studio.ask("ann", *(draft(seed=seed) for seed in range(9)))
    paused.set()
    assert studio.over(id, "ann").tally.total == 9
    look = studio.worker.view

    def seeds(**slice: object) -> list[int]:
        return [picture.seed for picture in look(id, "ann", **slice).pictures]

    assert seeds() == list(range(9))
    assert seeds(most=4) == [0, 1, 2, 3]
    assert seeds(first=7) == [7, 8]
    assert seeds(most=4, latest=True) == [5, 6, 7, 8]
    assert look(id, "ann", most=4).message == "9 of 9 pictures done"
    assert look(id, "ann", records=False).pictures[0].record is None
    assert look(id, "ann", records=False).pictures[0].step == 3


def test_what_the_loaded_model_cannot_do_is_said_at_the_gate(studio: Any) -> None:
    studio.worker.load(studio.model).result(60)
    with pytest.raises(RequestError, match="width=33 must be a multiple"):
        studio.ask("ann", draft(width=33))


def test_a_picture_that_fails_alone(studio: Any) -> None:
    """Its size is wrong, which is known only once the model is loaded."""
    id = studio.ask("ann", draft(seed=1), draft(seed=2, width=33), draft(seed=3))
    view = studio.over(id, "ann")
    assert [str(picture.state) for picture in view.pictures] == ["done", "failed", "done"]
    assert view.state is JobState.FAILED
    assert "width=33 must be a multiple" in view.error
    assert view.message == "2 of 3 pictures done, 1 failed"


def test_the_model_at_work_is_drained_before_another_is_loaded(
    studio: Any, sd_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = studio.worker.home
    studio.worker.home = Home.resolve(home.path, model_dirs=[sd_folder.parent, *home.roots.models])
    monkeypatch.setattr("studio.jobs.rounds.TURN", 0.0)
    paused = studio.pause()
    first = studio.ask("ann", *(draft(seed=seed, steps=6) for seed in range(3)))
    other = studio.ask("bob", draft(seed=1), model=sd_folder.name)
    paused.set()
    done, others = studio.over(first, "ann"), studio.over(other, "bob")
    assert {str(done.state), str(others.state)} == {"done"}
    assert others.pictures[0].record["model"] == sd_folder.name
    assert studio.worker.model_state().label in (sd_folder.name, studio.model)


def test_a_model_that_cannot_be_loaded_is_reported_to_its_jobs(
    studio: Any, sdxl_folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "models" / "broken"
    shutil.copytree(sdxl_folder, broken)
    next((broken / "unet").glob("*.safetensors")).write_bytes(b"not weights")
    home = studio.worker.home
    studio.worker.home = Home.resolve(home.path, model_dirs=[broken.parent, *home.roots.models])
    id = studio.ask("ann", draft(), model="broken")
    view = studio.over(id, "ann")
    assert view.state is JobState.FAILED
    assert "broken" in view.error
    assert studio.worker.model_state().error == view.error
    with pytest.raises(ModelError):
        studio.worker.load("broken").result(60)
    assert studio.over(studio.ask("ann", draft()), "ann").state is JobState.DONE


def test_adapters_are_loaded_when_asked_for_and_read_anew_when_they_change(
    studio: Any, loras: Path, sdxl_folder: Path, make_lora: Callable[..., Path]
) -> None:
    before = studio.over(studio.ask("ann", draft("a fox", "fox", seed=5)), "ann")
    assert studio.worker.model_state().adapters == ("fox",)
    shutil.copy(make_lora(sdxl_folder, "fox", seed=8), loras / "fox.safetensors")
    after = studio.over(studio.ask("ann", draft("a fox", "fox", seed=5)), "ann")
    hashes = [view.pictures[0].record["adapters"][0]["sha256"] for view in (before, after)]
    assert hashes[0] != hashes[1]
    assert (pixels(before.pictures[0].file) != pixels(after.pictures[0].file)).any()


def test_the_initial_image_is_kept_for_the_job(studio: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    file = tmp_path / "init.png"
    Image.new("RGB", (32, 32), "red").save(file)
    paused = studio.pause()
    id = studio.ask("ann", replace(draft(strength=0.7), images={"init_image": file}))
    file.unlink()
    paused.set()
    assert studio.over(id, "ann").pictures[0].record["strength"] == 0.7


def test_previews_are_drawn_for_those_who_look(studio: Any) -> None:
    id = studio.ask("ann", draft(steps=60))
    view = studio.until(id, "ann", lambda view: view.pictures[0].preview is not None)
    assert Image.open(view.pictures[0].preview).format == "WEBP"
    assert view.seconds_left is not None
    studio.over(id, "ann")
    assert view.pictures[0].preview.exists()  # a page that was told of it may be asking for it just now


def test_previews_go_some_time_after_their_pictures_are_done(
    studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("studio.jobs.previews.KEPT", 0.0)
    id = studio.ask("ann", draft(steps=60))
    view = studio.until(id, "ann", lambda view: view.pictures[0].preview is not None)
    studio.over(id, "ann")
    assert not view.pictures[0].preview.exists()


def test_deleting_takes_the_files_too(studio: Any) -> None:
    id = studio.ask("ann", draft(seed=1), draft(seed=2))
    first, second = (picture.file for picture in studio.over(id, "ann").pictures)
    assert studio.worker.delete_picture(id, 0, "ann")
    assert not first.exists()
    assert [picture.index for picture in studio.worker.pictures("ann")] == [1]
    assert studio.worker.delete(id, "ann")
    assert not second.exists()
    assert studio.worker.view(id, "ann") is None


def test_live_pictures_are_looked_at_and_not_kept(studio: Any, open_studio: Opened) -> None:
    id = studio.ask("ann", draft(), kind=LIVE)
    file = studio.over(id, "ann").pictures[0].file
    assert file.is_relative_to(studio.home.cache)
    assert studio.worker.pictures("ann") == []
    studio.worker.close()
    assert open_studio().worker.heads("ann") == []
    assert not file.exists()


def test_calls_run_between_rounds_and_give_back_what_they_raise(studio: Any) -> None:
    name = studio.worker.call(lambda pipe: threading.current_thread().name, model=studio.model).result(60)
    assert name == "worker"
    with pytest.raises(ZeroDivisionError):
        studio.worker.call(lambda pipe: 1 // 0, model=studio.model).result(60)


def test_a_stranger_names_neither_paths_nor_hub_ids(
    open_studio: Opened, sd_folder: Path, loras: Path, tmp_path: Path
) -> None:
    studio = open_studio(trust=Trust(paths=False, downloads=False))
    with pytest.raises(SetupError, match="--allow-downloads"):
        studio.ask("ann", draft(), model="somebody/something")
    with pytest.raises(ModelError):
        studio.ask("ann", draft(), model=str(sd_folder / ".." / sd_folder.name))
    with pytest.raises(AdapterError):
        studio.ask("ann", draft("a fox", str(shutil.copy(loras / "fox.safetensors", tmp_path))))


def test_a_second_server_is_told_where_the_first_one_is(studio_home: Home) -> None:
    with HomeLock(studio_home) as lock:
        lock.tell("http://127.0.0.1:7860/")
        with pytest.raises(SetupError, match=r"open http://127\.0\.0\.1:7860/"), HomeLock(studio_home):
            pass
    with HomeLock(studio_home):
        pass


def test_a_picture_is_resolved_once_and_planned_once(studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()
    for name in ("resolved", "plans"):
        real = getattr(Request, name)

        def counting(self: Request, *args: Any, real: Any = real, name: str = name) -> Any:
            counts[name] += 1
            return real(self, *args)

        monkeypatch.setattr(Request, name, counting)
    assert studio.over(studio.ask("ann", draft(seed=1), draft(seed=2)), "ann").state is JobState.DONE
    assert counts == {"resolved": 2, "plans": 2}  # at the gate too, once the model is loaded
