"""The composition methods as a page shows them: their settings, schedules and costs. No gradio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from composers import Composer, Mix, Plan, Step, build, methods
from composers.plan import Setting
from composers.plan import settings as settings_of_kind


def settings(method: str) -> tuple[Setting, ...]:
    """The settings of a method, in its own order."""
    return settings_of_kind(methods()[method])


def built(method: str, values: Mapping[str, object]) -> Composer:
    """The method with the settings that the page holds. Settings of other methods are ignored.

    Raises ComposerError for a bad value.
    """
    chosen: dict[str, object] = {}
    for setting in settings(method):
        value = values.get(setting.name, setting.default)
        if value is None:
            value = setting.default
        if setting.whole and isinstance(value, float) and value.is_integer():
            value = int(value)  # a slider's whole number may come as a float
        chosen[setting.name] = value
    return build(method, chosen)


def schedule(composer: Composer, mix: Mix, steps: int, guidance: float) -> tuple[Plan, ...]:
    """The plans of all steps. Raises ComposerError where the method does not allow this mix, or so few steps."""
    members = Mix(composer.prepared(mix.uses), mix.text)
    resolved = composer.resolved(members, steps)
    return tuple(resolved.plan(Step(index, steps, guidance), members) for index in range(steps))


def cost(plans: Sequence[Plan]) -> str:
    """The cost of a run, in words, in UNet rows: one row is one pass of one picture through the UNet."""
    rows = [len(plan.lanes) for plan in plans]
    reused = sum(not lane.fresh for plan in plans for lane in plan.lanes)
    a_step = f"{rows[0]}" if min(rows) == max(rows) else f"{min(rows)} to {max(rows)}"
    said = f"{a_step} UNet rows a step, {sum(rows)} a picture"
    return said + (f", {reused} of them shallow (on remembered features)" if reused else "")


def timeline(plans: Sequence[Plan], names: Sequence[str]) -> str:
    """Which LoRA acts at which step, as an HTML table with texts for those who cannot see it."""
    if not plans or not names:
        return ""
    count = len(plans)
    lines = []
    for name in names:
        cells = []
        for index, plan in enumerate(plans):
            positive = [lane for lane in plan.lanes if lane.prompt.role == "positive"]
            own = [lane for lane in positive if any(use.adapter == name for use in lane.uses)]
            share = sum(lane.share for lane in own)
            shallow = bool(own) and not any(lane.fresh for lane in own)
            says = (
                "does not act"
                if not own
                else f"share {share:.2f}" + (", remembered features" if shallow else "")
            )
            kind = "shallow" if shallow else "full"
            cells.append(
                f'<td class="{kind}" style="--share:{share:.3f}" title="step {index + 1} of {count}: {says}"></td>'
            )
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    said = f"Which LoRA acts at which of {count} steps, the darker the larger its share"
    body = f"<caption>{said}</caption><tbody>{''.join(lines)}</tbody>"
    return f'<table class="timeline" aria-label="{said}">{body}</table>'
