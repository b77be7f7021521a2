"""The forms that prompts know, in one list: `--help` and the guide (`PROMPTS.md`) show it. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """One form. example: a prompt that shows it. meaning: in a few words. elsewhere: how A1111 differs; "" where it
    draws the same."""

    example: str
    meaning: str
    elsewhere: str = ""


FORMS = (
    Form("(word)", "weight 1.1; ((word)) is 1.21"),
    Form("[word]", "weight 1/1.1"),
    Form("(word:1.3)", "weight 1.3", "there, the rescaling of a weighted chunk has no bounds"),
    Form("one BREAK two", "the words after it begin a new chunk of 75 tokens", "in brackets it is a word there"),
    Form(r"\( \) \[ \] \: \|", "the character itself"),
    Form(
        "[fox:cat:0.5]", "fox first, then cat: at half of the steps; [fox:cat:5] at step 5",
        "with Heun and DPM2, model calls are counted there, two a step; with an initial image, all steps",
    ),
    Form("[cat:0.5]", "nothing first, then cat"),
    Form("[fox::0.5]", "fox first, then nothing"),
    Form("[fox|cat]", "fox and cat by turns, one step each"),
    Form(
        "a fox AND a cat :1.2", "two prompts at once, each with its weight",
        "without AND, a number at a prompt's end is a weight there",
    ),
    Form("<lora:name:0.8>", "a LoRA, at a strength; also 80% or 0,8"),
    Form("<lora:name:0.5:0.8>", "text encoder at 0.5, UNet at 0.8; by name te=0.5:unet=0.8"),
    Form(
        "<lora:name:0.8:lbw=OUTALL>", "strengths by block: a preset, numbers, or block@factor,…",
        "an extension does this there",
    ),
    Form(
        "<lora:name:0.8:start=0.2:stop=0.6>", "on from 20 % of the steps, off from 60 %; step=1@0,0.5@0.4 sets factors",
        "an extension does this there",
    ),
    Form(
        "[<lora:name:0.8>:0.5]", "the LoRA from half of the steps on, as the words beside it",
        "it is on throughout there",
    ),
    Form("name", "an embedding of that name, from a folder of embeddings; ComfyUI's embedding:name too"),
)  # fmt: skip
"""All forms, in the order of the guide."""


def forms_help() -> str:
    """The list as lines of help, two columns."""
    wide = max(len(form.example) for form in FORMS)
    return "\n".join(["what prompts understand:", *(f"  {f.example:<{wide}}  {f.meaning}" for f in FORMS)])
