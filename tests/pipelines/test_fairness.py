"""No picture holds up the others: slow shapes, pictures of many rows, owners with much, pictures set aside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from composers import CMLoRA, Composite
from pipelines import Request, StudioPipeline
from pipelines.admission import PATIENCE
from pipelines.errors import AdapterFileError
from pipelines.events import Event, Failed, Finished, Started, Stepped
from pipelines.model import Model
from pipelines.session import Session
from pipelines.turns import Ledger, Turns


@pytest.fixture(scope="module")
def pipe(sdxl_folder: Path, make_lora: Callable[..., Path]) -> StudioPipeline:
    return opened(sdxl_folder, make_lora)


def opened(folder: Path, make_lora: Callable[..., Path]) -> StudioPipeline:
    pipe = StudioPipeline.from_pretrained(folder)
    for rank, name in ((4, "a"), (2, "b")):
        pipe.load_lora_weights(make_lora(folder, name, seed=rank, rank=rank), adapter_name=name)
    return pipe


@pytest.fixture
def model(pipe: StudioPipeline) -> Iterator[Model]:
    yield pipe.model
    pipe.model.row_limit = None


def ask(seed: int = 1, **settings: Any) -> Request:
    return Request("a fox", **({"seed": seed, "steps": 6, "scheduler": "Euler a"} | settings))


def steps_of(events: list[Event]) -> dict[int, int]:
    """How far each picture has come."""
    return {event.id: event.step for event in events if isinstance(event, Stepped)}


# -- set aside -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"scheduler": "Euler a", "adapters": {"a": 0.7}},
        {"scheduler": "DPM++ 2M SDE"},
        {"scheduler": "Heun"},
        {"scheduler": "UniPC"},
        {"scheduler": "PNDM"},
        {"scheduler": "DDIM", "adapters": {"a": 1.0, "b": 0.5}, "composer": CMLoRA()},
        {"scheduler": "Euler", "reuse": 3},
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values())[:30],
)
def test_a_picture_that_was_set_aside_goes_on_to_the_last_bit_with_the_model_loaded_anew(
    settings: dict[str, Any], sdxl_folder: Path, make_lora: Callable[..., Path], pipe: StudioPipeline
) -> None:
    expected = pipe(ask(steps=8, **settings), output_type="latent").images[0]
    session = Session(pipe.model, output_type="latent")
    first = session.submit(ask(steps=8, **settings)).id
    before = steps_of([event for _ in range(3) for event in session.step()])
    aside = session.suspend()
    assert list(aside) == [first]
    session.step()
    assert session.idle
    assert pipe.store.stats.held == 0

    later = Session(opened(sdxl_folder, make_lora).model, output_type="latent")
    again = later.resume(aside[first]).id
    events = list(later.drain())
    assert [event.id for event in events if isinstance(event, Started)] == [again]
    steps = [event.step for event in events if isinstance(event, Stepped)]
    assert steps[0] == before[first] + 1  # no step is made twice
    [finished] = [event for event in events if isinstance(event, Finished)]
    assert torch.equal(finished.image, expected)  # type: ignore[arg-type]
    assert finished.record.executed_steps == 8
    assert finished.record.unet_calls + finished.record.shallow_calls >= 8


def test_one_whose_adapter_has_changed_meanwhile_is_refused(
    sdxl_folder: Path, make_lora: Callable[..., Path], pipe: StudioPipeline
) -> None:
    session = Session(pipe.model)
    id = session.submit(ask(adapters={"a": 1.0})).id
    session.step()
    aside = session.suspend()[id]
    other = StudioPipeline.from_pretrained(sdxl_folder)
    other.load_lora_weights(make_lora(sdxl_folder, "a", seed=99), adapter_name="a")
    with pytest.raises(AdapterFileError, match="'a' was changed"):
        Session(other.model).resume(aside)


def test_one_that_is_taken_up_waits_its_turn_and_can_be_set_aside_again(model: Model) -> None:
    model.row_limit = 2
    session = Session(model, output_type="latent")
    first = session.submit(ask(1)).id
    session.step()
    aside = session.suspend()[first]
    other = session.submit(ask(2)).id
    session.step()
    waiting = session.resume(aside).id
    session.step()
    twice = session.suspend()
    assert sorted(twice) == sorted([other, waiting])
    ids = [session.resume(twice[id]).id for id in (waiting, other)]
    events = list(session.drain())
    assert {event.id for event in events if isinstance(event, Finished)} == set(ids)


# -- the device's seconds --------------------------------------------------------------------------------


class Clock:
    """Seconds on the device as a test says they are: `cost` of the width of a call's latents."""

    def __init__(self, session: Session, cost: Callable[[int], float]) -> None:
        self.widths: list[int] = []
        spent = session._time.spent

        def told(shares: Any, seconds: float) -> None:
            width = shares[0][0].shape[2]
            self.widths.append(width)
            spent(shares, cost(width))

        session._time.spent = told  # type: ignore[method-assign]


def test_a_slow_shape_gets_as_many_seconds_as_a_fast_one(model: Model) -> None:
    session = Session(model, output_type="latent")
    clock = Clock(session, lambda width: 10.0 if width == 32 else 1.0)
    session.submit(ask(1, width=64, height=64, steps=100), owner="slow")
    session.submit(ask(2, width=32, height=32, steps=100), owner="fast")
    for _ in range(44):
        session.step()
    assert 3 <= clock.widths.count(32) <= 5
    assert clock.widths.count(16) >= 40


def test_so_does_a_slow_shape_of_the_same_owner(model: Model) -> None:
    session = Session(model, output_type="latent")
    clock = Clock(session, lambda width: 10.0 if width == 32 else 1.0)
    session.submit(ask(1, width=64, height=64, steps=100))
    session.submit(ask(2, width=32, height=32, steps=100))
    for _ in range(44):
        session.step()
    assert 3 <= clock.widths.count(32) <= 5


def test_shapes_that_cost_the_same_are_evaluated_every_round(model: Model) -> None:
    session = Session(model, output_type="latent")
    clock = Clock(session, lambda width: 1.0)
    session.submit(ask(1, width=64, height=64, steps=20), owner="ann")
    session.submit(ask(2, width=32, height=32, steps=20), owner="bob")
    for _ in range(20):
        session.step()
    assert clock.widths == [32, 16] * 20


def test_many_shapes_of_one_owner_are_no_more_than_one_of_another(model: Model) -> None:
    session = Session(model, output_type="latent")
    clock = Clock(session, lambda width: 2.0)
    for place in range(4):
        session.submit(ask(1, width=64 + 8 * place, height=32, steps=100), owner="ann")
    session.submit(ask(2, width=32, height=32, steps=100), owner="bob")
    for _ in range(60):
        session.step()
    assert 0.4 < clock.widths.count(16) / len(clock.widths) < 0.6


# -- many rows -------------------------------------------------------------------------------------------


def test_a_picture_of_more_rows_than_a_call_holds_closes_the_door_to_nobody(model: Model) -> None:
    model.row_limit = 2
    session = Session(model, output_type="latent")
    large = ask(1, adapters={"a": 1.0, "b": 1.0}, composer=Composite(), steps=50)
    wide = [session.submit(large, owner="ann").id, session.submit(large, owner="ann").id]
    small = [session.submit(ask(seed, steps=3), owner="bob").id for seed in (2, 3)]
    events = [event for _ in range(8) for event in session.step()]
    done = {event.id for event in events if isinstance(event, Finished)}
    assert done == set(small)
    started = [event.id for event in events if isinstance(event, Started)]
    assert wide[0] in started
    assert wide[1] not in started  # one such picture an owner


def test_a_picture_of_many_rows_does_not_swell_the_calls_of_other_owners(model: Model) -> None:
    model.row_limit = 6
    large = ask(1, adapters={"a": 1.0, "b": 1.0}, composer=Composite(), steps=5)
    for owners, largest in ((("ann", "bob"), 2), (("ann", "ann"), 6)):
        session = Session(model, output_type="latent")
        session.submit(large, owner=owners[0])
        small = session.submit(ask(2, steps=3), owner=owners[1]).id
        [record] = [
            event.record for event in session.drain() if isinstance(event, Finished) and event.id == small
        ]
        assert record.largest_call == largest


def test_one_that_finds_no_room_does_not_hold_up_the_others_for_long(model: Model) -> None:
    model.row_limit = 8
    session = Session(model, output_type="latent")
    for seed in (1, 2, 3):
        session.submit(ask(seed, steps=200), owner="ann")
    session.step()
    session.submit(ask(4, adapters={"a": 1.0, "b": 1.0}, composer=Composite(), steps=200), owner="ann")
    small = session.submit(ask(5, steps=2), owner="bob").id
    events = [event for _ in range(PATIENCE + 8) for event in session.step()]
    assert [event.id for event in events if isinstance(event, Finished)] == [small]


def test_who_has_nothing_in_flight_finds_room_before_long(model: Model) -> None:
    model.row_limit = 4
    session = Session(model, output_type="latent")
    for seed in (1, 2):
        session.submit(ask(seed, steps=200), owner="ann")
    session.step()
    late = session.submit(ask(3, steps=2), owner="bob").id
    events = [event for _ in range(PATIENCE + 4) for event in session.step()]
    assert [event.id for event in events if isinstance(event, Finished)] == [late]
    assert not [event for event in events if isinstance(event, Failed)]


def test_who_has_much_in_flight_waits_as_ever(model: Model) -> None:
    model.row_limit = 4
    session = Session(model, output_type="latent")
    ids = [session.submit(ask(seed, steps=PATIENCE + 10), owner="ann").id for seed in range(3)]
    events = [event for _ in range(PATIENCE + 5) for event in session.step()]
    assert [event.id for event in events if isinstance(event, Started)] == ids[:2]


# -- turns -----------------------------------------------------------------------------------------------


def test_owners_are_served_by_what_their_pictures_cost(model: Model) -> None:
    model.row_limit = 4
    session = Session(model, output_type="latent")
    long = [session.submit(ask(seed, steps=12), owner="ann").id for seed in (1, 2)]
    short = [session.submit(ask(seed, steps=3), owner="bob").id for seed in range(3, 8)]
    order = [event.id for event in session.drain() if isinstance(event, Started)]
    assert order == [long[0], *short[:4], long[1], short[4]]


def test_nobody_banks_credit_and_nobody_sheds_debt() -> None:
    shares: Ledger[str] = Ledger()
    shares.among(["ann"])
    shares.charge("ann", 100)
    shares.among(["ann", "bob"])
    assert shares.ahead("ann") == shares.ahead("bob") == 0
    shares.charge("bob", 10)
    shares.among(["ann"])  # bob leaves for a moment
    shares.among(["ann", "bob"])
    assert shares.ahead("bob") == 10
    shares.charge("ann", 50)
    shares.among(["ann"])
    shares.among(["ann", "bob"])
    assert shares.ahead("bob") == 0


def test_a_higher_priority_leads_while_it_has_had_no_more_than_the_rest() -> None:
    turns = Turns()
    waiting = [("ann", 0), ("live", 1)]
    order = []
    for _ in range(6):
        turns.among(waiting)
        owner, priority = min(waiting, key=lambda pair: turns.key(*pair))
        order.append(owner)
        turns.serve(owner, priority, 1.0)
    assert order == ["live", "ann"] * 3
