"""What every composition method promises, whichever file adds it."""

from __future__ import annotations

import ast
import dataclasses
import math
import sys
from pathlib import Path

import pytest

import composers
from composers import (
    Composer,
    Mix,
    Schedule,
    Step,
    StudioError,
    Use,
    build,
    methods,
    parse,
    settings_of,
    spell,
)
from composers.errors import ComposerError
from composers.plan import Knob

MIXES = [tuple(Use(name) for name in "abcde"[:count]) for count in range(6)]


def mixes_for(method: type[Composer]) -> list[Mix]:
    most = math.inf if method.most is None else method.most
    return [Mix(uses) for uses in MIXES if method.fewest <= len(uses) <= most]


@pytest.fixture(params=list(methods().values()), ids=lambda method: method.name)
def method(request: pytest.FixtureRequest) -> type[Composer]:
    kind: type[Composer] = request.param
    return kind


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.5])
@pytest.mark.parametrize("count", [8, 20])
def test_the_shares_of_each_role_sum_to_one(method: type[Composer], guidance: float, count: int) -> None:
    for mix in mixes_for(method):
        composer = method().resolved(mix, count)
        for index in range(count):
            plan = composer.plan(Step(index, count, guidance), mix)
            for role in ("positive", "negative") if guidance > 1 else ("positive",):
                shares = [lane.share for lane in plan.lanes if lane.prompt.role == role]
                assert sum(shares) == pytest.approx(1)
                assert min(shares) > 0
            assert guidance > 1 or all(lane.prompt.role == "positive" for lane in plan.lanes)


def test_each_positive_lane_is_followed_by_its_negative_twin(method: type[Composer]) -> None:
    for mix in mixes_for(method):
        lanes = method().resolved(mix, 20).plan(Step(3, 20, 5.0), mix).lanes
        for positive, negative in zip(lanes[::2], lanes[1::2], strict=True):
            twin = dataclasses.replace(positive.prompt, role="negative")
            assert negative == dataclasses.replace(positive, prompt=twin)


def test_any_step_can_be_asked_in_any_order(method: type[Composer]) -> None:
    for mix in mixes_for(method):
        composer = method().resolved(mix, 20)
        forward = [composer.plan(Step(index, 20, 5.0), mix) for index in range(20)]
        backward = [composer.plan(Step(index, 20, 5.0), mix) for index in reversed(range(20))]
        assert forward == backward[::-1]


def test_every_adapter_of_the_mix_has_its_part_in_the_run(method: type[Composer]) -> None:
    for mix in mixes_for(method):
        composer = method().resolved(mix, 20)
        plans = [composer.plan(Step(index, 20, 5.0), mix) for index in range(20)]
        used = {use.adapter for plan in plans for lane in plan.lanes for use in lane.uses}
        assert used == {use.adapter for use in mix.uses}


def test_settings_carry_range_and_help_and_survive_as_text(method: type[Composer]) -> None:
    assert method.summary
    composer = method()
    for setting in dataclasses.fields(composer):
        knob = setting.metadata["knob"]
        assert isinstance(knob, Knob)
        assert knob.label
        assert knob.help
    assert parse(spell(composer)) == composer == build(method.name, settings_of(composer))


def test_lanes_encode_text_as_the_mix_says() -> None:
    uses = (Use("a", 0.8, text_weight=0.3), Use("b", 0.5), Use("c", 0.7, text_weight=0.0))
    both = (Use("a", 0.3), Use("b", 0.5))
    for method in (composers.Composite(), composers.Switch(interval=4), composers.Merge()):
        for mode, seen in (("merged", [both]), ("first", [(Use("a", 0.3),)])):
            lanes = method.plan(Step(0, 12, 1.0), Mix(uses, mode)).lanes
            assert {lane.prompt.text_uses for lane in lanes} == set(seen)
    own = composers.Composite().plan(Step(0, 12, 1.0), Mix(uses, "per_adapter")).lanes
    assert [lane.prompt.text_uses for lane in own] == [(Use("a", 0.3),), (Use("b", 0.5),), ()]


def test_equal_lanes_are_one_evaluation() -> None:
    step = Step(0, 10, 7.0)
    mix = Mix((Use("a"), Use("b")))
    lanes = [mix.lane(mix.uses, 0.25, fresh=False), mix.lane(mix.uses, 0.75), mix.lane((), 0.0)]
    plan = composers.guided(lanes, step)
    assert [(lane.share, lane.fresh, lane.prompt.role) for lane in plan.lanes] == [
        (1.0, True, "positive"),
        (1.0, True, "negative"),
    ]


def test_a_schedule_is_a_step_function_of_the_run() -> None:
    schedule = Schedule(((0.25, 0.5), (0.5, 0.0)))
    assert [schedule.factor(Step(index, 8, 1.0)) for index in range(8)] == [1, 1, 0.5, 0.5, 0, 0, 0, 0]
    for points in (
        ((0.5, 1.0), (0.5, 2.0)),
        ((0.5, 1.0), (0.2, 2.0)),
        ((9, 0.0), (4, 1.0)),
        ((-0.5, 0.0),),
        ((0.0, math.nan),),
    ):
        with pytest.raises(ComposerError):
            Schedule(points)


def test_a_schedule_may_count_steps() -> None:
    schedule = Schedule(((0.25, 0.5), (4, 0.0)))
    assert [schedule.factor(Step(index, 8, 1.0)) for index in range(8)] == [1, 1, 0.5, 0.5, 0, 0, 0, 0]
    assert schedule.over(8) == Schedule(((0.25, 0.5), (0.5, 0.0)))
    assert schedule.over(4) == Schedule(((0.25, 0.5),))
    assert Schedule(((30, 0.0),)).over(20) is None
    assert Schedule(((2, 0.0), (0.5, 1.0))).over(8) == Schedule(((0.25, 0.0), (0.5, 1.0)))
    with pytest.raises(ComposerError, match="over 40 steps they do not"):
        schedule.over(40)


def test_the_step_number_one_is_the_second_step() -> None:
    schedule = Schedule(((1, 0.5),))
    assert [schedule.factor(Step(index, 4, 1.0)) for index in range(4)] == [1.0, 0.5, 0.5, 0.5]
    with pytest.raises(ComposerError, match="fractions of the steps below 1, or step numbers"):
        Schedule(((0.2, 1.0), (1.5, 0.5)))


def test_blocks_match_on_dotted_boundaries_and_the_longest_wins() -> None:
    use = Use("a", blocks=(("up_blocks.1", 0.5), ("up_blocks.1.attentions.0", 2.0)))
    assert use.block_factor("up_blocks.1.resnets.0.conv1") == 0.5
    assert use.block_factor("up_blocks.1.attentions.0.proj_in") == 2.0
    assert use.block_factor("up_blocks.10.resnets.0.conv1") == 0
    assert Use("a").block_factor("mid_block") == 1
    assert Use("a").weight == 1, "an adapter without a strength is at full strength"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("swich", "did you mean 'switch'"),
        ("switch:interval=0", "interval=0 must lie in 1"),
        ("switch:interval=2.5", "must be a whole number"),
        ("switch:interval=nan", "must be a whole number"),
        ("switch:pace=2", "no setting 'pace'"),
        ("switch:interval", "name=value"),
        ("switch:convention=mine", "one of paper, code"),
    ],
)
def test_wrong_settings_are_refused_with_the_remedy(text: str, message: str) -> None:
    with pytest.raises(StudioError, match=message):
        parse(text)


def test_weights_must_be_finite() -> None:
    for broken in (math.nan, math.inf):
        with pytest.raises(ComposerError, match="finite"):
            Use("a", broken)
        with pytest.raises(ComposerError, match="finite"):
            Use("a", 1.0, text_weight=broken)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"adapter": 3}, "adapter=3 must be a name"),
        ({"blocks": (("mid_block",),)}, "pairs of a name and a factor"),
        ({"blocks": ("mid_block",)}, "pairs of a name and a factor"),
        ({"blocks": (("mid_block", math.inf),)}, "finite"),
        ({"weight": True}, "finite numbers"),
        ({"weight": "1"}, "finite numbers"),
        ({"band": "middle"}, "band='middle' must be high, low or None"),
    ],
    ids=str,
)
def test_a_use_refuses_what_means_nothing(broken: dict[str, object], message: str) -> None:
    with pytest.raises(ComposerError, match=message):
        Use(**{"adapter": "a", **broken})  # type: ignore[arg-type]


@pytest.mark.parametrize("points", [((0.5,),), (0.5,), ((0.5, math.inf),), ((math.nan, 1.0),)], ids=str)
def test_a_schedule_refuses_what_is_no_pair_of_numbers(points: object) -> None:
    with pytest.raises(ComposerError):
        Schedule(points)  # type: ignore[arg-type]


def test_what_a_lane_remembers_features_by_is_all_but_its_strengths() -> None:
    """A strength may move between two steps; another prompt, adapter or block is another evaluation."""
    mix = Mix((Use("a", blocks=(("mid_block", 1.0),)),))
    lane = mix.lane(mix.uses, 1.0)
    moved = Use("a", 0.5, blocks=(("mid_block", 0.5),))
    assert dataclasses.replace(lane, uses=(moved,)).memory == lane.memory
    assert dataclasses.replace(lane, uses=(moved,)).key != lane.key
    assert dataclasses.replace(lane, share=0.5, fresh=False).key == lane.key
    for other in (
        dataclasses.replace(lane, variant="other"),
        dataclasses.replace(lane, prompt=dataclasses.replace(lane.prompt, role="negative")),
        dataclasses.replace(lane, prompt=composers.Prompt("positive", (Use("b"),))),
        dataclasses.replace(lane, uses=(Use("a", blocks=(("up_blocks.0", 1.0),)),)),
        dataclasses.replace(lane, uses=(Use("a", blocks=(("mid_block", 1.0),)), Use("b"))),
        dataclasses.replace(lane, uses=()),
    ):
        assert other.memory != lane.memory
        assert other.key != lane.key


def test_guidance_is_on_above_one_alone() -> None:
    """diffusers' rule: at a scale of 1 there is no negative role."""
    lane = Mix().lane((), 1.0)
    for scale, roles in ((0.0, 1), (1.0, 1), (1.0001, 2), (7.0, 2)):
        plan = composers.guided([lane], Step(0, 4, scale))
        assert len(plan.lanes) == roles
        assert plan.rule.scale == scale
    with pytest.raises(ComposerError, match="must not be negative"):
        composers.guided([Mix().lane((), -0.1)], Step(0, 4, 7.0))


def test_composers_import_the_standard_library_alone() -> None:
    folder = Path(composers.__file__).parent
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] in {"composers", *sys.stdlib_module_names}, f"{file.name}: {name}"
