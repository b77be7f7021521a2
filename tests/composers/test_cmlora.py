"""CMLoRA against the released code's traces and counts, and against its own rules."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from composers import CMLoRA, ComposerError, Mix, Plan, Step, Use


def mix_of(high: int, low: int = 0) -> Mix:
    """Adapters "0", "1", … of the high band; "low0", … of the low one stand in front, to be sorted behind."""
    lows = tuple(Use(f"low{place}", band="low") for place in range(low))
    return Mix((*lows, *(Use(str(place), band="high") for place in range(high))))


def plans(composer: CMLoRA, mix: Mix, count: int) -> list[Plan]:
    return [composer.plan(Step(index, count, 1.0), mix) for index in range(count)]


def dominants(composer: CMLoRA, mix: Mix, count: int) -> list[str]:
    """The adapter with the largest share, step by step."""
    leads = [max(plan.lanes, key=lambda lane: lane.share) for plan in plans(composer, mix, count)]
    return [lane.uses[0].adapter for lane in leads]


def full_passes(composer: CMLoRA, mix: Mix, count: int) -> int:
    """Lanes evaluated in full, by a plain memory that keeps every full lane's features."""
    remembered: dict[object, int] = {}
    found = 0
    for index, plan in enumerate(plans(composer, mix, count)):
        for lane in plan.lanes:
            born = remembered.get(lane.memory)
            if lane.fresh or born is None or index - born > plan.max_age:
                remembered[lane.memory] = index
                found += 1
    return found


@pytest.mark.parametrize(("count", "refreshes"), [(220, 92), (200, 85), (100, 43), (20, 10)])
def test_the_non_uniform_schedule(count: int, refreshes: int) -> None:
    steps = [
        index
        for index, plan in enumerate(plans(CMLoRA(refresh="dominant_only"), mix_of(2), count))
        if any(lane.fresh for lane in plan.lanes)
    ]
    assert len(steps) == refreshes
    if count == 220:
        assert [b - a for a, b in pairwise(steps)] == ([2] * 40 + [2] + [3] * 36 + [2] + [2] * 13), (
            "2 up to step 82, 3 up to step 192, then 2"
        )


@pytest.mark.parametrize(
    ("adapters", "dominant", "other"), [(1, 1, 0), (2, 0.6, 0.4), (3, 0.556, 0.222), (4, 0.538, 0.154)]
)
def test_the_shares(adapters: int, dominant: float, other: float) -> None:
    for composer in (CMLoRA(), CMLoRA(compat="release")):
        for plan in plans(composer, mix_of(adapters), 20):
            shares = sorted((lane.share for lane in plan.lanes), reverse=True)
            assert shares == pytest.approx([dominant] + [other] * (adapters - 1), abs=1e-3)
            assert sum(shares) == pytest.approx(1)


def test_the_low_band_has_its_turn_after_the_partition_point() -> None:
    mix = mix_of(2, low=1)
    early = [*"00", *"11", *"00", *"11", *"000", "1"]  # refreshes at 0, 2, 4, 6, 8 and 11; the point is 12
    late = ["low0"] * 2 + ["0"] * 3 + ["1"] * 2 + ["low0"] * 2 + ["0"]  # at 14, 17, 19 and 21
    assert dominants(CMLoRA(), mix, 22) == early + late
    assert dominants(CMLoRA(partition=0.0, interval=1), mix, 6) == ["0", "1", "low0"] * 2
    assert dominants(CMLoRA(partition=1.0, interval=1), mix, 6) == ["0", "1"] * 3


def test_a_band_that_nobody_gave_is_high_and_low_ones_alone_take_turns() -> None:
    bare = Mix((Use("a"), Use("b", band="low"), Use("c")))
    assert dominants(CMLoRA(interval=1, partition=1.0), bare, 4) == ["a", "c", "a", "c"]
    assert dominants(CMLoRA(interval=1), mix_of(0, low=2), 4) == ["low0", "low1"] * 2


def test_decay_lowers_the_dominant_share_and_never_below_the_others() -> None:
    mix = mix_of(3)
    shares = [
        max(lane.share for lane in plan.lanes) for plan in plans(CMLoRA(decay=True, interval=1), mix, 6)
    ]
    weights = [2.5, 1.5, 1.0, 1.0, 1.0, 1.0]  # 2.5 - 1, then 2.5 - 1.5 = 1, then clamped
    assert shares == pytest.approx([weight / (weight + 2) for weight in weights])


@pytest.mark.parametrize(
    ("refresh", "short", "long"),
    [
        ("dominant_only", 5 + 9, 5 + 42),
        ("dominant_every_step", 5 + 19, 5 + 99),
        ("every_step_in_turn", 5 + 19, 5 + 99),
        ("all", 5 * 10, 5 * 43),
        ("uncached", 100, 500),
    ],
)
def test_full_passes_of_each_refresh_mode(refresh: str, short: int, long: int) -> None:
    composer = CMLoRA(refresh=refresh)
    for count, expected in ((20, short), (100, long)):
        assert full_passes(composer, mix_of(5), count) == expected


def test_a_low_adapter_is_not_frozen_before_its_turn() -> None:
    mix = mix_of(4, low=1)
    composer = CMLoRA(refresh="dominant_only")
    ages = {plan.max_age for plan in plans(composer, mix, 100)}
    assert ages == {15}
    assert full_passes(composer, mix, 100) > full_passes(composer, mix_of(5), 100)


def test_with_every_step_in_turn_the_dominance_passes_at_every_step() -> None:
    in_turn = CMLoRA(refresh="every_step_in_turn", partition=0.5)
    assert dominants(in_turn, mix_of(2, low=1), 8) == ["0", "1", "0", "1", "1", "low0", "0", "1"]
    assert {plan.max_age for plan in plans(in_turn, mix_of(2, low=1), 8)} == {3}


def test_interval_one_caches_nothing() -> None:
    for refresh in ("dominant_only", "dominant_every_step", "every_step_in_turn", "all"):
        composer = CMLoRA(refresh=refresh, interval=1)
        assert full_passes(composer, mix_of(3), 20) == 60


# -- the released code -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("high", "low", "interval", "passes"),
    [(1, 1, 2, 62), (4, 1, 2, 65), (5, 0, 2, 114), (5, 0, 0, 1100), (4, 1, 0, 1100), (2, 0, 1, 440)],
)
def test_full_passes_of_the_release(high: int, low: int, interval: int, passes: int) -> None:
    assert full_passes(CMLoRA(compat="release", interval=interval), mix_of(high, low), 220) == passes


def test_a_low_adapter_keeps_the_release_on_the_features_of_the_first_step() -> None:
    """Late from step 1 on, and in the late phase nothing is refreshed."""
    online = CMLoRA(compat="release_online", interval=2)
    assert full_passes(online, mix_of(1, 1), 220) == 2
    assert full_passes(online, mix_of(4, 1), 220) == 5
    assert full_passes(online, mix_of(5), 220) == 114


def test_dominants_of_the_release() -> None:
    mix = mix_of(2, low=1)
    found = dominants(CMLoRA(compat="release", interval=2), mix, 220)
    assert found[:6] == ["0", "0", "1", "1", "0", "0"]
    assert set(found[:121]) == {"0", "1"}
    assert found[120] == "0"
    assert found[121:126] == ["1", "low0", "low0", "1", "1"], "the character is never dominant again"
    assert set(found[121:]) == {"1", "low0"}
    short = dominants(CMLoRA(compat="release"), mix, 100)
    assert "low0" not in short, "120 is a step, whatever the run's length"
    high = dominants(CMLoRA(compat="release", interval=2), mix_of(2), 220)
    assert set(high[121:]) == {"0", "1"}


def test_the_online_release_is_late_from_step_one() -> None:
    found = dominants(CMLoRA(compat="release_online", interval=1), mix_of(2, low=1), 220)
    assert found[:5] == ["0", "low0", "1", "low0", "1"]


@pytest.mark.parametrize("setting", [{"decay": True}, {"refresh": "every_step_in_turn"}], ids=str)
def test_what_does_nothing_in_the_release(setting: dict[str, Any]) -> None:
    release = CMLoRA(compat="release", interval=2)
    assert plans(replace(release, **setting), mix_of(3), 30) == plans(release, mix_of(3), 30)


def test_low_adapters_alone_have_no_turn_in_the_release() -> None:
    mix = mix_of(0, low=2)
    with pytest.raises(ComposerError, match="low0, low1"):
        CMLoRA(compat="release").resolved(mix, 20)
    CMLoRA().resolved(mix, 20)
    CMLoRA(compat="release").resolved(mix_of(1, low=2), 20)
    CMLoRA(compat="release").resolved(mix_of(0, low=1), 20)


def test_settings_are_checked() -> None:
    with pytest.raises(ComposerError, match="true or false"):
        CMLoRA(decay="yes")  # type: ignore[arg-type]
    with pytest.raises(ComposerError, match="0 … 1"):
        CMLoRA(partition=1.5)
    with pytest.raises(ComposerError, match="at least 1"):
        CMLoRA().resolved(Mix(), 20)


def test_freshness_is_a_permission_of_the_lane_alone() -> None:
    cached = CMLoRA(refresh="dominant_only").plan(Step(3, 20, 5.0), mix_of(3))
    plain = CMLoRA(refresh="uncached").plan(Step(3, 20, 5.0), mix_of(3))
    assert tuple(replace(lane, fresh=True) for lane in cached.lanes) == plain.lanes
