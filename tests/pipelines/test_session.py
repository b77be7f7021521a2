"""The scheduler of pictures: joining, leaving, cancelling, sharing, failing alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from composers import Composite, Switch, Use
from pipelines import Request, StudioError, StudioPipeline
from pipelines.errors import RenderError
from pipelines.events import Cancelled, Event, Failed, Finished, Started, Stepped
from pipelines.model import Model
from pipelines.session import Session


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


@pytest.fixture
def calls(model: Model) -> Iterator[list[int]]:
    """The rows of every UNet call."""
    found: list[int] = []
    hook = model.unet.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].shape[0]))
    yield found
    hook.remove()


def ask(seed: int = 1, **settings: object) -> Request:
    return Request("a fox", **({"seed": seed, "steps": 4, "scheduler": "Euler a"} | settings))  # type: ignore[arg-type]


def finished(events: list[Event]) -> dict[int, Tensor]:
    return {event.id: event.image for event in events if isinstance(event, Finished)}  # type: ignore[misc]


def alone(model: Model, request: Request) -> Tensor:
    session = Session(model, output_type="latent")
    session.submit(request)
    [image] = finished(list(session.drain())).values()
    return image


def same(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).norm() / expected.norm()) < 1e-4


def test_pictures_join_and_leave_between_rounds(model: Model, calls: list[int]) -> None:
    session = Session(model, output_type="latent")
    requests = {session.submit(ask(1, steps=5)).id: ask(1, steps=5)}
    events = session.step() + session.step()
    late = ask(2, steps=4, adapters={"a": 1.0}, scheduler="DPM++ 2M SDE")
    requests[session.submit(late).id] = late
    events += list(session.drain())
    assert calls == [2, 2, 4, 4, 4, 2]
    found = finished(events)
    for id, request in requests.items():
        assert same(found[id], alone(model, request))


def test_events_tell_the_course_of_a_picture(model: Model) -> None:
    session = Session(model)
    id = session.submit(ask(steps=3)).id
    events = list(session.drain())
    assert [type(event) for event in events] == [Started, Stepped, Stepped, Stepped, Finished]
    assert [(event.step, event.count) for event in events if isinstance(event, Stepped)] == [
        (1, 3),
        (2, 3),
        (3, 3),
    ]
    preview = next(event for event in events if isinstance(event, Stepped)).preview()
    assert isinstance(preview, Image.Image)
    assert preview.size == (32, 32)
    assert events[-1].id == id


def test_heun_steps_are_solver_steps(model: Model, calls: list[int]) -> None:
    session = Session(model)
    session.submit(ask(steps=3, scheduler="Heun"))
    steps = [event.step for event in session.drain() if isinstance(event, Stepped)]
    assert steps == [1, 2, 3]
    assert len(calls) == 5


def test_cancel_acts_before_the_next_call_and_frees_the_rows(model: Model, calls: list[int]) -> None:
    session = Session(model, output_type="latent")
    kept, dropped = session.submit(ask(1)).id, session.submit(ask(2)).id
    events = session.step()
    assert session.cancel(dropped)
    events += list(session.drain())
    assert calls == [4, 2, 2, 2]
    assert Cancelled(dropped) in events
    assert list(finished(events)) == [kept]
    assert not session.cancel(dropped)
    assert session.idle


def test_closing_the_stream_stops_within_a_step(pipe: StudioPipeline, calls: list[int]) -> None:
    stream = pipe.stream([ask(1, steps=50), ask(2, steps=50)])
    for event in stream:
        if isinstance(event, Stepped):
            break
    stream.close()  # type: ignore[attr-defined]
    assert len(calls) <= 2


def test_pictures_of_other_sizes_have_calls_of_their_own(model: Model, calls: list[int]) -> None:
    session = Session(model, output_type="latent")
    small, wide = ask(1), ask(2, width=64, height=32)
    ids = [session.submit(request).id for request in (small, wide)]
    found = finished(list(session.drain()))
    assert calls == [2, 2] * 4
    for id, request in zip(ids, (small, wide), strict=True):
        assert same(found[id], alone(model, request))


def test_owners_take_turns_within_the_row_limit(model: Model) -> None:
    model.row_limit = 4
    session = Session(model, output_type="latent")
    many = [session.submit(ask(seed), owner="many").id for seed in range(6)]
    one = session.submit(ask(99), owner="one").id
    order = [event.id for event in session.drain() if isinstance(event, Finished)]
    assert order[:2] == [many[0], one]
    assert sorted(order) == sorted([*many, one])


def test_a_higher_priority_goes_first(model: Model) -> None:
    model.row_limit = 2
    session = Session(model, output_type="latent")
    ids = [session.submit(ask(seed), priority=priority).id for seed, priority in ((1, 0), (2, 0), (3, 5))]
    order = [event.id for event in session.drain() if isinstance(event, Finished)]
    assert order == [ids[2], ids[0], ids[1]]


def test_the_row_limit_splits_even_one_picture(model: Model, calls: list[int]) -> None:
    request = ask(adapters={"a": 1.0, "b": 0.5}, composer=Composite())
    whole = alone(model, request)
    assert calls == [4] * 4
    calls.clear()
    model.row_limit = 3
    assert same(alone(model, request), whole)
    assert calls == [2, 2] * 4


def test_memory_that_runs_out_splits_the_batch_and_is_remembered(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [ask(seed, adapters={"a": 0.5}) for seed in range(4)]
    expected = [alone(model, request) for request in requests]
    sizes: list[int] = []
    forward = model.unet.forward

    def small_device(sample: Tensor, *args: object, **settings: object) -> object:
        if sample.shape[0] > 3:
            raise torch.OutOfMemoryError("out of memory")
        sizes.append(sample.shape[0])
        return forward(sample, *args, **settings)

    monkeypatch.setattr(model.unet, "forward", small_device)
    session = Session(model, output_type="latent")
    ids = [session.submit(request).id for request in requests]
    events = list(session.drain())
    found = finished(events)
    for id, latents in zip(ids, expected, strict=True):
        assert same(found[id], latents)
    assert set(sizes) == {2}
    records = [event.record for event in events if isinstance(event, Finished)]
    assert {record.largest_call for record in records} == {2}
    assert ["memory holds 2 UNet rows" in note for record in records for note in record.notes] == [True] * 4


def test_memory_too_small_for_one_row_is_an_error_with_a_remedy(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_device(*_: object, **__: object) -> object:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(model.unet, "forward", no_device)
    session = Session(model)
    id = session.submit(ask()).id
    [failed] = [event for event in session.drain() if isinstance(event, Failed)]
    assert failed.id == id
    assert isinstance(failed.error, RenderError)
    assert "smaller" in str(failed.error)


def test_a_request_that_fails_to_prepare_fails_alone(model: Model) -> None:
    session = Session(model, output_type="latent")
    good, bad = session.submit(ask(1)).id, session.submit(ask(2, clip_skip=50)).id
    events = list(session.drain())
    assert [event.id for event in events if isinstance(event, Failed)] == [bad]
    assert list(finished(events)) == [good]


def test_a_picture_that_is_not_finite_fails_alone(model: Model) -> None:
    session = Session(model)
    good, bad = session.submit(ask(1)).id, session.submit(ask(2, adapters=[Use("a", 1.0)])).id
    events = session.step()
    in_flight = next(job for job in session._flying if job.id == bad)
    assert in_flight.trajectory is not None
    in_flight.trajectory.latents[0, 0, 0, 0] = float("inf")  # as strengths beyond reason make it
    events += list(session.drain())
    [failed] = [event for event in events if isinstance(event, Failed)]
    assert failed.id == bad
    assert "lower the adapters' strengths" in str(failed.error)
    assert [event.id for event in events if isinstance(event, Finished)] == [good]


def test_the_record_counts_what_really_ran(model: Model, calls: list[int]) -> None:
    session = Session(model, output_type="latent")
    mix = {"a": 0.5, "b": 1.0}
    session.submit(ask(1, adapters=mix, composer=Composite()))
    session.submit(ask(2, adapters=mix, composer=Switch(interval=9), steps=3))
    records = [event.record for event in session.drain() if isinstance(event, Finished)]
    switch, composite = sorted(records, key=lambda record: record.unet_rows)
    assert calls == [6, 6, 6, 4]
    assert (composite.unet_rows, composite.unet_calls, composite.largest_call) == (16, 4, 6)
    assert (switch.unet_rows, switch.unet_calls, switch.largest_call) == (6, 3, 6)
    assert composite.shared
    assert switch.composer == "switch:interval=1"
    assert [(used.name, used.weight) for used in composite.adapters] == [("a", 0.5), ("b", 1.0)]
    assert composite.adapters[0].sha256 == model.bank.adapters["a"].report.sha256
    assert composite.device_seconds > 0


def test_a_drawn_seed_is_recorded_and_draws_the_picture_again(pipe: StudioPipeline) -> None:
    first = pipe(Request("a fox", steps=2), output_type="latent")
    again = pipe(Request("a fox", steps=2, seed=first.records[0].seed), output_type="latent")
    assert torch.equal(first.images[0], again.images[0])
    assert pipe(Request("a fox", steps=2)).records[0].seed != first.records[0].seed


def test_nothing_is_rendered_when_one_request_is_refused(pipe: StudioPipeline, calls: list[int]) -> None:
    with pytest.raises(StudioError, match="did you mean"):
        pipe([ask(1), ask(2, adapters={"aa": 1.0})])
    assert calls == []
