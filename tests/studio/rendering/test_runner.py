"""The one driver of a session: pictures of the caller's own kind go in, and what becomes of them comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from composers import Composite
from pipelines import Event, Failed, Finished, Request, Session, Started, Stepped, StudioPipeline
from pipelines.errors import RenderError, RequestError
from pipelines.model import Model
from studio.batch.renderer import Renderer
from studio.pictures.metadata import Setup
from studio.rendering.once import Drive, Picture, Saving
from studio.rendering.runner import AHEAD, Fill, Runner
from studio.rendering.saver import Made
from studio.terminal.progress import Teller


@pytest.fixture(scope="module")
def pipe(sdxl_folder: Path, make_lora: Callable[..., Path]) -> StudioPipeline:
    pipe = StudioPipeline.from_pretrained(sdxl_folder)
    for name, rank in (("a", 4), ("b", 2)):
        pipe.load_lora_weights(make_lora(sdxl_folder, name, seed=rank, rank=rank), adapter_name=name)
    return pipe


@pytest.fixture
def model(pipe: StudioPipeline) -> Iterator[Model]:
    """The model with its row limit free; whatever a test sets is taken back."""
    yield pipe.model
    pipe.model.row_limit = None
    pipe.model.found_limits.clear()


def ask(seed: int | None = 1, **settings: Any) -> Request:
    return Request("a fox", **({"seed": seed, "steps": 3, "width": 32, "height": 32} | settings))


def ended(runner: Runner[Any]) -> list[tuple[Any, Event]]:
    """All that comes until nothing is left."""
    told = []
    while not runner.idle:
        told += runner.step()
    return told


def results(told: list[tuple[Any, Event]]) -> dict[Any, Event]:
    return {picture: event for picture, event in told if isinstance(event, Finished | Failed)}


# -- giving and telling ----------------------------------------------------------------------------------


def test_events_come_with_the_pictures_of_the_caller(pipe: StudioPipeline) -> None:
    runner: Runner[str] = Runner(pipe.model)
    for seed, picture in ((1, "the fox"), (2, "the hat")):
        runner.give(picture, ask(seed))
    assert runner.pictures == runner.waiting == ["the fox", "the hat"]
    told = ended(runner)
    assert {picture for picture, _ in told} == {"the fox", "the hat"}
    of_the_fox = [type(event) for picture, event in told if picture == "the fox"]
    assert of_the_fox == [Started, Stepped, Stepped, Stepped, Finished]
    assert runner.pictures == runner.waiting == []
    [alone] = pipe(ask(2)).images
    found = results(told)["the hat"]
    assert isinstance(found, Finished)
    assert np.array_equal(np.asarray(found.image), np.asarray(alone))


def test_a_ticket_says_what_was_found(model: Model) -> None:
    runner: Runner[str] = Runner(model)
    mix = ask(None, adapters={"a": 1.0, "b": 1.0}, composer=Composite(), steps=5)
    ticket = runner.give("fox", replace(mix, init_image=Image.new("RGB", (32, 32)), strength=0.4))
    assert ticket.steps == 2
    assert ticket.rows == 4  # two for each adapter
    assert ticket.all_rows == 8
    assert ticket.shape == model.latent_shape(32, 32)
    told = ended(runner)
    [finished] = [event for _, event in told if isinstance(event, Finished)]
    assert finished.request is ticket.request
    assert finished.record.seed == ticket.request.seed  # the one that was drawn


def test_a_bad_request_is_told_at_once_and_the_others_go_on(model: Model) -> None:
    runner: Runner[int] = Runner(model)
    runner.give(1, ask())
    with pytest.raises(RequestError, match="'owl' is not loaded"):
        runner.give(2, ask(adapters={"owl": 1.0}))
    assert runner.pictures == [1]
    assert isinstance(results(ended(runner))[1], Finished)


def test_a_fault_in_giving_is_of_that_picture_alone(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    runner: Runner[int] = Runner(model)
    runner.give(1, ask())
    with monkeypatch.context() as patch:
        patch.setattr(Session, "submit", lambda *_: 1 // 0)
        with pytest.raises(RenderError, match="the picture could not be begun: ZeroDivisionError"):
            runner.give(2, ask())
    assert results(ended(runner)).keys() == {1}


def test_a_picture_that_fails_is_told_and_forgotten(model: Model) -> None:
    runner: Runner[str] = Runner(model)
    runner.give("good", ask(1))
    runner.give("bad", ask(2, clip_skip=50))
    found = results(ended(runner))
    assert isinstance(found["good"], Finished)
    assert isinstance(found["bad"], Failed)
    assert runner.pictures == []


def test_adapters_are_read_when_they_are_first_asked_for(
    sdxl_folder: Path, make_lora: Callable[..., Path]
) -> None:
    pipe = StudioPipeline.from_pretrained(sdxl_folder)
    pipe.store.add({name: make_lora(sdxl_folder, name, seed=3) for name in ("fox", "hat")})
    runner: Runner[int] = Runner(pipe.model)
    runner.give(1, ask(adapters={"fox": 1.0}))
    assert list(pipe.adapters) == ["fox"]


# -- leaving ---------------------------------------------------------------------------------------------


def test_of_a_cancelled_picture_nothing_more_is_told(model: Model) -> None:
    runner: Runner[str] = Runner(model)
    for seed, picture in enumerate(("kept", "dropped")):
        runner.give(picture, ask(seed))
    runner.step()
    assert runner.cancel("dropped")
    assert not runner.cancel("dropped")
    assert runner.pictures == ["kept"]
    assert {picture for picture, _ in ended(runner)} == {"kept"}


def test_what_is_set_aside_goes_on_in_another_runner(pipe: StudioPipeline) -> None:
    model = pipe.model
    model.row_limit = 2
    first: Runner[str] = Runner(model)
    try:
        first.give("begun", ask(1, adapters={"a": 1.0}))
        first.give("not begun", ask(2))
        first.step()
        begun, waiting = first.suspend()
    finally:
        model.row_limit = None
    assert [picture for picture, _ in begun] == ["begun"]
    assert waiting == ["not begun"]
    assert first.pictures == []
    assert ended(first) == []
    second: Runner[str] = Runner(model)
    [(picture, aside)] = begun
    ticket = second.resume(picture, aside)
    assert ticket.request.seed == 1
    assert second.waiting == ["begun"]
    finished = results(ended(second))["begun"]
    assert isinstance(finished, Finished)
    [alone] = pipe(ask(1, adapters={"a": 1.0})).images
    assert np.array_equal(np.asarray(finished.image), np.asarray(alone))


def test_a_new_session_takes_the_place_of_one_that_broke(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner: Runner[str] = Runner(model)
    runner.give("fox", ask(adapters={"a": 1.0}))
    runner.step()
    with monkeypatch.context() as patch:
        patch.setattr(Session, "step", lambda self: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            runner.step()
    assert runner.start_over() == ["fox"]
    assert runner.idle
    assert runner.pictures == []
    assert model.store.stats.held == 0
    runner.give("fox", ask())
    assert isinstance(results(ended(runner))["fox"], Finished)


def test_closing_lets_go_of_the_adapters(model: Model) -> None:
    runner: Runner[str] = Runner(model)
    runner.give("fox", ask(adapters={"a": 1.0}))
    runner.step()
    assert model.store.stats.held
    runner.close()
    assert model.store.stats.held == 0


# -- how much it wants -----------------------------------------------------------------------------------


def test_it_has_room_until_as_much_waits_as_its_calls_take(model: Model) -> None:
    model.row_limit = 4
    runner: Runner[int] = Runner(model)
    given = 0
    while runner.room:
        runner.give(given, ask(given))
        given += 1
    assert given == AHEAD * 4 // 2  # a picture has two rows
    runner.step()
    assert runner.room == 2  # one call's are in flight


def test_it_hungers_for_one_call_of_usual_pictures_only(model: Model) -> None:
    model.row_limit = 4
    runner: Runner[int] = Runner(model)
    given = 0
    while runner.hungry:
        runner.give(given, ask(given))
        given += 1
    assert given == 2
    assert runner.room


def test_it_measures_how_full_the_rounds_are(model: Model) -> None:
    model.row_limit = 4
    runner: Runner[int] = Runner(model)
    for seed in range(3):
        runner.give(seed, ask(seed, steps=2))
    ended(runner)
    assert runner.fill == Fill(rows=12, room=16, busy_rows=8, busy_room=8)
    assert runner.fill.busy == 1.0
    assert runner.fill.overall == 0.75


# -- once ------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often requests were resolved and planned."""
    counts: Counter[str] = Counter()
    for name in ("resolved", "plans"):
        real = getattr(Request, name)

        def counting(self: Request, *args: Any, real: Any = real, name: str = name) -> Any:
            counts[name] += 1
            return real(self, *args)

        monkeypatch.setattr(Request, name, counting)
    return counts


def drawn_by_a_session(pipe: StudioPipeline, request: Request, folder: Path) -> None:
    session = Session(pipe.model)
    session.submit(request)
    list(session.drain())


def drawn_by_a_runner(pipe: StudioPipeline, request: Request, folder: Path) -> None:
    runner: Runner[int] = Runner(pipe.model)
    runner.give(1, request)
    ended(runner)


def drawn_by_the_command_line(pipe: StudioPipeline, request: Request, folder: Path) -> None:
    drive = Drive(
        pipe,
        [Picture(request, "", folder / "fox.png")],
        Saving({}, Setup()),
        teller=Teller(quiet=True),
        on_file=lambda file: None,
    )
    assert drive.run(slow=False).finished


def drawn_by_a_batch(pipe: StudioPipeline, request: Request, folder: Path) -> None:
    worker = Renderer(pipe, {}, Setup())
    assert worker.give("key", request) is None
    rendered = []
    while worker.busy:
        rendered += worker.step()
    [one] = rendered
    assert isinstance(one.made, Made)


@pytest.mark.parametrize(
    "draw", [drawn_by_a_session, drawn_by_a_runner, drawn_by_the_command_line, drawn_by_a_batch]
)
def test_a_request_is_resolved_once_and_planned_once(
    draw: Callable[[StudioPipeline, Request, Path], None],
    pipe: StudioPipeline,
    counted: Counter[str],
    tmp_path: Path,
) -> None:
    draw(pipe, ask(None), tmp_path)
    assert counted == {"resolved": 1, "plans": 1}
