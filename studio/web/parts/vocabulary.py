"""The words of a small model: example prompts, chips to insert words, and a random prompt."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import gradio as gr

from studio.jobs import ModelState
from studio.web.parts import words
from studio.web.parts.desk import Desk


@dataclass(frozen=True)
class VocabularyPanel:
    """The panel of these words. It is hidden for a model that has no fixed vocabulary."""

    surprise: gr.Button
    panel: gr.Accordion
    examples: gr.HTML
    category: gr.Radio
    chips: gr.HTML

    @classmethod
    def drawn(cls, surprise: gr.Button) -> VocabularyPanel:
        """Draws it into the current blocks. surprise: the button for a random prompt, which is drawn elsewhere."""
        with gr.Accordion("Examples, and the words this model knows", open=False, visible=False) as panel:
            examples = gr.HTML(container=False, elem_id="examples")
            category = gr.Radio([], label="Kind of word", elem_id="category")
            chips = gr.HTML(container=False)
        return cls(surprise, panel, examples, category, chips)

    @property
    def components(self) -> list[Any]:
        return list(vars(self).values())

    def for_model(self, state: ModelState) -> dict[Any, Any]:
        groups = list(state.vocabulary)
        return {
            self.surprise: gr.Button(visible=bool(groups)),
            self.panel: gr.Accordion(visible=bool(groups)),
            self.examples: words.examples(state.examples),
            self.category: gr.Radio(groups, value=groups[0] if groups else None),
            self.chips: words.chips(state.vocabulary[groups[0]]) if groups else "",
        }

    def wire(self, desk: Desk, prompt: gr.Textbox) -> None:
        self.category.change(
            lambda group: words.chips(desk.worker.model_state().vocabulary.get(group, {})),
            self.category,
            self.chips,
            show_progress="hidden",
            api_visibility="private",
        )
        self.surprise.click(
            lambda: words.by_chance(desk.worker.model_state().vocabulary, random.Random()),
            None,
            prompt,
            api_visibility="private",
        )
