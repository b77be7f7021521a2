"""Who joins the pictures in flight: decided from what waits, what flies and how much room there is."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from pipelines import Request
from pipelines.admission import PATIENCE, Admission
from pipelines.families.unet import Shape
from pipelines.features import Features
from pipelines.flight import Flight

SMALL, LARGE = (4, 8, 8), (4, 16, 16)


def flight(
    id: int, *, owner: str = "", rows: int = 2, shape: Shape = SMALL, features: int = 0, adapter: str = "a"
) -> Flight:
    plan: Any = SimpleNamespace(lanes=range(rows))
    made = Flight(id, owner, 0, Request("a fox", adapters={adapter: 1.0}), (plan,), (), shape, Features())
    made.cost.feature_bytes = features
    return made


def admitted(
    waiting: Sequence[Flight],
    flying: Sequence[Flight] = (),
    *,
    rows: int = 4,
    features: int = 100,
    on_device: Sequence[str] = ("a",),
) -> list[int]:
    """The ids of those that join, in order; whoever was submitted first is next."""
    admission = Admission(
        waiting,
        flying,
        rows_at_once=lambda shape: rows,
        feature_room=features,
        turn=lambda flight: flight.id,
        fits=lambda names: set(names) <= set(on_device),
    )
    found = []
    while (joins := admission.next()) is not None:
        admission.joined(joins)
        found.append(joins.id)
    return found


def test_pictures_join_until_a_call_is_full() -> None:
    assert admitted([flight(3), flight(1), flight(2)]) == [1, 2]
    assert admitted([flight(2), flight(3)], [flight(1)]) == [2]


def test_each_shape_has_calls_of_its_own() -> None:
    assert admitted([flight(1), flight(2), flight(3), flight(4, shape=LARGE)]) == [1, 2, 4]


def test_nobody_overtakes_a_picture_that_finds_no_room() -> None:
    assert admitted([flight(2, rows=4), flight(3)], [flight(1)]) == []


def test_after_some_rounds_it_makes_its_own_calls_where_there_are_several_owners() -> None:
    flying = [flight(1, owner="ann"), flight(2, owner="ann")]
    late = flight(3, owner="bob")
    assert [admitted([late], flying) for _ in range(PATIENCE)] == [[]] * PATIENCE
    assert admitted([late], flying) == [3]
    assert late.own_calls


def test_where_its_owner_has_a_picture_in_flight_the_others_go_on_without_it() -> None:
    flying = [flight(1, owner="ann", rows=1), flight(2, owner="bob", rows=2)]
    late, small = flight(3, owner="ann", rows=2), flight(4, owner="bob", rows=1)
    late.rounds_without_room = PATIENCE
    assert admitted([late, small], flying) == [4]
    assert not late.own_calls


def test_a_picture_of_more_rows_than_a_call_holds_makes_its_own_calls_one_an_owner() -> None:
    both = [flight(1, rows=6), flight(2, rows=6), flight(3, rows=4)]
    assert admitted(both) == [1, 3]
    assert [each.own_calls for each in both] == [True, False, False]


def test_adapters_that_do_not_fit_beside_those_in_flight_are_waited_for() -> None:
    other = flight(2, adapter="b")
    assert admitted([other], [flight(1)]) == []
    assert admitted([other]) == [2]  # alone it has the device


def test_features_are_reserved_for_a_whole_run() -> None:
    assert admitted([flight(2, features=60, rows=1)], [flight(1, features=60, rows=1)]) == []
    assert admitted([flight(1, features=60, rows=1), flight(2, features=60, rows=1)]) == [1]


def test_features_that_never_fit_stay_on_the_host() -> None:
    large = flight(2, features=101)
    assert admitted([large], [flight(1, features=60)]) == [2]
    assert large.features.on_host
