"""The studio's pages, put together."""

from __future__ import annotations

import gradio as gr

from studio.jobs import Worker
from studio.web import api
from studio.web.look import Look


def build(worker: Worker) -> gr.Blocks:
    """All pages and the functions for programs, over one worker."""
    pages: gr.Blocks
    with gr.Blocks(title="LoRA Studio", analytics_enabled=False) as pages:
        gr.Markdown("# LoRA Studio")
        api.add(worker)
    return pages


def look() -> Look:
    """How it looks."""
    return Look()
