"""Live pictures follow a slider: they are nobody's work, so they are not kept and not listed."""

from __future__ import annotations

from pathlib import Path

from pipelines.home import Home
from studio.jobs import LIVE, JobState, Worker
from studio.jobs.saving import live_folder
from studio.jobs.worker import MOST_LIVE

from .conftest import draft


def test_live_pictures_are_in_no_gallery(studio_home: Home, sdxl_folder: Path) -> None:
    worker = Worker(studio_home)
    live, kept = (
        worker.submit("ann", [draft(kind)], model=sdxl_folder.name, kind=kind) for kind in (LIVE, "compose")
    )
    for job in (live, kept):
        worker._store.finish_picture(job, 0, f"outputs/{job}.png", {})
    assert [picture.job for picture in worker.pictures("ann")] == [kept]
    worker.close()


def test_live_pictures_of_an_earlier_server_are_gone_and_other_jobs_are_kept(
    studio_home: Home, sdxl_folder: Path
) -> None:
    first = Worker(studio_home)
    live, kept = (
        first.submit("ann", [draft()], model=sdxl_folder.name, kind=kind) for kind in (LIVE, "compose")
    )
    assert first.cancel(kept, "ann")  # so that the second one has nothing to render
    file = live_folder(studio_home) / "left.png"
    file.parent.mkdir(parents=True)
    file.touch()
    first.close()
    second = Worker(studio_home)
    second.start()
    assert not second.owns(live, "ann")
    assert second.unfinished("ann") == []
    assert not file.exists()
    assert second.owns(kept, "ann")
    second.close()


def test_only_an_owners_own_newest_live_job_stops_the_oldest(studio_home: Home, sdxl_folder: Path) -> None:
    worker = Worker(studio_home)

    def ask(owner: str, kind: str = LIVE) -> str:
        return worker.submit(owner, [draft()], model=sdxl_folder.name, kind=kind)

    bobs, kept = ask("bob"), ask("ann", "compose")
    live = [ask("ann") for _ in range(MOST_LIVE)]
    assert worker.unfinished("ann", LIVE) == live
    live.append(ask("ann"))
    assert worker.unfinished("ann", LIVE) == live[1:]
    stopped = worker.head(live[0], "ann")
    assert stopped is not None
    assert stopped.state is JobState.CANCELLED
    assert worker.unfinished("bob") == [bobs]
    assert kept in worker.unfinished("ann")
    worker.close()
