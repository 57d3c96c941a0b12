"""How everything looks: one theme in two lights, set in the system's own letters (no font is fetched)."""

from __future__ import annotations

from importlib import resources
from typing import Any

import gradio as gr
from gradio.themes.utils import colors, sizes

_TEAL = colors.Color(
    c50="#eefaf7", c100="#d3f2ea", c200="#a9e4d7", c300="#74d0be", c400="#3fb39f", c500="#1f9784",
    c600="#127a6b", c700="#116157", c800="#124e47", c900="#12403b", c950="#052522", name="studio-teal",
)  # fmt: skip
_SAND = colors.Color(
    c50="#faf9f7", c100="#f3f1ed", c200="#e6e2db", c300="#d1cbc1", c400="#a39b8f", c500="#766f65",
    c600="#5b554d", c700="#45403a", c800="#2a2724", c900="#1d1b19", c950="#141311", name="studio-sand",
)  # fmt: skip
_LETTERS = ("ui-sans-serif", "system-ui", "sans-serif")
_TYPE = ("ui-monospace", "monospace")


def theme() -> gr.themes.Base:
    chosen: Any = gr.themes.Base(
        primary_hue=_TEAL,
        secondary_hue=_TEAL,
        neutral_hue=_SAND,
        radius_size=sizes.radius_lg,
        spacing_size=sizes.spacing_lg,
        text_size=sizes.text_md,
        font=_LETTERS,
        font_mono=_TYPE,
    )
    return chosen.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900",
        body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        background_fill_primary="white",
        background_fill_primary_dark="*neutral_900",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        block_title_text_weight="600",
        block_shadow="none",
        block_shadow_dark="none",
        input_background_fill="white",
        input_background_fill_dark="*neutral_950",
        input_border_color="*neutral_400",
        input_border_color_dark="*neutral_600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        button_secondary_background_fill="*neutral_100",
        button_secondary_background_fill_hover="*neutral_200",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
    )


def css() -> str:
    """What all pages share, then what single screens add."""
    files = {file.name: file.read_text(encoding="utf-8") for file in resources.files("ui").joinpath("assets").iterdir()}
    shared = files.pop("studio.css")
    return "\n".join([shared, *(files[name] for name in sorted(files) if name.endswith(".css"))])
