"""Switch against the traces of the paper's formula and of the released code."""

from __future__ import annotations

from collections import Counter

import pytest

from composers import ComposerError, Mix, Step, Switch, Use


def trace(switch: Switch, adapters: int, steps: int) -> list[int]:
    """The active adapter's place in the mix, step by step."""
    mix = Mix(tuple(Use(str(place)) for place in range(adapters)))
    plans = [switch.plan(Step(index, steps, 1.0), mix) for index in range(steps)]
    return [int(plan.lanes[0].uses[0].adapter) for plan in plans]


@pytest.mark.parametrize(
    ("convention", "adapters", "steps", "counts"),
    [
        ("code", 2, 100, [51, 49]),
        ("code", 3, 100, [36, 34, 30]),
        ("code", 5, 200, [41, 40, 40, 40, 39]),
        ("paper", 2, 100, [50, 50]),
        ("paper", 3, 100, [35, 35, 30]),
        ("paper", 5, 200, [40, 40, 40, 40, 40]),
    ],
)
def test_how_many_steps_each_adapter_gets(
    convention: str, adapters: int, steps: int, counts: list[int]
) -> None:
    found = Counter(trace(Switch(interval=5, convention=convention), adapters, steps))
    assert [found[place] for place in range(adapters)] == counts


def test_the_released_code_holds_the_first_adapter_one_step_longer() -> None:
    assert trace(Switch(convention="code"), 2, 100)[:12] == [0] * 6 + [1] * 5 + [0]
    assert trace(Switch(convention="paper"), 2, 100)[:12] == [0] * 5 + [1] * 5 + [0] * 2
    assert trace(Switch(interval=1, convention="code"), 3, 8) == [0, 0, 1, 2, 0, 1, 2, 0]
    for steps, differing in ((100, 19), (200, 39)):
        code, paper = (trace(Switch(convention=kind), 2, steps) for kind in ("code", "paper"))
        assert sum(a != b for a, b in zip(code, paper, strict=True)) == differing


def test_a_short_run_still_gives_every_adapter_a_turn() -> None:
    assert trace(Switch(interval=5), 3, 8) == [0, 0, 1, 1, 2, 2, 0, 0]
    assert trace(Switch(interval=5, convention="code"), 3, 8) == [0, 0, 0, 0, 1, 1, 1, 2]
    assert trace(Switch(interval=5), 2, 6) == [0, 0, 0, 1, 1, 1]
    assert trace(Switch(interval=5), 1, 3) == [0, 0, 0]
    mix = Mix((Use("a"), Use("b"), Use("c")))
    assert Switch(interval=5).resolved(mix, 8) == Switch(interval=2)
    assert Switch(interval=5).resolved(mix, 60) == Switch(interval=5)


@pytest.mark.parametrize(("convention", "fewest"), [("paper", 3), ("code", 4)])
def test_too_few_steps_name_the_fewest(convention: str, fewest: int) -> None:
    mix = Mix((Use("a"), Use("b"), Use("c")))
    with pytest.raises(ComposerError, match=f"at least {fewest} steps"):
        Switch(convention=convention).resolved(mix, fewest - 1)
    Switch(convention=convention).resolved(mix, fewest)
