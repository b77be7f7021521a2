"""A summary of the form: total strength, the method's cost and schedule, and words that the model does not know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import gradio as gr

from pipelines import StudioError
from pipelines.bounds import LONGEST_PROMPT
from pipelines.home import Home
from pipelines.request import Request
from pipelines.text.embeddings import Names, words_beside
from pipelines.text.vocabulary import unknown as unknown_words
from studio.jobs import ModelState
from studio.web.form import methods as method_room
from studio.web.form import mix
from studio.web.form.components import Fields
from studio.web.form.form import OWN_METHOD, Form
from studio.web.parts import words
from studio.web.parts.desk import Desk

MOST_CELLS = 10_000
"""Most cells of the schedule's table; a larger table is left out."""
GAUGE = 2.0
"""The total strength that fills the gauge."""


@dataclass(frozen=True)
class Summary:
    """gauge, cost, unknown: texts. tags: the button that is visible while the prompt contains tags. triggers: the
    trigger words of the chosen LoRAs, for completion."""

    gauge: gr.HTML
    cost: gr.HTML
    unknown: gr.HTML
    tags: gr.Button
    triggers: gr.HTML

    def wire(self, desk: Desk, fields: Fields) -> None:
        """Updates the summary with every change of the form."""

        def say(got: Mapping[Any, Any]) -> dict[Any, Any]:
            state = desk.worker.model_state()
            try:
                form = fields.read(got)
            except StudioError as error:
                return {self.cost: _note(error)}
            form = replace(form, rows=desk.preferring(form.rows))
            triggers = _triggers(desk, form.rows)
            return {
                self.gauge: gauge_html(form.rows),
                self.cost: cost_html(form, state),
                self.unknown: _unknown(form.prompt, state, triggers, desk.worker.home),
                self.tags: gr.Button(
                    visible=len(form.prompt) <= LONGEST_PROMPT and mix.has_tags(form.prompt)
                ),
                self.triggers: words.completions("triggers", [(word, word) for word in triggers]),
            }

        gr.on(
            [
                component.change
                for component in (
                    fields.rows,
                    fields.method,
                    fields.method_values,
                    *(fields.controls[name] for name in ("prompt", "steps", "guidance_scale")),
                )
            ],
            say,
            fields.components,
            {self.gauge, self.cost, self.unknown, self.tags, self.triggers},
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
        )


def gauge_html(rows: mix.MixRows) -> str:
    total = mix.total(rows)
    before = sum(abs(weight) for weight in mix.weights_before(rows).values())
    kind = "gauge high" if total > GAUGE else "gauge"
    hint = " · strong: LoRAs may fight" if total > GAUGE else ""
    hint += f" · normalised, it was {before:.2f}" if before else ""
    return (
        f'<div class="{kind}"><span>Total strength {total:.2f}{hint}</span>'
        f'<span class="bar"><i style="width:{min(100 * total / GAUGE, 100):.0f}%"></i></span></div>'
    )


def cost_html(form: Form, state: ModelState) -> str:
    """The method's cost and schedule as HTML, or why it cannot be used."""
    defaults = state.defaults
    steps, guidance = form.said("steps"), form.said("guidance_scale")
    steps = (defaults.steps if defaults else 20) if steps is None else steps
    guidance = (defaults.guidance_scale if defaults else 7.0) if guidance is None else guidance
    try:
        members = mix.uses_of(form.rows)
        Request("", steps=steps, adapters=members.uses)  # the gate
        if len(members) * steps > MOST_CELLS:
            return (
                f'<p class="small-note">{len(members)} LoRAs over {steps} steps are too many to be shown.</p>'
            )
        plans = method_room.schedule(
            method_room.built(form.method or OWN_METHOD, form.method_values), members, steps, guidance
        )
    except StudioError as error:
        return _note(error)
    names = [use.adapter for use in members.uses]
    return f'<p class="small-note">{method_room.cost(plans)}</p>{method_room.timeline(plans, names)}'


def _note(error: StudioError) -> str:
    return f'<p class="small-note">{escape(str(error))}</p>'


def _unknown(prompt: str, state: ModelState, triggers: Sequence[str], home: Home) -> str:
    """The words that the model does not know, and that name no embedding, as HTML; for a prompt that is too long, only
    that."""
    if len(prompt) > LONGEST_PROMPT:
        return (
            f'<p class="unknown small-note">The prompt has {len(prompt)} characters; at most {LONGEST_PROMPT} are '
            "drawn.</p>"
        )
    if state.vocabulary:  # else every word is known
        prompt = words_beside(prompt, Names(entry.name for entry in home.embeddings()))
    return words.unknown_html(unknown_words(prompt, state.vocabulary, triggers))


def _triggers(desk: Desk, rows: mix.MixRows) -> list[str]:
    found = desk.worker.library.named(row.name for row in rows)
    return list(dict.fromkeys(word for card in found for word in card.triggers))
