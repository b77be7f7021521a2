"""How the pages look and what they run in the browser: what gradio wants when an app is mounted."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr


@dataclass(frozen=True)
class Look:
    """css, js, head: as texts. favicon: a file's path."""

    theme: gr.themes.Base | None = None
    css: str = ""
    js: str = ""
    head: str = ""
    favicon: str | None = None
