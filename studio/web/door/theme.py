"""How the pages look and what they run in the browser, as Gradio takes it when an app is mounted."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import gradio as gr

FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
SCRIPTS = ("keys.js", "complete.js", "rows.js", "status.js")
"""All scripts run in one function, in this order, so that each can use what earlier ones declare."""


@dataclass(frozen=True)
class Look:
    """css, js, head: as texts. favicon: a file's path."""

    theme: gr.themes.Base | None = None
    css: str = ""
    js: str = ""
    head: str = ""
    favicon: str | None = None


def look() -> Look:
    """The look: Gradio's own theme with the system's fonts. Nothing is fetched from other servers."""
    static = resources.files("studio.web") / "static"
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.slate,
        spacing_size=gr.themes.sizes.spacing_sm,
        radius_size=gr.themes.sizes.radius_lg,
        font=FONTS,
        font_mono=MONO,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_shadow="none",
        block_title_text_weight="600",
        block_title_text_color="*body_text_color",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        input_background_fill="*neutral_50",
        input_background_fill_dark="*neutral_950",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
        button_primary_text_color="white",
        checkbox_label_background_fill_selected="*primary_600",
        checkbox_label_background_fill_selected_dark="*primary_600",
        checkbox_label_text_color_selected="white",
        slider_color="*primary_600",
        slider_color_dark="*primary_400",
    )
    css = (static / "studio.css").read_text(encoding="utf-8")
    return Look(
        theme=theme,
        css=css,
        head=f"<style>{css}</style>",  # `css` would apply only inside Gradio's container; we style around it too
        js="() => {\n" + "\n".join((static / name).read_text(encoding="utf-8") for name in SCRIPTS) + "\n}",
    )
